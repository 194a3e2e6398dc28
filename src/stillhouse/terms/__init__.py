"""What teachers' terms allow: the facts, and the gate that every request passes."""

from stillhouse.terms.deciding import Decision, DeclaredTerms, decide
from stillhouse.terms.gate import admit, admit_import, admit_release, consider, uses_of

__all__ = [
    "Decision",
    "DeclaredTerms",
    "admit",
    "admit_import",
    "admit_release",
    "consider",
    "decide",
    "uses_of",
]
