"""Whether a text says again what another said: exact and near duplicates, and n-grams in common."""

from stillhouse.similar.near import NearIndex, Repeat, exact_repeats, near_repeats, shared_wording
from stillhouse.similar.overlap import Coverage, NgramIndex, Overlap, Span

__all__ = [
    "Coverage",
    "NearIndex",
    "NgramIndex",
    "Overlap",
    "Repeat",
    "Span",
    "exact_repeats",
    "near_repeats",
    "shared_wording",
]
