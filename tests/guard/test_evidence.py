"""What is kept of an account's requests, and what is not."""

import gc
import hashlib
import json
import math
import random
import struct
import sys
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.guard.evidence import (
    _RECENT,
    _WORDS,
    FEATURES,
    SETTLED,
    SIZE,
    Evidence,
    means_of,
    observe,
)
from stillhouse.guard.scoring import score, shipped
from stillhouse.guard.seen import seen_of

KEY = b"a key of the guard, 32 bytes long"
letters = st.text("abcdefghijklmnopqrstuvwxyzäöüß ABC,.?", min_size=12, max_size=400)
values = st.sampled_from(
    [
        None,
        True,
        0,
        -3,
        2.5,
        math.nan,
        math.inf,
        1 << 80,
        "",
        "A text.",
        "\ud800",
        "語語語",
        [],
        ["Why?", 1],
        {},
        {"text": "Go"},
    ]
)
contents = values | st.lists(st.fixed_dictionaries({"text": values}) | values, max_size=3)
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant", 3]), "content": contents})
    | values,
    max_size=4,
)
names = st.sampled_from(
    ["model", "prompt", "input", "instructions", "temperature", "max_tokens", "n", "top_logprobs", "messages"]
)
bodies = st.dictionaries(names, contents | messages, max_size=6)
routes = st.sampled_from(["chat/completions", "completions", "embeddings", "responses"])


def chat(text: str, system: str = "", **settings: object) -> dict:
    before = [{"role": "system", "content": system}] if system else []
    return {"model": "m", "messages": [*before, {"role": "user", "content": text}], **settings}


def account(bodies, tokens: int = 100, step: float = 60.0, key: bytes = KEY) -> Evidence:
    evidence = Evidence()
    for number, body in enumerate(bodies):
        observe(evidence, seen_of(key, body, "chat/completions", tokens, 1.8e9 + step * number))
    return evidence


def means(evidence: Evidence) -> dict[str, float]:
    """Over the whole account."""
    _, _, sums, weight = means_of(evidence, 0)
    return {name: value / weight for name, value in zip(FEATURES, sums, strict=True)}


def word(draw: random.Random, of: int = 10**9) -> str:
    """One of `of` words of eight letters."""
    number = draw.randrange(of)
    return "".join(chr(97 + number // 26**place % 26) for place in range(8))


def sentences(seed: int, count: int, of: int = 10**9, length: int = 10) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(word(draw, of) for _ in range(length)) for _ in range(count)]


@given(st.lists(st.tuples(bodies, routes, st.integers(0, 10**6)), max_size=12), st.floats(0, 4e9))
@settings(max_examples=40, deadline=None)
def test_any_body_is_read_and_the_state_keeps_its_size(requests, at):
    evidence = Evidence()
    for body, route, tokens in requests:
        observe(evidence, seen_of(KEY, body, route, tokens, at))
        assert len(evidence.packed()) == SIZE
    assert evidence.requests == len(requests)
    if requests:
        assert all(0.0 <= value < 10.0 for value in means(evidence).values())


@given(st.lists(letters, min_size=1, max_size=20), letters, st.integers(0, 20))
@settings(max_examples=40, deadline=None)
def test_a_state_that_was_packed_goes_on_as_if_it_had_not_been(texts, system, at):
    requests = [
        seen_of(KEY, chat(text, system), "chat/completions", 50, 1.8e9 + n) for n, text in enumerate(texts)
    ]
    straight, packed = Evidence(), Evidence()
    for number, seen in enumerate(requests):
        if number == at:
            packed = Evidence.unpacked(packed.packed())
        assert observe(straight, seen) == observe(packed, seen)
    assert straight.packed() == packed.packed()


@pytest.mark.parametrize("size", [0, 1, SIZE - 1, SIZE + 1])
def test_a_state_of_another_size_is_refused(size):
    with pytest.raises(ValueError, match="bytes"):
        Evidence.unpacked(bytes(size))


@given(st.lists(letters, min_size=1, max_size=6), letters)
@settings(max_examples=40, deadline=None)
def test_no_run_of_what_was_sent_is_kept(texts, system):
    packed = account(chat(text, system) for text in texts).packed()
    for text in [*texts, system]:
        for encoded in (text.encode(), text.encode("utf-16-le"), text.lower().encode()):
            for start in range(len(encoded) - 5):
                run = encoded[start : start + 6]
                assert run not in packed or not run.strip(b"\0")


def test_nothing_but_numbers_is_held():
    evidence = account(chat(text, "be brief") for text in sentences(1, 50))
    slots = [name for kind in Evidence.__mro__ for name in getattr(kind, "__slots__", ())]
    assert [type(getattr(evidence, name)) for name in slots] == [bytearray]
    assert not hasattr(evidence, "__dict__")


def test_without_the_key_the_traces_say_nothing_of_a_guess():
    """Under another key the tables differ as tables of other words do."""
    texts = sentences(2, 30)
    one, two = (account(map(chat, texts), key=key) for key in (KEY, b"another key of the guard's, longer"))
    other = account(map(chat, sentences(3, 30)))

    def alike(first: Evidence, second: Evidence) -> float:
        ours, theirs = (int.from_bytes(each.row[_WORDS:_RECENT]) for each in (first, second))
        return (ours & theirs).bit_count() / ours.bit_count()

    assert alike(one, account(map(chat, texts))) == 1.0
    assert alike(one, two) == pytest.approx(alike(one, other), abs=0.1)


def lines_run(evidence: Evidence, seen) -> int:
    count = 0

    def trace(frame, event, arg):
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        observe(evidence, seen)
    finally:
        sys.settrace(before)
    return count


def test_the_thousandth_request_takes_the_work_of_the_tenth():
    texts = sentences(4, 3_000)
    evidence, work = Evidence(), {}
    for number, text in enumerate(texts):
        seen = seen_of(KEY, chat(text), "chat/completions", 50, 1.8e9 + number)
        if number % 500 in (10, 11, 12):
            work.setdefault(number // 500, []).append(lines_run(evidence, seen))
        else:
            observe(evidence, seen)
    least, most = min(map(min, work.values())), max(map(max, work.values()))
    assert most < 1.5 * least


def test_a_message_of_a_million_characters_is_read_at_its_ends_alone():
    short = seen_of(KEY, chat("abc def ghi " * 1_000), "chat/completions", 1, 0.0)
    long = seen_of(KEY, chat("abc def ghi " * 100_000), "chat/completions", 1, 0.0)
    assert long.chunks == short.chunks


def test_a_live_account_takes_less_than_four_kilobytes():
    texts = sentences(5, 20)
    gc.collect()
    tracemalloc.start()
    accounts = [account(map(chat, texts)) for _ in range(40)]
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(accounts) == 40
    assert held / 40 <= 4096


def test_what_a_program_sends_each_time_is_told_from_what_is_asked():
    preamble = "You are a careful assistant of the Example Bank. Answer in the language of the customer.\n\n"
    found = means(account(chat(preamble + text) for text in sentences(6, 200)))
    bare = means(account(map(chat, sentences(6, 200))))
    assert found["templated"] > 0.35
    assert bare["templated"] < 0.02
    # and the preamble makes the account's own text neither older nor longer
    assert found["new"] == pytest.approx(bare["new"], abs=0.2)


@pytest.mark.parametrize(("of", "low", "high"), [(10**9, 0.95, 1.05), (200, 0.0, 0.05), (1_000, 0.0, 0.35)])
def test_new_words_are_found_new_however_many_came_before(of, low, high):
    """An account of ever new words stays one though the table is overwritten; one of few words does not."""
    assert low <= means(account(map(chat, sentences(7, 1_500, of))))["new"] <= high


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
def test_the_share_of_new_words_is_told_within_a_few_hundredths(share):
    draw = random.Random(8)
    texts = [
        " ".join(word(draw) if draw.random() < share else word(draw, 100) for _ in range(10))
        for _ in range(1_500)
    ]
    assert means(account(map(chat, texts)))["new"] == pytest.approx(share, abs=0.05)


def test_at_first_every_word_is_new_which_says_nothing():
    assert means(account(map(chat, sentences(9, 10))))["new"] < 10 * 10 / SETTLED


def test_texts_sent_again_are_known():
    few = sentences(10, 5) * 40
    assert means(account(map(chat, few)))["repeat"] > 0.9
    # a fingerprint has 8 bits: of other texts one in 256 is taken for a known one
    assert means(account(map(chat, sentences(11, 1_000))))["repeat"] < 0.02


def test_even_requests_are_told_from_random_ones():
    texts = sentences(12, 1_500)
    assert means(account(map(chat, texts[:300])))["even"] > 0.95
    draw, evidence, at, even = random.Random(13), Evidence(), 1.8e9, 0.0
    for text in texts:
        at += draw.expovariate(1 / 60)
        before = means_of(evidence, 0)[2][FEATURES.index("even")]
        observe(evidence, seen_of(KEY, chat(text), "chat/completions", 50, at))
        after = means_of(evidence, 0)[2][FEATURES.index("even")]
        even += after - before * (1 - 1 / 256)
    # of two independent exponential gaps, the quotient lies within a tenth with 1 / 1.9 - 0.9 / 1.9 = 0.0526
    error = math.sqrt(3 * 0.0526 / 1_500)  # neighbours share a gap
    assert even / 1_500 == pytest.approx(0.1 / 1.9, abs=4 * error)


def test_the_clock_counts_the_hours_of_the_day_before():
    night = account(map(chat, sentences(14, 24 * 20)), step=3600.0)
    office = Evidence()
    for number, text in enumerate(sentences(14, 8 * 60)):
        day, hour = divmod(number, 8)
        observe(
            office,
            seen_of(
                KEY,
                chat(text),
                "chat/completions",
                50,
                1.8e9 // 86_400 * 86_400 + 86_400 * day + 3600 * (9 + hour),
            ),
        )
    assert means(night)["clock"] > 0.9
    assert means(office)["clock"] == pytest.approx(8 / 24, abs=0.02)


def talks(texts: list[str], goes_on: float, **settings: object) -> Evidence:
    """Questions one after the other, a share of which is taken up in the same conversation."""
    draw, evidence = random.Random(20), Evidence()
    for number, text in enumerate(texts):
        bodies = [chat(text, **settings)]
        if draw.random() < goes_on:
            begun = bodies[0]["messages"]
            said = [*begun, {"role": "assistant", "content": "Well."}, {"role": "user", "content": "Why?"}]
            bodies.append({**bodies[0], "messages": said})
        for body in bodies:
            observe(evidence, seen_of(KEY, body, "chat/completions", 90, 1.8e9 + 60 * number))
    return evidence


def test_questions_that_are_taken_up_are_told_from_those_that_never_are():
    assert means(talks(sentences(19, 200), 0.0))["followed"] == 0.0
    assert means(talks(sentences(19, 200), 0.5))["followed"] > 0.9


def test_conversations_of_one_program_say_nothing_of_the_questions_of_another():
    """Both within an account: what the program asks stays as lonely as it is."""
    draw, evidence, found = random.Random(21), Evidence(), []
    for number, text in enumerate(sentences(22, 600)):
        if draw.random() < 0.3:
            seen = seen_of(KEY, chat(text, temperature=1.0), "chat/completions", 90, 1.8e9 + number)
            found.append(observe(evidence, seen))
            continue
        begun = chat(text)
        said = [*begun["messages"], {"role": "assistant", "content": ""}, {"role": "user", "content": "More"}]
        for body in (begun, {**begun, "messages": said}):
            observe(evidence, seen_of(KEY, body, "chat/completions", 90, 1.8e9 + number))
    sums, weight, _, _ = means_of(evidence, found[-1])
    assert found[-1] != 0
    assert sums[FEATURES.index("followed")] / weight < 0.01
    assert means(evidence)["followed"] > 0.7


def test_two_programs_of_one_account_have_means_of_their_own():
    """A tenth of the requests are something else, and stay visible."""
    support = "Answer the customer of the shop, in two sentences, and never promise a refund.\n\nCustomer: "
    evidence, draw, uses = Evidence(), random.Random(15), {"support": [], "other": []}
    for number, text in enumerate(sentences(16, 1_000)):
        if draw.random() < 0.1:
            name, body = "other", chat(f"Write about {text}.", max_tokens=2048)
        else:
            name, body = (
                "support",
                chat(support + " ".join(text.split()[:4]) + " where is my order", max_tokens=100),
            )
        uses[name].append(observe(evidence, seen_of(KEY, body, "chat/completions", 90, 1.8e9 + number)))
    support_uses, other_uses = (
        set(uses[name][len(uses[name]) // 2 :]) - {0} for name in ("support", "other")
    )
    assert support_uses
    assert other_uses
    assert not support_uses & other_uses
    sums, weight, _, _ = means_of(evidence, other_uses.pop())
    assert sums[FEATURES.index("asks")] / weight > 0.9
    assert means(evidence)["asks"] < 0.4


def test_settings_that_change_with_each_request_do_not_hide_it():
    draw = random.Random(17)
    evidence = account(chat(text, temperature=draw.random()) for text in sentences(18, 300))
    _, weight, _, whole = means_of(evidence, 0)
    assert weight > 0.95 * whole


def test_the_forms_of_the_other_routes_are_read_alike():
    text = "Explain how a tide comes about."
    chats = seen_of(KEY, {"messages": [{"role": "user", "content": text}]}, "chat/completions", 5, 0.0)
    parts = [{"type": "text", "text": text}]
    for body, route in (
        ({"messages": [{"role": "user", "content": parts}]}, "chat/completions"),
        ({"prompt": text}, "completions"),
        ({"prompt": [text]}, "completions"),
        ({"input": text}, "responses"),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": text}]}]}, "responses"),
    ):
        assert seen_of(KEY, json.loads(json.dumps(body)), route, 5, 0.0).chunks == chats.chunks


def test_scores_are_to_the_last_bit_those_that_the_thresholds_were_set_with():
    """However the state is laid out: taken down before it became one row."""
    draw, evidence, told = random.Random(23), Evidence(), hashlib.sha256()
    openings = (
        "Explain ", "Ärger im Café: ", "Which response is better? ", "Dear team, here is the text: ", "語 ",
    )  # fmt: skip
    for number, text in enumerate(sentences(24, 400, 900)):
        system = ("", "Be brief.")
        body = chat(draw.choice(openings) + text, draw.choice(system), temperature=draw.choice((0, 1)))
        if draw.random() < 0.3:
            body["messages"] += [
                {"role": "assistant", "content": "Well."},
                {"role": "user", "content": "Why?"},
            ]
        seen = seen_of(KEY, body, "chat/completions", draw.randrange(900), 1.8e9 + 97 * number)
        use = observe(evidence, seen)
        told.update(struct.pack("<id", use, score(evidence, use, shipped())))
    assert told.hexdigest() == "1da61e9c2b62e33f62525ab3b4729f0bfad31dc38224a0e51aed0ad331d07461"
