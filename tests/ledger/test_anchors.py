"""What others say of a checkpoint: stamps of a real authority, lines of a witness; logs that went back."""

import base64
import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from stillhouse.errors import LedgerError, UsageError
from stillhouse.ledger import Ledger, rotate_signing_key
from stillhouse.ledger.anchors import cosigned, read_certificates, stamp, stored_anchors
from stillhouse.ledger.backup import back_up, restore
from stillhouse.ledger.keys import public_pem, read_public_key
from stillhouse.workspace import Workspace, init_workspace

pytest.importorskip("rfc3161_client")
sys.path.insert(0, str(Path(__file__).parent))
import authority

NEEDS = pytest.mark.skipif(shutil.which("openssl") is None, reason="the authority is made with openssl")


@pytest.fixture
def ledger(workspace):
    with Ledger.open(workspace) as opened:
        opened.append_many([("row", {"id": n}, {"text": b"t%d" % n}) for n in range(300)])
        yield opened


@pytest.fixture(scope="module")
def tsa(tmp_path_factory):
    """The address of an authority that runs, and its folder."""
    folder = tmp_path_factory.mktemp("tsa") / "here"
    authority.make(folder)
    child = subprocess.Popen(
        [sys.executable, authority.__file__, str(folder)], stdout=subprocess.PIPE, text=True
    )
    try:
        yield child.stdout.readline().strip(), folder
    finally:
        child.kill()
        child.wait()


def command(workspace, *words):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-m", "stillhouse.cli", *map(str, words)],
        cwd=workspace.root.parent, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


@NEEDS
def test_a_stamp_is_asked_for_kept_and_named_by_verify(ledger, workspace, tsa):
    url, folder = tsa
    assert ledger.verify().state == "unanchored: internally consistent only"
    done = command(workspace, "ledger", "anchor", "--tsa", url, "--ca", folder / "ca.pem", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["by"] == "Clock of the test"
    ledger.append("row", {"id": "later"})
    state = command(workspace, "ledger", "verify")
    today = datetime.now(UTC).date()
    assert state.returncode == 0
    assert f"anchored at size 300 by Clock of the test on {today}" in state.stdout
    (kept,) = workspace.anchors.glob("tsa-*")
    said = subprocess.run(  # others need none of this software
        ["openssl", "ts", "-verify", "-data", kept / "checkpoint", "-in", kept / "stamp.tsr",
         "-CAfile", kept / "ca.pem"], capture_output=True, check=False,
    )  # fmt: skip
    assert b"Verification: OK" in said.stdout + said.stderr


@NEEDS
def test_a_bad_stamp_is_found(ledger, workspace, tsa, tmp_path):
    url, folder = tsa
    roots = read_certificates(folder / "ca.pem")
    first = stamp(workspace, ledger.checkpoint(), url, roots)
    (kept,) = workspace.anchors.glob("tsa-*")
    shutil.copy(kept / "stamp.tsr", folder / "replay.tsr")
    ledger.append("row", {"id": "later"})
    with pytest.raises(LedgerError, match="does not hold"):  # the stamp of another time and note
        stamp(workspace, ledger.checkpoint(), url + "replay", roots)
    other = tmp_path / "other"
    authority.make(other)
    with pytest.raises(LedgerError, match="does not hold"):  # an authority under another root
        stamp(workspace, ledger.checkpoint(), url, read_certificates(other / "ca.pem"))
    assert [anchor.when for anchor in stored_anchors(workspace)[0]] == [first.when]

    whole, note = (kept / "stamp.tsr").read_bytes(), (kept / "checkpoint").read_bytes()
    for at in range(40, len(whole), 97):
        (kept / "stamp.tsr").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert stored_anchors(workspace)[0] in ([], [first]), at  # a status text may differ, nothing else
    (kept / "stamp.tsr").write_bytes(whole[: len(whole) // 2])
    assert "anchors" in ledger.verify().state
    (kept / "stamp.tsr").write_bytes(whole)
    (kept / "checkpoint").write_bytes(ledger.checkpoint().note)  # another digest than the stamp's
    assert not ledger.verify().ok
    (kept / "checkpoint").write_bytes(note)
    shutil.copy(other / "ca.pem", kept / "ca.pem")
    assert not ledger.verify().ok
    shutil.copy(folder / "ca.pem", kept / "ca.pem")
    assert ledger.verify().anchored == 300


def test_an_authority_that_is_not_there_is_said_so(ledger, workspace):
    done = command(workspace, "ledger", "anchor", "--tsa", "http://127.0.0.1:9/")
    assert (done.returncode, "no time stamp from" in done.stderr) == (1, True)
    assert command(workspace, "ledger", "anchor").returncode == 2
    assert command(workspace, "ledger", "anchor", "--tsa", "ftp://here").returncode == 2


# The C2SP example of a witness's line, from the text of tlog-cosignature.
EXAMPLE = """\
example.com/behind-the-sofa
20852163
CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=

— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=
— witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==
"""  # noqa: E501


def test_the_line_of_the_specification_is_read():
    from stillhouse.ledger.checkpoint import note_parts

    _, signatures = note_parts(EXAMPLE.encode())
    name, blob = signatures[1]
    assert (name, len(blob), int.from_bytes(blob[4:12], "big")) == ("witness.example.com/w1", 76, 1679315147)


class Witness:
    """Cosigns as C2SP tlog-cosignature says, in code of its own."""

    def __init__(self, name="witness.example/w1"):
        self.name, self.key = name, Ed25519PrivateKey.generate()
        public = self.key.public_key().public_bytes_raw()
        self.id = sha256(name.encode() + b"\n\x04" + public).digest()[:4]
        self.verifier = f"{name}+{self.id.hex()}+{base64.b64encode(bytes([4]) + public).decode()}"

    def cosign(self, note, seconds=1_790_000_000):
        text = note[: note.index(b"\n\n") + 1]
        signature = self.key.sign(b"cosignature/v1\ntime %d\n" % seconds + text)
        blob = base64.b64encode(self.id + seconds.to_bytes(8, "big") + signature).decode()
        return note + f"— {self.name} {blob}\n".encode()


def test_a_witness_is_believed_by_its_key_alone(ledger, workspace, tmp_path):
    note, witness = ledger.checkpoint().note, Witness()
    (tmp_path / "cosigned").write_bytes(witness.cosign(note))
    words = ["ledger", "anchor", "--witness", tmp_path / "cosigned", "--witness-key"]
    stranger = command(workspace, *words, Witness().verifier)
    assert (stranger.returncode, "does not hold" in stranger.stderr) == (1, True)
    done = command(workspace, *words, witness.verifier)
    assert done.returncode == 0, done.stderr
    assert ledger.verify().state == "anchored at size 300 by witness.example/w1 on 2026-09-21"
    late = witness.cosign(note, 1_790_000_001).replace(b"\n300\n", b"\n299\n")
    with pytest.raises(LedgerError):
        cosigned(workspace, late, witness.verifier)
    for bad in ("nothing", f"w+00000000+{base64.b64encode(bytes(33)).decode()}", witness.verifier[:-4]):
        with pytest.raises(UsageError):
            cosigned(workspace, note, bad)


def test_a_checkpoint_of_another_log_is_no_anchor_of_this_one(ledger, workspace, tmp_path):
    with Ledger.open(init_workspace(tmp_path / "other")) as other:
        other.append("row", {})
        note = Witness().cosign(other.checkpoint().note)
    (tmp_path / "cosigned").write_bytes(note)
    done = command(
        workspace, "ledger", "anchor", "--witness", tmp_path / "cosigned", "--witness-key", "a+b+c"
    )
    assert (done.returncode, "no checkpoint of this log" in done.stderr) == (1, True)


def test_a_pinned_key_is_followed_through_its_rotations(ledger, workspace, tmp_path):
    pem = tmp_path / "pinned.pem"
    pem.write_bytes(public_pem(read_public_key(workspace)))
    ledger.checkpoint()
    shown = json.loads(command(workspace, "keys", "show", "--json").stdout)
    assert shown["public_key"] == read_public_key(workspace).hex()
    rotated = command(workspace, "keys", "rotate", "--json")
    assert rotated.returncode == 0, rotated.stderr
    assert json.loads(rotated.stdout)["old"] == shown["public_key"]
    rotate_signing_key(workspace, ledger)
    assert len(json.loads(command(workspace, "keys", "show", "--json").stdout)["earlier"]) == 2
    verified = command(workspace, "ledger", "verify", "--key", pem)
    assert verified.returncode == 0, verified.stdout
    assert "pinned key" in verified.stdout
    stranger = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    assert "pinned key" in ledger.verify(pinned=stranger).state
    pinned = read_public_key(workspace)
    workspace.signing_key.unlink()
    init_workspace(workspace.root.parent)  # the key is lost, and another one made
    ledger.checkpoint()
    assert ledger.verify().ok
    assert "without that key's signature" in ledger.verify(pinned=pinned).checks[-1].detail


def test_a_ledger_put_back_and_continued_is_found_as_a_fork(ledger, workspace, tmp_path):
    saved = tmp_path / "house.backup"
    done = command(workspace, "ledger", "backup", saved)
    assert done.returncode == 0, done.stderr
    assert "private keys" in done.stdout
    ledger.append("row", {"id": "after the backup"})
    out = command(workspace, "ledger", "checkpoint", tmp_path / "given-away")
    assert out.stdout.strip() == (tmp_path / "given-away").read_text().strip()
    assert ledger.verify((tmp_path / "given-away").read_bytes()).state == "anchored at size 301"
    ledger.close()
    full = command(workspace, "ledger", "restore", saved)
    assert (full.returncode, "holds a ledger" in full.stderr) == (2, True)
    for path in workspace.root.glob("ledger.sqlite*"):
        path.unlink()

    back = command(workspace, "ledger", "restore", saved)
    assert back.returncode == 0, back.stderr
    assert "rolled back or forked: a checkpoint of 301 leaves was signed, this log has 300" in back.stdout
    with Ledger.open(workspace) as again:
        assert again.size() == 300
        assert "this log has 300: the log was cut" in again.verify().state
        again.append("row", {"id": "something else"})
        state = again.verify().state
        assert state.startswith("rolled back or forked: the first 301 leaves are not those")
        with pytest.raises(LedgerError, match="rolled back or forked") as caught:
            again.checkpoint()
        assert "301 leaves" in caught.value.why
        assert not again.verify((tmp_path / "given-away").read_bytes()).ok
    verified = command(workspace, "ledger", "verify")
    assert (verified.returncode, "rolled back or forked" in verified.stdout) == (1, True)
    assert "rolled back or forked" in command(workspace, "doctor").stdout


WRITE = """
import sys
from pathlib import Path
from stillhouse.ledger import Ledger
from stillhouse.workspace import Workspace
with Ledger.open(Workspace(Path(sys.argv[1]))) as ledger:
    n = 0
    while True:
        ledger.append_many([("row", {"n": n, "i": i}, {"text": b"x" * 200}) for i in range(20)])
        n += 1
        print(n, flush=True)
"""


def test_a_backup_made_while_others_write_is_whole(ledger, workspace, tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen(
        [sys.executable, "-c", WRITE, str(workspace.root)], stdout=subprocess.PIPE, env=environment
    )
    try:
        for _ in range(3):
            child.stdout.readline()
        made = back_up(ledger, tmp_path / "one", keys=True)
        with pytest.raises(UsageError, match="there already"):
            back_up(ledger, tmp_path / "one")
    finally:
        child.kill()
        child.wait()
    assert (tmp_path / "one").stat().st_mode & 0o077 == 0
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".one")] == []
    other = Workspace(tmp_path / "elsewhere" / ".stillhouse")
    restored, lacking = restore(tmp_path / "one", other)
    assert (restored, lacking) == (made, None)
    assert other.signing_key.read_bytes() == workspace.signing_key.read_bytes()
    with Ledger.open(other) as again:
        assert again.size() >= made.size
        assert again.verify().ok
        assert again.origin == ledger.origin


def test_a_backup_without_keys_needs_them_from_elsewhere(ledger, workspace, tmp_path):
    (workspace.targets).mkdir()
    back_up(ledger, tmp_path / "one")
    assert workspace.signing_key.read_bytes() not in (tmp_path / "one").read_bytes()
    assert workspace.workspace_key.read_bytes() not in (tmp_path / "one").read_bytes()
    other = Workspace(tmp_path / "elsewhere" / ".stillhouse")
    with pytest.raises(UsageError, match="is missing"):
        restore(tmp_path / "one", other)
    other.workspace_key.parent.mkdir(parents=True)
    shutil.copy(workspace.workspace_key, other.workspace_key)
    shutil.copy(workspace.signing_key, other.signing_key)
    restore(tmp_path / "one", other)
    with Ledger.open(other) as again:
        assert again.verify().ok
    with pytest.raises(UsageError, match="holds a ledger"):
        restore(tmp_path / "one", other)


@pytest.mark.parametrize("at", [0.01, 0.3, 0.6, 0.9])
def test_a_damaged_backup_changes_nothing(ledger, workspace, tmp_path, at):
    back_up(ledger, tmp_path / "one", keys=True)
    data = bytearray((tmp_path / "one").read_bytes())
    place = int(len(data) * at)
    data[place : place + 8] = bytes(byte ^ 0xFF for byte in data[place : place + 8])
    (tmp_path / "one").write_bytes(data)
    other = init_workspace(tmp_path / "elsewhere")
    before = sorted(path.name for path in other.root.rglob("*"))
    with pytest.raises(LedgerError, match="not a usable backup"):
        restore(tmp_path / "one", other)
    assert sorted(path.name for path in other.root.rglob("*")) == before
    (tmp_path / "one").write_bytes(data[: len(data) // 2])
    with pytest.raises(LedgerError, match="not a usable backup"):
        restore(tmp_path / "one", other)


def test_no_byte_of_a_backup_changes_unseen(ledger, workspace, tmp_path):
    """Nor one that no file of it holds: of what fills up its blocks, or of its manifest."""
    back_up(ledger, tmp_path / "one", keys=True)
    data = (tmp_path / "one").read_bytes()
    other = Workspace(tmp_path / "elsewhere" / ".stillhouse")
    for place in [*range(0, len(data), len(data) // 60), *range(len(data) - 90, len(data))]:
        changed = bytearray(data)
        changed[place] ^= 1
        (tmp_path / "one").write_bytes(changed)
        with pytest.raises(LedgerError, match="not a usable backup"):
            restore(tmp_path / "one", other)


def test_a_backup_of_before_it_was_summed_up_is_restored(ledger, workspace, tmp_path):
    back_up(ledger, tmp_path / "one", keys=True)
    data = (tmp_path / "one").read_bytes()
    old = data[: data.rindex(b"\nsha256 of all before")].replace(b"house-backup-2", b"house-backup-1", 1)
    (tmp_path / "one").write_bytes(old)
    other = Workspace(tmp_path / "elsewhere" / ".stillhouse")
    restore(tmp_path / "one", other)
    with Ledger.open(other) as again:
        assert again.verify().ok
