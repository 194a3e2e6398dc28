"""Was a model taught with marked answers? By key, log and answers alone, and never that it was not."""

import json
import subprocess
import sys
from datetime import UTC, datetime

import numpy as np
import pytest
from tokenizers import Tokenizer

from stillhouse.audit.lineage import NOT_DECIDED, SUPPORTED
from stillhouse.audit.lineage.marks import compare_marks, read_served
from stillhouse.audit.lineage.materials import Said
from stillhouse.errors import UsageError
from stillhouse.models import source_folder
from stillhouse.watermark import Gumbel, Key, Selection, account_key, word_ids, write_key
from stillhouse.watermark.selection import select

NOW = datetime(2026, 3, 1, tzinfo=UTC)
WORDS = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u", "an", "en", "ill")]


def key(number, scheme=None):
    return Key(scheme or Selection(), number.to_bytes(32, "big"), NOW)


def text(rng, length=60):
    return " ".join(rng.choice(WORDS, length))


def selected(one, count, seed=1, best_of=8):
    rng = np.random.default_rng(seed)
    groups = [[text(rng) for _ in range(best_of)] for _ in range(count)]
    return [group[select(one, group)] for group in groups]


def pupil(answers, seed=2):
    """One that learnt some of it by heart: half of each answer in the middle of words of its own."""
    rng = np.random.default_rng(seed)
    return [
        Said(f"tell me {at}", f"{text(rng, 30)} {' '.join(answer.split()[15:45])}")
        for at, answer in enumerate(answers)
    ]


def stranger(count=120, seed=3):
    rng = np.random.default_rng(seed)
    return [Said(f"tell me {at}", text(rng)) for at in range(count)]


def asked(suspect, one=None, served=(), controls=None):
    others = [("other", stranger())] if controls is None else controls
    return compare_marks(("suspect", suspect), one or key(1), word_ids, served, others, 0.01)


def test_who_learnt_marked_answers_is_found_and_a_wrong_key_finds_nothing():
    log = selected(key(1), 120)
    found = asked(pupil(log), served=log)
    assert found.verdict == SUPPORTED
    suspect, own, control = found.tests
    assert (suspect.name, own.name, control.name) == ("suspect", "the log itself", "control other")
    assert suspect.p < 1e-4
    assert own.p < 1e-12
    assert control.p > 0.01
    assert found.facts["looked_at"] == "everything that was answered"
    assert asked(pupil(log)).verdict == SUPPORTED  # the log is not needed for it
    wrong = asked(pupil(log), key(2), served=log)
    assert wrong.verdict == NOT_DECIDED
    assert "no better than chance" in wrong.why


def test_a_student_of_another_house_is_not_decided_and_never_innocent():
    for rows in (stranger(), pupil(selected(key(5), 120, seed=7))):
        found = asked(rows, served=selected(key(1), 120), controls=())
        assert found.verdict == NOT_DECIDED
        assert "or they are too few" in found.why
        assert any("not a finding that the suspect never saw" in limit for limit in found.limits)
        assert "innocen" not in json.dumps([found.why, found.question, *found.limits])


def test_a_control_that_fits_as_well_and_a_log_without_the_mark_take_the_verdict_back():
    log = selected(key(1), 120)
    fooled = asked(pupil(log), served=log, controls=[("known", pupil(log, seed=9))])
    assert (fooled.verdict, fooled.why) == (NOT_DECIDED, "known: a control fits the key as well")
    unmarked = asked(pupil(log), served=[said.answer for said in stranger(60, 8)])
    assert unmarked.verdict == NOT_DECIDED
    assert "the log does not bear the mark" in unmarked.why
    with pytest.raises(UsageError, match="gave no answer"):
        asked([])


def test_what_a_prompt_gave_away_counts_for_nothing():
    log = selected(key(1), 120)
    rows = [Said(f"go on: {row.answer}", row.answer) for row in pupil(log)]
    assert asked(rows, served=log).verdict == NOT_DECIDED


def test_of_a_log_only_answers_of_this_key_count(tmp_path):
    file = tmp_path / "served.jsonl"
    rows = [
        {"answer": "a", "marked": ["k1"]},
        {"answer": "b", "marked": ["k2", "k1"]},
        {"answer": "c", "marked": []},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"answer": "d"}]))
    assert read_served(file, "k1") == ["a", "b", "d"]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UsageError, match="no answer of the key k3") as caught:
        read_served(file, "k3")
    assert "k1, k2" in caught.value.why


def call(folder, *arguments, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "stillhouse.cli", *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_marked_tokens_are_looked_for_where_the_log_was_and_the_evidence_is_repeated(tmp_path, workspace):
    folder = workspace.root.parent
    one = account_key(key(1, Gumbel()), "acct_1")
    desk = Tokenizer.from_file(f"{source_folder('embedded:desk')}/tokenizer.json")
    ids = sorted(
        desk.token_to_id(word) for word in desk.get_vocab() if word.startswith("Ġ") and word[1:].isalpha()
    )
    rng = np.random.default_rng(1)

    def marked(count=80):
        said = rng.choice(ids, size=4).tolist()
        while len(said) < count:
            tries = rng.choice(ids, size=4)
            bits = [one.scheme.bits(one.sip, np.array([*said[-4:], t]), np.array([t])) for t in tries]
            said.append(int(tries[int(np.argmax([one.scheme.scores(each)[0] for each in bits]))]))
        return desk.decode(said)

    log = [marked() for _ in range(30)]
    plain = [desk.decode(rng.choice(ids, size=120).tolist()) for _ in range(30)]
    rows = [
        {"prompt": f"p{n}", "answer": f"{own} {learnt}"}
        for n, (own, learnt) in enumerate(zip(plain, log, strict=True))
    ]
    write_key(one, folder / "key.json")
    for name, those in (
        ("suspect", rows),
        ("served", [{"answer": each, "marked": [one.id]} for each in log]),
    ):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in those))
    given = [
        "audit",
        "lineage",
        "--suspect",
        "suspect.jsonl",
        "--watermark",
        "key.json",
        "--served",
        "served.jsonl",
    ]
    assert "give --model MODEL" in call(folder, *given, code=2)
    said = call(folder, *given, "--model", "embedded:desk", "--evidence", "found.json")
    assert "verdict    supported" in said
    evidence = json.loads((folder / "found.json").read_text())["evidence"]
    assert evidence["finding"]["facts"]["looked_at"] == "what follows contexts of the log"
    assert evidence["finding"]["facts"]["account"] == "acct_1"
    assert {each["role"] for each in evidence["materials"]} == {"suspect", "key", "served", "tokenizer"}
    assert one.secret.hex() not in (folder / "found.json").read_text()
    assert "repeated   the same figures" in call(folder, "audit", "lineage", "--repeat", "found.json")
