"""Tampering is done to the database itself, as someone would who has the database but not the signing key."""

import base64
import contextlib
from datetime import UTC, datetime
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from stillhouse.errors import LedgerError, UsageError
from stillhouse.ledger import Ledger, merkle, read_checkpoint, rotate_signing_key, verify_checkpoint
from stillhouse.ledger.checkpoint import key_id, sign_checkpoint, signer_of
from stillhouse.ledger.database import database_of
from stillhouse.ledger.export import tile_path
from stillhouse.ledger.keys import read_public_key, signed_by
from stillhouse.workspace import init_workspace

NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
LEAF_7 = b'{"body":{"id":6},"commitments":{},"kind":"row","time":"2026-11-21T09:30:00.000000Z","v":1}'


@pytest.fixture
def workspace(either_workspace):
    return either_workspace


@pytest.fixture
def ledger(workspace):
    with Ledger.open(workspace, clock=lambda: NOW) as ledger:
        yield ledger


def fill(ledger):
    """600 leaves in two full tiles and a part, checkpoints at 300 and 600, one answered attempt."""
    attempt = ledger.begin("ab" * 32, "run", "p", "t", 0).result()
    ledger.answer(attempt, {"n": 0}, {"request": b"question", "response": b"the answer " * 30}).result()
    ledger.append_many([("row", {"id": i}, {}) for i in range(299)])
    early = ledger.checkpoint()
    ledger.append_many([("row", {"id": i}, {}) for i in range(299, 599)])
    ledger.checkpoint()
    return early


def tamper(workspace, *statements):
    with contextlib.closing(database_of(workspace).connect()) as db:
        for statement, *given in statements:
            assert db.execute(statement, given).rowcount > 0


def failed(ledger, against=None):
    verification = ledger.verify(against)
    return {check.name: check.detail for check in verification.checks if not check.ok}


def test_an_untouched_ledger_is_consistent_and_says_that_it_is_unanchored(ledger):
    early = fill(ledger)
    verification = ledger.verify()
    assert verification.ok
    assert verification.state == "unanchored: internally consistent only"
    assert (verification.size, verification.root) == (600, ledger.root())
    assert ledger.root(300) == early.root
    assert "600 leaves" in verification.checks[0].detail


def test_an_empty_ledger_verifies(ledger):
    assert ledger.checkpoint().root == sha256(b"").digest()
    assert ledger.verify().ok


def test_an_outside_checkpoint_anchors_the_log_up_to_its_size(ledger):
    early = fill(ledger)
    verification = ledger.verify(against=early.note)
    assert verification.ok
    assert verification.state == "anchored at size 300"


def test_a_changed_leaf_is_named(ledger, workspace):
    fill(ledger)
    data = ledger.leaf(42).data.replace(b'"id":41', b'"id":99')
    tamper(workspace, ("UPDATE leaf SET data = ? WHERE idx = 42", data))
    found = failed(ledger)
    assert "leaf 42" in found["leaves"]
    assert "300" in found["checkpoints"]
    assert "subtree 0 of level 8" in found["tree"]


def test_a_changed_leaf_with_its_hashes_made_anew_still_breaks_the_checkpoints(ledger, workspace):
    fill(ledger)
    data = ledger.leaf(42).data.replace(b'"id":41', b'"id":99')
    hashes = [leaf.hash for leaf in ledger.leaves()][:256]
    hashes[42] = merkle.leaf_hash(data)
    tamper(
        workspace,
        ("UPDATE leaf SET data = ?, hash = ? WHERE idx = 42", data, hashes[42]),
        ("UPDATE subtree SET hash = ? WHERE level = 8 AND n = 0", merkle.root_of(hashes)),
    )
    assert failed(ledger).keys() == {"checkpoints"}


def test_an_operator_who_rewrites_everything_is_found_only_by_an_outside_checkpoint(
    ledger, workspace, tmp_path
):
    early = fill(ledger)
    data = ledger.leaf(42).data.replace(b'"id":41', b'"id":99')
    hashes = [leaf.hash for leaf in ledger.leaves()][:256]
    hashes[42] = merkle.leaf_hash(data)
    tamper(
        workspace,
        ("UPDATE leaf SET data = ?, hash = ? WHERE idx = 42", data, hashes[42]),
        ("UPDATE subtree SET hash = ? WHERE level = 8 AND n = 0", merkle.root_of(hashes)),
        ("DELETE FROM checkpoint",),
    )
    assert "first 600 leaves are not those" in failed(ledger)["newest checkpoint"]
    with pytest.raises(LedgerError, match="forked"):
        ledger.checkpoint()
    workspace.newest_checkpoint.unlink()  # the operator's own file
    ledger.checkpoint()
    assert ledger.verify().state == "unanchored: internally consistent only"
    assert "first 300 leaves" in failed(ledger, early.note)["anchor"]


def test_a_cut_log_is_found(ledger, workspace):
    fill(ledger)
    late = ledger.checkpoint()
    tamper(workspace, ("DELETE FROM leaf WHERE idx >= 590",))
    assert "cut" in failed(ledger)["checkpoints"]
    tamper(workspace, ("DELETE FROM checkpoint WHERE size = 600",))
    assert "cut" in failed(ledger)["newest checkpoint"]
    assert ledger.verify().state.startswith("rolled back or forked: it says 600 leaves, this log has 590")
    workspace.newest_checkpoint.unlink()
    assert failed(ledger) == {}
    assert "cut" in failed(ledger, late.note)["anchor"]


def test_a_leaf_taken_out_of_the_middle_is_found(ledger, workspace):
    fill(ledger)
    tamper(workspace, ("DELETE FROM leaf WHERE idx = 290",))
    assert "missing between 256 and 512" in failed(ledger)["leaves"]


@pytest.mark.parametrize(
    ("statement", "check", "named"),
    [
        ("UPDATE leaf SET kind = 'import' WHERE idx = 7", "leaves", "leaf 7"),
        ("UPDATE leaf SET time = '2020' WHERE idx = 7", "leaves", "leaf 7"),
        (("UPDATE leaf SET data = ? WHERE idx = 7", LEAF_7 + b" "), "leaves", "leaf 7"),
        (("UPDATE leaf SET data = ? WHERE idx = 7", b"nonsense"), "leaves", "leaf 7"),
        (("UPDATE leaf SET hash = ? WHERE idx = 7", bytes(32)), "leaves", "leaf 7"),
        (
            (
                "UPDATE leaf SET kind = 'tombstone', time = '2026', data = ? WHERE idx = 7",
                b'{"body":{},"commitments":{},"kind":"tombstone","time":"2026","v":1}',
            ),
            "leaves",
            "leaf 7",
        ),
        (
            ("UPDATE content SET body = ? WHERE name = 'response'", bytes(9)),
            "contents",
            "'response' of leaf 0",
        ),
        (
            ("UPDATE content SET salt = ? WHERE name = 'request'", bytes(32)),
            "contents",
            "'request' of leaf 0",
        ),
        ("UPDATE content SET name = 'reply' WHERE name = 'response'", "contents", "'response' of leaf 0"),
        ("DELETE FROM content WHERE name = 'response'", "contents", "'response' of leaf 0 is missing"),
        (
            "UPDATE content SET salt = NULL, body = NULL, erased = 3 WHERE name = 'response'",
            "contents",
            "'response' of leaf 0 is gone without a tombstone",
        ),
        (("UPDATE subtree SET hash = ? WHERE n = 1", bytes(32)), "tree", "subtree 1 of level 8"),
        ("DELETE FROM subtree WHERE n = 1", "tree", "subtree 1 of level 8"),
        (("UPDATE checkpoint SET root = ? WHERE size = 300", bytes(32)), "checkpoints", "at 300"),
        ("UPDATE checkpoint SET size = 301 WHERE size = 300", "checkpoints", "at 301"),
        (("UPDATE checkpoint SET note = ? WHERE size = 300", b"x"), "checkpoints", "at 300"),
        (("UPDATE checkpoint SET public = ? WHERE size = 300", bytes(32)), "signatures", "at 300"),
        ("DELETE FROM exchange", "keys", "leaf 0"),
        ("UPDATE exchange SET leaf = 5", "keys", "leaf 5"),
        ("UPDATE attempt SET leaf = 5", "attempts", "attempt 1 names leaf 5"),
    ],
)
def test_tampering_is_found_and_named(ledger, workspace, statement, check, named):
    fill(ledger)
    tamper(workspace, (statement,) if isinstance(statement, str) else statement)
    assert named in failed(ledger)[check]


def test_a_changed_content_byte_is_found(ledger, workspace):
    fill(ledger)
    (body,) = ledger.read("SELECT body FROM content WHERE name = 'response'")[0]
    tamper(
        workspace, ("UPDATE content SET body = ? WHERE name = 'response'", body[:-6] + b"\x00" + body[-5:])
    )
    assert "'response' of leaf 0" in failed(ledger)["contents"]


def test_a_changed_signature_is_found(ledger, workspace):
    fill(ledger)
    (note,) = ledger.read("SELECT note FROM checkpoint WHERE size = 300")[0]
    changed = note[:-20] + (b"A" if note[-20:-19] != b"A" else b"B") + note[-19:]
    tamper(workspace, ("UPDATE checkpoint SET note = ? WHERE size = 300", changed))
    assert "at 300" in failed(ledger)["signatures"]


def test_a_checkpoint_by_someone_elses_key_is_found(ledger, workspace):
    fill(ledger)
    other = Ed25519PrivateKey.generate()
    forged = sign_checkpoint(ledger.origin, 300, ledger.root(300), other)
    public = other.public_key().public_bytes_raw()
    tamper(workspace, ("UPDATE checkpoint SET note = ?, public = ? WHERE size = 300", forged.note, public))
    assert "not in force" in failed(ledger)["signatures"]
    stranger = sign_checkpoint("stillhouse/other", 300, ledger.root(300), other)
    assert "stillhouse/other" in failed(ledger, stranger.note)["anchor"]
    assert "not a checkpoint" in failed(ledger, b"nonsense")["anchor"]


def test_a_checkpoint_is_signed_by_the_workspaces_key_and_made_once_for_a_size(ledger, workspace):
    fill(ledger)
    checkpoint = ledger.checkpoint()
    assert ledger.checkpoint() == checkpoint
    assert len(ledger.read("SELECT 1 FROM checkpoint")) == 2
    lines = checkpoint.note.decode().split("\n")
    assert lines[:4] == [ledger.origin, "600", base64.b64encode(checkpoint.root).decode(), ""]
    assert lines[4].startswith(f"— {ledger.origin} ")
    assert lines[5:] == [""]
    public = read_public_key(workspace)
    assert verify_checkpoint(checkpoint.note, public) == checkpoint == read_checkpoint(checkpoint.note)
    with pytest.raises(LedgerError, match="does not hold"):
        verify_checkpoint(checkpoint.note.replace(b"\n600\n", b"\n601\n"), public)


def test_a_signed_note_of_another_implementation_is_read():
    """The example of Go's golang.org/x/mod/sumdb/note."""
    key = base64.b64decode("ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
    text = "If you think cryptography is the answer to your problem,\n"
    text += "then you don't know what your problem is.\n"
    signature = base64.b64decode(
        "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
    )
    assert key_id("PeterNeumann", key[1:]).hex() == "c74f20a3" == signature[:4].hex()
    assert signed_by(key[1:], signature[4:], text.encode())


def test_proofs_from_the_file_hold_across_tiles(ledger):
    ledger.append_many([("row", {"id": i}, {}) for i in range(70_000)])
    root, old = ledger.root(), ledger.root(300)
    for index in (0, 255, 256, 65_535, 65_536, 69_999):
        assert merkle.verify_inclusion(ledger.inclusion(index), index, 70_000, ledger.leaf(index).hash, root)
    assert merkle.verify_inclusion(ledger.inclusion(299, 300), 299, 300, ledger.leaf(299).hash, old)
    assert merkle.verify_consistency(ledger.consistency(300), 300, 70_000, old, root)
    assert root == merkle.root_of([leaf.hash for leaf in ledger.leaves()])
    assert ledger.verify().ok
    with pytest.raises(LedgerError, match="no proof for leaf 70000"):
        ledger.inclusion(70_000)
    with pytest.raises(LedgerError, match="never had"):
        ledger.root(70_001)


def test_a_rotated_key_is_signed_over_by_the_old_one(ledger, workspace):
    early = fill(ledger)
    old = read_public_key(workspace)
    leaf = rotate_signing_key(workspace, ledger)
    new = read_public_key(workspace)
    assert new != old
    assert ledger.leaf(leaf).kind == "correction"
    assert workspace.signing_key.stat().st_mode & 0o077 == 0
    kept = load_pem_public_key(workspace.earlier_verifying_key(old).read_bytes())
    assert workspace.earlier_verifying_key(old).name == f"signing-{old.hex()[:8]}.pub"
    assert kept.public_bytes_raw() == old
    ledger.append("row", {})
    assert signer_of(ledger.checkpoint().note, [old, new]) == new
    rotate_signing_key(workspace, ledger)
    verification = ledger.verify(early.note)
    assert verification.ok, verification
    assert "without" not in verification.checks[3].detail


def test_a_lost_signing_key_is_replaced_in_the_open(ledger, workspace, tmp_path):
    fill(ledger)
    workspace.signing_key.unlink()
    with pytest.raises(UsageError, match=r"signing\.pem") as caught:
        ledger.checkpoint()
    assert "docs/keys.md" in caught.value.mend
    assert ledger.verify().ok
    init_workspace(tmp_path)
    assert "not the one that signed last" in failed(ledger)["signatures"]
    assert ledger.checkpoint().size == 601
    (correction,) = ledger.leaves("correction")
    assert correction.body["signature"] is None
    verification = ledger.verify()
    assert verification.ok
    assert "without the old key's signature at leaf [600]" in verification.checks[3].detail


def test_a_stranger_can_check_an_export_with_public_tools_alone(ledger, tmp_path):
    fill(ledger)
    folder = tmp_path / "out"
    checkpoint = ledger.export(folder)
    note = (folder / "checkpoint").read_bytes()
    public = load_pem_public_key((folder / "public-key.pem").read_bytes())
    text, _, signature = note.decode().partition("\n\n")
    public.verify(base64.b64decode(signature.split()[2])[4:], (text + "\n").encode())
    hashes = [sha256(b"\x00" + line).digest() for line in (folder / "leaves.jsonl").read_bytes().splitlines()]
    assert len(hashes) == 600
    assert base64.b64encode(merkle.root_of(hashes)).decode() == text.split("\n")[2]
    tiles = [folder / "tile/0" / name for name in ("000", "001", "002.p/88")]
    assert b"".join(tile.read_bytes() for tile in tiles) == b"".join(hashes)
    above = (folder / "tile/1/000.p/2").read_bytes()
    assert above == merkle.root_of(hashes[:256]) + merkle.root_of(hashes[256:512])
    entries = b"".join((folder / "tile/entries" / name).read_bytes() for name in ("000", "001", "002.p/88"))
    data, at = [], 0
    while at < len(entries):
        length = int.from_bytes(entries[at : at + 2], "big")
        data.append(entries[at + 2 : at + 2 + length])
        at += 2 + length
    assert b"\n".join(data) + b"\n" == (folder / "leaves.jsonl").read_bytes()
    assert checkpoint.note == note
    assert not any(b"the answer" in file.read_bytes() for file in folder.rglob("*") if file.is_file())
    ledger.export(tmp_path / "whole", contents=True)
    assert len((tmp_path / "whole" / "contents.jsonl").read_bytes().splitlines()) == 2


def test_an_export_goes_to_a_new_or_empty_folder_only(ledger, tmp_path):
    fill(ledger)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "contents.jsonl").write_text("of another log\n")
    for place in (taken, taken / "contents.jsonl"):
        with pytest.raises(UsageError, match="cannot export") as caught:
            ledger.export(place)
        assert caught.value.why
        assert caught.value.mend
    assert [file.name for file in taken.iterdir()] == ["contents.jsonl"]
    (tmp_path / "empty").mkdir()
    assert ledger.export(tmp_path / "empty").size == 600


def test_a_tombstone_covers_only_the_leaves_that_it_names(ledger, workspace):
    answer = ledger.append("exchange", {"key": "cd" * 32}, {"response": b"a"})
    ledger.append("row", {"exchanges": [answer]}, {"row": b"a"})
    other = ledger.append("row", {"exchanges": []}, {"row": b"b"})
    tombstone = ledger.erase(answer, "asked for")
    assert ledger.verify().ok
    tamper(
        workspace,
        ("UPDATE content SET salt = NULL, body = NULL, erased = ? WHERE leaf = ?", tombstone, other),
    )
    assert ledger.verify().state == "failed: contents"


@pytest.mark.parametrize(
    ("number", "width", "path"),
    [
        (0, 256, "tile/0/000"),
        (999, 256, "tile/0/999"),
        (1234067, 256, "tile/0/x001/x234/067"),
        (1000, 5, "tile/0/x001/000.p/5"),
    ],
)
def test_tile_paths_are_those_of_tlog_tiles(number, width, path):
    assert tile_path(0, number, width).as_posix() == path
