"""What a server says of its own terms, as the gate hears it from the ledger: whose word lifts it, how long it
stands, and that the way out which a refusal names leads out."""

import json
import tempfile
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from maker import BANS_RIVALS, NOW, TEXT, TODAY, admitted, asked, at_maker, permission, recipe, row

from stillhouse.errors import GateRefused
from stillhouse.ledger import Ledger
from stillhouse.ledger.permissions import standings
from stillhouse.ledger.quarantine import decisions_of, recall
from stillhouse.recipe import Declaration
from stillhouse.terms import admit, authorising, consider
from stillhouse.terms.deciding import decide
from stillhouse.terms.offered import keep, origin_of
from stillhouse.workspace import init_workspace

LICENCE = Path(__file__).parents[2] / "LICENSE"
HOST = "https://api.example.com"


def document(training, competing=None, contact="terms@example.com"):
    said = {
        "schema": "ai-terms/1",
        "contact": contact,
        "terms": {"version": "1", "url": f"{HOST}/terms", "sha256": "0" * 64},
        "answers": {"train_other_models": training, "train_competing_models": competing or training},
    }
    return json.dumps(said).encode()


def says(ledger, training, competing=None, origin=HOST, day=TODAY):
    return keep(ledger, origin_of(origin), document(training, competing), day)


def falls_silent(ledger, origin=HOST, day=TODAY, data=None):
    return keep(ledger, origin_of(origin), data, day)


def found(ledger, what, use="train_target", now=NOW):
    return consider(what, what.teacher, use, ledger, now)


def about(declared, *topics, **changes):
    return declared.model_copy(update={"about": list(topics), **changes})


def known(maker):
    """What lets a recipe's model be one whose weights anybody may learn from."""
    maker(access="weights", models=["big-*"], hosts=[], licence={"name": "L", "spdx": "Apache-2.0"})
    return {"licence": str(LICENCE)}


def permit(ledger, **said):
    scope = {"models": ["*"], "uses": ["train_target", "evaluation"], "competing": True}
    scope |= said.pop("scope", {})
    who = {"grantor": "R. Roe", "grantee": "us", "signatory": "J. Doe", "approver": "R. Ames"}
    whole = who | {"valid_from": "2026-01-01", "scope": scope} | said
    made = authorising.make_permission(whole, "c.txt", b"It is permitted.", "here")
    return authorising.record(made, b"It is permitted.", ledger)


# The way out


def refused(what, ledger):
    with pytest.raises(GateRefused) as caught:
        admitted(what, "train_target", ledger)
    return caught.value


def lines_of(error):
    """The declaration that a refusal asks for, as its lines in the recipe say it."""
    (line,) = [line for line in error.mend.split("\n") if line.startswith("about = ")]
    return json.loads(line.removeprefix("about = "))


def test_a_server_that_allows_it_is_followed_by_a_declaration_about_the_model(ledger, terms):
    says(ledger, "allowed")
    error = refused(recipe(), ledger)
    assert error.exit_code == 3
    assert lines_of(error) == ["big-1"]
    assert 'read its terms and, if they allow this use, declare so, with about = ["big-1"]' in error.mend
    assert "ai-terms.json); if it allows" not in error.mend  # it does already
    done = about(terms, *lines_of(error))
    body = ledger.leaf(admitted(recipe(done), "train_target", ledger)).body
    assert (body["verdict"], body["basis"]) == ("allow", "declaration")
    assert ledger.leaf(body["authorisation"]).body["about"] == ["big-1"]
    assert found(ledger, recipe(done), "evaluation").allowed


def test_what_was_enough_before_it_spoke_is_enough_when_it_allows(ledger, terms):
    assert found(ledger, recipe(terms)).allowed
    says(ledger, "allowed")
    assert found(ledger, recipe(terms)).allowed
    assert not found(ledger, recipe(about(terms, "somebody-else"))).allowed
    says(ledger, "forbidden")
    assert found(ledger, recipe(terms)).verdict == "refuse"


def test_a_server_that_asks_for_a_permission_needs_that_and_what_is_known_of_the_model(ledger, terms):
    says(ledger, "with_permission")
    error = refused(recipe(), ledger)
    assert "a permission of whoever runs api.example.com" in error.mend
    assert lines_of(error) == ["big-1"]
    declared = recipe(about(terms, "big-1"))
    assert found(ledger, declared).verdict == "refuse"
    leaf = permit(ledger, scope={"servers": ["api.example.com"]})
    assert found(ledger, recipe()).verdict != "allow"
    assert lines_of(refused(recipe(), ledger)) == ["big-1"]
    body = ledger.leaf(admitted(declared, "train_target", ledger)).body
    assert (body["verdict"], body["permissions"]) == ("allow", [leaf])
    assert ledger.leaf(body["declarations"][0]).body["about"] == ["big-1"]
    assert standings(ledger)[leaf].used == 0


def test_what_forbids_names_no_reading_that_would_help(ledger, terms):
    says(ledger, "forbidden")
    error = refused(recipe(terms), ledger)
    assert "declare so" not in error.mend
    for topics in (("big-1",), ("api.example.com",), (f"offered:{HOST}", f"offered:{HOST}/model_licence")):
        assert found(ledger, recipe(about(terms, *topics))).verdict == "refuse"


def test_a_platforms_own_word_is_no_word_of_the_models_maker(ledger, terms, maker):
    maker(verdict="refuse", trains_competing="no", hosts=[], models=["big-*"])
    says(ledger, "allowed")
    assert found(ledger, recipe(about(terms, "big-1", "api.example.com"))).verdict == "refuse"


# Whose word lifts it


@pytest.mark.parametrize(
    ("grantor", "servers", "lifts"),
    [
        ("Example, Inc.", [], False),
        ("Api Example Com Ltd", [], False),
        ("Api Example Com Ltd", ["*"], False),
        ("Api Example Com Ltd", ["*.example.com"], False),
        ("the maker of big-1", ["API.example.com."], True),
        ("R. Roe, who runs api.example.com", [], True),
        ("R. Roe (https://api.example.com:443/)", [], True),
        ("R. Roe, who runs www.api.example.com", [], False),
    ],
)
def test_only_who_names_that_host_lifts_its_own_word(ledger, maker, grantor, servers, lifts):
    free = known(maker)
    says(ledger, "with_permission")
    permit(ledger, grantor=grantor, scope={"servers": servers} if servers else {})
    assert found(ledger, recipe(**free)).allowed is lifts


def test_a_makers_name_that_is_also_a_hosts_says_nothing_for_the_host(ledger, terms):
    local = {"endpoint": "http://maker:8000/v1"}
    says(ledger, "with_permission", origin="http://maker:8000")
    permit(ledger, grantor="Maker")
    declared = recipe(about(terms, "big-1"), **local)
    decision = found(ledger, declared)
    assert decision.verdict == "refuse"
    assert any(
        "a permission of whoever runs maker, whose `servers` name it" in lift for lift in decision.lifts
    )
    permit(ledger, grantor="Maker", id="p2", scope={"servers": ["maker"]})
    assert found(ledger, declared).allowed


# How long it stands


@pytest.mark.parametrize("data", [None, b"<html>"])
@pytest.mark.parametrize("word", ["forbidden", "with_permission"])
def test_a_ban_stands_when_its_server_falls_silent(ledger, terms, word, data):
    later = TODAY + timedelta(days=1)
    says(ledger, word)
    falls_silent(ledger, day=later, data=data)
    falls_silent(ledger, day=later + timedelta(days=1), data=data)
    now = NOW + timedelta(days=2)
    for declared in (terms, about(terms, "big-1"), about(terms, "api.example.com", read_on=TODAY)):
        decision = found(ledger, recipe(declared), now=now)
        assert decision.verdict == "refuse"
        assert any("says nothing since 2026-11-22" in lift for lift in decision.lifts), decision.lifts
        assert "api.example.com" in decision.to_declare
        assert not any("take another teacher" in lift for lift in decision.lifts)
    fresh = about(terms, "api.example.com", read_on=later)
    assert found(ledger, recipe(fresh), now=now).allowed
    says(ledger, "allowed", day=later + timedelta(days=1))
    assert found(ledger, recipe(terms), now=now).allowed
    says(ledger, "forbidden", day=later + timedelta(days=1))
    assert found(ledger, recipe(fresh), now=now).verdict == "refuse"


def test_what_it_allowed_ends_with_its_silence(ledger, terms, maker):
    free = known(maker)
    says(ledger, "allowed")
    assert found(ledger, recipe(**free)).allowed
    falls_silent(ledger)
    decision = found(ledger, recipe(**free))
    assert (decision.verdict, decision.to_declare) == ("refuse", ("api.example.com",))
    assert found(ledger, recipe(about(terms, "api.example.com"), **free)).allowed


def test_a_ban_on_what_competes_is_none_on_what_does_not_when_it_falls_silent(ledger, terms):
    says(ledger, "allowed", "forbidden")
    falls_silent(ledger)
    declared = about(terms, "api.example.com", read_on=TODAY - timedelta(days=3))
    assert found(ledger, recipe(declared)).verdict == "refuse"
    for use in ("train_target", "evaluation"):
        assert found(ledger, recipe(declared, release={"competes": False}), use).allowed
        assert not found(ledger, recipe(release={"competes": False}), use).allowed


def test_a_decision_names_all_that_it_heard(ledger, terms):
    first = says(ledger, "forbidden")
    then = falls_silent(ledger)
    refused(recipe(terms), ledger)
    (leaf,) = ledger.leaves("decision")
    assert leaf.body["offered"] == [first, then]
    fresh = about(terms, "api.example.com", read_on=TODAY)
    assert ledger.leaf(admitted(recipe(fresh), "train_target", ledger)).body["offered"] == [first, then]


def test_a_declaration_that_lifted_a_ban_is_recorded_and_can_be_recalled(ledger, terms, maker):
    says(ledger, "forbidden", origin="https://api.maker.example")
    falls_silent(ledger, origin="https://api.maker.example")
    refused(at_maker(), ledger)
    declared = at_maker(about(terms, "api.maker.example", read_on=TODAY))
    made = admitted(declared, "train_target", ledger)
    body = ledger.leaf(made).body
    assert (body["verdict"], body["basis"]) == ("allow", "declaration")
    assert f"forbade this until {TODAY}" in body["reason"]
    assert "R. Ames declares that terms.txt" in body["reason"]
    assert [reason["lifted_by"] for reason in body["reasons"]] == ["", "declaration"]
    (leaf,) = body["declarations"]
    assert ledger.leaf(leaf).body["about"] == ["api.maker.example"]
    assert decisions_of(ledger, "authorisation", leaf) == [made]
    recall(ledger, [made], "a letter came", authorisation=leaf)
    refused(declared, ledger)


def test_a_ban_that_was_lifted_is_no_ground_of_a_refusal(ledger, terms, maker):
    maker(verdict="refuse", trains_competing="no")
    says(ledger, "forbidden", origin="https://api.maker.example")
    falls_silent(ledger, origin="https://api.maker.example")
    declared = at_maker(about(terms, "api.maker.example", read_on=TODAY))
    assert "forbade this until" not in refused(declared, ledger).why


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([HOST, HOST.replace("https", "http")]),
            st.sampled_from(["allowed", "with_permission", "forbidden", "silent", "garbled"]),
        ),
        max_size=5,
    ),
    st.sampled_from([(), ("big-1",), ("api.example.com",), ("big-1", "api.example.com")]),
    st.booleans(),
)
def test_whatever_it_said_before_a_ban_stands_and_only_its_own_leave_frees(heard, topics, fresh):
    """Against the rule in other words: what each origin said last, and whether it still says so."""
    last, stands = {}, {}
    day = TODAY
    with tempfile.TemporaryDirectory() as folder, Ledger.open(init_workspace(Path(folder))) as ledger:
        (Path(folder) / "terms.txt").write_bytes(TEXT)
        said = {"document": f"{folder}/terms.txt", "declared_by": "R. Ames", "about": list(topics)}
        for origin, word in heard:
            day += timedelta(days=1)
            if word in ("silent", "garbled"):
                falls_silent(ledger, origin, day, None if word == "silent" else b"<html>")
                stands[origin] = False
            else:
                says(ledger, word, origin=origin, day=day)
                last[origin], stands[origin] = word, True
        now = NOW + (day - TODAY)
        what = recipe(Declaration(**said, read_on=day if fresh else TODAY) if topics else None)
        verdict = found(ledger, what, now=now).verdict
    banned = [
        origin
        for origin, word in last.items()
        if word != "allowed" and (stands[origin] or not (fresh and "api.example.com" in topics))
    ]
    if banned:
        assert verdict == "refuse"
    elif last.get(HOST) == "allowed" and stands[HOST]:
        assert (verdict == "allow") is ("big-1" in topics)
    else:
        # Of a model and a server of which nothing is known a declaration about either is enough.
        assert verdict == ("allow" if topics else "refuse")


# Which server it is


@pytest.mark.parametrize(
    ("typed", "origin"),
    [
        ("HTTPS://API.Example.com:443/v1", "https://api.example.com"),
        ("https://api.example.com./v1", "https://api.example.com"),
        ("http://api.example.com:80", "http://api.example.com"),
        ("http://api.example.com:443", "http://api.example.com:443"),
        ("https://b\u00fccher.example/v1", "https://xn--bcher-kva.example"),
        ("https://B\u00dcCHER.example", "https://xn--bcher-kva.example"),
        ("https://stra\u00dfe.example", "https://xn--strae-oqa.example"),
        ("https://api\u3002example.com", "https://api.example.com"),
        ("http://[0:0:0:0:0:0:0:1]:8000/v1", "http://[::1]:8000"),
        ("http://xn--a.example:8000", "http://xn--a.example:8000"),
        ("https://a_b.example", "https://a_b.example"),
        ("api.example.com/v1", ""),
        ("https://api.example.com:99999", ""),
        ("", ""),
    ],
)
def test_an_origin_is_the_same_however_it_is_typed(typed, origin):
    assert origin_of(typed) == origin


@pytest.mark.parametrize(
    "typed",
    ["https://API.example.com:443/v1", "https://api.example.com./v1", "https://api.example.com/other"],
)
def test_a_ban_is_heard_however_the_server_is_typed(ledger, terms, typed):
    says(ledger, "forbidden")
    assert found(ledger, recipe(terms, endpoint=typed)).verdict == "refuse"


def test_a_ban_that_was_kept_as_it_was_typed_is_heard(ledger, terms):
    """As leaves of before origins were normalised have them."""
    body = dict(ledger.leaf(says(ledger, "forbidden")).body)
    elsewhere = {"row": "offered:https://old.example:443", "document": "https://old.example:443/x"}
    ledger.append("terms_snapshot", body | elsewhere, {"document": document("forbidden")})
    assert found(ledger, recipe(terms, endpoint="https://old.example/v1")).verdict == "refuse"


def test_a_ban_under_one_scheme_counts_under_the_other_and_leave_does_not(ledger, terms, maker):
    free = known(maker)
    plain = free | {"endpoint": "http://api.example.com/v1"}
    declared = about(terms, "api.example.com")
    says(ledger, "allowed")
    assert not found(ledger, recipe(**plain)).allowed
    assert found(ledger, recipe(declared, **plain)).allowed
    forbids = says(ledger, "forbidden")
    decision = found(ledger, recipe(declared, **plain))
    assert decision.verdict == "refuse"
    assert any("can let https://api.example.com/.well-known" in lift for lift in decision.lifts)
    leaf = says(ledger, "allowed", origin="http://api.example.com")
    assert found(ledger, recipe(declared, **plain)).verdict == "refuse"
    refused(recipe(declared, **plain), ledger)
    assert list(ledger.leaves("decision"))[-1].body["offered"] == [leaf, forbids]
    other_port = free | {"endpoint": "http://api.example.com:8080/v1"}
    assert found(ledger, recipe(declared, **other_port)).allowed


# What a permission or a declaration calls a server


def test_a_permission_for_servers_is_none_for_weights_in_a_folder():
    here = asked(access="weights", endpoint="", licence_sha256="ef" * 32)
    bans = row(**BANS_RIVALS, access="weights")
    for servers, allowed in (((), True), (("maker.example",), False), (("*",), True), (("import",), False)):
        decision = decide(here, [bans], [permission({"servers": servers})], (), TODAY)
        assert decision.allowed is allowed, servers
    assert any("not of weights in a folder" in lift for lift in decision.lifts)
    own = asked(access="weights", endpoint="http://gpu.example:8000/v1")
    for servers, allowed in ((("maker.example",), False), (("gpu.example",), True)):
        assert decide(own, [bans], [permission({"servers": servers})], (), TODAY).allowed is allowed


def test_a_host_that_is_called_import_is_no_import(ledger, terms):
    at = asked(endpoint="http://import:8000/v1")
    assert at.server == "//import"
    brought = asked(access="import", endpoint="")
    assert brought.server == "import"
    assert decide(at, [], [permission({"servers": ("import",)})], (), TODAY).verdict == "refuse"
    assert decide(at, [], [permission({"servers": ("//import",)})], (), TODAY).allowed
    what = recipe(Declaration(**(terms.model_dump() | {"about": ["import"]})), endpoint="http://import/v1")
    with pytest.raises(GateRefused):
        admit(what, what.teacher, "train_target", ledger, NOW)
