"""What a cascade saves, by the prices of both models."""

import pytest

from stillhouse.cascade.saving import Taken, saved
from stillhouse.money import FREE, Price

STUDENT, TEACHER = Price(0.1, 0.4), Price(2.0, 8.0)


def test_what_was_kept_would_have_cost_the_teachers_price_and_all_that_was_asked_costs_the_students():
    taken = Taken().asked((1_000_000, 500_000)).given((1_000_000, 500_000)).asked((1_000_000, 0)).asked(None)
    assert taken == Taken((2_000_000, 500_000), (1_000_000, 500_000), 1)
    assert saved(taken, STUDENT, TEACHER) == pytest.approx(2.0 + 4.0 - 0.2 - 0.2)
    assert saved(taken, FREE, TEACHER) == pytest.approx(6.0)


def test_a_student_that_is_never_sure_costs_and_saves_nothing():
    assert saved(Taken().asked((1_000_000, 0)), STUDENT, TEACHER) == pytest.approx(-0.1)


@pytest.mark.parametrize(("student", "teacher"), [(None, TEACHER), (STUDENT, None), (None, None)])
def test_an_unknown_price_stays_unknown(student, teacher):
    assert saved(Taken().asked((5, 5)), student, teacher) is None
