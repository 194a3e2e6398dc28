from dataclasses import replace
from datetime import UTC, datetime
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.ledger import Ledger
from stillhouse.recipe import parse_recipe
from stillhouse.release.owed import files
from stillhouse.terms import admit_base
from stillhouse.terms.asking import licence_texts
from stillhouse.terms.facts import Obligation
from stillhouse.terms.obligations import Owed, due, file_name, of_seeds, redistributes, settle, settled
from stillhouse.workspace import init_workspace

LLAMA = [
    Owed("llama3.1", "Llama-3.1-8B", Obligation("name_prefix", ("Llama",))),
    Owed("llama3.1", "Llama-3.1-8B", Obligation("credit", ("Built with Llama",), where="model card")),
    Owed("llama3.1", "Llama-3.1-8B", Obligation("licence_copy")),
]
QWEN = Owed("qwen2.5-72b", "Qwen2.5-72B", Obligation("credit", ("Built with Qwen", "Improved using Qwen")))
GEMMA = Owed("gemma1-3n", "gemma-3-4b-it", Obligation("inherits", ("Gemma Terms of Use",)))


def test_a_name_without_the_prefix_is_unmet_and_the_message_has_one_that_would_do():
    found = settle(LLAMA, "desk-small", None, copied=[("llama3.1", "Llama-3.1-8B")])
    assert found.prefix == "Llama"
    (line,) = found.unmet
    assert "'desk-small'" in line
    assert "'Llama-desk-small'" in line
    assert settle(LLAMA, "Llama-desk-small", None, copied=[("llama3.1", "Llama-3.1-8B")]).unmet == ()
    assert not found.conflicts


def test_a_licence_copy_needs_a_text():
    (line,) = settle(LLAMA, "Llama-x", None).unmet
    assert "llama3.1" in line
    assert "licence" in line


def test_a_copy_is_of_one_row_and_one_teacher_and_so_is_its_file():
    both = [Owed(row, "T", Obligation("licence_copy")) for row in ("own", "upstream")]
    (line,) = settle(both, "x", None, copied=[("own", "T")]).unmet
    assert line.startswith("upstream (by T)")
    names = [file_name(copy) for copy in (("r", "a/b"), ("r", "a-b"), ("r-a", "b"), ("r", "A/b"))]
    assert len({name.casefold() for name in names}) == 4


def test_only_a_text_of_that_licence_is_a_copy_of_it(tmp_path):
    workspace = init_workspace(tmp_path)
    apache = (Path(__file__).parents[2] / "LICENSE").read_text()
    (tmp_path / "terms.txt").write_text("what I read")
    (tmp_path / "licence.txt").write_text("Llama 3.1 Community License, as it came")
    (tmp_path / "apache.txt").write_text(apache)
    terms = {"document": str(tmp_path / "terms.txt"), "read_on": "2026-11-01", "declared_by": "R. Ames"}
    model = "meta-llama/Llama-3.1-8B"

    def copied(document="terms.txt", **more):
        said = terms | {"document": str(tmp_path / document)}
        texts = licence_texts(recipe_of("embedded:base", {"model": model, "terms": said, **more}), workspace)
        return {row for row, teacher in texts if teacher == "Llama-3.1-8B"}

    assert copied() == set()
    assert "llama3.1" not in copied("apache.txt")
    assert "qwen-apache" in copied("apache.txt")
    assert "llama3.1" in copied(licence=str(tmp_path / "licence.txt"))
    assert "llama3.1" not in copied(licence=str(tmp_path / "apache.txt"))


def test_the_longer_of_two_prefixes_serves_both_and_strangers_are_a_conflict():
    older = Owed("llama3.0", "Meta-Llama-3-8B", Obligation("name_prefix", ("Llama 3",)))
    for order in permutations([LLAMA[0], older]):
        assert settle(list(order), "Llama 3 x", None).prefix == "Llama 3"
    other = Owed("b", "B", Obligation("name_prefix", ("Bee",)))
    for order in permutations([LLAMA[0], other]):
        (line,) = settle(list(order), "Llama", None).conflicts
        assert "Bee" in line
        assert "Llama" in line


def test_a_prefix_that_another_teacher_does_not_allow_in_a_name_is_a_conflict():
    ban = Owed("deepseek-api", "deepseek-chat", Obligation("no_mark", ("DeepSeek",)))
    assert settle([*LLAMA[:1], ban], "Llama-x", None).conflicts == ()
    (line,) = settle([*LLAMA[:1], ban], "Llama-deepseek-x", None).unmet
    assert "'DeepSeek'" in line
    llama_ban = Owed("other", "o", Obligation("no_mark", ("llama",)))
    (line,) = settle([*LLAMA[:1], llama_ban], "Llama-x", None).conflicts
    assert "other" in line


def test_an_inherited_licence_must_be_the_students():
    assert settle([GEMMA], "x", "Apache-2.0").unmet
    assert settle([GEMMA], "x", "Gemma Terms of Use").unmet == ()
    share_alike = of_seeds("wiki.jsonl", "CC-BY-SA-4.0")
    (line,) = settle([GEMMA, *share_alike], "x", "Gemma Terms of Use").conflicts
    assert "CC-BY-SA-4.0" in line
    assert "Gemma" in line


@pytest.mark.parametrize("licence", ["LicenseRef-Gemma-Terms-of-Use", "gemma terms of use"])
def test_a_licence_that_is_no_spdx_id_may_be_named_as_a_reference(licence):
    assert settle([GEMMA], "x", licence).unmet == ()
    (line,) = settle([GEMMA], "x", "LicenseRef-Gemma").unmet
    assert line.endswith("set 'LicenseRef-Gemma-Terms-of-Use'")
    text = files(settle([], "x", licence), licence, {})["LICENSE"].decode()
    assert text.startswith("SPDX-License-Identifier: LicenseRef-") is licence.startswith("LicenseRef-")


@pytest.mark.parametrize("spelt", ["CC BY-SA 4.0", "cc-by-sa-4.0"])
def test_share_alike_is_known_however_it_is_spelt(spelt):
    assert settle(of_seeds("p.jsonl", spelt), "x", "CC-BY-SA-4.0").unmet == ()
    assert settle(of_seeds("p.jsonl", spelt), "x", "MIT").unmet


def test_any_one_text_of_an_obligation_will_do():
    either = Owed("a", "A", Obligation("name_prefix", ("Llama", "Meta Llama")))
    for name in ("Llama-x", "Meta Llama x"):
        assert (settle([either], name, None).conflicts, settle([either], name, None).unmet) == ((), ())
    ban = Owed("b", "B", Obligation("no_mark", ("meta",)))
    assert settle([replace(either, obligation=Obligation("name_prefix", ("Meta Llama", "Llama"))), ban], "x",
                  None).prefix == "Llama"  # fmt: skip
    licences = Owed("a", "A", Obligation("inherits", ("Apache-2.0", "MIT")))
    for licence in ("MIT", "apache-2.0"):
        found = settle([licences], "x", licence)
        assert (found.conflicts, found.unmet) == ((), ())


@pytest.mark.parametrize(
    ("prefix", "name", "proposed"),
    [
        ("Llama 3", "Llama-3-x", "Llama 3-x"),
        ("Llama 3", "llama3-x", "Llama 3-x"),
        ("Llama 3", "Llama-x", "Llama 3-x"),
        ("Llama", "llama", "Llama"),
        ("Llama", "lamp", "Llama-lamp"),
    ],
)
def test_the_proposed_name_does_not_say_the_prefix_twice(prefix, name, proposed):
    (line,) = settle([Owed("a", "A", Obligation("name_prefix", (prefix,)))], name, None).unmet
    assert line.endswith(f"such as {proposed!r}")


def test_a_credit_that_has_a_choice_takes_what_is_owed_anyway():
    tulu = Owed("tulu3", "Tulu", Obligation("credit", ("Improved using Qwen",)))
    assert settle([QWEN, tulu], "x", None).credits == ("Improved using Qwen",)
    assert settle([QWEN], "x", None).credits == ("Built with Qwen",)


def test_what_only_a_person_can_do_must_be_confirmed():
    tell = Owed("minimax-m3", "M3", Obligation("notify", ("MiniMax",)))
    (line,) = settle([tell], "x", None).unmet
    assert "release.confirmed" in line
    assert settle([tell], "x", None, confirmed=["notify"]).unmet == ()


def test_what_is_not_given_away_owes_nothing_that_is_about_giving():
    inside = Owed("a", "A", Obligation("label_ai", modes=("internal", "hosted", "weights")))
    weights = Owed("a", "A", Obligation("notice", ("N",), redistributes=True))
    assert due([*LLAMA, inside, weights], "internal", True) == (inside,)
    assert due([*LLAMA, weights], "weights", False) == tuple(LLAMA)
    assert due([weights], "weights", True) == (weights,)


def recipe_of(init, teacher=None, others=(), **tables):
    tree = {
        "run": {"name": "t"},
        "teacher": teacher or {"model": "embedded:desk"},
        "teachers": list(others),
        "prompts": {"source": "embedded:desk"},
        "student": {"init": init},
    }
    return parse_recipe(tree | tables)


SERVED = {"model": "llama", "endpoint": "http://127.0.0.1:1/v1", "checkpoint": "meta-llama/Llama-3.2-1B"}


@pytest.mark.parametrize(
    ("init", "teacher", "inside"),
    [
        ("from_teacher", {"model": "/models/llama"}, True),
        ("meta-llama/Llama-3.2-1B", {"model": "meta-llama/Llama-3.2-1B"}, True),
        ("meta-llama/llama-3.2-1b", SERVED, True),
        ("/models/llama", {"model": "/models/llama", "checkpoint": "meta-llama/Llama-3.2-1B"}, True),
        ("/models/llama/", {"model": "/models/llama"}, True),
        ("embedded:base", {"model": "meta-llama/Llama-3.2-1B"}, False),
        ("config", {"model": "/models/llama"}, False),
    ],
)
def test_a_student_that_begins_as_a_teacher_holds_its_weights(init, teacher, inside):
    assert redistributes(recipe_of(init, teacher)) is inside


def test_a_student_that_begins_as_the_second_teacher_holds_its_weights():
    assert redistributes(recipe_of("meta-llama/Llama-3.2-1B", {"model": "Qwen/Qwen3-8B"}, [SERVED]))


def based(tmp_path, init, teacher=None, **tables):
    recipe = recipe_of(init, teacher, **tables)
    workspace = init_workspace(tmp_path)
    workspace.operator.write_text("monthly_users = 5\n")
    with Ledger.open(workspace) as ledger:
        leaf = admit_base(recipe, ledger, datetime(2026, 11, 20, tzinfo=UTC))
        return settled(recipe, [] if leaf is None else [ledger.leaf(leaf).body], {})


@pytest.mark.parametrize("teacher", ["Qwen/Qwen2.5-7B-Instruct", "embedded:desk"])
def test_the_base_brings_what_its_licence_asks_whoever_teaches(tmp_path, teacher):
    found = based(tmp_path, "meta-llama/Llama-3.2-1B", {"model": teacher})
    assert found.prefix == "Llama"
    assert found.credits == ("Built with Llama",)
    assert any("Llama 3.2" in line for line in found.notices)
    assert found.unknown == ()
    assert any("by the base meta-llama/Llama-3.2-1B" in line for line in found.unmet)


def test_a_base_in_a_folder_is_known_by_its_licence(tmp_path):
    folder = tmp_path / "base"
    folder.mkdir()
    (line,) = based(tmp_path, str(folder)).unknown
    assert line.startswith("the terms of the base base are not known")
    (folder / "LICENSE").write_text((Path(__file__).parents[2] / "LICENSE").read_text())
    found = based(tmp_path, str(folder))
    assert (found.unknown, found.unmet) == ((), ())


@pytest.mark.parametrize("init", ["embedded:base", "config", "from_teacher"])
def test_what_is_shipped_or_begins_with_nothing_brings_nothing(tmp_path, init):
    teacher = {"model": "/models/x"} if init == "from_teacher" else None
    assert based(tmp_path, init, teacher) == settle([], "t", None)


def test_a_base_that_stays_in_the_house_owes_nothing_about_giving(tmp_path):
    assert based(tmp_path, "meta-llama/Llama-3.2-1B", release={"mode": "internal"}).unmet == ()


KINDS = st.sampled_from(
    ["name_prefix", "no_mark", "credit", "notice", "inherits", "note", "label_ai", "notify"]
)
OWED = st.builds(
    Owed,
    st.sampled_from(["r1", "r2", "r3"]),
    st.sampled_from(["t1", "t2"]),
    st.builds(
        Obligation, KINDS, st.lists(st.text("abL", min_size=1, max_size=3), min_size=1, max_size=2).map(tuple)
    ),
)


@given(st.lists(OWED, max_size=6), OWED, st.text("abL", max_size=5))
def test_one_more_obligation_never_makes_a_release_easier(owed, more, name):
    before, after = settle(owed, name, "a"), settle([*owed, more], name, "a")
    assert not before.conflicts or after.conflicts
    assert not (before.conflicts or before.unmet) or after.conflicts or after.unmet


@given(st.lists(OWED, max_size=6), st.text("abL", max_size=5))
def test_what_settles_is_met(owed, name):
    """Checked by the obligations themselves, not by the settlement's own reckoning."""
    found = settle(owed, name, "a", confirmed=["notify"])
    if found.conflicts or found.unmet:
        return
    for one in owed:
        kind, texts = one.obligation.kind, one.obligation.texts
        if kind == "name_prefix":
            assert any(name.startswith(text) for text in texts)
        elif kind == "no_mark":
            assert not any(text.lower() in name.lower() for text in texts)
        elif kind == "credit":
            assert any(text in found.credits for text in texts)
        elif kind == "notice":
            assert all(text in found.notices for text in texts)
        elif kind == "inherits":
            assert "a" in [text.lower() for text in texts]


@pytest.mark.parametrize("licence", ["MIT", "Apache-2.0", "CC0-1.0"])
def test_permissive_prompts_bring_nothing(licence):
    assert of_seeds("p.jsonl", licence) == ()


def test_seeds_are_named_in_what_they_bring():
    (note,) = of_seeds("p.jsonl", "CC-BY-4.0")
    assert note.obligation.kind == "note"
    assert "p.jsonl" in note.obligation.texts[0]
    assert replace(note, row="x").source == "x (by p.jsonl)"
