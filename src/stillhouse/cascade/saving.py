"""What a cascade has saved: the teacher was not asked for what the student answered."""

from __future__ import annotations

from dataclasses import dataclass

from stillhouse.money import Price


@dataclass(frozen=True, slots=True)
class Taken:
    """Tokens in and out: what the student took for all that it was asked, and for the answers of it that were
    given because it was sure. Of `untold` answers the server did not say what they took: nothing of them
    is in the sums."""

    student: tuple[int, int] = (0, 0)
    kept: tuple[int, int] = (0, 0)
    untold: int = 0

    def asked(self, used: tuple[int, int] | None) -> Taken:
        """After one more answer of the student; None where it is not known what it took."""
        if used is None:
            return Taken(self.student, self.kept, self.untold + 1)
        return Taken(_sum(self.student, used), self.kept, self.untold)

    def given(self, used: tuple[int, int] | None) -> Taken:
        """After one more answer of it was given."""
        return self if used is None else Taken(self.student, _sum(self.kept, used), self.untold)


def saved(taken: Taken, student: Price | None, teacher: Price | None) -> float | None:
    """US dollars against asking the teacher alone, if it had read and written as many tokens for the answers
    that were kept as the student did: what these would have cost, less all that the student took. Below 0
    where it costs more than it saves; None where either price is unknown."""
    if student is None or teacher is None:
        return None
    return teacher.of(*taken.kept) - student.of(*taken.student)


def _sum(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return one[0] + other[0], one[1] + other[1]
