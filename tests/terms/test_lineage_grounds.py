"""A teaching that this workspace allowed holds as far as what that rested on covers today's question."""

import json
from datetime import date, timedelta

import pytest
from maker import at_maker, row_toml
from taught import NOW, decided, declared, entry, recipe, released, upstream

from stillhouse.errors import GateRefused
from stillhouse.ledger import Ledger
from stillhouse.ledger.permissions import revoke
from stillhouse.ledger.quarantine import decisions_of, recall
from stillhouse.recipe import Declaration, parse_recipe
from stillhouse.terms import admit, consider, consider_base
from stillhouse.terms.authorising import make_permission, record
from stillhouse.terms.offered import keep
from stillhouse.workspace import init_workspace

ENDPOINT = "https://api.example.com/v1"


@pytest.fixture
def ledger(tmp_path):
    with Ledger.open(init_workspace(tmp_path / "ours"), clock=lambda: NOW) as ledger:
        yield ledger


def taught(model="big-1", terms=None, name="small"):
    """A recipe for the first student, whose teacher no row knows."""
    return parse_recipe(
        {
            "run": {"name": name},
            "teacher": {"model": model, "endpoint": ENDPOINT, "terms": terms},
            "prompts": {"source": "embedded:desk"},
            "student": {"init": "embedded:base"},
        }
    )


def let_teach(ledger, folder, terms=None, model="big-1", **record_):
    """Its decision, and the folder of the student as it was released."""
    what = taught(model, terms)
    leaf = admit(what, what.teacher, "train_target", ledger, NOW)
    verdict = ledger.leaf(leaf).body["verdict"]
    released(
        folder, ledger.workspace, entry(model, decisions=[{"leaf": leaf, "verdict": verdict}], **record_)
    )
    return leaf


def permitted(ledger, scope=None, **more):
    said = {"grantor": "Example", "grantee": "us", "signatory": "J. Doe", "approver": "R. Ames", **more}
    scope = {
        "models": ["big-1"],
        "uses": ["train_target"],
        "competing": True,
        "servers": ["*"],
        **(scope or {}),
    }
    said |= {"valid_from": "2026-01-01", "scope": scope}
    return record(make_permission(said, "c.txt", b"a contract", "here"), b"a contract", ledger)


def test_a_declaration_holds_for_the_uses_that_it_names_until_it_is_recalled(ledger, tmp_path):
    folder = tmp_path / "small"
    leaf = let_teach(ledger, folder, declared(folder)[0])
    found = decided(ledger, folder)
    assert found.verdict == "allow"
    assert f"allowed by the decisions in leaves {leaf}" in found.reason
    (declaration,) = ledger.leaf(leaf).body["declarations"]
    recall(ledger, decisions_of(ledger, "authorisation", declaration), "a letter", authorisation=declaration)
    found = decided(ledger, folder)
    assert found.verdict == "refuse"
    assert "recalled" in found.reason
    assert 'about = ["big-1"]' in " ".join(found.lifts)


def test_a_declaration_for_training_alone_does_not_hold_for_measuring(ledger, tmp_path):
    folder = tmp_path / "small"
    terms = declared(folder)[0] | {"scope": ["train_target"]}
    let_teach(ledger, folder, terms)
    both = declared(folder)[0] | {"scope": ["train_target", "evaluation"]}
    assert decided(ledger, folder, use="train_target").verdict == "allow"
    assert decided(ledger, folder, use="prompt_seed").verdict == "allow"
    found = decided(ledger, folder, use="evaluation")
    assert (found.verdict, "does not include evaluation" in found.reason) == ("refuse", True)
    other = tmp_path / "more" / "small"
    let_teach(ledger, other, both)
    assert decided(ledger, other, use="evaluation").verdict == "allow"


@pytest.mark.parametrize("by", ["decision", "authorisation", "teacher"])
def test_what_recalls_a_decision_recalls_those_that_rest_on_it_by_a_record(ledger, tmp_path, by):
    folder, other = tmp_path / "small", tmp_path / "other" / "small"
    first = let_teach(ledger, folder, declared(folder)[0])
    what = recipe(folder)
    second = admit(what, what.teacher, "train_target", ledger, NOW)
    body = ledger.leaf(second).body
    named = [{"leaf": second, "verdict": "allow"}]
    released(
        other, ledger.workspace, entry("small", "weights", None, decisions=named, upstream=body["upstream"])
    )
    what = recipe(other)
    third = admit(what, what.teacher, "train_target", ledger, NOW)
    unrelated = let_teach(ledger, tmp_path / "third" / "small", declared(folder)[0], model="big-2")
    (declaration,) = ledger.leaf(first).body["declarations"]
    which = {"decision": first, "authorisation": declaration, "teacher": "big-1"}[by]
    assert decisions_of(ledger, by, which) == [first, second, third]
    assert decisions_of(ledger, "decision", unrelated) == [unrelated]
    assert recall(ledger, decisions_of(ledger, by, which), "a letter").decisions == [first, second, third]


def test_a_decision_that_was_recalled_alone_no_longer_holds(ledger, tmp_path):
    folder = tmp_path / "small"
    leaf = let_teach(ledger, folder, declared(folder)[0])
    recall(ledger, [leaf], "a letter came")
    assert decided(ledger, folder).verdict == "refuse"
    found = decided(ledger, folder, "big-1")
    assert (found.verdict, found.basis) == ("allow", "declaration")


def test_leaves_that_are_no_such_decision_allow_nothing(ledger, tmp_path):
    other = ledger.append("decision", {"what": "a test"})
    refused = ledger.append(
        "decision", {"teacher": {"model": "big-1"}, "use": "train_target", "verdict": "refuse"}
    )
    bare = ledger.append(
        "decision", {"teacher": {"model": "big-1"}, "use": "train_target", "verdict": "allow"}
    )
    for leaf, why in (
        (9999, "no decision"),
        (other, "no decision"),
        (refused, "says refuse"),
        (bare, "not known"),
    ):
        folder = tmp_path / str(leaf) / "small"
        released(folder, ledger.workspace, entry("big-1", decisions=[{"leaf": leaf, "verdict": "allow"}]))
        found = decided(ledger, folder)
        assert (found.verdict, why in found.reason) == ("refuse", True)


@pytest.mark.parametrize(
    ("scope", "more", "ends", "tables", "why"),
    [
        ({}, {}, "revoke", {}, "revoked"),
        ({}, {"valid_to": "2026-11-21"}, None, {"later": 5}, "it ended on 2026-11-21"),
        ({"students": ["small"]}, {}, None, {}, "it is for a student called small, not smaller"),
        ({"modes": ["weights"]}, {}, None, {"release": {"mode": "hosted"}}, "given out as weights"),
    ],
)
def test_a_permission_allows_a_step_further_what_it_still_covers_and_no_more(
    ledger, tmp_path, scope, more, ends, tables, why
):
    permission = permitted(ledger, scope, **more)
    folder = tmp_path / "small"
    let_teach(ledger, folder)
    tables = dict(tables)
    later = NOW + timedelta(days=tables.pop("later", 0))
    what = recipe(folder, **tables)
    if ends == "revoke":
        assert decided(ledger, folder).permissions == (permission,)
        revoke(ledger, permission, "a quarrel")
    found = consider(what, what.teacher, "train_target", ledger, later)
    assert found.verdict == "refuse"
    assert f"rests on the permission in leaf {permission}, which does not cover this" in found.reason
    assert why in " ".join(found.lifts)


def test_a_permission_that_was_used_up_still_covers_what_was_had_under_it(ledger, tmp_path):
    permission = permitted(ledger, {"volume": 1})
    folder = tmp_path / "small"
    let_teach(ledger, folder)
    what = recipe(folder)
    leaf = admit(what, what.teacher, "train_target", ledger, NOW)
    body = ledger.leaf(leaf).body
    assert (body["permissions"], body["teacher_permissions"]) == ([permission], [])
    assert [(each["model"], each["permissions"]) for each in body["weighed"]] == [("big-1", [permission])]
    for _ in range(3):  # answers of the student are none of the model that the permission is for
        ledger.begin("ab" * 32, "r", "p", "small", 0, decision=leaf).result()


def test_two_steps_on_each_decision_between_must_hold(ledger, tmp_path):
    first, second = tmp_path / "small", tmp_path / "second" / "small"
    leaf = let_teach(ledger, first, declared(first)[0])
    what = recipe(first)
    next_leaf = admit(what, what.teacher, "train_target", ledger, NOW)
    body = ledger.leaf(next_leaf).body
    assert [each["decisions"] for each in body["weighed"]] == [[leaf]]
    by = [{"leaf": next_leaf, "verdict": body["verdict"]}]
    released(
        second, ledger.workspace, entry("small", "weights", None, decisions=by, upstream=body["upstream"])
    )
    assert decided(ledger, second).verdict == "allow"
    recall(ledger, [leaf], "a letter came")
    found = decided(ledger, second)
    assert (found.verdict, f"leaf {leaf} was recalled" in found.reason) == ("refuse", True)


def test_an_older_record_two_steps_on_does_not_tell_what_allowed_the_first(ledger, tmp_path):
    first, second = tmp_path / "small", tmp_path / "second" / "small"
    let_teach(ledger, first, declared(first)[0])
    what = recipe(first)
    leaf = admit(what, what.teacher, "train_target", ledger, NOW)
    before = entry("big-1")
    del before["decisions"]
    signer = ledger.leaf(leaf).body["upstream"]["signedBy"]
    further = upstream("small", before, signedBy=signer)
    by = [{"leaf": leaf, "verdict": "allow"}]
    released(second, ledger.workspace, entry("small", "weights", None, decisions=by, upstream=further))
    found = decided(ledger, second)
    assert (found.verdict, found.to_declare) == ("refuse", ("big-1",))
    assert decided(ledger, second, "big-1").verdict == "allow"


def test_leaves_of_somebody_elses_log_are_not_taken_for_ours(ledger, tmp_path):
    """A release of ours, made from one of theirs that names leaves by the same numbers."""
    folder = tmp_path / "small"
    leaf = let_teach(ledger, tmp_path / "x" / "small", declared(folder)[0])
    allowed = [{"leaf": leaf, "verdict": "allow"}]
    further = upstream("theirs", entry("big-1", decisions=allowed))
    shipped = entry("embedded:desk", "shipped", None, decisions=[], upstream=further)
    released(folder, ledger.workspace, shipped)
    assert decided(ledger, folder).verdict == "refuse"


def test_what_was_allowed_by_a_row_is_asked_of_the_rows_of_today(ledger, tmp_path):
    ledger.workspace.terms.mkdir()
    row = ledger.workspace.terms / "maker.toml"
    row.write_text(row_toml(hosts=["api.maker.example"]))
    what = at_maker()
    leaf = admit(what, what.teacher, "train_target", ledger, NOW)
    folder, by = tmp_path / "small", [{"leaf": leaf, "verdict": "allow"}]
    released(folder, ledger.workspace, entry("maker-2", host="api.maker.example", decisions=by))
    assert decided(ledger, folder).verdict == "allow"
    row.unlink()
    assert decided(ledger, folder).verdict == "refuse"


def test_a_declaration_about_a_rows_text_does_not_outlast_the_row(ledger, tmp_path):
    """Who read that text said nothing of a maker of whom no text is known."""
    ledger.workspace.terms.mkdir()
    row = ledger.workspace.terms / "maker.toml"
    row.write_text(row_toml(hosts=["api.maker.example"], confidence="medium"))
    folder = tmp_path / "small"
    terms = declared(folder, "maker-api")[1]
    what = at_maker(Declaration(**terms))
    leaf = admit(what, what.teacher, "train_target", ledger, NOW)
    by = [{"leaf": leaf, "verdict": ledger.leaf(leaf).body["verdict"]}]
    released(folder, ledger.workspace, entry("maker-2", host="api.maker.example", decisions=by))
    assert decided(ledger, folder, "maker-api").verdict == "allow"
    row.unlink()
    assert consider(what, what.teacher, "train_target", ledger, NOW).verdict == "refuse"
    for about in ((), ("maker-api",)):
        found = decided(ledger, folder, *about)
        assert (found.verdict, "is not known today" in found.reason) == ("refuse", True)
    assert decided(ledger, folder, "maker-2").verdict == "allow"


@pytest.mark.parametrize("about", ["big-1", "api.example.com"])
def test_a_declaration_about_the_model_or_its_server_holds_a_step_further(ledger, tmp_path, about):
    folder = tmp_path / "small"
    let_teach(ledger, folder, declared(folder, about)[1])
    assert decided(ledger, folder).verdict == "allow"
    ledger.workspace.terms.mkdir()
    (ledger.workspace.terms / "maker.toml").write_text(row_toml())
    assert decided(ledger, folder).verdict == "allow"


@pytest.mark.parametrize(
    "origin", ["https://api.example.com", "http://api.example.com", "https://api.example.com:8443"]
)
@pytest.mark.parametrize("ours", [True, False])
def test_what_its_server_has_forbidden_since_holds_a_step_further(ledger, tmp_path, origin, ours):
    folder = tmp_path / "small"
    let_teach(ledger, folder, declared(folder)[0])
    if not ours:
        folder = tmp_path / "theirs" / "small"
        released(folder, init_workspace(tmp_path / "others"), entry("big-1"))
    keep(ledger, "https://other.example.com", offer("forbidden"), NOW.date())
    keep(ledger, origin, offer("allowed"), NOW.date())
    assert decided(ledger, folder).verdict == ("allow" if ours else "review")
    said = keep(ledger, origin, offer("forbidden"), NOW.date())
    what = recipe(folder, "big-1")
    with pytest.raises(GateRefused, match="may not be used"):
        admit(what, what.teacher, "train_target", ledger, NOW)
    (*_, leaf) = ledger.leaves("decision")
    assert leaf.body["offered"] == [said]
    assert f"offered:{origin}" in {layer["row"] for layer in leaf.body["layers"]}
    assert consider_base(begins(folder), ledger, NOW).verdict == "refuse"
    keep(ledger, origin, None, date(2026, 11, 20))
    found = decided(ledger, folder, "big-1")
    assert (found.verdict, "api.example.com" in found.to_declare) == ("refuse", True)
    assert 'about = ["api.example.com"]' in " ".join(found.lifts)
    assert decided(ledger, folder, "big-1", "api.example.com").verdict == "allow"


def test_a_permission_that_names_the_server_lifts_what_it_asks_one_for(ledger, tmp_path):
    folder = tmp_path / "small"
    let_teach(ledger, folder, declared(folder)[0])
    keep(ledger, "https://api.example.com", offer("with_permission"), NOW.date())
    assert decided(ledger, folder, "big-1").verdict == "refuse"
    permitted(ledger, {"servers": ["api.example.com"]})
    assert decided(ledger, folder, "big-1").verdict == "allow"


def begins(folder):
    return parse_recipe(
        {
            "run": {"name": "smaller"},
            "teacher": {"model": "embedded:desk"},
            "prompts": {"source": "embedded:desk"},
            "student": {"init": str(folder)},
        }
    )


def offer(word):
    answers = {"train_other_models": word, "train_competing_models": word}
    terms = {"version": "1", "url": "https://example.com/terms", "sha256": "0" * 64}
    said = {"schema": "ai-terms/1", "contact": "x@example.com", "terms": terms, "answers": answers}
    return json.dumps(said).encode()
