"""The simulated month of traffic: what is promised of it in docs/simulation.md."""

from __future__ import annotations

import importlib.util
import math
import re
import statistics
import subprocess
import sys
from collections import Counter
from itertools import groupby, islice, pairwise
from pathlib import Path
from random import Random

import pytest
from rows import DATA

pytestmark = pytest.mark.skipif(not (DATA / "traffic").exists(), reason="real traces and prompts are absent")

if (DATA / "traffic").exists():
    from traffic import wording, wording_bulk
    from traffic.account import DAYS, START, Request
    from traffic.arrivals import DAY, WINDOW, arrivals, read_trace, trace_names
    from traffic.people import KINDS, MIX, people, person, requests
    from traffic.sources import RUN, SOURCES, shelf
    from traffic.wording import MONTHS, of_month

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"


def asked(month, kind, number, **rate):
    return list(requests(person(month, 0, kind, number), month, 0, **rate))


def every_kind(month, each=2):
    return [person(month, 0, kind, number) for kind in KINDS for number in range(each)]


# The split


def test_the_months_share_no_source_and_no_trace():
    assert len({source.name for source in SOURCES}) == len(SOURCES)
    used = {
        month: {name for kind in KINDS.values() for names in kind.sources[month] for name in names.split("+")}
        for month in MONTHS
    }
    for month in MONTHS:
        assert used[month] <= {source.name for source in SOURCES if source.month == month}
    traces = [set(trace_names(month)) for month in MONTHS]
    assert not traces[0] & traces[1]
    assert sum(map(len, traces)) == 43


def test_an_account_names_sources_and_traces_of_its_month_only():
    for month in MONTHS:
        own = {source.name for source in SOURCES if source.month == month}
        for one in people(month, 0, 500):
            assert one.sources <= own
            assert one.trace in {"", *trace_names(month)}


def runs(text):
    words = re.findall(r"\w+", text.lower())
    return {" ".join(words[i : i + RUN]) for i in range(len(words) - RUN + 1)}


def test_no_prompt_of_the_test_month_shares_a_run_of_eight_words_with_one_of_the_other_month():
    """GSM8K is found in UltraFeedback and one exercise of it in InstructionWild: such rows are left out."""
    first, second = (
        [text.prompt for pool in shelf(month).pools.values() for text in pool.prompts] for month in MONTHS
    )
    told = set().union(*map(runs, first))
    assert len(first) > 5_800
    assert len(second) > 11_400
    assert not [text for text in second if runs(text) & told]
    assert not set(first) & set(second)


def test_no_document_utterance_or_code_is_in_both_months():
    for part in ("documents", "code", "intents"):
        first, second = (
            {text for pool in shelf(month).pools.values() for text in getattr(pool, part)} for month in MONTHS
        )
        assert first
        assert not first & second


def test_the_simulations_own_words_are_split_as_well():
    lists = {
        f"{module.__name__}.{name}": text
        for module in (wording, wording_bulk)
        for name, text in vars(module).items()
        if name.isupper() and isinstance(text, str)
    }
    assert len(lists) > 30
    for name, text in lists.items():
        first, second = (of_month(text, month) for month in MONTHS)
        assert first, name
        assert not set(first) & set(second), name
        assert len(first) == len(second), name


# Sources


def test_every_source_is_named_in_the_documents_with_its_licence_and_is_there():
    page = (ROOT / "docs" / "simulation.md").read_text()
    for source in SOURCES:
        assert re.search(rf"^\| {re.escape(source.name)} \|.*{re.escape(source.licence)}", page, re.M), source
        for file in source.file.split(", "):
            assert (DATA / file).exists() or importlib.util.find_spec(file), source


def test_what_is_asked_comes_from_the_sources_that_the_account_names():
    for month in MONTHS:
        pools = shelf(month).pools
        for number in range(6):
            one = person(month, 0, "distiller:pure", number)
            prompts = {text.prompt for name in one.sources for text in pools[name].prompts}
            first_turns = [r.text for r in requests(one, month, 0) if not r.earlier]
            found = sum(unwrapped(text, month) in prompts for text in first_turns[: len(prompts)])
            assert found == len(first_turns[: len(prompts)])


def unwrapped(text, month):
    for form in of_month(wording_bulk.WRAPPINGS, month):
        before, _, after = form.partition("{text}")
        if text.startswith(before) and text.endswith(after):
            return text[len(before) : len(text) - len(after)]
    return text


# Arrivals


@pytest.mark.parametrize("name", ["client-5", "client-2", "client-39", "client-11"])
def test_rates_follow_the_trace(name):
    """Requests of each half day against the trace's share of them. The tolerance is six standard errors of a
    renewal process with the trace's own variation."""
    trace, volume = read_trace(name), 40_000
    fortnight = 14 * DAY
    times = list(arrivals(Random(f"rates {name}"), trace, 0, 0.0, (0.0, fortnight), volume))
    assert times == sorted(times)
    assert len(times) == pytest.approx(volume, rel=0.08)
    half_days = 28
    windows = len(trace.until) // half_days
    counts = Counter(min(half_days - 1, int(at / WINDOW) // windows) for at in times)
    for number in range(half_days):
        share = trace.until[(number + 1) * windows - 1] - (trace.until[number * windows - 1] if number else 0)
        laws = trace.laws[number * windows : (number + 1) * windows]
        variation = max(1.0, statistics.fmean(variation_of(law) ** 2 for law in laws))
        assert abs(counts[number] - share * volume) <= 6 * math.sqrt(variation * share * volume) + 3


def variation_of(law):
    """The coefficient of variation of a law, from its moments."""
    gamma, shape, _ = law
    if gamma:
        return shape**-0.5
    return math.sqrt(math.gamma(1 + 2 / shape) / math.gamma(1 + 1 / shape) ** 2 - 1)


@pytest.mark.parametrize("name", ["client-5", "client-14", "client-26", "client-27"])
def test_intervals_vary_as_the_trace_says(name):
    """In the busiest window of those whose variation can be measured with so many requests."""
    rows = [line.split(",") for line in (DATA / "traffic" / f"{name}.csv").read_text().splitlines()]
    tame = [i for i, row in enumerate(rows) if 0.5 < float(row[2] or 0) < 3]
    busiest = max(tame, key=lambda i: float(rows[i][1]))
    _, rate, variation, *_ = map(try_float, rows[busiest])
    span = (busiest * WINDOW, (busiest + 1) * WINDOW)
    times = list(arrivals(Random(name), read_trace(name), 0, 0.0, span, 600 * rate))
    gaps = [b - a for a, b in pairwise(times)]
    assert len(gaps) > 10_000
    assert 1 / statistics.fmean(gaps) == pytest.approx(rate, rel=0.05)
    assert statistics.stdev(gaps) / statistics.fmean(gaps) == pytest.approx(variation, rel=0.1)


def try_float(text):
    return float(text) if text[:1].isdigit() else text


def test_the_laws_of_nearly_all_windows_vary_as_much_as_was_measured():
    """Where the fitted law and the measured variation differ, the law is followed."""
    same = []
    for month in MONTHS:
        for name in trace_names(month):
            lines = (DATA / "traffic" / f"{name}.csv").read_text().splitlines()
            measured = [try_float(line.split(",")[2]) for line in lines]
            trace = read_trace(name)
            same += [
                abs(variation_of(trace.laws[i]) / measured[i] - 1) < 0.25
                for i in trace.active
                if trace.laws[i][1] > 0.05 and measured[i]
            ]
    assert len(same) > 38_000
    assert statistics.fmean(same) > 0.8


def test_volumes_are_met_however_bursty_the_client():
    """Also in short spans, in which a process that begins with a request would send too much."""
    sent = []
    for number in range(600):
        draw = Random(f"volume {number}")
        trace = read_trace(draw.choice(trace_names("calibrate")))
        phase = draw.choice(trace.active)
        sent.append(len(list(arrivals(draw, trace, phase, 0.0, (0.0, 30 * DAY), 60))))
    assert statistics.fmean(sent) == pytest.approx(60, rel=0.1)


@pytest.mark.parametrize("month", ["calibrate", "test"])
def test_requests_come_in_order_within_the_month(month):
    for one in [*every_kind(month), *(person(month, 0, "chat", number) for number in range(30))]:
        times = [request.at for request in requests(one, month, 0)]
        assert times == sorted(times), one
        assert times, one
        assert all(START[month] <= at < START[month] + DAYS * DAY for at in times)


def test_the_rate_can_be_ten_times_higher_or_lower():
    for kind in ("judging", "labelling"):
        plain, more, less = (
            sum(len(asked("calibrate", kind, number, rate=rate)) for number in range(12))
            for rate in (1, 10, 0.1)
        )
        assert more == pytest.approx(10 * plain, rel=0.15)
        assert less == pytest.approx(plain / 10, rel=0.35)


# Accounts


def test_kinds_are_there_in_the_stated_mix():
    for count in (2_000, 137):
        counts = Counter(one.kind for one in people("calibrate", 0, count))
        assert counts.total() == count
        for kind, weight in MIX.items():
            assert abs(counts[kind] - count * weight / sum(MIX.values())) < 1
    some = people("test", 3, 10, {"chat": 1, "distiller:pure": 1})
    assert Counter(one.kind for one in some) == {"chat": 5, "distiller:pure": 5}


def test_the_sides_are_as_stated():
    everyone = people("test", 0, 1_000)
    assert Counter(one.side for one in everyone) == {"ordinary": 800, "hard": 100, "distiller": 100}
    assert all(bool(one.declared) == (one.side == "hard") for one in everyone)


def test_an_account_is_the_same_whoever_else_is_there():
    alone = {one.id: one for one in people("test", 7, 60)}
    among = {one.id: one for one in people("test", 7, 900)}
    assert alone.items() <= among.items()
    chosen = [alone[f"{kind}/0"] for kind in ("chat", "coding", "app:support")]
    before = [list(requests(one, "test", 7)) for one in chosen]
    for one in islice(among.values(), 0, 900, 60):
        list(requests(one, "test", 7))
    assert [list(requests(one, "test", 7)) for one in reversed(chosen)] == before[::-1]
    assert before[0] != list(requests(chosen[0], "test", 8))


def test_two_drawn_at_once_do_not_disturb_each_other():
    both = zip(
        requests(person("test", 0, "nat", 0), "test", 0),
        requests(person("test", 0, "distiller:operator", 0), "test", 0),
        strict=False,
    )
    first, second = zip(*both, strict=True)
    assert list(first) == asked("test", "nat", 0)[: len(first)]
    assert list(second) == asked("test", "distiller:operator", 0)[: len(second)]


def test_another_process_draws_the_same():
    code = (
        "import hashlib; from traffic.people import KINDS, person, requests\n"
        "told = [list(zip(requests(person('test', 0, kind, 1), 'test', 0), range(9))) for kind in KINDS]\n"
        "print(hashlib.sha256(repr(told).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=BENCHMARKS,
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


# What they do


@pytest.mark.parametrize(("kind", "share"), [("mix5", 0.05), ("mix10", 0.10), ("mix25", 0.25)])
def test_the_stated_share_of_a_mixed_account_is_for_distillation(kind, share):
    """Told by accounts that hide in code, which is in no prompt that is copied."""
    month = "calibrate"
    prompts = {text.prompt for pool in shelf(month).pools.values() for text in pool.prompts}
    every = copied = 0
    for number in range(80):
        one = person(month, 0, f"distiller:{kind}", number)
        if one.cover == "coding":
            for request in requests(one, month, 0):
                every += 1
                copied += unwrapped(request.text, month) in prompts
    assert every > 4_000
    assert copied / every == pytest.approx(share, rel=0.15)


def test_operators_have_50_to_500_accounts_that_share_source_and_schedule():
    everyone = [person("test", 0, "distiller:operator", number) for number in range(1_500)]
    teams = [list(team) for _, team in groupby(everyone, key=lambda one: one.operator)]
    assert len(teams) > 3
    assert all(50 <= len(team) <= 500 for team in teams[:-1])
    for team in teams:
        assert len({(one.source, one.trace) for one in team}) == 1
    whole = [list(requests(one, "test", 0)) for one in teams[0]]
    assert statistics.median(map(len, whole)) == pytest.approx(60, rel=0.3)
    assert len({tuple(r.output_tokens for r in one) for one in whole}) == len(whole)


def test_after_the_release_the_pivots_are_on_the_new_model():
    late = START["test"] + 19 * DAY
    models = Counter(
        request.model
        for number in range(20)
        for request in asked("test", "distiller:pivot", number)
        if request.at > late
    )
    assert models["house-large-2"] / models.total() > 0.7


def test_conversations_carry_what_was_said():
    talks = [request for request in asked("test", "chat", 4) if request.earlier]
    assert talks
    for request in talks:
        assert len(request.earlier) % 2 == 0
        assert request.input_tokens >= sum(map(len, request.earlier)) // 4
    assert not any(request.earlier for request in asked("test", "labelling", 0))


def test_what_cannot_be_told_apart_is_drawn_alike():
    """Judges and buyers of data ask what distillers ask: the docs name the pairs."""
    page = (ROOT / "docs" / "simulation.md").read_text()
    for honest, distiller in (("judging", "distiller:rubric"), ("synthetic", "distiller:pure")):
        assert re.search(rf"^\| `{honest}` \| `{distiller}` \|", page, re.M)
    from traffic import hard

    question = next(r.text for r in asked("calibrate", "judging", 1))
    assert "Question:\n" in question
    assert "Question:\n" in next(r.text for r in asked("calibrate", "distiller:rubric", 1))
    honest, distiller = hard.KINDS["judging"], KINDS["distiller:rubric"]
    for what in ("sources", "median", "spread", "days", "steady"):
        assert getattr(honest, what) == getattr(distiller, what)


def test_customers_of_one_application_share_its_preamble_and_others_share_none():
    bots = [person("test", 0, "app:support", number) for number in range(60)]
    preambles = {one.id: preamble(next(requests(one, "test", 0))) for one in bots}
    same = [one for one in bots if one.application == "app:support#0"]
    assert len(same) >= 3
    assert len({preambles[one.id] for one in same}) == 1
    own = [preambles[one.id] for one in bots if not one.application]
    assert len(set(own)) == len(own)


def preamble(request):
    return (request.system or request.text)[:90]


def test_the_body_is_what_a_client_sends():
    request = Request(0.0, "m", "S", ("a", "b"), "c", 9, 0.5, 2, 3, True, 1, 1)
    assert request.body() == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "S"},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
        ],
        "max_tokens": 9,
        "temperature": 0.5,
        "n": 2,
        "logprobs": True,
        "top_logprobs": 3,
        "reasoning_effort": "high",
    }
    plain = Request(0.0, "m", "", (), "c", None, None, 1, 0, False, 1, 1)
    assert plain.body() == {"model": "m", "messages": [{"role": "user", "content": "c"}]}
