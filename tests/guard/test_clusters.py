"""Accounts that act as one, among customers who do not: of settings, words, questions and times."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.guard.clusters import clusters, in_words
from stillhouse.guard.evidence import SIZE as EVIDENCE
from stillhouse.guard.evidence import Evidence, observe
from stillhouse.guard.likeness import REQUESTS, SIZE, SLOT, Sketch, came, note
from stillhouse.guard.seen import seen_of

KEY = b"a key of the guard, of 32 bytes!"
DAY = 86_400.0
MONTH = 1_790_812_800.0  # 1 October 2026
WORDS = [
    f"{first}{last}" for first in ("ar", "bel", "cor", "dun", "esk") for last in ("an", "ith", "os", "um")
]
PACKAGE = "Keep to the text. Never promise a refund or a date. Answer in three sentences, politely."


def said(draw, count=12):
    return " ".join(f"{draw.choice(WORDS)}{draw.randrange(10_000)}" for _ in range(count))


def sketch(times, texts, system="", model="house-1", heat=None):
    evidence, made = Evidence(), Sketch()
    for at, text in zip(times, texts, strict=False):
        messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
        body = {"model": model, "messages": messages, "temperature": heat}
        seen = seen_of(KEY, body, "chat/completions", 100, at)
        observe(evidence, seen)
        note(made, evidence, seen, model)
    return made


def busy(draw, first, last, count):
    return sorted(MONTH + draw.uniform(first, last) * DAY for _ in range(count))


def customers(count, seed=1):
    """Each has a program of its own, and comes and goes when it likes."""
    made = {}
    for number in range(count):
        draw = Random(f"{seed}/{number}")
        first = draw.uniform(0, 20)
        times = busy(draw, first, draw.uniform(first + 3, 30), draw.randint(20, 60))
        made[f"customer-{number}"] = sketch(
            times, (said(draw) for _ in times), f"Program {number} of {seed}."
        )
    return made


def team(count, seed, system="", span=(11.0, 14.0), before="", apart=False, questions=None):
    """Accounts with one program, on one schedule, or with `apart` each on its own."""
    made = {}
    for number in range(count):
        draw = Random(f"{seed}/{number}")
        first = draw.uniform(0, 20)
        low, high = (first, draw.uniform(first + 3, 30)) if apart else span
        times = busy(draw, low, high, 40)
        asked = questions or [said(draw) for _ in times]
        made[f"team-{number}"] = sketch(times, (f"{before}{text}" for text in asked), system, heat=0.7)
    return made


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
