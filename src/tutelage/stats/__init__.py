"""Redrawn test sets (`draws`), intervals (`intervals`; over clusters: `certificate`), and words (`conclusions`)."""

from tutelage.stats.certificate import ClassCertificate, Sums, certify_class, evidence, ratio_interval
from tutelage.stats.conclusions import (
    Recommendation,
    convergence_sentence,
    covers,
    joint_verdict,
    recommend,
    still_rising,
    verdict,
)
from tutelage.stats.draws import FEW_GROUPS, Draws, Kind, Resampled, bootstrap, draw, leave_one_out
from tutelage.stats.intervals import (
    FEW_WITH_TRUTH,
    Interval,
    figure_interval,
    paired_difference,
    seeds_and_images,
    separate_intervals,
    shown,
    simultaneous_differences,
    t_interval,
    t_quantile,
)

__all__ = [
    "FEW_GROUPS",
    "FEW_WITH_TRUTH",
    "ClassCertificate",
    "Draws",
    "Interval",
    "Kind",
    "Recommendation",
    "Resampled",
    "Sums",
    "bootstrap",
    "certify_class",
    "convergence_sentence",
    "covers",
    "draw",
    "evidence",
    "figure_interval",
    "joint_verdict",
    "leave_one_out",
    "paired_difference",
    "ratio_interval",
    "recommend",
    "seeds_and_images",
    "separate_intervals",
    "shown",
    "simultaneous_differences",
    "still_rising",
    "t_interval",
    "t_quantile",
    "verdict",
]
