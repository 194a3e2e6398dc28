"""The gate with its ledger: what it decides of a recipe, what it writes, and what it says."""

import json
from datetime import timedelta
from hashlib import sha256
from pathlib import Path

import pytest
from maker import NOW, TEXT, TODAY, admitted, at_maker, recipe

from stillhouse.errors import GateRefused, UsageError
from stillhouse.ledger.quarantine import decisions_of, recall
from stillhouse.recipe import parse_recipe
from stillhouse.terms import admit, admit_import, admit_release, consider, uses_of
from stillhouse.terms.licences import digest

APACHE = Path(__file__).parents[2] / "LICENSE"


def shipped():
    return recipe(model="embedded:desk", endpoint=None)


@pytest.mark.parametrize("use", ["train_target", "evaluation", "prompt_seed"])
def test_a_shipped_teacher_is_allowed_for_every_use(use, ledger):
    decision = consider(shipped(), shipped().teacher, use, ledger, NOW)
    assert (decision.verdict, decision.basis) == ("allow", "registry")
    assert "Apache" in decision.terms


@pytest.mark.parametrize(
    "what",
    [
        recipe(),
        recipe(model="/models/big", endpoint=None),
        recipe(model="embedded:desk", endpoint="http://127.0.0.1:9000/v1"),
    ],
)
def test_every_other_teacher_is_refused_when_nothing_is_declared(what, ledger):
    assert consider(what, what.teacher, "evaluation", ledger, NOW).verdict == "refuse"


def test_an_allowed_teacher_leaves_a_decision_that_is_used_again_that_day(ledger):
    leaf = admitted(shipped(), "train_target", ledger)
    body = ledger.leaf(leaf).body
    assert ledger.leaf(leaf).kind == "decision"
    assert body["verdict"] == "allow"
    assert admitted(shipped(), "train_target", ledger, NOW + timedelta(hours=3)) == leaf
    assert admitted(shipped(), "evaluation", ledger) != leaf
    assert admitted(shipped(), "train_target", ledger, NOW + timedelta(days=1)) != leaf


def test_a_decision_holds_all_that_it_was_made_by(ledger, maker):
    what = at_maker(
        student={"task": "classifier"},
        release={"mode": "internal", "competes": False, "name": "Sorter"},
        features=["Web_Search"],
        paid=True,
    )
    (ledger.workspace.operator).write_text('monthly_users = 12\nterritory = "CH"\n')
    body = ledger.leaf(admitted(what, "train_target", ledger)).body
    asked = body["asked"]
    assert (asked["model"], asked["access"], asked["use"]) == ("maker-2", "api", "train_target")
    assert (asked["features"], asked["paid"]) == (["web_search"], True)
    assert asked["student"] == {
        "name": "Sorter",
        "base": "embedded:base",
        "task": "classifier",
        "mode": "internal",
        "competes": False,
    }
    assert (asked["operator"]["monthly_users"], asked["operator"]["territory"]) == (12, "CH")
    assert body["layers"] == [
        {
            "row": "maker-api",
            "version": "2026-01-01",
            "read_on": "2026-11-01",
            "source": "https://maker.example/terms",
            "own": True,
        }
    ]
    assert body["reasons"][0]["verdict"] == "allow"
    assert len(body["registry_sha256"]) == 64
    assert body["policy"]
    assert "no restriction of this use found in Maker Terms" in body["reason"]


def test_a_refusal_names_the_teacher_and_the_lines_that_lift_it_and_is_recorded(ledger):
    with pytest.raises(GateRefused) as caught:
        admitted(recipe(), "train_target", ledger)
    error = caught.value
    assert error.exit_code == 3
    assert "big-1" in error.what
    assert "https://api.example.com/v1" in error.what
    assert "no terms are known" in error.why
    for line in ("[teacher.terms]", "document =", "read_on = 2026-11-21", "declared_by ="):
        assert line in error.mend
    assert "scope" not in error.mend  # left out, a declaration covers both uses
    (decision,) = ledger.leaves("decision")
    assert decision.body["verdict"] == "refuse"
    assert decision.body["teacher"]["model"] == "big-1"


def test_a_refusal_by_a_text_gives_clause_date_and_source_and_no_declaration_lifts_it(ledger, maker, terms):
    maker(verdict="refuse", trains_competing="no", clause="No models that compete.")
    with pytest.raises(GateRefused) as caught:
        admitted(at_maker(terms), "train_target", ledger)
    for words in (
        "Maker Terms",
        "read on 2026-11-01",
        "No models that compete.",
        "https://maker.example/terms",
    ):
        assert words in caught.value.why
    assert "a written permission of Maker" in caught.value.mend
    assert "terms authorise" in caught.value.mend
    assert "[teacher.terms]" not in caught.value.mend


def test_a_review_stops_like_a_refusal_and_a_persons_reading_lifts_it(ledger, maker, terms):
    maker(confidence="medium")
    with pytest.raises(GateRefused, match="not yet known to be allowed") as caught:
        admitted(at_maker(), "train_target", ledger)
    assert caught.value.exit_code == 3
    assert "[teacher.terms]" in caught.value.mend
    assert 'about = ["maker-api"]' in caught.value.mend
    with pytest.raises(GateRefused) as caught:
        admitted(at_maker(terms), "train_target", ledger)
    assert "the declaration of terms.txt is about a teacher of whom no row speaks" in caught.value.mend
    about = terms.model_copy(update={"about": ["maker-api"]})
    body = ledger.leaf(admitted(at_maker(about), "train_target", ledger)).body
    assert (body["verdict"], body["basis"]) == ("allow", "declaration")
    declared = ledger.leaf(body["authorisation"]).body
    assert (declared["declared_by"], declared["about"]) == ("R. Ames", ["maker-api"])


def test_two_texts_are_two_declarations_and_each_is_recorded(ledger, maker, terms, tmp_path):
    maker(confidence="medium")
    path = ledger.workspace.terms / "maker.toml"
    feature = "\n[[row.feature]]\nfeatures = ['web_search']\nverdict = 'review'\nwhy = 'others write it'\n"
    path.write_text(path.read_text() + feature)
    (tmp_path / "search.txt").write_bytes(b"Results of a search may be kept.\n")
    one = terms.model_dump() | {"about": ["maker-api"]}
    two = one | {"document": str(tmp_path / "search.txt"), "about": ["maker-api/web_search"]}
    for given in ([one], [two]):
        with pytest.raises(GateRefused, match="not yet known"):
            admitted(at_maker(features=["web_search"], terms=given), "train_target", ledger)
    leaf = ledger.leaf(admitted(at_maker(features=["web_search"], terms=[one, two]), "train_target", ledger))
    assert [ledger.leaf(index).body["about"] for index in leaf.body["declarations"]] == [
        ["maker-api/web_search"],
        ["maker-api"],
    ]
    kept = [ledger.contents(index)["document"] for index in leaf.body["terms_snapshots"]]
    assert kept == [b"Results of a search may be kept.\n", TEXT]
    for index in leaf.body["declarations"]:
        assert decisions_of(ledger, "authorisation", index) == [leaf.index]


def test_a_declaration_lifts_the_refusal_and_is_recorded_once(ledger, terms):
    leaf = admitted(recipe(terms), "train_target", ledger)
    other = admitted(recipe(terms), "evaluation", ledger)
    (snapshot,) = ledger.leaves("terms_snapshot")
    (authorisation,) = ledger.leaves("authorisation")
    assert snapshot.body["sha256"] == sha256(TEXT).hexdigest()
    assert ledger.contents(snapshot.index) == {"document": TEXT}
    assert authorisation.body["declared_by"] == "R. Ames"
    assert authorisation.body["terms_snapshot"] == snapshot.index
    for index in (leaf, other):
        assert ledger.leaf(index).body["authorisation"] == authorisation.index
    assert "compliant" not in ledger.leaf(leaf).body["reason"]
    ledger.erase(snapshot.index, "contract ended")
    assert ledger.verify().ok


def test_a_changed_document_is_a_new_declaration(ledger, terms, tmp_path):
    admitted(recipe(terms), "train_target", ledger)
    (tmp_path / "terms.txt").write_bytes(TEXT + b"Except on Sundays.\n")
    admitted(recipe(terms), "train_target", ledger)
    assert len(list(ledger.leaves("terms_snapshot"))) == 2


@pytest.mark.parametrize("text", [None, b"", b" \n"])
def test_a_missing_or_empty_document_is_refused(ledger, terms, tmp_path, text):
    (tmp_path / "terms.txt").unlink()
    if text is not None:
        (tmp_path / "terms.txt").write_bytes(text)
    with pytest.raises(GateRefused, match="may not be used") as caught:
        admitted(recipe(terms), "train_target", ledger)
    assert "missing or empty" in caught.value.why
    assert not list(ledger.leaves("terms_snapshot"))


def test_a_model_in_a_local_folder_needs_a_declaration_too(ledger, terms, tmp_path):
    with pytest.raises(GateRefused):
        admitted(recipe(model=str(tmp_path), endpoint=None), "train_target", ledger)
    assert admitted(recipe(terms, model=str(tmp_path), endpoint=None), "train_target", ledger)


def test_weights_are_known_by_their_hub_id_and_their_own_licence(ledger, maker, tmp_path):
    licence = {"name": "Maker Licence", "sha256": [digest(TEXT.decode())]}
    maker(access="weights", hosts=[], licence=licence)
    folder = tmp_path / "here"
    folder.mkdir()
    what = recipe(model=str(folder), endpoint=None, checkpoint="maker-2")
    assert consider(what, what.teacher, "train_target", ledger, NOW).verdict == "review"
    (folder / "LICENSE").write_bytes(TEXT)
    assert consider(what, what.teacher, "train_target", ledger, NOW).verdict == "allow"
    (folder / "config.json").write_text(json.dumps({"vision_config": {}}))
    body = ledger.leaf(admitted(what, "train_target", ledger)).body
    assert body["asked"]["multimodal"] is True
    own = {"model": "served", "checkpoint": "maker-2", "access": "weights"}
    served = recipe(**own, licence=str(folder / "LICENSE"))
    assert consider(served, served.teacher, "train_target", ledger, NOW).verdict == "allow"
    missing = recipe(**own, licence=str(folder / "nothing"))
    with pytest.raises(UsageError, match="no licence"):
        admitted(missing, "train_target", ledger)


def test_another_name_at_the_server_hides_nothing(ledger, maker):
    maker(verdict="refuse", trains_competing="no", hosts=[])
    renamed = recipe(model="maker-2", checkpoint="free/model-7b")
    assert consider(renamed, renamed.teacher, "train_target", ledger, NOW).verdict == "refuse"


def test_secrets_in_an_endpoint_are_not_recorded(ledger, terms):
    # No recipe has such an endpoint; the gate does not rely on that.
    secret = {"endpoint": "https://me:hunter2@api.example.com:8443/v1?key=hunter2"}
    what = recipe(terms)
    leaf = ledger.leaf(admit(what, what.teacher.model_copy(update=secret), "train_target", ledger, NOW))
    assert leaf.body["teacher"]["endpoint"] == "https://api.example.com:8443/v1"
    assert not [one for one in ledger.leaves() if b"hunter2" in one.data]


def test_an_import_needs_a_declaration_whatever_teacher_it_names(ledger, terms):
    with pytest.raises(GateRefused, match="embedded:desk"):
        admit_import("embedded:desk", None, ledger, NOW)
    leaf = admit_import("big-1", terms, ledger, NOW)
    assert ledger.leaf(leaf).body["teacher"]["access"] == "import"
    narrow = terms.model_copy(update={"scope": ["evaluation"]})
    with pytest.raises(GateRefused, match="train_target"):
        admit_import("big-1", narrow, ledger, NOW)


def test_a_refused_import_names_the_options_of_the_command(ledger):
    with pytest.raises(GateRefused) as caught:
        admit_import("big-1", None, ledger, NOW)
    for word in ("stillhouse import", "--terms", "--read-on 2026-11-21", "--declared-by"):
        assert word in caught.value.mend
    assert "document =" not in caught.value.mend


def test_imported_answers_in_a_recipe_are_recorded_as_imported(ledger, terms):
    imported = {"endpoint": None, "imported": True}
    leaf = admitted(recipe(terms, **imported), "train_target", ledger)
    assert ledger.leaf(leaf).body["teacher"]["access"] == "import"
    assert ledger.leaf(leaf).body["basis"] == "declaration"
    with pytest.raises(GateRefused) as caught:
        admitted(recipe(**imported), "evaluation", ledger)
    assert "[teacher.terms]" in caught.value.mend


def test_how_an_import_was_come_by_takes_no_row_away(ledger, maker, terms):
    maker(verdict="refuse", trains_competing="no", hosts=[])
    for access in (None, "consumer_app", "weights", "api"):
        what = recipe(terms, model="maker-2", endpoint=None, imported=True, access=access)
        assert consider(what, what.teacher, "train_target", ledger, NOW).verdict == "refuse", access


def test_no_shipped_teachers_name_allows_imported_answers(ledger):
    what = shipped()
    imported = what.teacher.model_copy(update={"imported": True})
    with pytest.raises(GateRefused, match="embedded:desk"):
        admit(what, imported, "train_target", ledger, NOW)


def test_a_reading_date_is_in_the_future_only_when_it_is_so_everywhere(ledger, terms):
    for days, allowed in ((1, True), (2, False)):
        later = terms.model_copy(update={"read_on": TODAY + timedelta(days=days)})
        what = recipe(later)
        assert consider(what, what.teacher, "train_target", ledger, NOW).allowed is allowed


def test_every_use_that_a_recipe_makes_is_asked_for(terms):
    plain = recipe(terms)
    assert [use for _, use in uses_of(plain)] == ["train_target", "evaluation"]
    tree = plain.model_dump(mode="json")
    tree["prompts"]["grow"] = {"method": "self_instruct", "count": 4}
    tree["evaluate"]["judge"] = {"model": "court", "endpoint": "https://court.example/v1"}
    grown = parse_recipe(tree)
    assert [(teacher.model, use) for teacher, use in uses_of(grown)] == [
        ("big-1", "train_target"),
        ("big-1", "prompt_seed"),
        ("big-1", "evaluation"),
        ("court", "evaluation"),
    ]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("monthly_user = 3", "did you mean `monthly_users`"),
        ('monthly_users = "many"', "a whole number"),
        ("monthly_users = true", "a whole number"),
        ("commercial = 1", "true or false"),
        ('territory = ""', "a code"),
        ("= 3", "see docs/gate.md"),
    ],
)
def test_an_operators_file_is_read_strictly(ledger, terms, text, what):
    ledger.workspace.operator.write_text(text)
    with pytest.raises(UsageError) as caught:
        admitted(recipe(terms), "train_target", ledger)
    assert what in caught.value.mend


# At release


def test_a_release_is_decided_about_again_and_names_the_decisions_before(ledger, maker):
    then = admitted(at_maker(), "train_target", ledger)
    (leaf,) = admit_release(at_maker(), [then], ledger, NOW + timedelta(days=9))
    body = ledger.leaf(leaf).body
    assert (body["at"], body["collected_under"], body["stricter"]) == ("release", [then], [])
    assert body["verdict"] == "allow"


def test_a_release_is_blocked_where_the_text_refuses_now(ledger, maker):
    then = admitted(at_maker(), "train_target", ledger)
    maker(verdict="refuse", trains_competing="no")
    with pytest.raises(GateRefused, match="may not be used"):
        admit_release(at_maker(), [then], ledger, NOW)
    assert [leaf.body["verdict"] for leaf in ledger.leaves("decision")] == ["allow", "refuse"]


def test_what_became_stricter_blocks_a_release_until_somebody_answers_for_it(ledger, maker):
    then = admitted(at_maker(), "train_target", ledger)
    path = ledger.workspace.terms / "maker.toml"
    path.write_text(path.read_text() + '\n[[row.obligation]]\nkind = "notice"\ntexts = ["made with Maker"]\n')
    with pytest.raises(GateRefused, match="stricter") as caught:
        admit_release(at_maker(), [then], ledger, NOW)
    assert "maker-api asks for notice (made with Maker)" in caught.value.why
    assert "signed_off_by" in caught.value.mend
    signed = at_maker(release={"signed_off_by": "R. Ames, counsel"})
    (leaf,) = admit_release(signed, [then], ledger, NOW)
    body = ledger.leaf(leaf).body
    assert body["signed_off_by"] == "R. Ames, counsel"
    assert [owed["kind"] for owed in body["obligations"]] == ["notice"]


def test_what_was_owed_when_the_answers_were_had_is_owed_still(ledger, maker):
    path = ledger.workspace.terms / "maker.toml"
    path.write_text(path.read_text() + '\n[[row.obligation]]\nkind = "notice"\ntexts = ["made with Maker"]\n')
    then = admitted(at_maker(), "train_target", ledger)
    maker()
    (leaf,) = admit_release(at_maker(), [then], ledger, NOW)
    assert [owed["kind"] for owed in ledger.leaf(leaf).body["obligations"]] == ["notice"]


def test_decisions_of_the_gate_before_this_one_are_read(ledger, terms):
    """Bodies as policy `minimal-1` wrote them."""
    old = ledger.append(
        "decision",
        {
            "on": "2026-10-01",
            "teacher": {
                "model": "big-1",
                "access": "endpoint",
                "endpoint": "https://api.example.com/v1",
                "revision": "",
            },
            "use": "train_target",
            "verdict": "allow",
            "reason": "R. Ames declares ...",
            "terms": "terms.txt",
            "read_on": "2026-09-30",
            "basis": "declaration",
            "policy": "minimal-1",
            "registry_sha256": "00" * 32,
        },
    )
    (leaf,) = admit_release(recipe(terms), [old], ledger, NOW)
    assert ledger.leaf(leaf).body["collected_under"] == [old]
    assert ledger.leaf(leaf).body["stricter"] == []


def test_a_decision_that_is_recalled_is_not_used_again_until_that_is_lifted(ledger):
    leaf = admitted(shipped(), "train_target", ledger)
    recall(ledger, [leaf], "a letter came")
    assert admitted(shipped(), "train_target", ledger) > leaf
    recall(ledger, [leaf], "it was answered", lift=True)
    assert admitted(shipped(), "train_target", ledger) == leaf
