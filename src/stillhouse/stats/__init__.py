"""Intervals, tests and sample sizes for paired, clustered scores: pure functions over numpy arrays.

Rows come from groups (a template, a source document) and rows of one group are alike, so everything that
claims to speak of new prompts takes group codes and treats the group, not the row, as the unit drawn.
Randomness is passed in.
"""

from stillhouse.stats.binomial import binomial_at_most, binomial_upper
from stillhouse.stats.calibration import brier_score, expected_calibration_error, negative_log_likelihood
from stillhouse.stats.intervals import (
    UNDEFINED,
    Codes,
    Floats,
    Interval,
    bootstrap_ratio,
    clustered_error,
    clustered_share,
    group_codes,
    independent_difference,
    t_quantile,
    wilson,
)
from stillhouse.stats.margin import (
    Decision,
    decidable_margin,
    decide,
    expected_table,
    power,
    prompts_needed,
)
from stillhouse.stats.paired import Table, fieller_ratio, paired_difference, paired_ratio, ratio_table
from stillhouse.stats.significance import Marks, energy_test, holm, mcnemar, sign_flip

__all__ = [
    "UNDEFINED",
    "Codes",
    "Decision",
    "Floats",
    "Interval",
    "Marks",
    "Table",
    "binomial_at_most",
    "binomial_upper",
    "bootstrap_ratio",
    "brier_score",
    "clustered_error",
    "clustered_share",
    "decidable_margin",
    "decide",
    "energy_test",
    "expected_calibration_error",
    "expected_table",
    "fieller_ratio",
    "group_codes",
    "holm",
    "independent_difference",
    "mcnemar",
    "negative_log_likelihood",
    "paired_difference",
    "paired_ratio",
    "power",
    "prompts_needed",
    "ratio_table",
    "sign_flip",
    "t_quantile",
    "wilson",
]
