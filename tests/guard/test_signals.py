"""Signals between two houses: made, signed, taken in whole or not at all, matched, revoked and traced."""

import base64
import json
import random
from datetime import timedelta

import pytest
import signal_houses
import stix2
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from signal_houses import BASIS, NOW, sent, signal, text
from stix2.properties import (
    BooleanProperty,
    DictionaryProperty,
    IntegerProperty,
    ListProperty,
    StringProperty,
    TimestampProperty,
)
from typer.testing import CliRunner

from stillhouse.cli.guard_signals import signals_app
from stillhouse.errors import UsageError
from stillhouse.guard.evidence import FEATURES
from stillhouse.guard.signals import form, matches, shelf, sketch_of
from stillhouse.guard.signals.sketch import SLOTS, equal, keyed
from stillhouse.ledger.keys import pre_authentication, read_signing_key
from stillhouse.ledger.leaves import canonical
from stillhouse.ledger.verify import verify


@pytest.fixture
def two(tmp_path):
    with signal_houses.houses(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    with signal_houses.houses(tmp_path_factory.mktemp("houses")) as made:
        yield made


def take(two, objects, now=NOW):
    return shelf.take(two.b, two.ledger_b, two.peer, objects, now)


def held(two):
    return shelf.received(two.b, two.peer)


def leaves(ledger):
    return [leaf.body for leaf in ledger.leaves("signal")]


def resigned(two, copy, **changed):
    """A copy with other fields, signed by its sender all the same."""
    body = {name: value for name, value in copy.items() if name != "signature"} | changed
    made = read_signing_key(two.a).sign(pre_authentication(form.PAYLOAD, canonical(body)))
    return body | {"signature": copy["signature"] | {"sig": base64.b64encode(made).decode()}}


def refused(two, objects, match=None, now=NOW):
    before = held(two), leaves(two.ledger_b)
    with pytest.raises(UsageError, match=match) as caught:
        take(two, objects, now)
    assert caught.value.why
    assert caught.value.mend
    assert (held(two), leaves(two.ledger_b)) == before


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_equal_slots_estimate_what_two_texts_share(share):
    """Jaccard similarity of the sets of runs, which is share / (2 - share), within four standard errors."""
    found = []
    for seed in range(12):
        common = [text(1000 * seed + n, 40) for n in range(20)]
        one, other = ([text(1000 * seed + who + n, 40) for n in range(20)] for who in (100, 200))
        cut = round(20 * share)
        same, either = equal(sketch_of(common[:cut] + one[cut:]), sketch_of(common[:cut] + other[cut:]))
        found.append(same / either)
    truth = share / (2 - share)
    assert abs(sum(found) / 12 - truth) < 4 * (truth * (1 - truth) / (12 * SLOTS)) ** 0.5


def test_copies_under_two_salts_have_nothing_in_common():
    sketch = sketch_of([text(1)])
    one, other = keyed(b"1" * 32, sketch), keyed(b"2" * 32, sketch)
    assert equal(one, one)[0] > 100
    assert equal(one, other)[0] <= 1
    assert max(one) < 2**16


def test_a_bundle_is_stix_as_the_library_of_oasis_reads_it(two):
    @stix2.v21.CustomObject(
        form.TYPE,
        [
            ("kind", StringProperty(required=True)),
            ("recipient", StringProperty(required=True)),
            ("valid_from", TimestampProperty(required=True)),
            ("valid_until", TimestampProperty(required=True)),
            ("template", ListProperty(IntegerProperty)),
            ("prompt_source", ListProperty(IntegerProperty)),
            ("behaviour", DictionaryProperty(spec_version="2.1")),
            ("tooling", ListProperty(StringProperty)),
            ("signature", DictionaryProperty(required=True, spec_version="2.1")),
            ("revoked", BooleanProperty()),
        ],
        form.EXTENSION,
    )
    class Sent:
        pass

    shelf.add(two.a, signal(behaviour={"single": 1.0, "new": 0.25}, marks=("python-requests",)))
    bundle = shelf.export(two.a, two.ledger_a, "b.example", ["one"], BASIS, NOW)
    read = stix2.parse(json.dumps(bundle), allow_custom=False, version="2.1")
    kinds = [one["type"] for one in read.objects]
    assert kinds == ["identity", "identity", "extension-definition", form.TYPE]
    found = read.objects[-1]
    assert isinstance(found, Sent)
    assert found.confidence == 70
    assert found.extensions[form.EXTENSION]["extension_type"] == "new-sdo"
    with pytest.raises(stix2.exceptions.STIXError):
        stix2.parse(json.dumps(bundle["objects"][-1] | {"price": 3}), allow_custom=False, version="2.1")


def test_what_was_sent_is_a_reason_with_source_confidence_and_expiry(two):
    copies = sent(two, signal(), signal("two", 2), signal("three", 3, marks=("Scrape  Tool",), template=None))
    assert take(two, copies).new == 3
    salts = {"a.example": two.peer.salt}
    assert matches(held(two), sketch_of([text(9)]), salts=salts, now=NOW) == []
    (found,) = matches(held(two), sketch_of([text(1), text(8, 200)]), salts=salts, now=NOW)
    assert (found.sender, found.part, found.confidence) == ("a.example", "template", 70)
    assert found.words().endswith("from a.example, which it holds with confidence 70 of 100 until 2026-12-22")
    (mark,) = matches(held(two), sketch_of([]), salts=salts, now=NOW, marks=["scrape tool"])
    assert (mark.part, mark.equal, mark.of) == ("tooling", 1, 1)
    later = NOW + timedelta(days=31)
    assert matches(held(two), sketch_of([text(1)]), salts=salts, now=later) == []
    assert matches(held(two), sketch_of([text(1)]), salts={}, now=NOW) == []


def test_part_of_a_source_matches_and_a_neighbour_does_not(two):
    """An account that sends a third of the prompts beside its own; over many, with no false match."""
    prompts = [text(5000 + n, 40) for n in range(200)]
    take(two, sent(two, signal(template=None, prompt_source=sketch_of(prompts))))
    salts = {"a.example": two.peer.salt}
    chosen = random.Random(1)
    for seed in range(8):
        part = chosen.sample(prompts, 80) + [text(90_000 + 100 * seed + n, 40) for n in range(40)]
        own = [text(70_000 + 200 * seed + n, 40) for n in range(120)]
        assert len(matches(held(two), sketch_of(part), salts=salts, now=NOW)) == 1
        assert matches(held(two), sketch_of(own), salts=salts, now=NOW) == []


def test_every_step_is_a_leaf_and_the_ledgers_verify(two):
    copies = sent(two, signal(), signal("two", 2))
    take(two, copies)
    assert take(two, copies) == shelf.Taken(0, 0, 2, None)
    shelf.revoke(two.a, two.ledger_a, "one", "the customer declared its use", NOW)
    revoked = [each["object"] for each in shelf.sent_to(two.a, "b.example") if each["object"]["revoked"]]
    assert take(two, revoked) == shelf.Taken(0, 1, 0, 1)
    assert [leaf["what"] for leaf in leaves(two.ledger_a)] == ["exported", "revoked"]
    assert [leaf["what"] for leaf in leaves(two.ledger_b)] == ["imported", "imported"]
    assert leaves(two.ledger_a)[0]["signals"] == [one["id"] for one in copies]
    assert BASIS not in json.dumps(leaves(two.ledger_a))
    for ledger in (two.ledger_a, two.ledger_b):
        ledger.checkpoint()
        assert verify(ledger).ok
    assert {one.id for one in held(two) if not one.revoked} == {copies[1]["id"]}


def test_a_revocation_holds_whatever_the_clock_said_and_for_ever(two):
    (copy,) = sent(two, signal())
    take(two, [copy])
    shelf.revoke(two.a, two.ledger_a, "one", "wrong", NOW - timedelta(minutes=5))
    (back,) = (each["object"] for each in shelf.sent_to(two.a, "b.example"))
    assert not {"template", "behaviour", "tooling"} & set(back)
    assert take(two, [back]).revoked == 1
    refused(two, [copy], "was revoked")
    salts = {"a.example": two.peer.salt}
    assert matches(held(two), sketch_of([text(1)]), salts=salts, now=NOW) == []


def test_expired_foreign_and_strangers_signals_are_refused_whole(two):
    good, late = sent(two, signal(), signal("two", 2, until=NOW + timedelta(hours=1)))
    refused(two, [good, late], "has expired", NOW + timedelta(hours=2))
    shelf.invite(two.a, "a.example", "c.example")
    foreign = shelf.export(two.a, two.ledger_a, "c.example", ["one"], BASIS, NOW)["objects"][-1]
    refused(two, [good, foreign], "for somebody else")
    stranger = Ed25519PrivateKey.generate()
    forged = form.copy_of(
        signal(), sender="a.example", recipient="b.example", salt=two.peer.salt, key=stranger, now=NOW
    )
    refused(two, [good, forged], "signature does not hold")
    assert take(two, [good]).new == 1


_JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_copy_is_refused_and_nothing_of_its_file_is_taken_in(once, data):
    if not shelf.own(once.a):
        sent(once, signal(), signal("two", 2, behaviour={"single": 0.5}, marks=("a tool",)))
    good, copy = (each["object"] for each in shelf.sent_to(once.a, "b.example"))
    field = data.draw(st.sampled_from([*copy, "price", "customer"]))
    changed = copy | {field: data.draw(_JUNK)}
    if data.draw(st.booleans()) and field in copy:
        changed = {name: value for name, value in copy.items() if name != field}
    if changed.get(field) == copy.get(field, ...):
        return
    refused(once, [good, changed])


@given(data=st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_its_sender_signs_out_of_bounds_is_refused(once, data):
    if not shelf.own(once.a):
        sent(once, signal(), signal("two", 2, behaviour={"single": 0.5}, marks=("a tool",)))
    good, copy = (each["object"] for each in shelf.sent_to(once.a, "b.example"))
    wrong = {
        "confidence": st.integers(101, 10**6) | st.integers(-(10**6), -1) | st.floats(0, 1) | st.text(),
        "labels": st.just([]) | st.lists(st.text(min_size=1), min_size=1),
        "kind": st.text(),
        "id": st.text(),
        "valid_until": st.sampled_from(["2036-11-22T10:00:00.000Z", "2020-01-01T00:00:00.000Z", 7, "soon"]),
        "modified": st.sampled_from(["2026-11-22", None, 3, "2026-13-22T10:00:00.000Z"]),
        "template": st.lists(st.integers(-5, 2**17), max_size=140) | st.just([2**16] * SLOTS),
        "behaviour": st.dictionaries(st.text(min_size=1), st.floats(0, 1), min_size=1)
        | st.just({"single": 1.5})
        | st.just({"price": 0.5}),
        "tooling": st.lists(st.text(), min_size=1) | st.just(["0" * 16] * 17),
        "price": _JUNK.filter(lambda value: value == value),
        "revoked": st.just("no") | st.integers(0, 1),
        "created_by_ref": st.just(form.identity_id("c.example")),
    }
    field = data.draw(st.sampled_from(sorted(wrong)))
    value = data.draw(wrong[field])
    try:
        changed = resigned(once, copy, **{field: value})
    except Exception:  # what has no canonical form cannot be signed at all
        return
    refused(once, [good, changed])


@given(st.binary(max_size=200) | _JUNK.map(lambda value: json.dumps(value).encode()))
@settings(max_examples=100, deadline=None)
def test_what_is_no_bundle_is_refused(data):
    with pytest.raises(UsageError, match="no signal"):
        form.objects_in(data)


def test_what_is_huge_or_deep_is_refused():
    many = json.dumps({"type": "bundle", "objects": [{"type": form.TYPE}] * (form.MOST_SIGNALS + 1)})
    for data in (b" " * (form.MOST_FILE + 1), b"[" * 100_000, b'{"objects":' * 100_000, many.encode()):
        with pytest.raises(UsageError, match="no signal"):
            form.objects_in(data)


def test_a_huge_copy_is_refused(two):
    good = sent(two, signal())[0]
    refused(two, [good, resigned(two, good, price="x" * 20_000)], "no signal")


@pytest.mark.parametrize(
    "changed",
    [
        {"template": sketch_of([text(1, 60)])},
        {"template": None},
        {"marks": ("10.0.0.7",)},
        {"marks": ("someone@customer.example",)},
        {"marks": ("https://customer.example",)},
        {"behaviour": {"price": 0.5}},
        {"behaviour": {"single": 20.0}},
        {"labels": ("acme",)},
        {"labels": ()},
        {"confidence": 101},
        {"until": NOW + timedelta(days=400)},
    ],
    ids=str,
)
def test_what_may_not_travel_is_refused_when_it_is_made(two, changed):
    with pytest.raises(UsageError):
        shelf.add(two.a, signal(**changed))
    assert shelf.own(two.a) == []


def test_no_word_of_a_text_and_no_reason_travels(two):
    travels = json.dumps(sent(two, signal(marks=("sketchy-tool",))))
    shelf.revoke(two.a, two.ledger_a, "one", "because of Customer Seven", NOW)
    travels += json.dumps(shelf.sent_to(two.a, "b.example"))
    assert not any(word in travels for word in [*text(1).split(), "sketchy", "Seven", BASIS])


def test_an_export_without_legal_basis_or_recipient_is_refused(two):
    shelf.add(two.a, signal())
    for name, ids, basis in (
        ("b.example", ["one"], ""),
        ("c.example", ["one"], BASIS),
        ("../own", ["one"], BASIS),
        ("b.example", ["none"], BASIS),
        ("b.example", [], BASIS),
    ):
        with pytest.raises(UsageError):
            shelf.export(two.a, two.ledger_a, name, ids, basis, NOW)
    assert leaves(two.ledger_a) == []
    assert shelf.sent_to(two.a, "b.example") == []


def test_a_leak_names_its_recipient_also_without_ids_and_after_revocation(two):
    shelf.invite(two.a, "a.example", "c.example")
    (copy,) = sent(two, signal())
    shelf.export(two.a, two.ledger_a, "c.example", ["one"], BASIS, NOW)
    bare = {"found on the web": [{"numbers": copy["template"]}]}
    half = {"numbers": [*copy["template"][:64], *[7] * 64]}
    (found,) = shelf.trace(two.a, bare)
    assert (found.recipient, found.named) == ("b.example", False)
    assert shelf.trace(two.a, [copy])[0].named
    assert [one.recipient for one in shelf.trace(two.a, half)] == ["b.example"]
    assert shelf.trace(two.a, {"numbers": list(range(SLOTS))}) == []
    shelf.revoke(two.a, two.ledger_a, "one", "wrong", NOW)
    assert [one.recipient for one in shelf.trace(two.a, bare)] == ["b.example"]


def test_an_invitation_with_another_key_is_not_taken_for_the_first(two):
    another = shelf.Peer("a.example", "b.example", bytes(32), two.peer.salt, two.peer.feed_key)
    with pytest.raises(UsageError, match="another key"):
        shelf.accept(two.b, another)
    with pytest.raises(UsageError, match="no invitation"):
        shelf.read_peer(b'{"sender": "a.example"}')
    assert oct(two.a.signals.stat().st_mode)[-3:] == "700"


def test_whatever_the_guard_measures_may_travel():
    form.refuse_wrong(signal(behaviour=dict.fromkeys(FEATURES, 0.5)))


@pytest.mark.parametrize(
    ("words", "what", "mend"),
    [
        (("--days", "0"), "no such time", "give 1 to 180"),
        (("--days", "181"), "no such time", "give 1 to 180"),
        (("--behaviour", "nowhere.json"), "no file nowhere.json", "name another"),
    ],
)
def test_what_cannot_be_added_is_told_with_what_can(words, what, mend):
    error = CliRunner().invoke(signals_app, ["add", "--label", "template", *words]).exception
    assert isinstance(error, UsageError)
    assert (error.what, error.mend) == (what, mend)
