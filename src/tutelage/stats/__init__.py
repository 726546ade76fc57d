"""Numbers to intervals (`intervals`), intervals to words (`conclusions`)."""

from tutelage.stats.conclusions import (
    Recommendation,
    convergence_sentence,
    covers,
    recommend,
    still_rising,
    verdict,
)
from tutelage.stats.intervals import (
    FEW_GROUPS,
    FEW_WITH_TRUTH,
    Interval,
    paired_difference,
    percentile_interval,
    resample_weights,
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
    "Interval",
    "Recommendation",
    "convergence_sentence",
    "covers",
    "paired_difference",
    "percentile_interval",
    "recommend",
    "resample_weights",
    "seeds_and_images",
    "separate_intervals",
    "shown",
    "simultaneous_differences",
    "still_rising",
    "t_interval",
    "t_quantile",
    "verdict",
]
