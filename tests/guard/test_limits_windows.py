"""The limits against a plain list of everything that happened."""

import copy
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.guard.counting import LATE, TWICE, Book, Spent, enter, reserve, settle, standing
from stillhouse.guard.limits import Granted, Limit, Refused, Step, Subject, Used, Wanted
from stillhouse.guard.windows import DAY, SECOND, begin_of_month, month

START = begin_of_month(2026 * 12 + 10) + 5 * DAY + 1234567
STEPS = (Step(0, 3, 7), Step(500, 5, 11), Step(2000, 2, 4))
WINDOWS = {"minute": 60 * SECOND, "day": DAY}


def wanted(id, *, limits=(), subjects=None, tokens=(10, 20), seconds=100.0, steps=()):
    each = subjects or (Subject("account:a", tuple(limits)),)
    return Wanted(id, each, *tokens, seconds, "account:a" if steps else "", "s" if steps else "", steps)


limits = st.lists(
    st.sampled_from(
        [("requests", 4), ("input_tokens", 60), ("output_tokens", 80)]
    ).flatmap(lambda kind: st.tuples(st.just(kind[0]), st.sampled_from(["minute", "day"]), st.just(kind[1]))),
    min_size=1, max_size=3, unique_by=lambda limit: limit[:2],
).map(lambda rows: tuple(Limit(*row) for row in rows))  # fmt: skip
WAITS = (1, SECOND, 4_999_999, 5 * SECOND, 31 * SECOND, 3 * 3600 * SECOND)
some = st.integers(0, 60)
moves = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.sampled_from(WAITS)),
        st.tuples(st.just("reserve"), st.tuples(st.integers(0, 40), st.integers(0, 50)), st.booleans()),
        st.tuples(st.just("settle"), st.integers(0, 10), st.tuples(some, some), st.booleans()),
    ),
    max_size=40,
)  # fmt: skip


@dataclass
class Log:
    """All that was granted, as (when, subject, measure, how much)."""

    rows: dict = field(default_factory=dict)

    def in_any_stretch(self, subject, measure, length):
        """The most of a measure in any stretch of time that is so long, both its ends within."""
        events = sorted(
            (at, amounts[measure]) for at, names, amounts in self.rows.values() if subject in names
        )
        return max((sum(n for at, n in events if end - length <= at <= end) for end, _ in events), default=0)


@settings(max_examples=100, deadline=None)
@given(limits, limits, moves)
def test_no_stretch_of_time_holds_more_than_a_limit_and_nothing_leaks(first, second, moves):
    book, now, log, open_ = Book(), START, Log(), []
    both = (Subject("account:a", first), Subject("key:k", second))
    for number, move in enumerate(moves):
        if move[0] == "wait":
            now += move[1]
        elif move[0] == "reserve":
            subjects = both if move[2] else both[:1]
            request = wanted(str(number), subjects=subjects, tokens=move[1])
            if isinstance(reserve(book, request, now), Granted):
                amounts = {"requests": 1, "input_tokens": move[1][0], "output_tokens": move[1][1]}
                log.rows[number] = [now, [s.name for s in subjects], amounts]
                open_.append((number, move[1]))
        elif open_:
            which, bounds = open_.pop(move[1] % len(open_))
            used = Used(*map(min, move[2], bounds), sent=move[3])
            if settle(book, str(which), used, now) is None:
                assert now >= log.rows[which][0] + 100 * SECOND + LATE
                continue  # it stays charged whole
            tokens = (used.input_tokens, used.output_tokens) if used.sent else (0, 0)
            counts = (int(used.sent), *tokens)
            log.rows[which][2] = dict(zip(("requests", "input_tokens", "output_tokens"), counts, strict=True))
        for subject in both:
            for limit in subject.limits:
                most = log.in_any_stretch(subject.name, limit.measure, WINDOWS[limit.window])
                assert most <= limit.amount
        exact = standing(book, "account:a", now)
        for limit in first:
            length = WINDOWS[limit.window]
            begin = (now // (length // 12) - 12) * (length // 12)
            counted = sum(a[limit.measure] for at, names, a in log.rows.values() if at >= begin)
            assert exact.get((limit.measure, limit.window), 0) == counted
    later = now + 2 * DAY
    for subject in both:
        assert not any(standing(book, subject.name, later).values())


def test_a_granted_request_counts_for_the_whole_window_and_the_oldest_slot_whole():
    book, minute = Book(), (Limit("requests", "minute", 1),)
    at = START // (5 * SECOND) * 5 * SECOND + 4 * SECOND
    assert isinstance(reserve(book, wanted("1", limits=minute), at), Granted)
    refused = reserve(book, wanted("2", limits=minute), at + 60 * SECOND)
    assert isinstance(refused, Refused)
    assert refused.retry_after == 1.0
    assert isinstance(reserve(book, wanted("3", limits=minute), at + 61 * SECOND), Granted)


any_limit = st.lists(
    st.sampled_from(
        [
            Limit("requests", "minute", 3),
            Limit("requests", "day", 6),
            Limit("input_tokens", "minute", 45),
            Limit("output_tokens", "day", 90),
            Limit("concurrent", "ever", 2),
            Limit("money", "month", 900),
            Limit("money", "ever", 1500),
        ]
    ),
    min_size=1,
    max_size=4,
    unique=True,
).map(tuple)


@settings(max_examples=100, deadline=None)
@given(any_limit, any_limit, moves, st.booleans(), st.permutations([0, 1, 2]))
def test_retry_after_is_the_first_moment_at_which_the_same_request_passes(
    first, second, moves, priced, order
):
    steps = (Step(0, 3, 7), *(Step(over, *p) for over, p in zip((500, 2000), ((5, 11), (2, 4)), strict=True)))
    steps = tuple(Step(s.over, steps[o].input, steps[o].output) for s, o in zip(steps, order, strict=True))
    book, now, open_ = Book(), begin_of_month(2026 * 12 + 11) - 40 * 3600 * SECOND, []
    both = (Subject("account:a", first), Subject("organisation:o", second))
    for number, move in enumerate(moves):
        if move[0] == "wait":
            now += move[1]
        elif move[0] == "settle" and open_:
            settle(book, open_.pop(move[1] % len(open_)), Used(*move[2], sent=move[3]), now)
        elif move[0] == "reserve":
            request = wanted(str(number), subjects=both, tokens=move[1], steps=steps if priced else ())
            answer = reserve(book, request, now)
            if isinstance(answer, Granted):
                open_.append(request.id)
                continue
            again = copy.deepcopy(book)
            if answer.retry_after is None:
                for days in (1, 3, 40, 400):
                    assert isinstance(reserve(again, request, now + days * DAY), Refused)
                continue
            at = now + round(answer.retry_after * SECOND)
            assert at > now
            assert isinstance(reserve(again, request, at - 1), Refused)
            assert isinstance(reserve(again, request, at), Granted)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 900), st.integers(0, 900), st.integers(0, 900), st.integers(0, 900)),
        min_size=1, max_size=12,
    ),
    st.randoms(use_true_random=False),
)  # fmt: skip
def test_costs_sum_to_the_price_of_the_months_volume(requests, random):
    def price_of(tokens, kind):
        step = max((s for s in STEPS if s.over <= tokens), key=lambda s: s.over)
        return step.input if kind == "input" else step.output

    book = Book()
    for i, (i_bound, o_bound, _, _) in enumerate(requests):
        assert isinstance(
            reserve(book, wanted(str(i), tokens=(i_bound, o_bound), steps=STEPS), START), Granted
        )
    order = list(range(len(requests)))
    random.shuffle(order)
    volume = total = expected = 0
    for i in order:
        i_bound, o_bound, i_used, o_used = requests[i]
        used = Used(min(i_used, i_bound), min(o_used, o_bound))
        total += settle(book, str(i), used, START + 5)
        for kind, n in (("input", used.input_tokens), ("output", used.output_tokens)):
            for _ in range(n):
                expected += price_of(volume, kind)
                volume += 1
    assert total == expected
    assert standing(book, "account:a", START + 6)["money", "month"] == expected


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(some, some, st.integers(0, 3), some, some), min_size=1, max_size=30),
    st.permutations([(3, 7), (5, 11), (2, 4)]),
    st.sampled_from(["month", "ever"]),
)
def test_no_budget_is_overspent_in_whatever_order_requests_settle(moves, prices, window):
    """Also where prices rise while what was reserved at the lower price is still open."""
    steps = tuple(Step(over, *price) for over, price in zip((0, 200, 500), prices, strict=True))
    book, budget, open_, spent = Book(), Limit("money", window, 3000), [], 0

    def settle_one(which, *tokens):
        nonlocal spent
        id, bounds = open_.pop(which % len(open_))
        spent += settle(book, id, Used(*map(min, tokens, bounds)), START)

    for number, (inputs, outputs, settling, *tokens) in enumerate(moves):
        request = wanted(str(number), limits=(budget,), tokens=(inputs, outputs), steps=steps)
        if isinstance(reserve(book, request, START), Granted):
            open_.append((request.id, (inputs, outputs)))
        for _ in range(settling if settling < 3 else 0):
            if open_:
                settle_one(tokens[0], *tokens)
        assert spent <= standing(book, "account:a", START).get(("money", window), 0)
    while open_:
        settle_one(0, 99, 99)
    assert spent == standing(book, "account:a", START).get(("money", window), 0) <= 3000


def test_settling_twice_is_as_once_and_a_reservation_never_settled_stays_charged():
    all_ = (Limit("requests", "day", 9), Limit("output_tokens", "day", 99), Limit("concurrent", "ever", 1))
    book = Book()
    reserve(book, wanted("1", limits=all_, steps=STEPS), START)
    first = settle(book, "1", Used(10, 5), START + SECOND)
    assert settle(book, "1", Used(0, 0, sent=False), START + 2 * SECOND) == first == 10 * 3 + 5 * 7
    assert settle(book, "1", Used(10, 5), START + SECOND + TWICE) is None
    assert standing(book, "account:a", START + SECOND)["output_tokens", "day"] == 5
    assert isinstance(reserve(book, wanted("2", limits=all_), START + 3 * SECOND), Granted)
    full = reserve(book, wanted("3", limits=all_), START + 4 * SECOND)
    assert isinstance(full, Refused)
    assert full.limit.measure == "concurrent"
    assert full.retry_after == 99.0
    assert isinstance(reserve(book, wanted("3", limits=all_), START + 103 * SECOND), Granted)
    assert standing(book, "account:a", START + 103 * SECOND)["output_tokens", "day"] == 45


@pytest.mark.parametrize("wait", [0, 61 * SECOND])
def test_what_was_used_beyond_the_reservation_is_charged_whole(wait):
    book, minute = Book(), (Limit("output_tokens", "minute", 100),)
    reserve(book, wanted("1", limits=minute), START)
    settle(book, "1", Used(10, 10**30), START + wait)
    refused = reserve(book, wanted("2", limits=minute), START + wait)
    assert isinstance(refused, Refused)
    assert refused.retry_after is not None
    assert refused.room[0].remaining == 0


def test_room_is_of_the_tightest_limit_of_each_measure():
    both = (
        Subject("account:a", (Limit("requests", "minute", 10), Limit("requests", "day", 5))),
        Subject("key:k", (Limit("output_tokens", "minute", 50),)),
    )
    answer = reserve(Book(), wanted("1", subjects=both), START)
    requests, output = answer.room
    assert (requests.measure, requests.limit, requests.remaining) == ("requests", 5, 4)
    assert DAY < requests.reset * SECOND <= DAY + 7200 * SECOND
    assert (output.limit, output.remaining) == (50, 30)


def test_the_past_is_entered_from_records_as_far_as_it_counts():
    states, seconds = {}, START / SECOND
    rows = [
        Spent("account:a", seconds - 30, {("requests", "minute"): 2, ("money", "month"): 70}, {"s": 400}),
        Spent("account:a", seconds - 90, {("requests", "minute"): 8, ("requests", "day"): 8}),
        Spent("account:a", seconds - 30 * 86_400, {("money", "month"): 1000, ("money", "ever"): 1000}),
    ]
    enter(states, rows, START)
    book = Book(states)
    now_used = standing(book, "account:a", START)
    assert now_used == {
        ("requests", "minute"): 2, ("requests", "day"): 8, ("money", "month"): 70, ("money", "ever"): 1000,
    }  # fmt: skip
    priced = reserve(book, wanted("1", tokens=(50, 100), steps=STEPS), START)
    assert priced.cost == 50 * 5 + 100 * 11


def test_months_are_those_of_the_calendar():
    assert month(0) == 1970 * 12
    assert [month(begin_of_month(m) // DAY) for m in range(24_000, 24_200)] == list(range(24_000, 24_200))
    assert [month(begin_of_month(m) // DAY - 1) for m in range(24_001, 24_200)] == list(range(24_000, 24_199))
