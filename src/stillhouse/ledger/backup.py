"""A ledger in one file, and back: a tar with the database, its anchors and public keys, and a manifest.

manifest.json       what is in it and what is not, the log's size and root, the SHA-256 of each file
ledger.sqlite       a consistent copy, also while others write
anchors/            the newest checkpoint, and what others said of it
keys/               public keys; the private ones only where they were asked for
targets/            shards of targets, where they were asked for

After the tar a line has the SHA-256 of all bytes before it, so that none can change unseen.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import secrets
import shutil
import sqlite3
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stillhouse.errors import LedgerError, UsageError, storage
from stillhouse.ledger import beside
from stillhouse.ledger.database import SQLite, connect, explained
from stillhouse.ledger.leaves import utc_stamp
from stillhouse.ledger.store import Ledger
from stillhouse.ledger.targets import SUFFIX
from stillhouse.ledger.tree import stored_nodes
from stillhouse.workspace import Workspace, sync_folder

FORMAT = "stillhouse-backup-2"
UNSEALED = "stillhouse-backup-1"  # of before there was a sum over the whole file
_MANIFEST = "manifest.json"
_SUM = b"\nsha256 of all before: "  # after the tar's end, where no reader of tars looks; 64 hex digits follow
_NEEDED = ("keys/workspace.key", "keys/signing.pem")
_PRIVATE = (*_NEEDED, "keys/model-signing.pem")


@dataclass(frozen=True, slots=True)
class Backup:
    """What a backup holds. `root` is base64; `shards` are those of targets that are in it, `left_out` those
    that are not. Runs are never in it: their files are made again from the ledger."""

    origin: str
    time: str
    size: int
    root: str
    keys: bool
    shards: int
    left_out: int


def back_up(ledger: Ledger, path: Path, keys: bool = False, targets: bool = False) -> Backup:
    """Write a backup, readable by its owner alone; the log gets a checkpoint first. The private keys are in
    it only where `keys` says so: whoever has both has the house.

    Others may write meanwhile. Raises UsageError where the file is there already, StorageError where it
    cannot be written.
    """
    if path.exists():
        raise UsageError(f"{path} is there already", "a backup replaces no file", "give a new name")
    workspace, checkpoint = ledger.workspace, ledger.checkpoint()
    shards = sorted(workspace.targets.glob(f"[0-9a-f]*{SUFFIX}"))
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    copied = fresh.with_name(fresh.name + ".sqlite")
    try:
        with storage("write", path):
            _copy(workspace, copied)
            files = {"ledger.sqlite": copied, **dict(_beside(workspace, keys))}
            files |= {f"targets/{shard.name}": shard for shard in shards} if targets else {}
            made = Backup(
                ledger.origin,
                utc_stamp(ledger.clock()),
                checkpoint.size,
                base64.b64encode(checkpoint.root).decode(),
                keys,
                len(shards) if targets else 0,
                0 if targets else len(shards),
            )
            _write(fresh, made, files)
            os.link(fresh, path)  # which fails where somebody made the file meanwhile
            sync_folder(path.parent)
    except FileExistsError:
        raise UsageError(f"{path} is there already", "a backup replaces no file", "give a new name") from None
    finally:
        for each in (fresh, copied, Path(f"{copied}-wal"), Path(f"{copied}-shm")):
            each.unlink(missing_ok=True)
    return made


def restore(path: Path, workspace: Workspace) -> tuple[Backup, str | None]:
    """Put a backup into a workspace whose ledger is empty or not there. It is read and verified before
    anything is put in its place; what the workspace has of keys stays.

    Returns what the backup holds, and how its log differs from the newest checkpoint that is kept here: then
    it is older than what was signed. Raises UsageError where the workspace holds a ledger or lacks keys, and
    LedgerError for a backup that is damaged.
    """
    _check_empty(workspace)
    for left in workspace.root.glob(".restoring.*"):
        shutil.rmtree(left)
    within = workspace.root / f".restoring.{secrets.token_hex(4)}"
    with storage("restore into", workspace.root):
        workspace.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        within.mkdir(mode=0o700)
    try:
        with storage("restore into", workspace.root):
            made = _unpack(path, within)
        _check_keys(workspace, within)
        with Ledger.open(Workspace(within)) as ledger:
            verification = ledger.verify()
            if not verification.ok:
                raise _damaged(path, verification.state)
            lacking = beside.lacks(workspace, ledger.size(), stored_nodes(ledger.read))
        with storage("restore into", workspace.root):
            _put_in_place(within, workspace)
    finally:
        shutil.rmtree(within, ignore_errors=True)
    return made, lacking


def _copy(workspace: Workspace, to: Path) -> None:
    if not workspace.ledger.is_file():
        raise UsageError(
            "this ledger is not a SQLite file", "only such a one is backed up here", "use pg_dump"
        )
    os.close(os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    with (
        explained(SQLite(workspace.ledger), "copy"),
        contextlib.closing(connect(workspace.ledger)) as source,
        contextlib.closing(sqlite3.connect(to)) as copy,
    ):
        source.backup(copy)


def _beside(workspace: Workspace, keys: bool) -> Iterator[tuple[str, Path]]:
    for folder in (workspace.anchors, workspace.verifying_key.parent):
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(workspace.root).as_posix()
            secret = name in _PRIVATE or path in workspace.watermark_keys()
            if path.is_file() and (keys or not secret) and not path.name.startswith("."):
                yield name, path


def _write(path: Path, made: Backup, files: dict[str, Path]) -> None:
    sums = {}
    for name, file in files.items():
        with file.open("rb") as data:
            sums[name] = hashlib.file_digest(data, "sha256").hexdigest()
    manifest = json.dumps({"format": FORMAT, **asdict(made), "files": sums}, indent=2).encode()
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w+b") as out:
        with tarfile.open(fileobj=out, mode="w") as tar:
            head = tarfile.TarInfo(_MANIFEST)
            head.size, head.mode = len(manifest), 0o600
            tar.addfile(head, io.BytesIO(manifest))
            for name, file in files.items():
                tar.add(file, name, recursive=False)
        out.seek(0)
        out.write(_SUM + hashlib.file_digest(out, "sha256").hexdigest().encode() + b"\n")
        out.flush()
        os.fsync(out.fileno())


def _unpack(path: Path, folder: Path) -> Backup:
    """Its files, each as the manifest says; only those that it names are taken."""
    try:
        sealed = _is_sealed(path)
        with tarfile.open(path) as tar:
            manifest = json.loads(_member(tar, _MANIFEST).read())
            form = manifest.pop("format")
            if form not in (FORMAT, UNSEALED):
                raise ValueError("another version of stillhouse wrote it")
            if form == FORMAT and not sealed:
                raise ValueError("its end is missing")
            for name, wanted in manifest.pop("files").items():
                _take(tar, name, wanted, folder)
            return Backup(**manifest)
    except (tarfile.TarError, ValueError, LookupError, TypeError, EOFError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from None
    except FileNotFoundError:
        raise UsageError(f"no backup at {path}", "the file does not exist", "give a backup's file") from None


def _is_sealed(path: Path) -> bool:
    """Whether it ends in the sum of all bytes before; ValueError where these are others than were written."""
    length = len(_SUM) + 65
    with path.open("rb") as file:
        whole = file.seek(0, os.SEEK_END)
        file.seek(max(0, whole - length))
        end = file.read()
        if not end.startswith(_SUM):
            return False
        file.seek(0)
        found, left = hashlib.sha256(), whole - length
        while left:
            block = file.read(min(left, 1 << 20))
            found.update(block)
            left -= len(block)
    if end != _SUM + found.hexdigest().encode() + b"\n":
        raise ValueError("it was changed since it was written")
    return True


def _take(tar: tarfile.TarFile, name: str, wanted: str, folder: Path) -> None:
    to = folder / name
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise ValueError(f"it holds a file outside itself: {name}")
    to.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as out:
        shutil.copyfileobj(_member(tar, name), out, 1 << 20)
        out.flush()
        os.fsync(out.fileno())
    with to.open("rb") as data:
        if hashlib.file_digest(data, "sha256").hexdigest() != wanted:
            raise ValueError(f"{name} is not what was backed up")


def _member(tar: tarfile.TarFile, name: str) -> Any:
    found = tar.extractfile(name)
    if found is None:
        raise ValueError(f"{name} is no file")
    return found


def _check_empty(workspace: Workspace) -> None:
    if not workspace.ledger.is_file() or not workspace.ledger.stat().st_size:
        return
    with Ledger.open(workspace) as ledger:
        size = ledger.size()
    if size:
        raise UsageError(
            "this workspace holds a ledger",
            f"{workspace.ledger} has {size:,} leaves",
            "restore into another folder; or move that file, its -wal and -shm away, and try again",
        )


def _check_keys(workspace: Workspace, within: Path) -> None:
    """Either the workspace has private keys, or the backup; where both have them they are the same."""
    for name in _PRIVATE:
        ours, theirs = workspace.root / name, within / name
        if name in _NEEDED and not ours.is_file() and not theirs.is_file():
            raise UsageError(
                f"{ours} is missing, and the backup holds no keys",
                "answers are recognised and checkpoints are signed with them",
                "put them there from their own backup; docs/keys.md says what can be done without one",
            )
        if ours.is_file() and theirs.is_file() and ours.read_bytes() != theirs.read_bytes():
            raise UsageError(
                f"{ours} is another key than the backup's",
                "a workspace has one of each",
                "restore into a folder without a workspace",
            )


def _put_in_place(within: Path, workspace: Workspace) -> None:
    """The database last: until it is there the same call can be made again."""
    for name in ("ledger.sqlite-wal", "ledger.sqlite-shm"):
        (workspace.root / name).unlink(missing_ok=True)
        (within / name).unlink(missing_ok=True)  # empty: the copy was closed
    for folder in (workspace.runs, workspace.anchors, workspace.targets, workspace.verifying_key.parent):
        folder.mkdir(mode=0o700, exist_ok=True)
    for path in sorted(within.rglob("*")):
        to = workspace.root / path.relative_to(within)
        if path.is_file() and path.name != workspace.ledger.name and not to.exists():
            to.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.replace(path, to)
    os.replace(within / workspace.ledger.name, workspace.ledger)
    sync_folder(workspace.root)


def _damaged(path: Path, why: str) -> LedgerError:
    return LedgerError(f"{path} is not a usable backup", why, "take another one; nothing was changed")
