"""A recalled declaration: the same person's reading of the same text brings it back in no other form."""

from datetime import date
from hashlib import sha256

import pytest
from maker import NOW, TEXT, admitted, at_maker, recipe

from stillhouse.errors import GateRefused
from stillhouse.ledger.quarantine import decisions_of, quarantined, recall
from stillhouse.recipe import Declaration
from stillhouse.terms import admit_import, consider

OLD = {
    "declared_by": "R. Ames",
    "read_on": "2026-11-20",
    "scope": ["evaluation", "train_target"],
    "document_sha256": sha256(TEXT).hexdigest(),
}


def withdraw(ledger, leaf, lift=False):
    recall(ledger, decisions_of(ledger, "authorisation", leaf), "a letter came", lift, leaf)


def resting(ledger, declared, of=recipe):
    """The declaration's leaf, after it allowed a use."""
    return ledger.leaf(admitted(of(declared), "train_target", ledger)).body["authorisation"]


@pytest.mark.parametrize("access", ["endpoint", "api"])
def test_one_of_before_there_was_about_is_recalled_as_well(ledger, terms, access):
    """As the gate wrote them before it knew of rows."""
    teacher = {"model": "big-1", "access": access, "endpoint": "https://api.example.com/v1", "revision": ""}
    old = ledger.append("authorisation", {"teacher": teacher, **OLD})
    made = ledger.append("decision", {"teacher": teacher, "use": "train_target", "authorisation": old})
    withdraw(ledger, old)
    for use in ("train_target", "evaluation"):
        with pytest.raises(GateRefused, match="big-1") as caught:
            admitted(recipe(terms), use, ledger)
        assert "the declaration of terms.txt was recalled" in caught.value.why
    withdraw(ledger, old, lift=True)
    assert admitted(recipe(terms), "train_target", ledger)
    assert made not in quarantined(ledger)


@pytest.mark.parametrize(
    "change",
    [
        {"about": ["big-1", "api.example.com"]},
        {"about": ["api.example.com", "big-1", "more"]},
        {"scope": ["train_target"]},
        {"read_on": date(2026, 11, 21)},
        {"declared_by": " r. ames "},
    ],
)
def test_said_in_another_way_it_is_the_same(ledger, terms, change):
    first = resting(ledger, terms)
    other = terms.model_copy(update=change)
    resting(ledger, other)
    withdraw(ledger, first)
    for again in (terms, other):
        with pytest.raises(GateRefused) as caught:
            admitted(recipe(again), "train_target", ledger)
        assert "was recalled" in caught.value.why
    withdraw(ledger, first, lift=True)
    for again in (terms, other):
        assert consider(recipe(again), recipe(again).teacher, "train_target", ledger, NOW).allowed
    assert quarantined(ledger) == frozenset()


def test_with_it_goes_what_rested_on_the_same_in_another_form(ledger, terms):
    first = resting(ledger, terms)
    narrow = resting(ledger, terms.model_copy(update={"scope": ["train_target"]}))
    assert narrow != first
    withdraw(ledger, narrow)
    bodies = [ledger.leaf(index).body["authorisation"] for index in sorted(quarantined(ledger))]
    assert bodies == [first, narrow]


def test_either_form_of_it_lifts_what_both_recalled(ledger, terms):
    first = resting(ledger, terms)
    narrow = resting(ledger, terms.model_copy(update={"scope": ["train_target"]}))
    withdraw(ledger, first)
    withdraw(ledger, narrow)
    withdraw(ledger, first, lift=True)
    assert quarantined(ledger) == frozenset()
    assert admitted(recipe(terms), "train_target", ledger)


@pytest.mark.parametrize(
    "what",
    [
        {"revision": "2"},
        {"endpoint": "https://API.example.com:443/v2"},
    ],
)
def test_another_revision_or_spelling_of_the_server_is_no_other_teacher(ledger, terms, what):
    withdraw(ledger, resting(ledger, terms))
    with pytest.raises(GateRefused, match="big-1"):
        admitted(recipe(terms, **what), "train_target", ledger)


def test_a_host_is_the_same_in_any_script(ledger, terms):
    withdraw(
        ledger, resting(ledger, terms, lambda said: recipe(said, endpoint="https://b\u00fccher.example/v1"))
    )
    with pytest.raises(GateRefused, match="big-1"):
        admitted(recipe(terms, endpoint="https://xn--bcher-kva.example/v1"), "train_target", ledger)


def test_another_text_person_or_teacher_is_another_reading(ledger, terms, tmp_path):
    withdraw(ledger, resting(ledger, terms))
    (tmp_path / "newer.txt").write_bytes(TEXT + b"As of today.\n")
    assert admitted(
        recipe(terms.model_copy(update={"document": str(tmp_path / "newer.txt")})), "train_target", ledger
    )
    assert admitted(recipe(terms.model_copy(update={"declared_by": "C. Lund"})), "train_target", ledger)
    assert admitted(recipe(terms, model="big-2"), "train_target", ledger)
    assert admitted(recipe(terms, endpoint="https://other.example/v1"), "train_target", ledger)


def test_an_import_under_it_is_recalled_too(ledger, terms):
    leaf = ledger.leaf(admit_import("big-1", terms, ledger, NOW)).body["authorisation"]
    withdraw(ledger, leaf)
    later = terms.model_copy(update={"read_on": date(2026, 11, 21)})
    with pytest.raises(GateRefused, match="big-1"):
        admit_import("big-1", later, ledger, NOW)


def test_a_declaration_about_a_row_is_recalled_in_any_order_of_what_it_is_about(ledger, maker, terms):
    maker(confidence="medium")
    about = Declaration(**(terms.model_dump() | {"about": ["maker-api"]}))
    withdraw(ledger, resting(ledger, about, at_maker))
    more = Declaration(**(terms.model_dump() | {"about": ["z", "maker-api"]}))
    with pytest.raises(GateRefused) as caught:
        admitted(at_maker(more), "train_target", ledger)
    assert "was recalled" in caught.value.mend


@pytest.mark.parametrize("second", ["declaration", "permission"])
def test_what_rests_on_two_that_are_recalled_waits_until_both_are_lifted(ledger, second):
    teacher = {"model": "big-1", "access": "api", "endpoint": "https://api.example.com/v1", "revision": ""}
    first = ledger.append("authorisation", {"teacher": teacher, **OLD})
    body = (
        {"permission": {}} if second == "permission" else {"teacher": teacher, **OLD, "declared_by": "M. Po"}
    )
    other = ledger.append("authorisation", body)
    on = {"permissions": [other]} if second == "permission" else {"declarations": [first, other]}
    named = {"teacher": teacher, "use": "train_target", "authorisation": first}
    both, alone = ledger.append("decision", named | on), ledger.append("decision", named)
    for leaf in (first, other):
        withdraw(ledger, leaf)
    withdraw(ledger, first, lift=True)
    assert quarantined(ledger) == {both}
    withdraw(ledger, other, lift=True)
    assert quarantined(ledger) == frozenset()
    withdraw(ledger, first)
    assert quarantined(ledger) == {both, alone}
