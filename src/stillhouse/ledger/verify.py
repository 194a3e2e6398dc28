"""Check a ledger from its first byte to its last, and say what was checked.

A log whose operator also holds its keys can show that it was not edited later only against a checkpoint
that someone else holds. Without one the answer is `unanchored: internally consistent only`.
"""

from __future__ import annotations

import base64
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Any

import orjson
import zstandard

from stillhouse.errors import LedgerError
from stillhouse.ledger import merkle
from stillhouse.ledger.anchors import stored_anchors
from stillhouse.ledger.checkpoint import Checkpoint, read_checkpoint, signer_of
from stillhouse.ledger.keys import read_public_key, rotation_signed
from stillhouse.ledger.leaves import KEYED, canonical, commitment
from stillhouse.ledger.permissions import miscounted
from stillhouse.ledger.store import Ledger
from stillhouse.ledger.tree import TILE

NEWEST = "newest checkpoint"
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was checked; `detail` says how much, or what is wrong and where."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Outside:
    """A checkpoint that lies outside the database; `check` is what it is for."""

    check: str
    checkpoint: Checkpoint
    who: str = ""
    when: datetime | None = None


@dataclass(frozen=True, slots=True)
class Verification:
    """`anchors` are the checkpoints that someone else holds and that agree, by size: those that were kept,
    and the one that was given, of which it is not known who held it since when."""

    checks: tuple[Check, ...]
    size: int
    root: bytes
    anchors: tuple[Outside, ...]

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)

    @property
    def anchored(self) -> int | None:
        """The largest size at which one agrees."""
        return self.anchors[-1].checkpoint.size if self.anchors else None

    @property
    def state(self) -> str:
        if not self.ok:
            forked = next((check for check in self.checks if check.name == NEWEST and not check.ok), None)
            if forked is not None:
                return f"rolled back or forked: {forked.detail}"
            return f"failed: {', '.join(check.name for check in self.checks if not check.ok)}"
        if self.anchored is None:
            return "unanchored: internally consistent only"
        last = self.anchors[-1]
        by = "" if last.when is None else f" by {last.who} on {last.when.date()}"
        return f"anchored at size {self.anchored}{by}"


@dataclass(frozen=True, slots=True)
class _Rotation:
    """A leaf that replaces the signing key; `signed` is None when the old key was lost."""

    leaf: int
    old: bytes
    new: bytes
    signed: bool | None


@dataclass(slots=True)
class _Findings:
    """Faults by check, and what the walk over the leaves collects for the checks after it."""

    faults: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    counts: Counter[str] = field(default_factory=Counter)
    roots: dict[int, bytes] = field(default_factory=dict)
    rotations: list[_Rotation] = field(default_factory=list)
    tombstones: dict[int, set[int]] = field(default_factory=dict)
    subtrees: dict[tuple[int, int], bytes] = field(default_factory=dict)

    def check(self, name: str, good: str) -> Check:
        faults = self.faults.get(name, [])
        more = f" (and {len(faults) - _NAMED} more)" if len(faults) > _NAMED else ""
        return Check(name, not faults, "; ".join(faults[:_NAMED]) + more if faults else good)


def verify(ledger: Ledger, against: bytes | None = None, pinned: bytes | None = None) -> Verification:
    """Check leaves, tree, checkpoints, signatures, contents, keys and attempts of a ledger.

    `against` is a checkpoint (the bytes of its note) that someone else kept, `pinned` a public key (32 bytes)
    that the log's present one must be, or follow from by signed rotations. Leaves that another process
    adds meanwhile are left out. Raises LedgerError only when the file cannot be read at all.
    """
    found = _Findings()
    size = ledger.size()
    stored = ledger.read(
        "SELECT size, root, public, note FROM checkpoint WHERE size <= ? ORDER BY id", (size,)
    )
    ahead = ledger.read("SELECT size FROM checkpoint WHERE size > ?", (ledger.size(),))
    outside, unchecked = _outside(ledger, found, against, size, {(row[0], bytes(row[1])) for row in stored})
    wanted = {row[0] for row in stored} | {one.checkpoint.size for one in outside}
    root = _walk(ledger, size, wanted, found)
    for (lost,) in ahead:
        found.faults["checkpoints"].append(f"a checkpoint says {lost} leaves, the log has {size}: it was cut")
    for row in stored:
        _check_checkpoint(ledger.origin, row, found)
    _check_signers(ledger, stored, found)
    _check_tombstones(ledger, size, found)
    _check_subtrees(ledger, size, found)
    _check_attempts(ledger, size, found)
    signers = {bytes(row[2]) for row in stored} | {read_public_key(ledger.workspace)}
    signers |= {key for turn in found.rotations for key in (turn.old, turn.new)}
    anchors = [one for one in outside if _check_outside(ledger.origin, one, signers, found)]
    if pinned is not None:
        _check_pinned(ledger, pinned, stored, found)
    counts = found.counts
    covered = max((row[0] for row in stored), default=0)
    replaced = [turn.leaf for turn in found.rotations if turn.signed is None]
    unsigned = f"; replaced without the old key's signature at leaf {replaced}" if replaced else ""
    checks = [
        found.check("leaves", f"{size} leaves, canonical, gapless, hashed right"),
        found.check("tree", f"{counts['subtrees']} stored subtrees agree with the leaves"),
        found.check("checkpoints", f"{len(stored)}; the newest covers {covered} of {size} leaves"),
        found.check("signatures", f"{len(found.rotations) + 1} signing keys in turn{unsigned}"),
        found.check(
            "contents", f"{counts['contents']} match their commitments, {counts['erased']} were erased"
        ),
        found.check("keys", f"{counts['keyed']} answers are found by the keys in their leaves"),
        found.check("attempts", _attempts_line(ledger)),
    ]
    if against is not None:
        checks.append(found.check("anchor", "the checkpoint from outside is a part of this log's history"))
    if pinned is not None:
        checks.append(found.check("pinned key", "the log's keys follow from it"))
    if unchecked or found.faults.get("anchors") or any(one.check == "anchors" for one in outside):
        good = [f"size {one.checkpoint.size} by {one.who} on {one.when}" for one in anchors if one.when]
        checks.append(found.check("anchors", "; ".join(good + [f"not checked: {one}" for one in unchecked])))
    if found.faults.get(NEWEST) or any(one.check == NEWEST for one in outside):
        checks.append(found.check(NEWEST, "the one kept beside the database is in its history"))
    held = sorted((one for one in anchors if one.check != NEWEST), key=lambda one: one.checkpoint.size)
    return Verification(tuple(checks), size, root, tuple(held))


def _walk(ledger: Ledger, size: int, wanted: set[int], found: _Findings) -> bytes:
    """Check every leaf and its contents, a tile of 256 at a time; keep the roots at the `wanted` sizes."""
    frontier: list[bytes] = []
    for start in range(0, size, TILE):
        end = min(start + TILE, size)
        rows = ledger.read(
            "SELECT idx, kind, time, data, hash FROM leaf WHERE idx >= ? AND idx < ? ORDER BY idx",
            (start, end),
        )
        if [row[0] for row in rows] != list(range(start, end)):
            found.faults["leaves"].append(f"leaves are missing between {start} and {end}")
        hashes = []
        commitments: dict[int, dict[str, str]] = {}
        keyed: set[tuple[bytes, int]] = set()
        for index, kind, time, data, digest in rows:
            hashes.append(sha256(b"\x00" + data).digest())
            leaf = _parse(index, kind, time, data, found)
            if hashes[-1] != digest:
                found.faults["leaves"].append(f"leaf {index} does not have the hash that was stored for it")
            if not leaf:
                continue
            if leaf["commitments"]:
                commitments[index] = leaf["commitments"]
            try:
                _note(index, kind, leaf["body"], keyed, found)
            except (KeyError, TypeError, ValueError):
                found.faults["leaves"].append(f"leaf {index} is not a {kind}: its body lacks what one has")
        for at in [at for at in wanted if start <= at < end]:
            part = [merkle.root_of(hashes[: at - start])] if at > start else []
            found.roots[at] = merkle.fold([*frontier, *part])
        _check_contents(ledger, start, end, commitments, found)
        _check_keys(ledger, start, end, keyed, found)
        tile = merkle.root_of(hashes)
        if end - start == TILE:
            found.subtrees[8, start // TILE] = tile
            merkle.push(frontier, start // TILE, tile)
        else:
            frontier = [*frontier, tile]
    root = merkle.fold(frontier)
    found.roots[size] = root
    return root


def _parse(index: int, kind: str, time: str, data: bytes, found: _Findings) -> dict[str, Any] | None:
    try:
        leaf = orjson.loads(data)
        sound = (
            canonical(leaf) == data
            and leaf.keys() == {"body", "commitments", "kind", "time", "v"}
            and (leaf["kind"], leaf["time"], leaf["v"]) == (kind, time, 1)
            and isinstance(leaf["body"], dict)
            and isinstance(leaf["commitments"], dict)
        )
    except (orjson.JSONDecodeError, LedgerError, AttributeError):
        leaf, sound = None, False
    if not sound:
        found.faults["leaves"].append(f"leaf {index} is not a canonical leaf of kind {kind}")
        return None
    assert isinstance(leaf, dict)
    return leaf


def _note(
    index: int, kind: str, body: dict[str, Any], keyed: set[tuple[bytes, int]], found: _Findings
) -> None:
    if kind in KEYED and "key" in body:
        keyed.add((bytes.fromhex(body["key"]), index))
    elif kind == "correction" and body.get("what") == "signing key replaced":
        signed = rotation_signed(body)
        old, new = (base64.b64decode(body[name]) for name in ("old_public_key", "new_public_key"))
        found.rotations.append(_Rotation(index, old, new, signed))
    elif kind == "tombstone":
        named = (body["leaf"],) if "leaf" in body else body["leaves"]  # one leaf each, in older logs
        found.tombstones[index] = {*named, *body.get("rows", ())}
    elif kind == "served":
        covers = body["count"] >= 1 and len(bytes.fromhex(body["root"])) == 32
        if not covers or not all(isinstance(body[name], str) for name in ("replica", "first", "last")):
            raise ValueError


def _check_contents(
    ledger: Ledger, start: int, end: int, commitments: dict[int, dict[str, str]], found: _Findings
) -> None:
    promised = {(leaf, name) for leaf, names in commitments.items() for name in names}
    query = "SELECT leaf, name, salt, body, erased FROM content WHERE leaf >= ? AND leaf < ?"
    unpack = zstandard.ZstdDecompressor()
    faults = found.faults["contents"]
    for leaf, name, salt, body, erased in ledger.read(query, (start, end)):
        if (leaf, name) not in promised:
            faults.append(f"content {name!r} of leaf {leaf} stands in no leaf")
            continue
        promised.discard((leaf, name))
        if erased is not None:
            found.counts["erased"] += 1
            continue
        try:
            matches = commitment(salt, unpack.decompress(body)) == commitments[leaf][name]
        except zstandard.ZstdError:
            matches = False
        found.counts["contents"] += matches
        if not matches:
            faults.append(f"content {name!r} of leaf {leaf} does not match its commitment")
    faults.extend(f"content {name!r} of leaf {leaf} is missing" for leaf, name in sorted(promised))


def _check_keys(
    ledger: Ledger, start: int, end: int, keyed: set[tuple[bytes, int]], found: _Findings
) -> None:
    if not keyed:
        return
    marks = ",".join("?" * len(keyed))
    stored = {
        (bytes(key), index)
        for key, index in ledger.read(
            f"SELECT key, leaf FROM exchange WHERE key IN ({marks})", [key for key, _ in keyed]
        )
    }
    found.counts["keyed"] += len(stored & keyed)
    found.faults["keys"].extend(
        f"leaf {index} is not found by its key" for index in sorted(index for _, index in keyed - stored)
    )


def _check_checkpoint(origin: str, row: tuple[Any, ...], found: _Findings) -> None:
    size, root, public, note = row
    try:
        signed = read_checkpoint(note)
    except LedgerError as error:
        found.faults["checkpoints"].append(f"the checkpoint at {size} is damaged: {error.why}")
        return
    if (signed.origin, signed.size, signed.root) != (origin, size, root):
        found.faults["checkpoints"].append(f"the checkpoint at {size} was signed for something else")
    elif found.roots[size] != root:
        found.faults["checkpoints"].append(
            f"the leaves before {size} are not those of the checkpoint at {size}"
        )
    if signer_of(note, [public]) is None:
        found.faults["signatures"].append(f"the signature of the checkpoint at {size} does not hold")


def _check_signers(ledger: Ledger, stored: list[tuple[Any, ...]], found: _Findings) -> None:
    """Each checkpoint must be by the key in force at its size; the last key must be the one in keys/."""
    current = read_public_key(ledger.workspace)
    turns, faults = found.rotations, found.faults["signatures"]
    faults.extend(
        f"the replacement of the signing key at leaf {turn.leaf} is not signed by the old key"
        for turn in turns
        if turn.signed is False
    )
    first = turns[0].old if turns else stored[0][2] if stored else current
    held = first
    for turn in turns:
        if turn.old != held:
            faults.append(f"leaf {turn.leaf} replaces a signing key that was not in force")
        held = turn.new
    if held != current:
        faults.append("the key in keys/ is not the one that signed last: make a checkpoint with it")
    for size, _, public, _ in stored:
        if public != next((turn.new for turn in reversed(turns) if turn.leaf < size), first):
            faults.append(f"the checkpoint at {size} was signed by a key that was not in force")


def _check_tombstones(ledger: Ledger, size: int, found: _Findings) -> None:
    for leaf, name, erased in ledger.read(
        "SELECT leaf, name, erased FROM content WHERE erased IS NOT NULL AND erased < ?", (size,)
    ):
        if leaf not in found.tombstones.get(erased, ()):
            found.faults["contents"].append(f"content {name!r} of leaf {leaf} is gone without a tombstone")


def _check_subtrees(ledger: Ledger, size: int, found: _Findings) -> None:
    right, level = found.subtrees, 8
    while complete := size >> (level + 8):
        for n in range(complete):
            right[level + 8, n] = merkle.root_of([right[level, n * TILE + i] for i in range(TILE)])
        level += 8
    stored = {
        (level, n): bytes(digest)
        for level, n, digest in ledger.read("SELECT level, n, hash FROM subtree")
        if (n + 1) << level <= size
    }
    found.counts["subtrees"] = len(stored)
    found.faults["tree"].extend(
        f"the stored subtree {n} of level {level} is not that of the leaves"
        for level, n in sorted(right.keys() | stored.keys())
        if right.get((level, n)) != stored.get((level, n))
    )


def _check_attempts(ledger: Ledger, size: int, found: _Findings) -> None:
    total = ledger.read("SELECT count(*) FROM attempt")[0][0]
    if ledger.attempts().total < total:
        found.faults["attempts"].append("attempts do not balance")
    if not found.faults.get("leaves"):
        found.faults["attempts"] += miscounted(ledger)
    for attempt, leaf in ledger.read(
        "SELECT a.id, a.leaf FROM attempt a LEFT JOIN exchange e ON e.key = a.key AND e.leaf = a.leaf"
        " WHERE a.state = 'answered' AND a.leaf < ? AND e.leaf IS NULL",
        (size,),
    ):
        found.faults["attempts"].append(f"attempt {attempt} names leaf {leaf}, which is no answer to it")
    for key, leaf in ledger.read(
        "SELECT e.key, e.leaf FROM exchange e LEFT JOIN leaf l ON l.idx = e.leaf"
        " WHERE l.idx IS NULL OR l.kind NOT IN ('exchange', 'import')"
    ):
        found.faults["keys"].append(
            f"the key {bytes(key).hex()[:8]}... names leaf {leaf}, which is no answer"
        )


def _attempts_line(ledger: Ledger) -> str:
    counts = ledger.attempts()
    return (
        f"{counts.total} = {counts.answered} answered + {counts.failed} failed"
        f" + {counts.unknown} sent, unknown + {counts.open} open"
    )


def _outside(
    ledger: Ledger, found: _Findings, note: bytes | None, size: int, stored: set[tuple[int, bytes]]
) -> tuple[list[Outside], list[str]]:
    """The checkpoints outside the database that can be held against it, and the anchors that could not be
    checked on this machine. The newest that was kept beside is one of them where the database lacks it."""
    notes = [] if note is None else [("anchor", note)]
    if ledger.workspace.newest_checkpoint.is_file():
        notes.append((NEWEST, ledger.workspace.newest_checkpoint.read_bytes()))
    outside = []
    for check, one in notes:
        try:
            read = read_checkpoint(one)
            if check != NEWEST or (read.size, read.root) not in stored:
                outside.append(Outside(check, read))
        except LedgerError as error:
            found.faults[check].append(f"{error.what}: {error.why}")
    anchors, faults, unchecked = stored_anchors(ledger.workspace)
    outside += [Outside("anchors", one.checkpoint, one.who, one.when) for one in anchors]
    found.faults["anchors"] += faults
    for each in outside:
        if each.checkpoint.size > size:
            said = f"it says {each.checkpoint.size} leaves, this log has {size}: the log was cut"
            found.faults[each.check].append(said)
    return [each for each in outside if each.checkpoint.size <= size], unchecked


def _check_outside(origin: str, one: Outside, signers: set[bytes], found: _Findings) -> bool:
    """Whether the log begins with what this checkpoint was signed for."""
    outside, faults = one.checkpoint, found.faults[one.check]
    who = f"{one.who}: " if one.who else ""
    if outside.origin != origin:
        faults.append(f"{who}it is of {outside.origin}, this log is {origin}")
    elif signer_of(outside.note, signers) is None:
        faults.append(f"{who}no key of this log signed it")
    elif found.roots[outside.size] != outside.root:
        faults.append(f"{who}the first {outside.size} leaves are not those that it was signed for")
    else:
        return True
    return False


def _check_pinned(ledger: Ledger, pinned: bytes, stored: list[tuple[Any, ...]], found: _Findings) -> None:
    """The keys of the log in turn; from the pinned one on, each must have been replaced by itself."""
    turns = found.rotations
    first = turns[0].old if turns else stored[0][2] if stored else read_public_key(ledger.workspace)
    keys = [first, *(turn.new for turn in turns)]
    if pinned not in keys:
        found.faults["pinned key"].append("this log was never signed by it, and no key of it follows from it")
        return
    found.faults["pinned key"].extend(
        f"leaf {turn.leaf} replaces a key without that key's signature"
        for turn in turns[keys.index(pinned) :]
        if not turn.signed
    )
