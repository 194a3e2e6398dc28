from datetime import UTC, date, datetime, timedelta
from hashlib import sha256

import pytest

from stillhouse.errors import GateRefused
from stillhouse.ledger import Ledger
from stillhouse.recipe import Declaration, Teacher
from stillhouse.terms import DeclaredTerms, admit, admit_import, decide, teacher_facts
from stillhouse.workspace import init_workspace

NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
TODAY = NOW.date()
TEXT = b"You may use outputs to train other models.\n"


@pytest.fixture
def ledger(tmp_path):
    with Ledger.open(init_workspace(tmp_path), clock=lambda: NOW) as ledger:
        yield ledger


@pytest.fixture
def terms(tmp_path):
    (tmp_path / "terms.txt").write_bytes(TEXT)
    return Declaration(
        document=str(tmp_path / "terms.txt"), read_on=date(2026, 11, 20), declared_by="R. Ames"
    )


def remote(terms=None, **more):
    return Teacher(**{"model": "big-1", "endpoint": "https://api.example.com/v1", "terms": terms, **more})


DECLARED = DeclaredTerms("terms.txt", "ab" * 32, TODAY, "R. Ames", ("train_target",))
UNKNOWN = teacher_facts("big-1", "https://api.example.com/v1")


@pytest.mark.parametrize("use", ["train_target", "evaluation"])
def test_a_shipped_teacher_is_allowed_for_every_use(use):
    decision = decide(teacher_facts("embedded:desk"), use, None, TODAY)
    assert (decision.verdict, decision.basis) == ("allow", "registry")
    assert "Apache-2.0" in decision.terms


@pytest.mark.parametrize(
    "teacher",
    [
        UNKNOWN,
        teacher_facts("/models/llama"),
        teacher_facts("embedded:other"),
        teacher_facts("embedded:desk", "http://127.0.0.1:9000/v1"),
    ],
)
def test_every_other_teacher_is_refused_when_nothing_is_declared(teacher):
    decision = decide(teacher, "evaluation", None, TODAY)
    assert (decision.verdict, decision.basis) == ("refuse", "none")
    assert decide(teacher, "train_target", DECLARED, TODAY).verdict == "allow"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"scope": ("evaluation",)}, "does not include train_target"),
        ({"scope": ()}, "scope is nothing"),
        ({"sha256": ""}, "missing or empty"),
        ({"read_on": TODAY + timedelta(days=1)}, "in the future"),
        ({"declared_by": "  "}, "names nobody"),
    ],
)
def test_a_declaration_that_does_not_cover_the_use_is_refused(change, reason):
    fields = {name: getattr(DECLARED, name) for name in DeclaredTerms.__slots__}
    decision = decide(UNKNOWN, "train_target", DeclaredTerms(**{**fields, **change}), TODAY)
    assert decision.verdict == "refuse"
    assert reason in decision.reason


def test_an_allowed_teacher_leaves_a_decision_that_is_used_again_that_day(ledger):
    teacher = Teacher(model="embedded:desk")
    leaf = admit(teacher, "train_target", ledger, NOW)
    assert ledger.leaf(leaf).kind == "decision"
    assert ledger.leaf(leaf).body["verdict"] == "allow"
    assert admit(teacher, "train_target", ledger, NOW + timedelta(hours=3)) == leaf
    assert admit(teacher, "evaluation", ledger, NOW) != leaf
    assert admit(teacher, "train_target", ledger, NOW + timedelta(days=1)) != leaf


def test_a_refusal_names_the_teacher_and_the_lines_that_lift_it_and_is_recorded(ledger):
    with pytest.raises(GateRefused) as caught:
        admit(remote(), "train_target", ledger, NOW)
    error = caught.value
    assert error.exit_code == 3
    assert "big-1" in error.what
    assert "https://api.example.com/v1" in error.what
    assert "no terms are known" in error.why
    for line in (
        "[teacher.terms]",
        "document =",
        "read_on = 2026-11-21",
        "declared_by =",
    ):
        assert line in error.mend
    assert "scope" not in error.mend  # left out, a declaration covers both uses
    (decision,) = ledger.leaves("decision")
    assert decision.body["verdict"] == "refuse"
    assert decision.body["teacher"]["model"] == "big-1"


def test_a_declaration_lifts_the_refusal_and_is_recorded_once(ledger, terms):
    leaf = admit(remote(terms), "train_target", ledger, NOW)
    other = admit(remote(terms), "evaluation", ledger, NOW)
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
    admit(remote(terms), "train_target", ledger, NOW)
    (tmp_path / "terms.txt").write_bytes(TEXT + b"Except on Sundays.\n")
    admit(remote(terms), "train_target", ledger, NOW)
    assert len(list(ledger.leaves("terms_snapshot"))) == 2


@pytest.mark.parametrize("text", [None, b"", b" \n"])
def test_a_missing_or_empty_document_is_refused(ledger, terms, tmp_path, text):
    (tmp_path / "terms.txt").unlink()
    if text is not None:
        (tmp_path / "terms.txt").write_bytes(text)
    with pytest.raises(GateRefused, match="may not be used") as caught:
        admit(remote(terms), "train_target", ledger, NOW)
    assert "missing or empty" in caught.value.why
    assert not list(ledger.leaves("terms_snapshot"))


def test_a_model_in_a_local_folder_needs_a_declaration_too(ledger, terms, tmp_path):
    with pytest.raises(GateRefused):
        admit(Teacher(model=str(tmp_path)), "train_target", ledger, NOW)
    assert admit(Teacher(model=str(tmp_path), terms=terms), "train_target", ledger, NOW)


def test_secrets_in_an_endpoint_are_not_recorded(ledger, terms):
    # No recipe has such an endpoint; the gate does not rely on that.
    secret = {"endpoint": "https://me:hunter2@api.example.com:8443/v1?key=hunter2"}
    teacher = remote(terms).model_copy(update=secret)
    leaf = ledger.leaf(admit(teacher, "train_target", ledger, NOW))
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
    leaf = admit(Teacher(model="big-1", imported=True, terms=terms), "train_target", ledger, NOW)
    assert ledger.leaf(leaf).body["teacher"]["access"] == "import"
    assert ledger.leaf(leaf).body["basis"] == "declaration"
    with pytest.raises(GateRefused) as caught:
        admit(Teacher(model="big-1", imported=True), "evaluation", ledger, NOW)
    assert "[teacher.terms]" in caught.value.mend


def test_no_shipped_teachers_name_allows_imported_answers(ledger):
    shipped = Teacher(model="embedded:desk").model_copy(update={"imported": True})
    with pytest.raises(GateRefused, match="embedded:desk"):
        admit(shipped, "train_target", ledger, NOW)


def test_a_reading_date_is_in_the_future_only_when_it_is_so_everywhere(ledger, terms):
    tomorrow = terms.model_copy(update={"read_on": TODAY + timedelta(days=1)})
    with pytest.raises(GateRefused, match="train_target"):
        admit(remote(tomorrow), "train_target", ledger, NOW)
    assert admit(remote(tomorrow), "train_target", ledger, NOW.replace(hour=11))
