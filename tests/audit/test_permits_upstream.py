"""A release that rests on a permission for one who taught its teacher: it covers that one alone."""

import copy
from dataclasses import replace

import pytest
from provider import answer

from stillhouse import pipeline
from stillhouse.audit import verify
from stillhouse.audit.permits import not_covered
from stillhouse.audit.trail import follow
from stillhouse.errors import GateRefused
from stillhouse.ledger import Ledger
from stillhouse.ledger.disclosure import leaf_hashes
from stillhouse.ledger.keys import read_public_key
from stillhouse.ledger.permissions import miscounted, revoke, standings
from stillhouse.terms.authorising import make_permission, record

pytestmark = pytest.mark.usefixtures("one_thread")


async def digit(body, number):
    return answer(body["messages"][-1]["content"].split()[1])


@pytest.fixture
def released(recipe_of, workspace, provider, tmp_path):
    """The leaf of the permission, and the release of a student's student; all that it is for was had."""
    scope = {"models": ["m"], "uses": ["train_target", "evaluation"], "competing": True, "servers": ["*"]}
    said = {"grantor": "Maker", "grantee": "us", "signatory": "Somebody", "approver": "Somebody Here"}
    said |= {"valid_from": "2026-01-01", "scope": scope | {"volume": 20}, "disclosure": True}
    with Ledger.open(workspace) as ledger:
        leaf = record(make_permission(said, "c.txt", b"a contract", "here"), b"a contract", ledger)
    teacher = {"model": "m", "endpoint": provider(digit).url, "provider": "somewhere", "terms": None}
    first = pipeline.run(recipe_of(tmp_path, teacher, 20), workspace).run.release
    again = recipe_of(tmp_path, {"model": str(first)}, 20, run={"name": "again"}, collect={"max_tokens": 4})
    return leaf, again, pipeline.run(again, workspace).run.release


def test_it_is_checked_against_whom_it_is_for_and_counts_nothing_of_the_student(released, workspace):
    leaf, again, release = released
    done = verify(release)
    assert done.ok, [check for check in done.checks if not check.ok]
    with Ledger.open(workspace) as ledger:
        assert standings(ledger)[leaf].used == 20  # those of m itself
        assert miscounted(ledger) == []

    proofs = release / "provenance"
    size, key = int((proofs / "checkpoint").read_text().split("\n")[1]), read_public_key(workspace)
    trail = follow(proofs, leaf_hashes(proofs, size))
    decided = trail.release.body["decisions"]
    (index,) = (each for each in decided if trail.decisions[each].body["use"] == "train_target")
    honest = trail.decisions[index]
    assert honest.body["teacher_permissions"] == []
    assert not_covered(trail, {key}) == []

    def told(**changes):
        trail.decisions[index] = replace(honest, body=copy.deepcopy(honest.body) | changes)
        return " ".join(not_covered(trail, {key}))

    weighed, _ = honest.body["weighed"]  # and what that began with
    assert "it is for m, not for release" in told(teacher_permissions=[leaf])
    assert "is for nobody" in told(weighed=[weighed | {"permissions": []}])
    assert "names no another" in told(weighed=[weighed | {"model": "another"}])
    assert "names no m" in told(upstream=honest.body["upstream"] | {"teachers": []})
    other = copy.deepcopy(honest.body["upstream"])
    other["teachers"][0] |= {"model": "m-2", "known": {"model": "m-2"}}
    assert "it is for m, not for m-2" in told(upstream=other, weighed=[weighed | {"model": "m-2"}])
    assert "cannot be read" in told(upstream=3)
    without = {name: value for name, value in honest.body.items() if name != "weighed"}
    trail.decisions[index] = replace(honest, body=without)
    assert "it is for m, not for release" in " ".join(not_covered(trail, {key}))

    with Ledger.open(workspace) as ledger:
        revoke(ledger, leaf, "a quarrel")
    with pytest.raises(GateRefused, match="may not be used"):
        pipeline.run(again, workspace)
