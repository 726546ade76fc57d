"""The verb `pretrain`: backbones made from the user's own images."""

from tutelage.workflows.pretraining.command import pretrain

__all__ = ["pretrain"]
