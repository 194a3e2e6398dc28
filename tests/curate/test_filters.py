"""What each filter drops and what it leaves, on texts that a reader would judge the same."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from curating import balances, declare, row, through
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.curate import duplicates, personal, quality
from stillhouse.curate.mix import quotas
from stillhouse.errors import UsageError
from stillhouse.workspace import Workspace


def says(judge, answer: str) -> str:
    return judge(row(0, answer)).reason


@pytest.mark.parametrize(
    "answer",
    [
        "As an AI developed by OpenAI, I cannot watch films.",
        "Hello! I'm Claude, an AI assistant.",
        "I was created by Anthropic to be helpful.",
        "I am a large language model, trained by Google.",
    ],
)
def test_an_answer_that_names_its_model_is_dropped(answer: str):
    assert says(quality.without_identity, answer) == "identity"


@pytest.mark.parametrize(
    "answer",
    [
        "TypeScript was created by Microsoft.",
        "I use a library developed by Google.",
        "Claude Monet painted it.",
        "My name is Claudette.",
    ],
)
def test_talk_of_makers_and_namesakes_is_kept(answer: str):
    assert says(quality.without_identity, answer) == ""


def test_boilerplate():
    assert says(quality.without_boilerplate, "As an AI language model, I have no taste. Try the soup.")
    assert says(quality.without_boilerplate, "As of my last update in 2023, it is open.")
    assert not says(quality.without_boilerplate, "An AI language model is a program that predicts text.")


PHRASE = st.lists(
    st.sampled_from("the river runs down to a sea of green glass".split()), min_size=1, max_size=12
)


@settings(deadline=None)
@given(PHRASE, st.integers(5, 12))
def test_a_phrase_said_again_and_again_is_a_loop(phrase: list[str], times: int):
    text = "It begins well enough, with words that differ: one two three. " + " ".join(phrase * times * 5)
    assert quality.repetitive(text)


@pytest.mark.parametrize(
    "answer",
    [
        "Short.",
        "\n".join(
            f"{i}. step {i}: turn valve {i * 7} by {i + 3} degrees and note gauge {i * i}" for i in range(40)
        ),
        "def f(x):\n    return x\n\ndef g(x):\n    return f(x) + 1\n" * 2,
    ],
)
def test_lists_and_code_are_no_loops(answer: str):
    assert not quality.repetitive(answer)


def test_a_conversation_with_tool_calls_is_dropped_though_it_lists_no_tools(workspace: Workspace):
    rows = [row(i, "It is 20 degrees.") for i in range(4)]
    call = {"role": "assistant", "content": "", "extra": '{"tool_calls":[{"id":"c"}]}'}
    reply = {"role": "tool", "content": "20", "extra": ""}
    rows[0]["messages"] += [call, reply]
    rows[1]["messages"].append(reply)
    rows[2]["messages"].append({"role": "user", "content": "And now?", "extra": '{"name":"ann"}'})
    done, kept, _ = through(rows, workspace)
    assert done.reasons == {"tools": 2}
    assert [r["id"] for r in kept] == ["p2#0", "p3#0"]


def test_length_and_pattern():
    fits = quality.of_length(2, 4)
    assert [says(fits, "w " * n) for n in (1, 2, 4, 5)] == ["too short", "", "", "too long"]
    assert says(quality.matching(r"Answer: \d+$"), "Answer: x") == "pattern"
    with pytest.raises(UsageError, match=r"curate\.pattern"):
        quality.matching("(")


def test_json_schema(tmp_path):
    pytest.importorskip("jsonschema_rs", reason="jsonschema-rs is not installed")
    path = tmp_path / "schema.json"
    path.write_text(
        json.dumps({"type": "object", "required": ["id"], "properties": {"id": {"type": "integer"}}})
    )
    fits = quality.of_schema(path)
    answers = ['{"id": 3}', '```json\n{"id": 3}\n```', '{"id": "3"}', "id 3", "[" * 100_000]
    assert [says(fits, answer) for answer in answers] == ["", "", "schema", "no JSON", "no JSON"]
    wrapped = ['```JSON\r\n{"id": 3}\r\n```', '```{"id": 3}```', '\ufeff{"id": 3}', '{"id": 3, "b": NaN}']
    assert [says(fits, answer) for answer in wrapped] == ["", "", "", "no JSON"]
    path.write_text('{"type": 7}')
    with pytest.raises(UsageError, match="no JSON Schema"):
        quality.of_schema(path)


def test_language():
    pytest.importorskip("lingua", reason="lingua is not installed")
    english = quality.in_languages(["en"])
    assert says(english, "Der Zug nach München fährt heute leider erst um halb neun von Gleis sieben ab.")
    assert not says(english, "The train to Munich leaves from platform seven at half past eight today.")
    assert not says(english, "oui")  # too short to tell
    assert not says(english, "```python\nfür = {'ja': 'nein'}\nprint(für, 'und so weiter und so fort')\n```")
    assert not says(
        quality.in_languages(["en", "de"]), "Der Zug nach München fährt heute erst um halb neun ab."
    )
    with pytest.raises(UsageError, match="no language 'xx'"):
        quality.in_languages(["xx"])


# ---------------------------------------------------------------- personal data


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("write to jo.b+x@mail.gmx.de.", "email"),
        ("call +44 20 7946 0958 now", "phone"),
        ("call (415) 555-0132", "phone"),
        ("card 4111 1111 1111 1111", "card"),
        ("card 378282246310005", "card"),
        ("to DE89 3704 0044 0532 0130 00", "iban"),
        ("to GB82WEST12345698765432", "iban"),
        ("host 8.8.8.8 answers", "ip address"),
        ("use sk-proj-abcdefghijklmnopqrstuvwx", "key"),
        ("use AKIAIOSFODNN7EXAMPLE", "key"),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----", "private key"),
    ],
)
def test_personal_data_is_found(text: str, kind: str):
    assert [found.kind for found in personal.find(text)] == [kind]


@pytest.mark.parametrize(
    "text",
    [
        "card 4111 1111 1111 1112",  # the check digit is wrong
        "to DE88 3704 0044 0532 0130 00",
        "on 2024-05-01 at 12:30:11",
        "pi is 3.14159265358979",
        "order 1234567890",
        "me@example.com",  # set apart for examples
        "at 192.168.0.1 and 127.0.0.1",
        "1999-2005, 2006-2010",
        "version 1.2.3.4.5",
    ],
)
def test_what_only_looks_like_it_is_left(text: str):
    assert list(personal.find(text)) == []


@settings(deadline=None)
@given(st.text(st.sampled_from("0123456789"), min_size=12, max_size=18))
def test_one_of_ten_last_digits_is_right(digits: str):
    assert sum(personal.luhn(digits + str(last)) for last in range(10)) == 1


def test_what_begins_many_keys_takes_no_time():
    started = time.process_time()
    assert not list(personal.find("eyJaaaaaaaaaa-" * 20_000))
    assert time.process_time() - started < 2


def test_personal_data_is_counted_redacted_or_dropped(workspace: Workspace):
    rows = [row(0, "Ask ada@gmx.de, or +44 20 7946 0958.", "who? not bob@gmx.de"), row(1, "Nobody knows.")]
    counted, kept, _ = through(rows, workspace)
    step = next(step for step in counted.funnel if step["filter"] == "personal data")
    assert step["marks"] == {"email": 1, "phone": 1}
    assert [r["completion"] for r in kept] == [r["answer"] for r in rows]
    redacted, kept, _ = through(rows, workspace, personal="redact")
    assert kept[0]["completion"] == "Ask [email], or [phone]."
    assert kept[0]["messages"][0]["content"] == "who? not [email]"
    dropped, kept, _ = through(rows, workspace, personal="drop")
    assert dropped.reasons == {"personal data: email": 1}
    assert all(map(balances, (counted, redacted, dropped)))


# ---------------------------------------------------------------- duplicates


def test_a_local_embedding_model_tells_rows_that_mean_the_same(tmp_path):
    model2vec = pytest.importorskip("model2vec", reason="model2vec is not installed")
    from small_models import make_tokenizer

    tokenizer = make_tokenizer()._tokenizer
    vectors = np.random.default_rng(0).normal(size=(tokenizer.get_vocab_size(), 16)).astype(np.float32)
    model2vec.StaticModel(vectors, tokenizer).save_pretrained(tmp_path)
    new = duplicates.saying_something_new(0.95, duplicates.embedder(str(tmp_path)))
    rows = [row(i, answer, "q") for i, answer in enumerate(("the cat sat", "the cat sat.", "zz 88 ## !!"))]
    assert [verdict.reason for verdict in new(rows)] == ["", "semantic duplicate", ""]


def test_an_extra_that_is_missing_is_told(monkeypatch):
    for package in ("model2vec", "presidio_analyzer", "lingua", "jsonschema_rs"):
        monkeypatch.setitem(sys.modules, package, None)
    for needs in (
        lambda: duplicates.embedder("x"),
        personal.named,
        lambda: quality.in_languages(["en"]),
        lambda: quality.of_schema(Path("x")),
    ):
        with pytest.raises(UsageError, match="is not installed") as told:
            needs()
        assert told.value.mend.startswith("pip install 'stillhouse[")


VECTORS = {"a": (1.0, 0.0), "b": (3.0, 0.3), "c": (0.0, 1.0), "d": (0.1, 2.0)}


def test_answers_to_one_long_question_are_no_near_duplicates(workspace: Workspace):
    story = " ".join(f"word{i} of the long and winding story number {i}" for i in range(20))
    long = " ".join(f"answer{i} that goes on" for i in range(20))
    rows = [
        row(0, "Yes.", story),
        row(1, "No.", story),
        row(2, "Yes.", story + " again"),
        row(3, long, story),
        row(4, long + " on", story),
    ]
    done, kept, _ = through(rows, workspace)
    assert [r["id"] for r in kept] == ["p0#0", "p1#0", "p3#0"]
    assert done.reasons == {"near duplicate": 2}


def test_rows_that_share_a_long_instruction_are_no_near_duplicates(workspace: Workspace):
    rule = " ".join(
        f"rule {i} says that intent number {i} is meant when somebody asks for it" for i in range(30)
    )
    asked = [
        "where is my card",
        "how do I freeze an account",
        "what is the weather like",
        "tell me a joke",
    ] * 5
    rows = [row(i, "intent", f"{rule}\n{text} {i} please {i * i}") for i, text in enumerate(asked)]
    done, kept, _ = through(rows, workspace)
    assert len(kept) == len(rows)
    assert done.reasons == {}


def test_rows_that_mean_the_same_by_their_vectors():
    near = duplicates.saying_something_new(0.9, lambda texts: np.array([VECTORS[t[-1]] for t in texts]))
    told = [verdict.reason for name in ("abc", "d") for verdict in near([row(0, a) for a in name])]
    assert told == ["", "semantic duplicate", "", "semantic duplicate"]


# ---------------------------------------------------------------- leaks

QUESTIONS = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May",
    "Weng earns 12 dollars an hour for babysitting and yesterday she just did 50 minutes of babysitting",
)


def test_leaks_are_dropped_and_both_directions_reported(workspace: Workspace, tmp_path):
    own = {"id": "t", "messages": [{"role": "user", "content": QUESTIONS[0]}], "split": "test"}
    (tmp_path / "exam.jsonl").write_text(json.dumps({"question": QUESTIONS[1]}) + "\n")
    rows = [
        row(0, "72", QUESTIONS[0].upper() + "?"),
        row(1, "10", "Please solve: " + QUESTIONS[1]),
        row(2, "ok", "How many clips does a shop sell in a year if nobody comes in April?"),
    ]
    sets = [{"file": str(tmp_path / "exam.jsonl"), "column": "question"}]
    done, kept, _ = through(rows, workspace, [own], leak_sets=sets)
    assert [r["id"] for r in kept] == ["p2#0"]
    assert done.reasons == {"leak: test": 1, "leak: exam.jsonl": 1}
    assert balances(done)
    assert [(e["set"], e["rows"]["leaks"], e["questions_held"]) for e in done.leaks] == [
        ("test", 1, 0),
        ("exam.jsonl", 1, 0),
    ]
    counted, kept, _ = through(rows, workspace, [own], leak_sets=sets, leaks=0)
    assert len(kept) == 3
    assert [e["questions_held"] for e in counted.leaks] == [1, 1]
    assert counted.leaks[0]["test_words_held"] == counted.leaks[0]["test_words"] == len(QUESTIONS[0].split())


def test_the_wording_that_all_test_questions_share_is_no_leak(workspace: Workspace):
    rule = (
        "Sort this message into one of the queues billing, delivery, returns or other, and say only the queue"
    )
    tests = [
        {"id": f"t{i}", "messages": [{"role": "user", "content": f"{rule}: note {i * 7}"}], "split": "test"}
        for i in range(30)
    ]
    rows = [row(i, f"billing {i}", f"{rule}: my invoice {i} is wrong by {i * 3} euros") for i in range(30)]
    done, kept, _ = through(rows, workspace, tests)
    assert len(kept) == 30
    assert done.leaks[0]["rows"]["leaks"] == 0


def test_sets_and_filters_of_one_name_are_counted_apart(workspace: Workspace, tmp_path, monkeypatch):
    for name in ("gsm8k", "math"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "test.jsonl").write_text(json.dumps({"prompt": f"Who wrote {name}?"}))
    sets = [{"file": str(tmp_path / name / "test.jsonl")} for name in ("gsm8k", "math", "math")]
    declare(monkeypatch, empty="own_filters:same")
    rows = [*draws("42", "41"), row(7, "y", "Who wrote gsm8k?"), row(8, "z", "Who wrote math?"), row(9, " ")]
    done, _, _ = through(rows, workspace, REFERENCE, leak_sets=sets, filters=["empty", "empty"])
    assert balances(done)
    assert [step["filter"] for step in done.funnel if "leak" in step["filter"]] == [
        "leaks: gsm8k/test.jsonl",
        "leaks: math/test.jsonl (1)",
        "leaks: math/test.jsonl (2)",
    ]


def test_an_evaluation_set_that_cannot_be_read_is_told(workspace: Workspace, tmp_path):
    (tmp_path / "exam.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(UsageError) as told:
        through([row(0, "x")], workspace, leak_sets=[{"file": str(tmp_path / "exam.jsonl")}])
    assert "column `prompt`" in told.value.mend


# ---------------------------------------------------------------- verified answers and draws


def draws(*answers: str, prompt: str = "p0") -> list[dict]:
    return [row(i, a, "6 * 7?", prompt_id=prompt, sample_index=i) for i, a in enumerate(answers)]


REFERENCE = [{"id": "p0", "messages": [], "reference": "42", "scorer": "numeric", "split": "train"}]


@pytest.mark.parametrize(
    ("best", "kept_answers"),
    [("all", {"It is 42", "42", "so 42 then"}), ("shortest", {"42"}), ("agreed", {"42"})],
)
def test_of_several_draws_those_that_verify_are_kept(workspace: Workspace, best: str, kept_answers: set[str]):
    rows = draws("It is 41", "It is 42", "42", "so 42 then", "7")
    done, kept, _ = through(
        rows, workspace, REFERENCE, verify="all", draws=best, duplicates=False, near_duplicates=0
    )
    assert {r["completion"] for r in kept} == kept_answers
    assert done.reasons["wrong answer"] == 2
    assert done.draws == (None if best == "all" else {"prompts": 1, "answers": 3})
    assert balances(done)


def test_without_a_reference_the_answer_most_agree_with_is_kept(workspace: Workspace):
    rows = draws("Answer: 7", "well, let me see\nAnswer: 42", "Answer: 42", "Answer: 41")
    _, kept, _ = through(rows, workspace, draws="agreed")
    assert [r["completion"] for r in kept] == ["Answer: 42"]


@pytest.mark.parametrize(
    ("scorer", "wrong", "right"),
    [
        ("json", '{"a": 2}', '```json\n{\n  "a": 1\n}\n```'),
        ("json_fields", '{"a": 2}', 'Here it is: {"a": 1}. I hope that this is of help.'),
        ("choice", "Answer: B", "I think of the second.\n\nanswer : A\n\nFor it is green."),
        ("last_line", "Answer: 2", "**Answer: 1**\nThat is all there is to say."),
    ],
)
def test_answers_in_prose_and_fences_agree(workspace: Workspace, scorer: str, wrong: str, right: str):
    given = [{**REFERENCE[0], "reference": None, "scorer": scorer}]
    _, kept, _ = through(draws(wrong, right, f" {right}"), workspace, given, draws="agreed")
    assert [r["completion"] for r in kept] == [right]


def test_what_cannot_be_verified_is_set_aside_only_where_that_is_asked(workspace: Workspace):
    rows = [*draws("42"), row(9, "who knows", prompt_id="other")]
    every, kept, dropped = through(rows, workspace, REFERENCE, verify="all")
    assert every.unscored == {"not verified: no scorer": 1}
    assert [(r["ruling"], r["filter"]) for r in dropped] == [("unscored", "verified")]
    possible, kept, _ = through(rows, workspace, REFERENCE, verify="where_possible")
    assert len(kept) == 2
    assert balances(every)
    assert balances(possible)


def test_a_scorer_that_raises_leaves_its_rows_unscored(workspace: Workspace):
    def broken(answer: str, reference: str) -> float:
        raise RuntimeError(answer)

    done, _, _ = through(draws("42 secret"), workspace, REFERENCE, verify="all", scorers={"numeric": broken})
    assert done.unscored == {"not verified: scorer 'numeric' raised RuntimeError": 1}
    assert balances(done)


def test_draws_are_not_parted_by_the_batches_that_are_read(workspace: Workspace, monkeypatch):
    monkeypatch.setattr("stillhouse.curate.rows.ROWS", 3)
    rows = [
        row(i, "x" * (i % 4 + 1), f"q{i // 4}", prompt_id=f"p{i // 4}", sample_index=i % 4) for i in range(20)
    ]
    done, kept, _ = through(rows, workspace, draws="shortest", near_duplicates=0)
    assert [r["id"] for r in kept] == [f"p{i}#0" for i in range(5)]
    assert done.draws == {"prompts": 5, "answers": 20}


# ---------------------------------------------------------------- mix


def family(name: str, count: int, first: int) -> list[dict]:
    return [row(first + i, f"{name} says {i} and {i * i}", family=name) for i in range(count)]


def test_a_mix_reaches_its_proportions_and_a_larger_cap_keeps_the_rows_of_a_smaller(workspace: Workspace):
    rows = family("a", 60, 0) + family("b", 30, 100) + family("c", 9, 200)
    plain = {"near_duplicates": 0}
    done, _, _ = through(rows, workspace, mix={"families": {"a": 1, "b": 2}}, **plain)
    assert done.families == {"b": 30, "a": 15, "c": 9}
    assert done.reasons == {"mix: family": 45}
    assert balances(done)
    kept = []
    for cap in (5, 20):
        _, samples, _ = through(rows, workspace, mix={"family_cap": cap}, **plain)
        kept.append({r["id"] for r in samples})
    assert kept[0] < kept[1]


def test_the_hardest_and_easiest_by_the_students_loss_are_left_out(workspace: Workspace):
    rows = [row(i, f"answer {i} is {i * i}") for i in range(10)]

    def losses(batch):
        return [float("nan") if r["leaf"] == 0 else float(r["leaf"]) for r in batch]

    mix = {"checkpoint": "student", "easiest": 0.34, "hardest": 0.23}
    done, kept, _ = through(rows, workspace, losses=losses, mix=mix, near_duplicates=0)
    assert [r["leaves"][0] for r in kept] == [4, 5, 6, 7]
    assert done.reasons == {"mix: easy": 3, "mix: hard": 2}
    assert done.unscored == {"no loss of the student": 1}
    broken, kept, _ = through(rows, workspace, losses=lambda batch: 1 / 0, mix=mix, near_duplicates=0)
    assert broken.unscored == {"no loss of the student": 10}
    unmeasured, _, _ = through(rows, workspace, mix=mix, near_duplicates=0)
    assert unmeasured.unscored == {"no loss of the student": 10}
    assert balances(done)
    assert balances(broken)


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from("abcd"), st.integers(0, 1000), max_size=4),
    st.dictionaries(st.sampled_from("abcde"), st.floats(0, 5), max_size=5),
    st.none() | st.integers(1, 500),
)
def test_quotas_stay_within_what_there_is(counts, weights, cap):
    found = quotas(counts, weights, cap)
    assert found.keys() == counts.keys()
    assert all(0 <= found[name] <= min(n, cap or n) for name, n in counts.items())


# ---------------------------------------------------------------- own filters


def test_a_filter_that_nobody_declared_is_told(workspace: Workspace):
    with pytest.raises(UsageError, match="no filter named 'mine'"):
        through([row(0, "x")], workspace, filters=["mine"])


def test_an_own_filter_sees_the_reference(workspace: Workspace, monkeypatch):
    declare(monkeypatch, same="own_filters:same")
    done, kept, _ = through(draws("42", "41"), workspace, REFERENCE, filters=["same"])
    assert [r["completion"] for r in kept] == ["42"]
    assert done.reasons == {"not the reference": 1}
