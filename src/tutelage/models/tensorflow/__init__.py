"""Weights of the authors' TensorFlow release, by their variables' names (table: docs/tensorflow.md)."""

from tutelage.models.tensorflow.mapping import Mapped, from_tensorflow

__all__ = ["Mapped", "from_tensorflow"]
