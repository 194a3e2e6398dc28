import gzip
import json
import math
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.models.logprobs import read_answer
from stillhouse.models.vocabulary import Vocabulary

JUDGE = Path(__file__).parents[2].parent / "shared/data/many_models/gpt4_turbo_judge_logprobs.jsonl.gz"
HALF = "\ufffd"


def spelt(token, logprob, **more):
    """A token as OpenAI writes it, without alternatives."""
    return {"token": token, "bytes": list(token.encode()), "logprob": logprob} | more


def entry(token, logprob, *rivals):
    return spelt(token, logprob, top_logprobs=[spelt(*rival) for rival in rivals])


def body(content, text=None, choice=None, message=None, **more):
    said = "".join(e["token"] for e in content) if text is None else text
    one = {"index": 0, "message": {"role": "assistant", "content": said} | (message or {})}
    one |= {"finish_reason": "stop", "logprobs": {"content": content, "refusal": None}} | (choice or {})
    return orjson.dumps({"object": "chat.completion", "choices": [one]} | more)


def read(content, text=None, asked=2, vocabulary=None, **more):
    return read_answer(body(content, text, **more), asked, vocabulary)


PLAIN = [
    entry("Hel", -0.25, ("Hel", -0.25), ("Hi", -2.0)),
    entry("lo", -0.5, ("lo", -0.5), ("p", -1.5)),
]


def likely(token):
    return [(each.raw, each.logprob) for each in token.likely]


# ---------------------------------------------------------------- as it should be


def test_a_plain_answer():
    answer = read(PLAIN)
    assert answer.text == "Hello"
    assert [token.raw for token in answer.tokens] == [b"Hel", b"lo"]
    assert [token.logprob for token in answer.tokens] == [-0.25, -0.5]
    assert likely(answer.tokens[0]) == [(b"Hel", -0.25), (b"Hi", -2.0)]
    assert (answer.reason, dict(answer.counts), answer.prompt) == ("", {}, ())


def test_a_character_in_two_tokens_has_the_bytes_of_each():
    content = [entry(r"bytes:\xc3", -0.1), entry(r"bytes:\xa9", -0.2)]
    content[0]["bytes"], content[1]["bytes"] = [0xC3], [0xA9]
    content[0]["top_logprobs"] = [{"token": r"\xc3", "bytes": [0xC3], "logprob": -0.1}, spelt("e", -3.0)]
    answer = read(content, text="é")
    assert [token.raw for token in answer.tokens] == [b"\xc3", b"\xa9"]
    assert likely(answer.tokens[0]) == [(b"\xc3", -0.1), (b"e", -3.0)]


def test_bytes_that_are_null_are_the_tokens_text():
    content = [entry("né", -0.1, ("né", -0.1), ("a", -3.0))]
    content[0]["bytes"] = None
    content[0]["top_logprobs"][0]["bytes"] = None
    answer = read(content)
    assert answer.tokens[0].raw == "né".encode()
    assert likely(answer.tokens[0])[0] == ("né".encode(), -0.1)
    assert not answer.counts


def test_the_choice_that_is_asked_for():
    two = [
        {"index": at, "message": {"content": text}, "logprobs": {"content": [entry(text, -0.1)]}}
        for at, text in ((1, "b"), (0, "a"))
    ]
    raw = orjson.dumps({"choices": two})
    assert [read_answer(raw, 0, choice=at).text for at in (0, 1)] == ["a", "b"]
    assert read_answer(raw, 0, choice=2).reason == "not readable"


def test_the_token_that_ends_the_answer_follows_the_text():
    content = [*PLAIN, entry("<|im_end|>", -0.01, ("<|im_end|>", -0.01), ("!", -5.0))]
    answer = read(content, text="Hello")
    assert answer.reason == ""
    assert [token.raw for token in answer.tokens] == [b"Hel", b"lo", b"<|im_end|>"]


def test_a_blank_before_the_text_is_sentencepieces():
    answer = read([entry(" Hello", -0.1), entry(" you", -0.1)], text="Hello you", asked=0)
    assert answer.reason == ""


def test_without_alternatives_the_token_itself_is_what_is_known():
    answer = read([entry("a", -0.5)], asked=0)
    assert likely(answer.tokens[0]) == [(b"a", -0.5)]
    assert not answer.counts


def test_43335_records_of_a_real_provider():
    if not JUDGE.exists():
        pytest.skip("the shared judge records are not here")
    counts, mass = {}, []
    with gzip.open(JUDGE, "rt") as lines:
        for line in lines:
            said = json.loads(line)["content"]
            content = [
                {"token": e["token"], "bytes": None, "logprob": e["logprob"]}
                | {"top_logprobs": [{"token": t, "bytes": None, "logprob": v} for t, v in e["top"]]}
                for e in said
            ]
            answer = read(content, asked=5)
            assert answer.reason == ""
            mass += [sum(math.exp(each.logprob) for each in token.likely) for token in answer.tokens]
            for rule, count in answer.counts.items():
                counts[rule] = counts.get(rule, 0) + count
    assert len(mass) == 43_335
    assert min(mass) > 0
    assert max(mass) < 1.0005
    assert counts == {"sampled token added": 1}


# ---------------------------------------------------------------- the rules, each counted


def test_a_sentinel_is_a_part_of_the_tail():
    content = [
        entry("a", -9999.0, ("b", -0.2), ("c", -2.0)),
        entry("d", -0.2, ("d", -0.2), ("e", -9999.0)),
        entry("f", -9999.0, ("g", -0.1), ("f", -9999.0)),
    ]
    answer = read(content)
    assert [token.logprob for token in answer.tokens] == [None, -0.2, None]
    assert [likely(token) for token in answer.tokens] == [
        [(b"b", -0.2), (b"c", -2.0)],
        [(b"d", -0.2)],
        [(b"g", -0.1)],
    ]
    assert answer.counts == {"sentinel": 3}


def test_fewer_alternatives_than_asked():
    answer = read([entry("a", -0.2, ("a", -0.2)), *PLAIN], asked=2)
    assert likely(answer.tokens[0]) == [(b"a", -0.2)]
    assert answer.counts == {"fewer than asked": 1}


@pytest.mark.parametrize("value", [0.5, 1e-9, "NaN", "Infinity"])
@pytest.mark.parametrize("place", ["own", "rival"])
def test_impossible_log_probabilities(value, place):
    own, rival = (value, -2.0) if place == "own" else (-0.2, value)
    content = [entry("a", own, ("b", rival), ("c", -3.0)), *PLAIN]
    raw = body(content).replace(b'"NaN"', b"NaN").replace(b'"Infinity"', b"Infinity")
    answer = read_answer(raw, 2)
    assert answer.tokens[0].likely == ()
    assert answer.tokens[0].logprob is None
    assert likely(answer.tokens[1])
    assert answer.counts == {"impossible": 1}


def test_a_mass_above_one():
    answer = read([entry("a", -0.2, ("a", -0.2), ("b", -0.3))])
    assert answer.tokens[0].likely == ()
    assert answer.counts == {"impossible": 1}


def test_rounding_is_no_mass_above_one():
    answer = read([entry("a", 0.0, ("a", 0.0), ("b", -10.0))])
    assert len(answer.tokens[0].likely) == 2


def test_a_sampled_token_that_is_no_alternative_is_added():
    answer = read([entry("z", -4.0, ("a", -0.2), ("b", -2.0))])
    assert likely(answer.tokens[0]) == [(b"a", -0.2), (b"b", -2.0), (b"z", -4.0)]
    assert answer.counts == {"sampled token added": 1}


def test_of_duplicates_the_likeliest_stays():
    answer = read([entry("a", -0.5, ("b", -3.0), ("a", -0.5), ("b", -2.0), ("a", -0.5))])
    assert likely(answer.tokens[0]) == [(b"a", -0.5), (b"b", -2.0)]
    assert answer.counts == {"duplicated": 2}


def test_log_probabilities_that_are_missing_at_some_tokens():
    content = [*PLAIN, spelt("x", None), entry("y", None, ("y", -0.5), ("z", -1.5)), *PLAIN]
    answer = read(content)
    assert answer.reason == ""
    assert [bool(token.likely) for token in answer.tokens] == [True, True, False, True, True, True]
    assert likely(answer.tokens[3]) == [(b"y", -0.5), (b"z", -1.5)]
    assert answer.counts == {"missing": 1, "fewer than asked": 1}


def test_entries_that_are_missing_leave_the_text_unspelt():
    answer = read([PLAIN[0], None, PLAIN[1]], text="Hel, lo")
    assert answer.reason == "the tokens do not spell the text"
    assert answer.tokens == ()


def test_half_a_character_shown_as_a_replacement_is_not_known():
    """Ollama shows each of the four tokens of an emoji as U+FFFD."""
    content = [entry(HALF, -0.1, (HALF, -0.1), ("x", -3.0)) for _ in range(4)]
    assert read(content, text="\U0001f60a").reason == "the tokens do not spell the text"
    answer = read([*PLAIN, content[0]], text="Hello" + HALF)
    assert [bool(token.likely) for token in answer.tokens] == [True, True, False]
    assert answer.counts["unknown bytes"] == 1


def test_half_a_character_shown_as_nothing_hides_the_token_that_ends_it():
    """vLLM shows the first tokens of a character as "", and the whole character at the last of them."""
    content = [
        PLAIN[0],
        entry("", -0.1, ("", -0.1), ("a", -3.0)),
        entry("“", -0.2, ("“", -0.2), ("”", -3.0)),
        PLAIN[1],
    ]
    answer = read(content, text="Hel“lo")
    assert [bool(token.likely) for token in answer.tokens] == [True, False, False, True]
    assert answer.counts["unknown bytes"] == 2


def test_alternatives_of_unknown_bytes_are_a_part_of_the_tail():
    content = [entry("a", -0.2, ("a", -0.2), (HALF, -3.0), ("", -4.0))]
    answer = read(content)
    assert likely(answer.tokens[0]) == [(b"a", -0.2)]
    assert answer.counts == {"alternative unknown": 2}


@pytest.mark.parametrize(
    ("more", "text", "reason"),
    [
        ({}, "Another text", "the tokens do not spell the text"),
        ({}, "Hello, you", "the tokens do not spell the text"),
        ({}, "", "no text"),
        ({"message": {"refusal": "I will not"}}, "Hello", "refusal"),
        ({"choice": {"logprobs": {"content": None, "refusal": PLAIN}}}, "Hello", "refusal"),
        ({"choice": {"logprobs": None}}, "Hello", "no logprobs"),
        ({"choice": {"logprobs": {"content": []}}}, "Hello", "no logprobs"),
        ({"choice": {"logprobs": "none"}}, "Hello", "no logprobs"),
        ({"message": {"content": 5}}, "Hello", "not readable"),
        ({"choice": {"message": None}}, "Hello", "not readable"),
    ],
)
def test_rows_without_targets_have_a_reason(more, text, reason):
    answer = read(PLAIN, text=text, **more)
    assert (answer.reason, answer.tokens) == (reason, ())


# ---------------------------------------------------------------- token ids


def vocabulary_of(*pieces, specials=(b"<end>",)):
    raw = (*specials, *pieces)
    ids = {piece: at for at, piece in enumerate(raw) if at >= len(specials)}
    return Vocabulary(raw, ids, {piece: at for at, piece in enumerate(specials)}, (), "d")


WORDS = vocabulary_of(b"Hel", b"lo", b"\xe2\x80", b"\x9c", b" you", b"Hi", b"p", b"x")


def test_token_ids_are_kept():
    answer = read(PLAIN, choice={"token_ids": [1, 2]}, vocabulary=WORDS)
    assert [token.id for token in answer.tokens] == [1, 2]
    assert [token.id for token in read(PLAIN, choice={"token_ids": [7, 8]}).tokens] == [7, 8]
    assert not answer.counts


def test_token_ids_say_what_half_a_character_is():
    content = [PLAIN[0], entry("", -0.1, ("", -0.1)), entry("“", -0.2, ("“", -0.2)), PLAIN[1]]
    answer = read(content, text="Hel“lo", vocabulary=WORDS, choice={"token_ids": [1, 3, 4, 2]}, asked=1)
    assert [token.raw for token in answer.tokens] == [b"Hel", b"\xe2\x80", b"\x9c", b"lo"]
    assert [bool(token.likely) for token in answer.tokens] == [True, False, False, True]
    replaced = [entry(HALF, -0.1, (HALF, -0.1))] * 2
    answer = read(replaced, text="“", vocabulary=WORDS, choice={"token_ids": [3, 4]}, asked=1)
    assert answer.reason == ""


@pytest.mark.parametrize("ids", [[1], [1, 2, 0], [1, 99], [1, -1], [1, None], [1, True], "ab", {"a": 1}])
def test_token_ids_that_do_not_fit_are_not_used(ids):
    answer = read(PLAIN, choice={"token_ids": ids}, vocabulary=WORDS)
    assert answer.reason == ""
    assert [token.id for token in answer.tokens] == [None, None]
    assert answer.counts == {"token ids do not fit": 1}


def test_ids_of_another_vocabulary_are_noticed():
    answer = read(PLAIN, choice={"token_ids": [1, 6]}, vocabulary=WORDS)
    assert answer.reason == "the ids of the tokens belong to another vocabulary than their bytes"


def test_a_server_that_strips_blanks_is_noticed():
    """Its alternatives lack their blanks too, and would become other tokens."""
    content = [*PLAIN, entry("you", -0.1, ("you", -0.1))]
    answer = read(content, text="Hello you", vocabulary=WORDS, choice={"token_ids": [1, 2, 5]})
    assert answer.reason == "the ids of the tokens belong to another vocabulary than their bytes"
    first = read(
        [entry("you", -0.1, ("you", -0.1), ("p", -4.0))], vocabulary=WORDS, choice={"token_ids": [5]}
    )
    assert first.reason == ""
    assert first.tokens[0].likely == ()


def test_prompt_logprobs():
    def scored(*pairs):
        return {str(at): {"logprob": value, "rank": 1, "decoded_token": text} for at, text, value in pairs}

    prompt = [None, scored((2, "lo", -0.5), (7, "p", -1.5)), scored((3, HALF, -3.0), (1, "Hel", -0.2))]
    raw = body(PLAIN, prompt_logprobs=prompt, prompt_token_ids=[1, 2, 3])
    answer = read_answer(raw, 2, WORDS)
    assert [token.id for token in answer.prompt] == [1, 2, 3]
    assert [token.raw for token in answer.prompt] == [b"Hel", b"lo", b"\xe2\x80"]
    assert [token.logprob for token in answer.prompt] == [None, -0.5, -3.0]
    assert answer.prompt[0].likely == ()
    assert [tuple(each) for each in answer.prompt[2].likely] == [(b"Hel", -0.2, 1), (b"\xe2\x80", -3.0, 3)]
    without = read_answer(body(PLAIN, prompt_logprobs=prompt), 2)
    assert [token.id for token in without.prompt] == [None, 2, 3]
    assert [token.raw for token in without.prompt] == [b"", b"lo", b""]
    assert not answer.counts


# ---------------------------------------------------------------- anything

scalars = st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text(max_size=4)
names = st.sampled_from(
    "choices message content index logprobs refusal token bytes logprob top_logprobs token_ids "
    "prompt_logprobs prompt_token_ids decoded_token".split()
)
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(names, v, max_size=5), max_leaves=12
)
entries = st.dictionaries(names, values, max_size=5) | st.builds(
    entry, st.text(max_size=3), st.floats(-20, 1), st.tuples(st.text(max_size=2), st.floats(-20, 1))
)
whole = st.fixed_dictionaries(
    {"message": st.fixed_dictionaries({"content": st.text(max_size=6)})},
    optional={
        "logprobs": st.fixed_dictionaries({"content": st.lists(entries, max_size=4)}),
        "token_ids": values,
    },
)
answers = st.fixed_dictionaries(
    {"choices": st.lists(whole | values, max_size=2)},
    optional={
        "prompt_logprobs": st.lists(
            st.none() | st.dictionaries(st.text("012-9", max_size=2), values), max_size=3
        ),
        "prompt_token_ids": values | st.lists(st.integers(-1, 9), max_size=3),
    },
)


@settings(max_examples=500, deadline=None)
@given(answers | values, st.integers(0, 20), st.sampled_from([None, WORDS]))
def test_any_answer_is_read_and_nothing_impossible_comes_out(said, asked, vocabulary):
    answer = read_answer(json.dumps(said).encode(), asked, vocabulary)
    assert bool(answer.reason) == (not answer.tokens)
    for token in (*answer.tokens, *answer.prompt):
        found = [each.logprob for each in token.likely]
        assert all(-9999 < value <= 0 for value in found)
        assert found == sorted(found, reverse=True)
        assert sum(map(math.exp, found)) < 1.001
    if answer.tokens:
        told = b"".join(token.raw for token in answer.tokens).decode("utf-8", "replace")
        assert answer.text in told


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_read(raw):
    assert read_answer(raw, 3).reason
