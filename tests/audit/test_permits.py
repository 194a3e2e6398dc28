"""Written permissions in a release: signed by its maker, within their scope, told only where they may be."""

import gzip
from base64 import b64encode
from dataclasses import replace

import pytest
from provider import answer

from stillhouse import pipeline
from stillhouse.audit import verify
from stillhouse.audit.permits import not_covered
from stillhouse.audit.trail import follow, out_of_force
from stillhouse.ledger import Ledger
from stillhouse.ledger.disclosure import leaf_hashes
from stillhouse.ledger.keys import public_bytes, read_public_key, read_signing_key
from stillhouse.ledger.permissions import revoke
from stillhouse.terms.authorising import make_permission, record
from stillhouse.terms.permissions import to_sign

pytestmark = pytest.mark.usefixtures("one_thread")


async def digit(body, number):
    return answer(body["messages"][-1]["content"].split()[1])


def permitted(workspace, model, **more):
    said = {"grantor": "Maker", "grantee": "us", "signatory": "Somebody There", "approver": "Somebody Here"}
    scope = {"models": [model], "uses": ["train_target", "evaluation"], "competing": True, "servers": ["*"]}
    said |= {"valid_from": "2026-01-01", "scope": scope, **more}
    with Ledger.open(workspace) as ledger:
        return record(make_permission(said, "c.txt", b"a contract", "here"), b"a contract", ledger)


@pytest.fixture
def released(recipe_of, workspace, provider, tmp_path):
    def run(**permission):
        leaf = permitted(workspace, "m", **permission)
        other = permitted(workspace, "another", id="other")
        with Ledger.open(workspace) as ledger:
            revoke(ledger, other, "a quarrel with Falcon")
        teacher = {"model": "m", "endpoint": provider(digit).url, "provider": "somewhere", "terms": None}
        recipe = recipe_of(tmp_path, teacher, 20)
        return leaf, pipeline.run(recipe, workspace).run.release

    return run


def lines(done):
    assert not [check for check in done.checks if not check.ok]
    return {check.name: check.detail for check in done.checks}


def trail_of(release):
    proofs = release / "provenance"
    return follow(proofs, leaf_hashes(proofs, int((proofs / "checkpoint").read_text().split("\n")[1])))


def test_a_permission_that_is_shown_is_checked_by_signature_and_scope(released, workspace):
    leaf, release = released(disclosure=True)
    assert "16 under a recorded permission in force" in lines(verify(release))["decisions"]
    shown = gzip.decompress((release / "provenance" / "leaves.jsonl.gz").read_bytes())
    assert b"Somebody There" in shown
    assert b"Falcon" not in shown  # of another permission, which nothing here rests on

    trail, key = trail_of(release), read_public_key(workspace)
    assert not_covered(trail, {key}) == []
    assert "never had" in not_covered(trail, set())[0]
    honest = trail.permissions[leaf]
    for change, why in (
        ({"scope": honest.body["permission"]["scope"] | {"models": ["another"]}}, "it is for another, not"),
        ({"scope": honest.body["permission"]["scope"] | {"uses": ["evaluation"]}}, "not for train_target"),
        ({"scope": honest.body["permission"]["scope"] | {"students": ["other*"]}}, "a student called other*"),
        ({"scope": honest.body["permission"]["scope"] | {"modes": ["internal"]}}, "not as weights"),
        ({"valid_from": "2100-01-01"}, "not valid before"),
    ):
        said = honest.body["permission"] | change
        trail.permissions[leaf] = replace(honest, body=honest.body | {"permission": said})
        assert "does not hold" in not_covered(trail, {key})[0]
        trail.permissions[leaf] = replace(honest, body=signed_anew(said, workspace))
        assert why in not_covered(trail, {key})[0]
    trail.permissions[leaf] = replace(honest, body={"what": "permission"})
    assert "cannot be read" in not_covered(trail, {key})[0]
    trail.permissions[leaf] = honest
    for index, decision in list(trail.decisions.items()):
        trail.decisions[index] = replace(decision, body=decision.body | {"on": "2026-01-05"})
    assert "it is dated 2026-01-05, and was recorded on" in not_covered(trail, {key})[0]


def signed_anew(said, workspace):
    key = read_signing_key(workspace)
    public, signature = (b64encode(part).decode() for part in (public_bytes(key), key.sign(to_sign(said))))
    return {"permission": said, "signatures": [{"by": "workspace", "key": public, "sig": signature}]}


def test_a_permission_that_is_not_disclosed_is_counted_and_its_leaf_stays_at_home(released):
    leaf, release = released()
    told = lines(verify(release))["decisions"]
    assert f"16 under a permission that is not disclosed (leaf {leaf})" in told
    assert " 0 under a recorded permission in force" in told
    shown = gzip.decompress((release / "provenance" / "leaves.jsonl.gz").read_bytes())
    assert b"Somebody There" not in shown


def test_a_permission_covers_what_was_asked_for_in_its_time():
    said = {"valid_from": "2026-01-02", "valid_to": "2026-01-04"}
    first, last = "2026-01-04T23:59:00.000000Z", "2026-01-05T00:00:09.000000Z"
    assert out_of_force(said, first, first, None) == ""
    assert "ended" in out_of_force(said, last, last, None)
    assert out_of_force(said, first, last, None) == ""
    assert "begins" in out_of_force(said, "2025-12-31T00:00:00.000000Z", "2026-01-01T23:00:00.000000Z", None)
    assert "revoked" in out_of_force(said, first, first, "2026-01-04T23:58:00.000000Z")
