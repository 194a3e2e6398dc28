"""A release, checked by somebody who has nothing else; and every way to tamper with it."""

import base64
import gzip
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from resealing import seal_again

from stillhouse.audit import verify
from stillhouse.errors import LedgerError, UsageError
from stillhouse.ledger import Ledger, merkle, oms
from stillhouse.ledger.checkpoint import sign_checkpoint
from stillhouse.ledger.disclosure import disclosed, leaf_hashes
from stillhouse.ledger.export import tile_path
from stillhouse.ledger.keys import public_bytes, public_pem, read_signing_key
from stillhouse.ledger.leaves import canonical
from stillhouse.ledger.proof import read_proof, write_proof


@pytest.fixture
def bundle(made, tmp_path):
    return Path(shutil.copytree(made.release, tmp_path / "release"))


def failures(done):
    return {check.name: check.detail for check in done.checks if not check.ok}


def test_a_release_verifies_in_an_empty_folder_in_another_process(made, tmp_path):
    shutil.copytree(made.release, tmp_path / "there")
    (tmp_path / "key.pem").write_bytes(public_pem(made.key))
    (tmp_path / "kept").write_bytes(made.kept)
    words = ["audit", "verify", "there", "--key", "key.pem", "--against", "kept", "--json"]
    command = [sys.executable, "-m", "stillhouse.cli", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["ok"]
    assert found["state"].startswith("anchored at size")
    lines = {row["check"]: row["detail"] for row in found["checks"]}
    assert "the pinned key" in lines["signature"]
    assert lines["rows"].startswith("48 training rows")
    assert lines["teachers"] == "m 100.0% of the rows"


def test_without_a_kept_checkpoint_it_says_so(made):
    done = verify(made.release)
    assert done.ok
    assert done.state == "unanchored: internally consistent only"
    (signature,) = (check for check in done.checks if check.name == "signature")
    assert "pin it" in signature.detail


def test_the_bundle_holds_no_prompt_and_no_answer_and_no_leaf_of_other_runs(made):
    shown = {leaf.kind for leaf in disclosed(made.release / "provenance")}
    assert {"row", "exchange", "decision", "transform", "train_run", "evaluation", "release"} <= shown
    everything = b"".join(p.read_bytes() for p in made.release.rglob("*") if p.is_file())
    everything += gzip.decompress((made.release / "provenance" / "leaves.jsonl.gz").read_bytes())
    for text in (b"say 3 3", b"you may train on the answers"):
        assert text not in everything


def flips(folder, count, seed):
    """(file, place, bit), each file at least once and long ones more often."""
    draw = random.Random(seed)
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    for number in range(count):
        path = files[number % len(files)] if number < len(files) else draw.choice(files)
        yield path, draw.randrange(path.stat().st_size), 1 << draw.randrange(8)


@pytest.mark.parametrize(
    ("count", "seed"), [(150, 1), pytest.param(2000, 2, marks=pytest.mark.slow)], ids=["some", "many"]
)
def test_any_bit_of_any_file_is_missed_by_nobody(made, bundle, count, seed):
    assert verify(bundle, made.key, made.kept).ok
    for path, place, bit in flips(bundle, count, seed):
        data = bytearray(path.read_bytes())
        data[place] ^= bit
        path.write_bytes(data)
        done = verify(bundle, made.key, made.kept)
        data[place] ^= bit
        path.write_bytes(data)
        name = path.relative_to(bundle).as_posix()
        assert not done.ok, f"{name}, byte {place}, bit {bit}"
        said = " ".join(failures(done).values())
        assert name in said or name == "MANIFEST" or "manifest" in said.lower(), (name, said)
    assert verify(bundle, made.key, made.kept).ok


def test_files_that_are_added_removed_or_linked_are_named(bundle):
    (bundle / "more.bin").write_bytes(b"x")
    assert "more.bin is not in the manifest" in failures(verify(bundle))["files"]
    (bundle / "more.bin").unlink()
    (bundle / "config.json").rename(bundle / "config.old")
    assert "config.json is missing" in failures(verify(bundle))["files"]
    os.symlink("config.old", bundle / "config.json")
    assert "link" in failures(verify(bundle))["files"]


def test_what_a_hub_lays_beside_a_release_is_no_part_of_it_and_all_else_still_is(bundle):
    """By these names and no others; what they hold is not read: nobody ever writes into the pipe."""
    os.mkfifo(bundle / ".gitattributes")
    (bundle / ".cache" / "huggingface" / "download").mkdir(parents=True)
    (bundle / ".cache" / "huggingface" / "download" / "model.safetensors").write_bytes(b"x")
    done = verify(bundle)
    assert done.ok, failures(done)
    line = next(check.detail for check in done.checks if check.name == "files")
    assert line.endswith("not part of the release, and not read: .cache/huggingface/, .gitattributes")
    assert by_the_checker(bundle).returncode == 0
    for name in (
        ".gitignore",
        ".cache/more",
        ".cache/huggingface.txt",
        "eu/.gitattributes",
        "eu/.cache/huggingface/x",
    ):
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle / name).write_bytes(b"x")
        assert f"{name} is not in the manifest" in failures(verify(bundle))["files"]
        assert "other files" in by_the_checker(bundle).stderr
        (bundle / name).unlink()
    os.symlink("nowhere", bundle / ".cache" / "huggingface" / "link")
    assert "link" in failures(verify(bundle))["files"]


def test_a_file_of_such_a_name_that_the_maker_signed_is_checked_as_any_other(made, bundle):
    (bundle / ".gitattributes").write_text("mine")
    resealed(bundle, made)
    assert "files" not in failures(verify(bundle))
    (bundle / ".gitattributes").write_text("not mine")
    assert ".gitattributes was changed" in failures(verify(bundle))["files"]
    assert ".gitattributes was changed" in by_the_checker(bundle).stderr


def resealed(bundle, made, key=None):
    """As the maker, or somebody with another key, would write it again after a change."""
    name = json.loads(next(_lines(bundle, "release")))["leaf"]["body"]["name"]
    seal_again(bundle, made.workspace, name, key)


def _lines(bundle, kind):
    for line in gzip.decompress((bundle / "provenance" / "leaves.jsonl.gz").read_bytes()).splitlines():
        if json.loads(line)["leaf"]["kind"] == kind:
            yield line


def rows_of(bundle):
    path = bundle / "provenance" / "rows.parquet"
    return path, pq.read_table(path)


@pytest.mark.parametrize("change", ["drop", "add", "swap", "reorder leaves"])
def test_rows_that_are_changed_by_the_maker_himself_are_found(made, bundle, change):
    """With the manifest signed anew: what the log says cannot be signed away."""
    path, rows = rows_of(bundle)
    listed = rows.to_pylist()
    if change == "drop":
        listed.pop(3)
    elif change == "add":
        listed.append({**listed[0], "id": "made-up"})
    elif change == "swap":
        listed[0]["exchanges"], listed[1]["exchanges"] = listed[1]["exchanges"], listed[0]["exchanges"]
    else:
        listed[0]["leaf"], listed[1]["leaf"] = listed[1]["leaf"], listed[0]["leaf"]
    pq.write_table(rows.from_pylist(listed, schema=rows.schema), path)
    resealed(bundle, made)
    found = failures(verify(bundle, made.key, made.kept))
    assert "files" not in found
    assert "provenance/rows.parquet is not what was logged" in found["release"]
    assert "row" in found["rows"]


def rewritten(bundle, change):
    """leaves.jsonl.gz with one leaf's parsed form changed by `change(leaf)`, where it returns True."""
    path, lines, done = bundle / "provenance" / "leaves.jsonl.gz", [], None
    for line in gzip.decompress(path.read_bytes()).splitlines():
        row = json.loads(line)
        if done is None and change(row["leaf"]):
            done = row["index"]
        lines.append(b'{"index":%d,"leaf":%b}\n' % (row["index"], canonical(row["leaf"])))
    path.write_bytes(gzip.compress(b"".join(lines), mtime=0))
    assert done is not None
    return done


def backdate(leaf):
    if leaf["kind"] == "decision":
        leaf["time"] = "2020" + leaf["time"][4:]
    return leaf["kind"] == "decision"


def test_a_decision_that_is_back_dated_is_found(made, bundle):
    index = rewritten(bundle, backdate)
    resealed(bundle, made)
    assert (
        f"leaf {index} is not the one in the log" in failures(verify(bundle, made.key, made.kept))["leaves"]
    )


def rebuilt(bundle, made, key):
    """The whole log written anew around a back-dated decision: tiles, checkpoint, key and manifest."""
    proofs = bundle / "provenance"
    index = rewritten(bundle, backdate)
    size = read_size(proofs)
    hashes = bytearray(leaf_hashes(proofs, size))
    leaf = next(leaf for leaf in disclosed(proofs) if leaf.index == index)
    hashes[32 * index : 32 * index + 32] = leaf.hash
    assert size < 256
    (proofs / tile_path(0, 0, size)).write_bytes(hashes)
    root = merkle.root_of([bytes(hashes[32 * i : 32 * i + 32]) for i in range(size)])
    with Ledger.open(made.workspace) as ledger:
        (proofs / "checkpoint").write_bytes(sign_checkpoint(ledger.origin, size, root, key).note)
    (proofs / "public-key.pem").write_bytes(public_pem(public_bytes(key)))
    resealed(bundle, made, key)


def read_size(proofs):
    return int((proofs / "checkpoint").read_text().split("\n")[1])


def test_a_rebuilt_log_is_found_by_the_kept_checkpoint_and_without_one_it_is_unanchored(made, bundle):
    rebuilt(bundle, made, read_signing_key(made.workspace))
    alone = verify(bundle, made.key)
    assert alone.ok
    assert alone.state == "unanchored: internally consistent only"
    found = failures(verify(bundle, made.key, made.kept))
    assert set(found) == {"anchor"}
    assert "the log was rebuilt" in found["anchor"]


def test_another_key_is_found_by_the_pinned_one(made, bundle):
    rebuilt(bundle, made, Ed25519PrivateKey.generate())
    found = failures(verify(bundle, made.key, made.kept))
    assert "not by the pinned key" in found["signature"]
    assert verify(bundle).ok  # nobody can tell without it, and the line says so


def test_other_weights_are_found_even_when_they_are_sealed_anew(made, bundle):
    path = bundle / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    resealed(bundle, made)
    found = failures(verify(bundle, made.key, made.kept))
    assert "model.safetensors is not what was logged" in found["release"]
    assert "trained" in found["weights"]


def test_figures_that_were_polished_are_found(made, bundle):
    path = bundle / "evaluation.json"
    path.write_text(path.read_text().replace('"value": ', '"value": 1', 1))
    resealed(bundle, made)
    assert "release" in failures(verify(bundle, made.key, made.kept))


@pytest.mark.parametrize("file", ["MANIFEST", "provenance/checkpoint", "provenance/rows.parquet"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{}", b"\n\n", b"x" * 5000])
def test_files_that_are_nonsense_are_failures_and_not_crashes(bundle, file, content):
    (bundle / file).write_bytes(content)
    done = verify(bundle)
    assert not done.ok
    assert all(check.detail for check in done.checks)


def test_an_empty_folder_fails_every_check_that_needs_something(tmp_path):
    done = verify(tmp_path)
    assert not any(check.ok for check in done.checks)


def test_a_folder_that_is_none_is_said_to_be_none(tmp_path):
    with pytest.raises(UsageError, match="no release in"):
        verify(tmp_path / "nowhere")


def test_a_row_is_proved_without_showing_another(made):
    with Ledger.open(made.workspace) as ledger:
        row = next(ledger.leaves("row"))
        other = [leaf for leaf in ledger.leaves() if leaf.index != row.index]
        proof = write_proof(ledger, row.index)
    leaf, checkpoint = read_proof(proof, made.key)
    assert (leaf.index, leaf.data) == (row.index, row.data)
    assert checkpoint.size > row.index
    for one in other:
        assert base64.b64encode(one.data) not in proof
    with pytest.raises(LedgerError, match="signature"):
        read_proof(proof, public_bytes(Ed25519PrivateKey.generate()))


def test_a_proof_with_any_bit_changed_proves_nothing(made):
    with Ledger.open(made.workspace) as ledger:
        proof = write_proof(ledger, next(ledger.leaves("row")).index)
    draw = random.Random(5)
    for _ in range(400):
        place, bit = draw.randrange(len(proof)), 1 << draw.randrange(8)
        data = bytearray(proof)
        data[place] ^= bit
        with pytest.raises(LedgerError):
            read_proof(bytes(data), made.key)


CHECKER = Path(__file__).parents[2] / "docs" / "check_release.py"


def by_the_checker(release, *more):
    command = [sys.executable, "-I", str(CHECKER), str(release), *map(str, more)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_checker_that_needs_nothing_agrees(made, bundle, tmp_path):
    (tmp_path / "key.pem").write_bytes(public_pem(made.key))
    done = by_the_checker(bundle, tmp_path / "key.pem")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ok")
    (tmp_path / "other.pem").write_bytes(public_pem(public_bytes(Ed25519PrivateKey.generate())))
    assert "not signed by this key" in by_the_checker(bundle, tmp_path / "other.pem").stderr
    rewritten(bundle, backdate)
    resealed(bundle, made)
    assert "is not in the log" in by_the_checker(bundle).stderr
    assert len(CHECKER.read_text().splitlines()) < 100


def test_the_checker_misses_no_flipped_bit_either(bundle):
    for path, place, bit in flips(bundle, 40, 3):
        if path.name == oms.NAME:  # made after what it checks, and by another key
            continue
        data = bytearray(path.read_bytes())
        data[place] ^= bit
        path.write_bytes(data)
        assert by_the_checker(bundle).returncode != 0, (path.name, place, bit)
        data[place] ^= bit
        path.write_bytes(data)
