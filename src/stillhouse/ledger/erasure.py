"""Erasing from all of a workspace: the ledger, the shards of targets, and the files of its runs.

What goes is found first and written to a journal, then removed from the files, then from the ledger, and last
the journal goes. Killed at any point, the next erasure finishes what the journal says.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import orjson

from stillhouse.errors import LedgerError, storage
from stillhouse.ledger.batches import open_batches
from stillhouse.ledger.needle import Needle, needle
from stillhouse.ledger.rewriting import erase_from_run, files, leftovers
from stillhouse.ledger.store import Ledger
from stillhouse.ledger.subject import Found, Subject, find, runs_of
from stillhouse.ledger.targets import SUFFIX, sweep, without
from stillhouse.ledger.tombstones import bury, forget_prompts
from stillhouse.ledger.uses import note_uses, rows_of_targets
from stillhouse.workspace import RunFolder, Workspace, locked, sync_folder, write_atomic

OUT_OF_REACH = (
    "releases that are out",
    "exports with contents",
    "backups, and a database server's own log, standbys and backups",
    "weights and checkpoints of students that learned from it",
    "the files outside the workspace from which prompts and answers were read",
    "blocks that the file system freed",
)
ELSEWHERE = "runs and shards of the other machines that share this ledger: give the same command there"
_GOES_WHOLE = ("report.html", "error.txt", "progress.json", "evaluation.json")


@dataclass(slots=True)
class Erased:
    """What an erasure did. `leaves` are those whose contents are gone, `rows` how many rows each file of a
    run lost, `shards` the digest of every shard that held targets of it, with that of the one in its place
    (None where no row was left), `files` those that went whole.

    `students` and `releases` are the leaves of trainings and releases that used it: they are out of reach.
    `left` names what still holds the text and cannot be written anew, `out_of_reach` what was not looked at.
    `compacted` is False where another process read the database just then.
    """

    tombstones: list[int] = field(default_factory=list)
    leaves: list[int] = field(default_factory=list)
    rows: dict[Path, int] = field(default_factory=dict)
    shards: dict[str, str | None] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    students: list[dict[str, Any]] = field(default_factory=list)
    releases: list[dict[str, Any]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    out_of_reach: tuple[str, ...] = OUT_OF_REACH
    compacted: bool = True

    @property
    def nothing(self) -> bool:
        return not (self.tombstones or self.rows or self.shards or self.files)


def erase(ledger: Ledger, subject: Subject, reason: str) -> Erased:
    """Remove what a subject names, and all that was made from it, wherever the workspace keeps it.

    Leaves and tree stay as they are and verify as before; tombstones name the leaves whose contents are gone.
    An erasure that was killed is finished first. Raises StorageError while a run of the workspace is at work,
    UsageError while a batch with it is under way, and LedgerError when there is nothing to erase or a shard
    is damaged.
    """
    with _all_locked(ledger.workspace):
        before = _finish(ledger)
        found = find(ledger, subject)
        note_uses(ledger, found)
        _write_journal(ledger.workspace, found, reason)
        done = _finish(ledger)
    assert done is not None
    if done.nothing and before is None:
        raise LedgerError(
            "there is nothing to erase",
            "nothing in the workspace holds it, or it was erased before",
            "see `stillhouse ledger show`",
        )
    return before if before is not None and done.nothing else done


def finish(ledger: Ledger) -> Erased | None:
    """Finish an erasure that was killed; None where there is none."""
    with _all_locked(ledger.workspace):
        return _finish(ledger)


@contextmanager
def _all_locked(workspace: Workspace) -> Iterator[None]:
    with ExitStack() as stack:
        for run in runs_of(workspace):
            stack.enter_context(locked(run))
        yield


def _finish(ledger: Ledger) -> Erased | None:
    """Do what the journal says. Every step may have been done before, wholly or in part."""
    workspace, journal = ledger.workspace, ledger.workspace.erasing
    if not journal.exists():
        return None
    found, reason = _read_journal(journal)
    text = None if found.text is None else needle(found.text)
    done = Erased(leaves=sorted(found.leaves), students=found.students, releases=found.releases)
    if workspace.ledger_url.exists():
        done.out_of_reach = (ELSEWHERE, *OUT_OF_REACH)
    for path in leftovers(workspace.root):
        path.unlink(missing_ok=True)
    done.shards = _erase_from_shards(workspace, found)
    for run in runs_of(workspace):
        done.files += _spooled(ledger, run)
        done.rows |= erase_from_run(run, found, text)
    if text is not None:
        _erase_whole(workspace, text, done)
        done.left += [f"leaf {index}, in its own bytes" for index in found.bodies]
        names = {name for (name,) in ledger.read("SELECT DISTINCT prompt_id FROM attempt")}
        forget_prompts(ledger, {name for name in names if text.in_text(name)})
    with suppress(LedgerError):  # a killed call may have come as far
        done.tombstones = bury(ledger, found.leaves, reason) if found.leaves else []
    if not done.nothing:
        done.compacted = ledger.scrub(whole=True)
    with storage("delete", journal):
        journal.unlink()
        sync_folder(journal.parent)
    return done


def _erase_from_shards(workspace: Workspace, found: Found) -> dict[str, str | None]:
    sweep(workspace.targets)
    named, shards = rows_of_targets(workspace, found), {}
    for path in sorted(workspace.targets.glob(f"*{SUFFIX}")):
        fresh = without(path, named)
        if fresh != path:
            shards[path.stem] = None if fresh is None else fresh.stem
    return shards


def _spooled(ledger: Ledger, run: RunFolder) -> list[Path]:
    """Delete the files of batches that are over: they hold questions."""
    wanted = {f"{batch.shard}.jsonl" for batch in open_batches(ledger, run.root.name)}
    gone = [path for path in sorted(run.batches.glob("*")) if path.name not in wanted]
    for path in gone:
        path.unlink()
    return gone


def _erase_whole(workspace: Workspace, text: Needle, done: Erased) -> None:
    """Files that are no tables go whole where they can be made again, and are named where not."""
    kept = {workspace.ledger, workspace.erasing}
    for path in files(workspace.root):
        if path.suffix == ".parquet" or path in kept or path.name.startswith(workspace.ledger.name):
            continue
        if not text.in_bytes(path.read_bytes()):
            continue
        if path.name in _GOES_WHOLE or path.name.endswith(".done.json") or path.parent.name == "logs":
            path.unlink()
            done.files.append(path)
            if path.name == "evaluation.json":
                RunFolder(path.parent).marker("evaluate").unlink(missing_ok=True)
        else:
            done.left.append(str(path))


def _write_journal(workspace: Workspace, found: Found, reason: str) -> None:
    plain = {each.name: getattr(found, each.name) for each in fields(Found)}
    plain["rows"] = list(found.rows.items())
    write_atomic(workspace.erasing, orjson.dumps({"reason": reason, "found": plain}, default=sorted))


def _read_journal(path: Path) -> tuple[Found, str]:
    """Raises LedgerError where it is damaged."""
    try:
        said = orjson.loads(path.read_bytes())
        plain = said["found"]
        found = Found(
            **{
                **plain,
                "leaves": set(plain["leaves"]),
                "rows": dict(plain["rows"]),
                "answers": set(plain["answers"]),
                "said": {(prompt, digest) for prompt, digest in plain["said"]},
                "prompts": {run: set(names) for run, names in plain["prompts"].items()},
                "alone": {run: set(digests) for run, digests in plain["alone"].items()},
            }
        )
        return found, str(said["reason"])
    except (orjson.JSONDecodeError, LookupError, TypeError, ValueError) as error:
        raise LedgerError(
            f"{path} is damaged",
            f"it should say what a killed erasure was to remove ({type(error).__name__}: {error})",
            "delete it, and give the command of that erasure again",
        ) from None
