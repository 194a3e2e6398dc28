"""Whatever lies in a teacher's folder, reading it raises nothing: what does not hold is unknown."""

import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from taught import NOW, decided, entry, recipe, released, upstream

from stillhouse.errors import GateRefused
from stillhouse.ledger import Ledger
from stillhouse.ledger.checkpoint import sign_note
from stillhouse.ledger.keys import public_bytes, public_pem, read_signing_key
from stillhouse.ledger.leaves import canonical
from stillhouse.ledger.manifest import NAME
from stillhouse.recipe import parse_recipe
from stillhouse.terms import admit, consider_base
from stillhouse.terms.lineage import KEY, LONGEST, TEACHERS, Lineage, folder_of, read_lineage
from stillhouse.workspace import init_workspace

FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
DEEP = "[" * 100_000 + "]" * 100_000


@pytest.fixture
def ledger(tmp_path):
    with Ledger.open(init_workspace(tmp_path / "ours"), clock=lambda: NOW) as ledger:
        yield ledger


def nested(depth):
    found = entry("big-1")
    for level in range(depth):
        found = entry("middle", "weights", None, upstream=upstream(f"release-{level}", found))
    return found


SPOILT = [
    ([3], "not in its form"),
    (3, "not in its form"),
    ({"model": "big-1"}, "not in its form"),
    ([], "names no teacher"),
    ([entry(3)], "not in its form"),
    ([entry("big-1", "api", 7)], "not in its form"),
    ([entry("\ud800")], "cannot be read"),
    ([entry("big-1", decisions=[{"leaf": "3", "verdict": "allow"}])], "not in its form"),
    ([entry("big-1", decisions=[{"leaf": True, "verdict": "allow"}])], "not in its form"),
    ([entry("big-1", decisions=[{"leaf": -1, "verdict": "allow"}])], "not in its form"),
    ([entry("big-1", decisions=[3])], "not in its form"),
    ([entry("big-1") | {"decisions": "all"}], "not in its form"),
    ([entry("big-1", decisions=[{"leaf": 10**30, "verdict": "allow"}])], "cannot be read"),
    ([entry("big-1", upstream="nobody")], "not in its form"),
    ([entry("big-1", upstream={"teachers": "nobody"})], "not in its form"),
    ([entry("big-1", upstream={"teachers": [3]})], "not in its form"),
    ([entry("big-1", upstream=upstream("x", entry("y"), signedBy="no hex"))], "not in its form"),
    ([entry("big-1", "weights", None, use="base")], "not in its form"),
    ([entry("big-1", known=["a"])], "not in its form"),
    ([entry("big-1", known={"also": "a"})], "not in its form"),
    ([entry("big-1", known={"paid": "yes"})], "not in its form"),
    ([entry("big-1", obligations=[{"kind": "a song", "texts": [], "modes": []}])], "not in its form"),
    ([entry("big-1", obligations=[{"kind": "note", "texts": "a", "modes": []}])], "not in its form"),
    ([entry("big-1", obligations=[{"kind": "note", "texts": [], "modes": ["x"]}])], "not in its form"),
    ([entry(f"big-{number}") for number in range(5000)], "too long to be weighed"),
    ([entry("big-1" * 10_000)], "too long to be weighed"),
    ([nested(40)], "more than 32 released students"),
]


@pytest.mark.parametrize(("entries", "why"), SPOILT, ids=range(len(SPOILT)))
def test_a_signed_record_that_is_none_is_unknown_and_recorded_so(ledger, tmp_path, entries, why):
    folder = tmp_path / "small"
    released(folder, ledger.workspace, text=json.dumps(entries))
    found = read_lineage(folder, ledger.workspace)
    assert isinstance(found, Lineage)
    assert why in found.unknown
    what = recipe(folder)
    with pytest.raises(GateRefused, match="not yet known to be allowed"):
        admit(what, what.teacher, "train_target", ledger, NOW)
    (leaf,) = ledger.leaves("decision")
    assert leaf.body["upstream"]["unknown"]


@pytest.mark.parametrize(
    "text", [DEEP, f'[{{"model": {DEEP}}}]', "NaN", "", "{", "9" * 5000, "\ud800", "[1e999]"]
)
def test_text_that_breaks_a_reader_of_json_is_unknown(ledger, tmp_path, text):
    folder = tmp_path / "small"
    released(folder, ledger.workspace, text=text)
    assert "not in its form" in read_lineage(folder, ledger.workspace).unknown


def test_a_file_that_is_too_long_a_pipe_or_not_to_be_read_is_unknown(ledger, tmp_path):
    folder = tmp_path / "small"
    released(folder, ledger.workspace, entry("big-1"))
    for name in (TEACHERS, NAME, KEY):
        kept = (folder / name).read_bytes()
        with (folder / name).open("wb") as file:
            file.truncate(1 << 30)
        assert "longer than" in read_lineage(folder, ledger.workspace).unknown
        (folder / name).unlink()
        os.mkfifo(folder / name)
        assert "is missing" in read_lineage(folder, ledger.workspace).unknown
        (folder / name).unlink()
        (folder / name).write_bytes(kept)
    assert read_lineage(folder, ledger.workspace).unknown == ""
    (folder / os.fsdecode(b"w\xff.safetensors")).write_bytes(b"")
    canonical(read_lineage(folder, ledger.workspace).record())


def test_a_record_of_as_many_teachers_as_fit_comes_to_a_leaf(ledger, tmp_path):
    """Each of them brings reasons, and the leaf has no room for all of these; all else it tells."""
    folder = tmp_path / "small"
    several = [entry(f"gpt-4o-{number}", host="api.openai.com", decisions=[]) for number in range(90)]
    released(folder, ledger.workspace, *several)
    assert LONGEST / 2 < len(canonical(read_lineage(folder, ledger.workspace).record())) < LONGEST
    what = recipe(folder)
    with pytest.raises(GateRefused, match="may not be used"):
        admit(what, what.teacher, "train_target", ledger, NOW)
    (leaf,) = ledger.leaves("decision")
    body = leaf.body
    assert (body["verdict"], body["upstream"]["unknown"], len(body["weighed"])) == ("refuse", "", 90)
    assert {each["verdict"] for each in body["reasons"]} == {"refuse"}
    assert len(body["reasons"]) + body["reasons_left_out"] == 91


@pytest.mark.parametrize("count", [24, 30, 60, 90])
def test_nobody_lifts_a_refusal_by_how_many_taught(ledger, tmp_path, count):
    folder = tmp_path / "small"
    several = [entry(f"gpt-4o-{number}", host="api.openai.com", decisions=[]) for number in range(count)]
    released(folder, ledger.workspace, *several)
    assert decided(ledger, folder, "lineage").verdict == "refuse"


def test_what_is_owed_to_those_who_taught_fits_into_the_decision_or_it_refuses(ledger, tmp_path):
    few, many = ([{"kind": "notice", "texts": [f"{n}"], "modes": []} for n in range(m)] for m in (250, 340))
    for name, owed in (("few", few), ("many", many)):
        released(
            tmp_path / name / "small", ledger.workspace, entry("embedded:desk", "shipped", obligations=owed)
        )
    found = decided(ledger, tmp_path / "few" / "small")
    assert (found.verdict, len(found.obligations)) == ("allow_with_obligations", 250)
    what = recipe(tmp_path / "many" / "small", "lineage")
    with pytest.raises(GateRefused, match="may not be used") as caught:
        admit(what, what.teacher, "train_target", ledger, NOW)
    assert "too long for one decision" in caught.value.why
    assert [leaf.body["verdict"] for leaf in ledger.leaves("decision")] == ["refuse"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
GOOD = [
    entry(
        "big-1",
        known={"model": "big-1", "also": ["b"], "paid": True, "licenceSha256": "ab" * 32},
        obligations=[{"kind": "note", "texts": ["a"], "modes": ["weights"], "row": "r", "where": ""}],
        upstream=upstream("middle", entry("m-1"), entry("m-2", "import", None)),
    ),
    entry("embedded:desk", "shipped", None),
]


def places(value, path=()):
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, each in inside:
        yield from places(each, (*path, name))


def put(value, path, new):
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = put(value[path[0]], path[1:], new)
    return copy


@FUZZ
@given(st.sampled_from(list(places(GOOD))), JSON)
def test_any_part_of_a_signed_record_may_be_anything(tmp_path_factory, path, new):
    base = tmp_path_factory.mktemp("fuzz")
    workspace = init_workspace(base / "ours")
    released(base / "small", workspace, text=json.dumps(put(GOOD, path, new)))
    found = read_lineage(base / "small", workspace)
    assert found.unknown or found.teachers
    assert len(canonical(found.record())) <= LONGEST + 1000


@FUZZ
@given(st.data())
def test_any_bytes_of_the_record_may_be_any_others(tmp_path_factory, data):
    base = tmp_path_factory.mktemp("fuzz")
    workspace = init_workspace(base / "ours")
    folder = base / "small"
    released(folder, workspace, *GOOD)
    name = data.draw(st.sampled_from([TEACHERS, NAME, KEY]))
    kept = (folder / name).read_bytes()
    at, more = data.draw(st.integers(0, len(kept))), data.draw(st.binary(max_size=40))
    (folder / name).write_bytes(kept[:at] + more + kept[at + data.draw(st.integers(0, 20)) :])
    found = read_lineage(folder, workspace)
    assert isinstance(found, Lineage)
    assert found.unknown or (folder / name).read_bytes() == kept
    canonical(found.record())


@FUZZ
@given(st.lists(st.text(st.characters(blacklist_characters="\r\n"), min_size=1, max_size=30), max_size=4))
def test_a_signed_manifest_may_name_anything(tmp_path_factory, names):
    base = tmp_path_factory.mktemp("fuzz")
    workspace = init_workspace(base / "ours")
    folder = base / "small"
    released(folder, workspace, *GOOD)
    text = (folder / NAME).read_text().partition("\n\n")[0]
    text += "".join(f"\n{'ab' * 32}  {name}" for name in names) + "\n"
    key = read_signing_key(workspace)
    try:
        (folder / NAME).write_bytes(sign_note("stillhouse/0011223344556677", text, key))
    except UnicodeEncodeError:
        return
    assert isinstance(read_lineage(folder, workspace), Lineage)


def test_weights_that_were_replaced_in_the_same_moment_are_seen(ledger, tmp_path):
    folder = tmp_path / "small"
    released(folder, ledger.workspace, entry("embedded:desk", "shipped", None))
    weights = folder / "model.safetensors"
    assert read_lineage(folder, ledger.workspace).unknown == ""
    before = weights.stat()
    (folder / "new").write_bytes(b"WEIGHTS")
    os.utime(folder / "new", ns=(before.st_atime_ns, before.st_mtime_ns))
    (folder / "new").rename(weights)
    assert weights.stat().st_mtime_ns == before.st_mtime_ns
    assert "was changed" in read_lineage(folder, ledger.workspace).unknown
    released(tmp_path / "two", ledger.workspace, entry("embedded:desk", "shipped", None))
    weights = tmp_path / "two" / "model.safetensors"
    assert read_lineage(tmp_path / "two", ledger.workspace).unknown == ""
    before = weights.stat()
    weights.write_bytes(b"WEIGHTS")  # in place, so it is the same inode
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "was changed" in read_lineage(tmp_path / "two", ledger.workspace).unknown


def test_a_key_that_shares_the_beginning_of_an_earlier_one_is_not_ours(ledger, tmp_path):
    folder, workspace = tmp_path / "small", ledger.workspace
    theirs = init_workspace(tmp_path / "theirs")
    public = public_bytes(read_signing_key(theirs))
    released(folder, theirs, entry("big-1"))
    workspace.earlier_verifying_key(public).parent.mkdir(exist_ok=True)
    other = public_bytes(read_signing_key(init_workspace(tmp_path / "third")))
    workspace.earlier_verifying_key(public).write_bytes(public_pem(other))
    assert read_lineage(folder, workspace).ours is False
    workspace.earlier_verifying_key(public).write_bytes(public_pem(public))
    assert read_lineage(folder, workspace).ours is True


def test_a_hub_id_that_was_loaded_here_is_looked_at(ledger, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert folder_of("them/small").as_posix() == "them/small"
    repository = tmp_path / "hub" / "models--them--small"
    released(repository / "snapshots" / "0123", ledger.workspace, entry("gpt-4o", host="api.openai.com"))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    what = recipe(tmp_path / "x")
    teacher = what.teacher.model_copy(update={"model": "them/small"})
    with pytest.raises(GateRefused, match="may not be used") as caught:
        admit(what, teacher, "train_target", ledger, NOW)
    assert "gpt-4o, which taught small" in caught.value.why


def test_a_record_in_its_form_is_known(ledger, tmp_path):
    released(tmp_path / "small", ledger.workspace, *GOOD)
    found = read_lineage(tmp_path / "small", ledger.workspace)
    assert (found.unknown, len(found.teachers), found.ours) == ("", 4, True)


def test_what_was_asked_at_a_server_is_no_base(ledger, tmp_path):
    """Whose weights are in a model answered nothing, so nobody asks for its leave."""
    asked = entry("secret-1", host="api.secret.example", use="base")
    taught = entry("embedded:desk", "shipped", None, upstream=upstream("x", asked))
    released(tmp_path / "small", ledger.workspace, taught)
    assert decided(ledger, tmp_path / "small").verdict == "refuse"
    begins = parse_recipe(
        {
            "run": {"name": "smaller"},
            "teacher": {"model": "embedded:desk"},
            "prompts": {"source": "embedded:desk"},
            "student": {"init": str(tmp_path / "small")},
        }
    )
    assert consider_base(begins, ledger, NOW).verdict == "refuse"
