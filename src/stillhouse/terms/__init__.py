"""What teachers' terms allow: the facts, and the gate that every request passes."""

from stillhouse.terms.deciding import Decision, DeclaredTerms, decide
from stillhouse.terms.gate import (
    admit,
    admit_base,
    admit_import,
    admit_release,
    consider,
    consider_base,
    uses_of,
)

__all__ = [
    "Decision",
    "DeclaredTerms",
    "admit",
    "admit_base",
    "admit_import",
    "admit_release",
    "consider",
    "consider_base",
    "decide",
    "uses_of",
]
