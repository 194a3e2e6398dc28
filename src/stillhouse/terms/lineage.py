"""A teacher's own teachers: known where it is a release of stillhouse whose signed record says who they were.

What the record says is its maker's word under its maker's key; where the signature or a digest does not hold,
where it is not in its form, or too long to be told again in a decision, nothing is known, and that is said.
What lies in such a folder is a stranger's, so reading it raises nothing.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any, get_args

from stillhouse.errors import LedgerError, StillhouseError
from stillhouse.ledger import canonical
from stillhouse.ledger.checkpoint import signer_of
from stillhouse.ledger.keys import public_of_pem, was_ours
from stillhouse.ledger.manifest import NAME, Manifest, read_manifest, sha256_of
from stillhouse.terms.facts import Access, Mode, Obligation, ObligationKind, Verdict
from stillhouse.terms.ruling import ALLOWED, Owed
from stillhouse.workspace import Workspace

PROOFS = "provenance"
TEACHERS = f"{PROOFS}/teachers.json"
BEGUN = f"{PROOFS}/base.json"  # of one that began as another's weights: these, in the form of a teacher
KEY = f"{PROOFS}/public-key.pem"
LARGEST = 16 << 20  # bytes of a file of the record
LONGEST = 16 << 10  # bytes of what a decision's leaf (under 64 KiB) tells of it
STEPS = 32  # the most generations that are looked at
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

# What a teacher is known by beside its name: the record's words, the fields of `Asked`, and their kinds.
_KNOWN: Mapping[str, tuple[str, type]] = {
    "model": ("model", str),
    "also": ("also", tuple),
    "builtOn": ("built_on", str),
    "architectures": ("architectures", tuple),
    "licenceSha256": ("licence_sha256", str),
    "licenceSpdx": ("licence_spdx", str),
    "features": ("features", tuple),
    "multimodal": ("multimodal", bool),
    "paid": ("paid", bool),
    "promptLogging": ("prompt_logging", bool),
    "providerPinned": ("provider_pinned", bool),
}


@dataclass(frozen=True, slots=True)
class Past:
    """One that taught the teacher, or taught one that did.

    `decided` are the leaves, in the log of whoever made the teacher, of the decisions that allowed that, with
    those about all that stand between; empty where one did not. `ours` says whether this workspace's key
    signed the record that names it. `known` are fields of `Asked` as the gate was asked about it then, none
    where the record is from before they were told. `owed` is what the record says was owed for it then; a row
    that it does not tell is empty. `is_base` is one that a student began with, whose weights are in it: it
    answered nothing, and its own teachers count. `inside` says whether they are in the model asked about.
    """

    model: str
    revision: str
    access: Access
    host: str
    decided: tuple[int, ...]
    ours: bool
    known: tuple[tuple[str, Any], ...] = ()
    owed: tuple[Owed, ...] = ()
    is_base: bool = False
    inside: bool = False


@dataclass(frozen=True, slots=True)
class Lineage:
    """`ours` says whether this workspace's key signed the record; `unknown` why nothing, or nothing of some,
    is known. `said` are the teachers as a release of their student passes them on; `too_long` is one of
    which there is more than a leaf can hold."""

    release: str
    manifest_sha256: str
    signed_by: str
    ours: bool
    unknown: str = ""
    teachers: tuple[Past, ...] = ()
    said: tuple[Mapping[str, Any], ...] = ()
    too_long: bool = False

    def record(self) -> dict[str, Any]:
        """As decisions and `teachers.json` have it."""
        return {
            "release": self.release,
            "manifestSha256": self.manifest_sha256,
            "signedBy": self.signed_by,
            "unknown": self.unknown,
            "teachers": [dict(each) for each in self.said],
        }

    def shortened(self, why: str) -> Lineage:
        """Of a record that holds, and is too long to be told again: nothing is known of it."""
        return Lineage(self.release, self.manifest_sha256, "", False, why, too_long=True)


def read_lineage(folder: Path, workspace: Workspace) -> Lineage | None:
    """What a model's folder says of who taught it; None for one that is no release. Raises nothing for
    whatever lies there."""
    try:
        if not (folder / TEACHERS).is_file() and not (
            (folder / NAME).is_file() and (folder / PROOFS).is_dir()
        ):
            return None
        return _read(folder, workspace)
    except (OSError, StillhouseError) as error:
        why = f"its record cannot be read: {error}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        why = f"its record is not in its form ({type(error).__name__})"
    return Lineage(_line(folder.name), "", "", False, _line(why))


def folder_of(model: str) -> Path:
    """Where a model lies: its folder, or of a hub id that was loaded here before what the hub's cache holds
    of its branch main. One that was not has no folder, and nothing is asked of the hub."""
    folder = Path(model).expanduser()
    if folder.is_dir() or not _HUB_ID.fullmatch(model):
        return folder
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()
    repository = cache / f"models--{model.replace('/', '--')}"
    try:
        commit = (repository / "refs" / "main").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return folder
    return repository / "snapshots" / commit


def known_of(asked: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What a teacher is known by, from the `asked` of a decision's leaf; None where that has none."""
    if asked is None:
        return None
    return {
        word: asked[name] for word, (name, _) in _KNOWN.items() if asked.get(name) not in (None, "", [], ())
    }


def as_base(leaf: int, decision: Mapping[str, Any]) -> dict[str, Any]:
    """`base.json`: a decision (leaf body) about the base, and who taught it, in the form of a teacher's
    entry."""
    return {
        "use": "base",
        "model": decision["teacher"]["model"],
        "revision": None,
        "access": "weights",
        "host": None,
        "known": known_of(decision.get("asked")),
        "upstream": decision.get("upstream"),
        "obligations": decision["obligations"],
        "decisions": [{"leaf": leaf, "verdict": decision["verdict"]}],
    }


def pasts_of(record: Mapping[str, Any]) -> list[Past]:
    """Those whom a record as `Lineage.record` has it names, without whose word it is. Raises ValueError,
    KeyError, TypeError or AttributeError for what is no such record."""
    return [past for each in record["teachers"] for past in _past(each, None)]


def _read(folder: Path, workspace: Workspace) -> Lineage:
    note, public = _bytes(folder / NAME), public_of_pem(_bytes(folder / KEY))
    data, manifest = _bytes(folder / TEACHERS), read_manifest(note)
    release, digest = _line(manifest.release), sha256(note).hexdigest()
    if fault := _fault(folder, manifest, public, data):
        return Lineage(release, digest, "", False, _line(fault))
    entries, ours = json.loads(data), was_ours(public, workspace)
    if any("use" in each for each in entries):
        raise ValueError(f"{TEACHERS} tells of a base")
    if BEGUN in manifest.files:
        entries = [*entries, json.loads(_bytes(folder / BEGUN))]
    of = workspace if ours else None
    teachers = tuple(past for each in entries for past in _past(each, None, of))
    unknown = _line(next(_gaps(entries), "") if teachers else "it names no teacher")
    found = Lineage(
        release, digest, public.hex(), ours, unknown, teachers, tuple(_shortly(each) for each in entries)
    )
    length = len(canonical(found.record()))
    if length > LONGEST:
        return found.shortened(
            f"its record is too long to be weighed: {length:,} bytes of at most {LONGEST:,}"
        )
    return found


def _bytes(path: Path) -> bytes:
    """Raises LedgerError for what is no file, or a longer one than any record."""
    if not path.is_file():
        raise LedgerError(f"{path.name} is missing")
    with path.open("rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise LedgerError(f"{path.name} is longer than {LARGEST >> 20} MiB")
    return data


def _line(text: str, longest: int = 300) -> str:
    """What a leaf can hold of a text."""
    plain = text.encode("utf-8", "replace").decode()
    return plain if len(plain) <= longest else f"{plain[:longest]}..."


def _fault(folder: Path, manifest: Manifest, public: bytes, teachers: bytes) -> str:
    """What of the record does not hold: its signature, itself, or the weights that it is about."""
    if signer_of(manifest.note, [public]) is None:
        return f"{NAME} is not signed by the key beside it"
    weights = [path.name for path in sorted(folder.iterdir()) if path.suffix in _WEIGHTS]
    for name in (TEACHERS, KEY, "config.json", *weights):
        if name not in manifest.files:
            return f"{name} is not in {NAME}"
    if sha256(teachers).hexdigest() != manifest.files[TEACHERS]:
        return f"{TEACHERS} was changed"
    for name, digest in manifest.files.items():
        path = folder / name
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            return f"{name} is no file of the release"
        needed = name in (TEACHERS, BEGUN, KEY, "config.json") or path.suffix in _WEIGHTS
        if path.is_file() and _digest(path) != digest:
            return f"{name} was changed"
        if needed and not path.is_file():
            return f"{name} is missing"
    return ""


def _digest(path: Path) -> str:
    found = path.stat()
    return _digest_at(path, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@lru_cache(maxsize=1024)
def _digest_at(path: Path, device: int, inode: int, size: int, changed_ns: int, touched_ns: int) -> str:
    """Of a file that is the same as before: each use asks for it, and weights are large. Its time of change
    can be set by whoever writes it; that of its inode only by the system's clock."""
    return sha256_of(path)


def _past(
    entry: Mapping[str, Any],
    before: tuple[int, ...] | None,
    workspace: Workspace | None = None,
    steps: int = 1,
    inside: bool = True,
) -> Iterator[Past]:
    """One of `teachers.json`, or of those whom it names in turn, and those who taught it.

    `before` are the decisions about those between, None where nobody is; `workspace` is whose key signed what
    names it, where that is this one; `inside` says whether the weights of what names it are in the model.
    """
    if steps > STEPS:
        raise LedgerError(f"more than {STEPS} released students, each taught by the next")
    leaves = _decided(entry)
    if before is None:
        decided = leaves or ()
    elif not before or leaves is None or workspace is None:  # leaves of a log that is not this one's
        decided = before
    else:
        decided = (*before, *leaves) if leaves else ()
    access: Access = entry["access"] if entry["access"] in get_args(Access) else "import"
    if access == "shipped" and not _text(entry, "model").startswith("embedded:"):
        access = "import"
    owed = tuple(_owed(each) for each in _list(entry, "obligations", dict))
    known = tuple(_known(entry.get("known") or {}))
    model, revision, host = (_text(entry, name) for name in ("model", "revision", "host"))
    is_base = entry.get("use") == "base" and access == "weights" and not host  # else it could only answer
    inside = inside and is_base
    yield Past(model, revision, access, host, decided, workspace is not None, known, owed, is_base, inside)
    further = entry.get("upstream") or {}
    signer = _text(further, "signedBy")
    same = workspace is not None and bool(signer) and was_ours(bytes.fromhex(signer), workspace)
    for each in _list(further, "teachers", dict):
        yield from _past(each, decided, workspace if same else None, steps + 1, inside)


def _decided(entry: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The leaves of the decisions that allowed it to teach; none where one did not, None where the record
    passes on none."""
    if entry.get("decisions") is None:
        return None
    found = {
        _leaf(each["leaf"]): each["verdict"] in get_args(Verdict) and each["verdict"] in ALLOWED
        for each in _list(entry, "decisions", dict)
    }
    return tuple(sorted(found)) if all(found.values()) else ()


def _leaf(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no leaf")
    return value


def _owed(said: Mapping[str, Any]) -> Owed:
    """An obligation of then. Older records do not say of which row, nor whether it was for passing on the
    teacher's own weights; it is then owed by all."""
    if said["kind"] not in get_args(ObligationKind) or not {*said["modes"]} <= {*get_args(Mode)}:
        raise ValueError(f"{said['kind']!r} is no obligation")
    return Owed(
        _text(said, "row"),
        Obligation(
            said["kind"],
            tuple(_list(said, "texts", str)),
            tuple(_list(said, "modes", str)),
            redistributes=said.get("redistributes") is True,
            where=_text(said, "where"),
        ),
    )


def _known(said: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for word, (name, kind) in _KNOWN.items():
        if said.get(word) is None:
            continue
        value = tuple(_list(said, word, str)) if kind is tuple else said[word]
        if type(value) is not kind:
            raise ValueError(f"{word} is {value!r}")
        yield name, value


def _text(said: Mapping[str, Any], name: str) -> str:
    value = said.get(name)
    if value is not None and type(value) is not str:
        raise ValueError(f"{name} is {value!r}")
    return value or ""


def _list(said: Mapping[str, Any], name: str, kind: type) -> list[Any]:
    values = said.get(name)
    if values is not None and (type(values) is not list or any(type(each) is not kind for each in values)):
        raise ValueError(f"{name} is no list")
    return values or []


def _shortly(entry: Mapping[str, Any]) -> dict[str, Any]:
    """One of `teachers.json`, as a release of its student passes it on: all but what it gave, the texts of
    the decisions, and what is owed for it that is told of one further up."""
    same = {name: entry.get(name) for name in ("model", "revision", "access", "host", "upstream")}
    told = {name: entry[name] for name in ("known", "use") if entry.get(name)}
    further = list(_owed_further(entry))
    owed = [each for each in entry.get("obligations") or () if each not in further]
    told |= {"obligations": owed} if owed else {}
    short = [{name: each[name] for name in ("leaf", "verdict")} for each in entry.get("decisions") or ()]
    return {**same, **told, "decisions": short}


def _owed_further(entry: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for each in (entry.get("upstream") or {}).get("teachers") or ():
        yield from each.get("obligations") or ()
        yield from _owed_further(each)


def _gaps(entries: list[Mapping[str, Any]]) -> Iterator[str]:
    """Where one further up is unknown."""
    for entry in entries:
        further = entry.get("upstream") or {}
        if further.get("unknown"):
            what = "base" if entry.get("use") == "base" else "teacher"
            yield f"who taught its {what} {entry['model']} is unknown: {further['unknown']}"
        yield from _gaps(further.get("teachers") or [])
