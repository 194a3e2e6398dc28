"""Whether a text says again what another said: exact and near duplicates, and n-grams in common."""

from stillhouse.similar.near import NearIndex, Repeat, exact_repeats, near_repeats
from stillhouse.similar.overlap import NgramIndex, Overlap, Span

__all__ = ["NearIndex", "NgramIndex", "Overlap", "Repeat", "Span", "exact_repeats", "near_repeats"]
