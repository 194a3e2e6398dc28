"""Accounts that act as one, among customers who do not: of settings, words, questions and times."""

from random import Random

import pytest
from acting import DAY, MONTH, PACKAGE, busy, customers, said, sketch, team
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.guard.clusters import ALARMS, LOOKS, clusters, due, in_words
from stillhouse.guard.evidence import SIZE as EVIDENCE
from stillhouse.guard.likeness import REQUESTS, SIZE, SLOT, Sketch, came, joined, month_of


@pytest.fixture(scope="module")
def crowd():
    return customers(250)


def test_accounts_with_one_program_and_one_schedule_are_found_though_each_asks_something_else(crowd):
    theirs = team(20, "one")
    found = clusters(crowd | theirs, Random(3))
    (cluster,) = found.clusters
    assert set(cluster.accounts) >= set(list(theirs)[:1])
    assert set(cluster.accounts) <= set(theirs)
    assert len(cluster.accounts) >= 16
    assert cluster.chance * found.groups <= 0.5
    assert "the same model, system message and settings" in in_words(cluster)


def test_customers_of_one_application_are_no_cluster(crowd):
    bought = team(
        60, "bought", PACKAGE, before="Ticket of a customer, to be answered by us today: ", apart=True
    )
    found = clusters(crowd | bought, Random(3))
    assert found.clusters == ()
    assert found.groups >= 1


def test_accounts_on_one_schedule_are_no_cluster_where_each_has_a_program_of_its_own(crowd):
    made = {
        f"launch-{number}": next(iter(team(1, f"launch {number}", f"Tool {number}.").values()))
        for number in range(30)
    }
    assert clusters(crowd | made, Random(3)).clusters == ()


def test_who_asks_a_public_test_set_at_another_time_is_no_cluster(crowd):
    draw = Random("public")
    questions = [said(draw) for _ in range(40)]
    assert clusters(crowd | team(30, "public", apart=True, questions=questions), Random(3)).clusters == ()


def test_an_account_in_other_dress_joins_by_its_questions_and_times(crowd):
    theirs, draw = team(12, "dressed"), Random("dressed")
    same = [said(draw) for _ in range(40)]
    theirs["team-4"] = sketch(busy(draw, 11.0, 14.0, 40), same, heat=0.7)
    theirs["dressed"] = sketch(busy(draw, 11.0, 14.0, 40), same, "Another program.")
    (cluster,) = clusters(crowd | theirs, Random(3)).clusters
    assert "dressed" in cluster.accounts
    assert cluster.joined == 1


def test_nobody_is_nobodys_cluster():
    assert clusters({}, Random(1)).clusters == ()
    assert (
        clusters(
            {"alone": sketch(busy(Random(1), 1, 2, 30), map(said, map(Random, range(30))))}, Random(1)
        ).groups
        == 0
    )
    silent = clusters({str(number): Sketch() for number in range(30)}, Random(1))
    assert (silent.compared, silent.too_few) == (0, 30)


def test_a_search_comes_out_the_same_whenever_it_is_made(crowd):
    everyone = crowd | team(15, "again")
    assert clusters(everyone, Random(7)) == clusters(everyone, Random(7))


def test_no_text_of_a_programs_template_counts_for_the_accounts_own():
    draw = Random(5)
    template = "Here is what the customer wrote this morning, in full and unchanged, for you to sort: "
    first = sketch(busy(draw, 0, 9, 60), (template + said(draw) for _ in range(60)))
    second = sketch(busy(draw, 0, 9, 60), (template + said(draw) for _ in range(60)))
    same = set(first.asked) & set(second.asked) - {0xFFFF_FFFF}
    assert len(same) <= 2  # runs across the end of the template, of which a few fall together
    assert set(first.wording) & set(second.wording) - {0xFFFF_FFFF}


def test_the_state_has_one_size_and_survives_being_written_down():
    draw = Random(6)
    made = sketch(busy(draw, 0, 30, 50), (said(draw) for _ in range(50)))
    data = made.packed()
    assert len(data) == SIZE
    assert SIZE + EVIDENCE <= 4096
    again = Sketch.unpacked(data)
    assert again.packed() == data
    assert (again.requests, again.numbers[1:3]) == (50, made.numbers[1:3])
    with pytest.raises(ValueError, match=f"{SIZE} bytes"):
        Sketch.unpacked(data[1:])


def test_of_what_comes_after_the_first_requests_only_the_times_count():
    draw = Random(8)
    texts = [said(draw) for _ in range(REQUESTS + 40)]
    times = busy(draw, 0, 30, len(texts))
    whole, part = sketch(times, texts), sketch(times[:REQUESTS], texts[:REQUESTS])
    assert (whole.asked, whole.wording, whole.settings) == (part.asked, part.wording, part.settings)
    assert whole.numbers[2] == times[-1]


@given(st.lists(st.floats(0, 30 * DAY), min_size=1, max_size=30))
def test_every_slot_with_a_request_is_marked(offsets):
    made, times = Sketch(), [MONTH + offset for offset in sorted(offsets)]
    for at in times:
        came(made, at, "house-1")
    slots = {int(at) // SLOT % (8 * len(made.slots)) for at in times}
    assert {
        place for place in range(8 * len(made.slots)) if made.slots[place >> 3] >> (place & 7) & 1
    } == slots
    assert made.numbers[1:4] == (times[0], times[-1], 0.0)


def test_several_looks_at_a_month_share_its_false_alarms_and_still_find(crowd):
    found = clusters(crowd | team(20, "one"), Random(3), LOOKS)
    (cluster,) = found.clusters
    assert cluster.chance * found.groups * LOOKS <= ALARMS
    assert found.left == 0


def test_a_search_that_is_late_says_how_much_it_left(crowd):
    everyone = crowd | team(20, "one")
    assert clusters(everyone, Random(3), late=lambda: True).left == clusters(everyone, Random(3)).groups
    asked = iter([False] + [True] * 1_000)  # late once it tries how probable its first core is
    cut = clusters(everyone, Random(3), late=lambda: next(asked))
    assert cut.clusters == ()
    assert cut.left == cut.groups


def test_each_month_is_looked_at_after_every_week_and_when_it_is_over():
    month = month_of(int(MONTH // DAY))
    looks = [due(MONTH + day * DAY) for day in (0, 6.99, 7, 13.9, 14, 21, 28, 30.9, 31, 38)]
    last = (month - 1, LOOKS)
    assert looks == [
        last, last, *[(month, look) for look in (1, 1, 2, 3, 4, 4)], (month, LOOKS), (month + 1, 1),
    ]  # fmt: skip


rows = st.tuples(st.integers(0, 30 * 86_400), st.booleans(), st.booleans())


@given(st.lists(rows, min_size=2, max_size=40, unique_by=lambda row: row[0]))
def test_what_two_replicas_saw_comes_to_what_one_would_have_seen(requests):
    whole, parts = Sketch(), [Sketch(), Sketch()]
    for offset, replica, second in sorted(requests):
        for each in (whole, parts[replica]):
            came(each, MONTH + offset, "house-2" if second else "house-1")
    if all(part.requests for part in parts):
        made = joined(*parts)
        assert (made.numbers, made.slots) == (whole.numbers, whole.slots)


def test_hashes_of_two_replicas_are_joined():
    draw = Random(9)
    texts = [said(draw) for _ in range(60)]
    times = busy(draw, 0, 30, len(texts))
    one, two = (sketch(times[n::2], texts[n::2]) for n in (0, 1))
    both, whole = joined(one, two), sketch(times, texts)
    assert (both.asked, both.settings, both.numbers) == (whole.asked, whole.settings, whole.numbers)
    assert joined(two, one).row == both.row
