"""Signals of distillation that providers share: made, signed, matched, traced. See docs/guard-signals.md."""

from stillhouse.guard.signals.form import Received, Signal
from stillhouse.guard.signals.matching import Match, matches
from stillhouse.guard.signals.sketch import Sketch, joined, sketch_of

__all__ = ["Match", "Received", "Signal", "Sketch", "joined", "matches", "sketch_of"]
