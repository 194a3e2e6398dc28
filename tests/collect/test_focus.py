"""Which families get further prompts."""

from hypothesis import given
from hypothesis import strategies as st

from stillhouse.collect.focus import PRIOR, Scored, expected_losses, shares

scores = st.floats(0, 1)
sizes = st.integers(1, 500)


@st.composite
def families(draw) -> list[Scored]:
    names = draw(st.lists(st.text("abcdef", min_size=1), unique=True, max_size=6))
    made = []
    for name in names:
        prompts = draw(sizes)
        made.append(Scored(name, prompts, draw(st.integers(1, prompts)), draw(scores), draw(scores)))
    return made


@given(families(), st.integers(1, 1000))
def test_every_prompt_goes_to_a_family_that_lost_something(found, count):
    given_to = shares(found, count)
    losses = expected_losses(found)
    assert sum(given_to.values()) == (count if any(loss > 0 for loss in losses.values()) else 0)
    assert all(number > 0 and losses[family] > 0 for family, number in given_to.items())
    assert given_to == shares(found[::-1], count)


@given(families())
def test_a_loss_is_drawn_towards_the_mean_and_never_past_it(found):
    total = sum(of.prompts for of in found)
    mean = sum(of.prompts * of.lost for of in found) / total if total else 0.0
    for of in found:
        low, high = sorted((of.lost, mean))
        assert low - 1e-9 <= expected_losses(found)[of.family] <= high + 1e-9


def test_what_a_large_family_lost_decides_and_a_tiny_one_is_hardly_believed():
    found = [
        Scored("fine", 200, 200, 0.9, 0.9),
        Scored("poor", 200, 200, 0.9, 0.5),
        Scored("tiny", 3, 3, 1.0, 0.0),
        Scored("ahead", 100, 100, 0.5, 0.8),
    ]
    given_to = shares(found, 100)
    assert given_to["poor"] > 90
    assert "ahead" not in given_to
    assert given_to.get("tiny", 0) <= 2
    mean = sum(of.prompts * of.lost for of in found) / 503
    assert expected_losses(found)["tiny"] == (3 * 1.0 + PRIOR * mean) / (3 + PRIOR)


def test_prompts_of_one_group_count_as_one():
    alike, apart = Scored("alike", 100, 2, 1.0, 0.2), Scored("apart", 100, 100, 1.0, 0.2)
    rest = Scored("rest", 800, 800, 1.0, 0.95)
    losses = expected_losses([alike, apart, rest])
    assert losses["rest"] < losses["alike"] < losses["apart"]


def test_what_the_teacher_cannot_do_is_not_lost():
    found = [Scored("hopeless", 4, 4, 0.0, 0.0), Scored("rest", 100, 100, 1.0, 0.1)]
    assert shares(found, 10) == {"rest": 10}


def test_where_nothing_is_lost_or_known_nobody_gets_anything():
    assert shares([], 10) == {}
    assert shares([Scored("a", 10, 10, 0.4, 0.4), Scored("b", 10, 10, 0.4, 0.9)], 10) == {}
