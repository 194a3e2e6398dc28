"""What teachers' terms allow: the facts, and the gate that every request passes."""

from stillhouse.terms.gate import Decision, DeclaredTerms, admit, admit_import, decide
from stillhouse.terms.registry import TeacherFacts, Use, teacher_facts

__all__ = [
    "Decision",
    "DeclaredTerms",
    "TeacherFacts",
    "Use",
    "admit",
    "admit_import",
    "decide",
    "teacher_facts",
]
