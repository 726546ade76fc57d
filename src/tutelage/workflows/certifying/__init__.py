"""The certificate: what precision and recall pseudo-labels have, on human labels that the teacher did not train on."""

from tutelage.workflows.certifying.command import certify

__all__ = ["certify"]
