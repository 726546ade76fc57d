"""What pseudo-labels of a class are worth at every threshold (`intervals`), and which can be promised (`testing`)."""

from tutelage.stats.certificate.intervals import Evidence, evidence, ratio_interval
from tutelage.stats.certificate.testing import ClassCertificate, Sums, certify_class

__all__ = ["ClassCertificate", "Evidence", "Sums", "certify_class", "evidence", "ratio_interval"]
