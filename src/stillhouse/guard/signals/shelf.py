"""Where a house keeps its signals, whom it sends them to, and what others sent: small files in the workspace.

    own.json          its own signals, with sketches that nobody else may see
    secret.key        what recipients' salts and feed keys come from
    sent/NAME.json    the copies of one recipient, in the order in which they were made
    peers/NAME.json   another house's invitation: its public key, and the salt of the copies that it sends us
    received/NAME.json    what it sent, checked

Each change is a leaf of the ledger first, and then one file that is replaced as a whole.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from hmac import digest as hmac_digest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.errors import UsageError, storage
from stillhouse.guard.signals import form
from stillhouse.guard.signals.form import Received, Signal
from stillhouse.guard.signals.sketch import EMPTY, SLOTS, keyed
from stillhouse.ledger import Ledger, canonical
from stillhouse.ledger.keys import public_bytes, read_signing_key
from stillhouse.workspace import Workspace, write_atomic, write_once

if TYPE_CHECKING:
    from stillhouse.guard.signals.private import Filter

LEAST_TRACED = 12  # equal slots: by chance, of 128 that have 65,536 values each, never


@dataclass(frozen=True, slots=True)
class Peer:
    """An invitation: all of it is between two houses, and `salt` and `feed_key` are secret."""

    sender: str
    recipient: str
    public: bytes
    salt: bytes
    feed_key: str


@dataclass(frozen=True, slots=True)
class Taken:
    new: int
    revoked: int
    known: int
    leaf: int | None  # None where all were known


@dataclass(frozen=True, slots=True)
class Traced:
    """A leaked object of which `equal` slots are those of this recipient's copy; `named`: its id as well."""

    recipient: str
    signal: str
    equal: int
    of: int
    named: bool


def add(workspace: Workspace, signal: Signal) -> None:
    """Keep an own signal, which nobody is sent yet. Raises UsageError for one that may not travel."""
    form.refuse_wrong(signal)
    with _alone(workspace):
        _write(_own(workspace), [*_read(_own(workspace), []), _plain(signal)])


def own(workspace: Workspace) -> list[Signal]:
    return [_signal(one) for one in _read(_own(workspace), [])]


def invite(workspace: Workspace, house: str, recipient: str) -> Peer:
    """What a recipient needs to read its copies, and to fetch them. The same each time."""
    public, secret = public_bytes(read_signing_key(workspace)), _secret(workspace)
    recipient, house = form.name_of(recipient), form.name_of(house)
    with _alone(workspace):
        path = _sent(workspace, recipient)
        if not path.exists():
            _write(path, {"sender": house, "copies": []})
        elif _read(path, {})["sender"] != house:
            raise UsageError(
                f"{recipient} knows this house by another name",
                f"it was invited by {_read(path, {})['sender']}",
                "give that name",
            )
    return Peer(house, recipient, public, form.salt_of(secret, recipient), feed_key(secret, recipient))


def feed_key(secret: bytes, recipient: str) -> str:
    return hmac_digest(secret, b"stillhouse signal feed " + recipient.encode(), "sha256").hex()


def write_peer(peer: Peer) -> bytes:
    public = base64.b64encode(peer.public).decode()
    said = {"sender": peer.sender, "recipient": peer.recipient, "public_key": public}
    return json.dumps({**said, "salt": peer.salt.hex(), "feed_key": peer.feed_key}, indent=2).encode() + b"\n"


def read_peer(data: bytes) -> Peer:
    """Raises UsageError for what `write_peer` does not write."""
    try:
        said = json.loads(data)
        names = form.name_of(said["sender"]), form.name_of(said["recipient"])
        public = base64.b64decode(said["public_key"], validate=True)
        salt, key = bytes.fromhex(said["salt"]), bytes.fromhex(said["feed_key"])
        if len(said) != 5 or [len(public), len(salt), len(key)] != [32, 32, 32]:
            raise ValueError("no invitation")
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UsageError(
            "this is no invitation", "it was not written by `pair`", "ask for it again"
        ) from None
    return Peer(*names, public, salt, key.hex())


def accept(workspace: Workspace, peer: Peer) -> None:
    """Keep another house's invitation. Raises UsageError where one with another key is there."""
    path = _peers(workspace) / f"{peer.sender}.json"
    with _alone(workspace):
        if path.exists() and read_peer(path.read_bytes()).public != peer.public:
            raise UsageError(
                f"{peer.sender} has another key here",
                "its signals would no longer be told from somebody else's",
                f"make sure that it changed its key, and remove {path}",
            )
        _write_private(path, write_peer(peer))


def peers(workspace: Workspace) -> dict[str, Peer]:
    found = (read_peer(path.read_bytes()) for path in sorted(_peers(workspace).glob("*.json")))
    return {peer.sender: peer for peer in found}


def export(
    workspace: Workspace,
    ledger: Ledger,
    recipient: str,
    ids: Sequence[str],
    legal_basis: str,
    now: datetime,
) -> dict[str, Any]:
    """A bundle of these own signals for one recipient, recorded with the legal basis. Raises UsageError for
    an unknown recipient or signal, one that expired, and without a legal basis."""
    if len(legal_basis.split()) < 3:
        raise UsageError(
            "no legal basis", "an export says on what law or agreement it rests", "write a sentence or more"
        )
    if not 0 < len(ids) <= form.MOST_SIGNALS:
        raise UsageError("no such export", f"{len(ids)} signals of 1 to {form.MOST_SIGNALS}", "name others")
    with _alone(workspace):
        known = {signal.id: signal for signal in own(workspace)}
        if unknown := [id for id in ids if id not in known]:
            raise UsageError(f"no signal {unknown[0]!r}", "it was never added, or is revoked", "see `list`")
        if late := [id for id in ids if known[id].valid_until <= now]:
            raise UsageError(f"signal {late[0]!r} has expired", "nobody would take it in", "add it anew")
        sender, copies = _copies(workspace, recipient, [known[id] for id in ids], now)
        body = {"what": "exported", "recipient": recipient, **_listed(copies)}
        ledger.append("signal", body, {"legal_basis": legal_basis.encode()})
        _send(workspace, recipient, sender, copies, now)
    return form.bundle_of(copies, sender, now)


def revoke(workspace: Workspace, ledger: Ledger, id: str, reason: str, now: datetime) -> dict[str, int]:
    """Take an own signal back: every recipient's feed has its revocation from now on. Returns the leaf for
    each recipient, and for "" that of a signal that nobody has."""
    with _alone(workspace):
        signals = own(workspace)
        found = next((signal for signal in signals if signal.id == id), None)
        if found is None:
            raise UsageError(f"no signal {id!r}", "it was never added, or is revoked", "see `list`")
        # An expired signal is revoked as any other, so that nobody has it back by a wrong clock
        leaves = {}
        for name in recipients(workspace):
            sender, copies = _copies(workspace, name, [found], now, revoked=True)
            held = {sent["object"]["id"] for sent in sent_to(workspace, name)}
            if copies[0]["id"] not in held:
                continue
            body = {"what": "revoked", "recipient": name, **_listed(copies)}
            leaves[name] = ledger.append("signal", body, {"reason": reason.encode()})
            _send(workspace, name, sender, copies, now)
        if not leaves:
            leaves[""] = ledger.append("signal", {"what": "withdrawn"}, {"reason": reason.encode()})
        _write(_own(workspace), [_plain(signal) for signal in signals if signal.id != id])
        _write(_gone(workspace), [*_read(_gone(workspace), []), _plain(found)])  # leaks can still be traced
    return leaves


def take(workspace: Workspace, ledger: Ledger, peer: Peer, objects: Sequence[Any], now: datetime) -> Taken:
    """Take in what a house sent: all of it, or, where anything is wrong, none. Raises UsageError for that."""
    read = [
        form.read_copy(one, sender=peer.sender, public=peer.public, recipient=peer.recipient)
        for one in objects
    ]
    with _alone(workspace):
        held = {signal.id: signal for signal in received(workspace, peer)}
        new, revoked = 0, 0
        changed = []
        for signal in sorted(read, key=lambda one: one.modified):
            before = held.get(signal.id)
            if before is not None and before.revoked and not signal.revoked:
                raise UsageError(
                    f"signal {signal.id} was revoked",
                    f"{peer.sender} took it back on {before.modified:%Y-%m-%d}",
                    "a revoked signal never comes back; ask for a new one",
                )
            # A revocation holds whatever its sender's clock said
            newer = before is None or signal.modified > before.modified or signal.revoked > before.revoked
            if not newer:
                continue
            if signal.valid_until <= now and not signal.revoked:
                raise UsageError(
                    f"signal {signal.id} has expired",
                    f"it was valid until {signal.valid_until:%Y-%m-%d}",
                    f"ask {peer.sender} whether it still holds",
                )
            held[signal.id] = signal
            changed.append(signal.object)
            revoked += signal.revoked
            new += not signal.revoked
        if not changed:
            return Taken(0, 0, len(read), None)
        body = {"what": "imported", "sender": peer.sender, "revoked": revoked, **_listed(changed)}
        leaf = ledger.append("signal", body)
        # What has expired would be refused if it came again, so that it need not be kept to be known
        kept = [dict(signal.object) for signal in held.values() if signal.valid_until > now]
        _write(_received(workspace, peer.sender), kept)
    return Taken(new, revoked, len(read) - len(changed), leaf)


def received(workspace: Workspace, peer: Peer) -> list[Received]:
    """What a house sent, checked again: the files may have been changed."""
    objects = _read(_received(workspace, peer.sender), [])
    return [
        form.read_copy(one, sender=peer.sender, public=peer.public, recipient=peer.recipient)
        for one in objects
    ]


def trace(workspace: Workspace, leaked: Any) -> list[Traced]:
    """Whose copies these are: any JSON with sketches in it, whatever became of its names and ids."""
    secret = _secret(workspace)
    kept = [*own(workspace), *(_signal(one) for one in _read(_gone(workspace), []))]
    found = []
    for recipient in recipients(workspace):
        salt = form.salt_of(secret, recipient)
        for signal in kept:
            id = form.copy_id(salt, signal.id)
            parts = [keyed(salt, part) for part in (signal.template, signal.prompt_source) if part]
            for values, holder in _lists(leaked, None):
                same = max((_same(values, part) for part in parts), default=0)
                named = isinstance(holder, Mapping) and holder.get("id") == id
                if same >= LEAST_TRACED:
                    found.append(Traced(recipient, signal.id, same, SLOTS, named))
    return found


def recipients(workspace: Workspace) -> list[str]:
    return sorted(path.stem for path in (workspace.signals / "sent").glob("*.json"))


def sent_to(workspace: Workspace, recipient: str) -> list[dict[str, Any]]:
    """`{"added": stamp, "object": copy}` for each copy made for a recipient, oldest first."""
    copies: list[dict[str, Any]] = _read(_sent(workspace, recipient), {"copies": []})["copies"]
    return copies


def feed_keys(workspace: Workspace) -> dict[str, str]:
    secret = _secret(workspace)
    return {name: feed_key(secret, name) for name in recipients(workspace)}


def private_filter(workspace: Workspace, now: datetime) -> Filter:
    """What others may ask about privately: the bands of all own signals that hold."""
    from stillhouse.guard.signals import private

    holding = [signal for signal in own(workspace) if signal.valid_until > now]
    sketches = [part for one in holding for part in (one.template, one.prompt_source) if part is not None]
    key = _private_key(workspace)
    outputs = {private.output_of(key, band) for each in sketches for band in private.bands(each)}
    return private.filter_of(outputs)


def changed(workspace: Workspace) -> int:
    """Another number once own signals were added or revoked."""
    path = _own(workspace)
    return path.stat().st_mtime_ns if path.exists() else 0


def private_answers(workspace: Workspace, asked: Sequence[bytes]) -> list[bytes]:
    """The answers to blinded elements. Raises UsageError for what is no question."""
    from stillhouse.guard.signals import private

    return private.evaluate(_private_key(workspace), asked)


def since(workspace: Workspace, sender: str) -> str:
    """When what was last fetched from a feed was added there; empty before the first time."""
    return str(_read(_since(workspace), {}).get(sender, ""))


def fetched(workspace: Workspace, sender: str, until: str) -> None:
    with _alone(workspace):
        _write(_since(workspace), {**_read(_since(workspace), {}), sender: until})


def _copies(
    workspace: Workspace, recipient: str, signals: Iterable[Signal], now: datetime, revoked: bool = False
) -> tuple[str, list[dict[str, Any]]]:
    path = _sent(workspace, recipient)
    if not path.exists():
        raise UsageError(
            f"no recipient {recipient!r}",
            f"there are {', '.join(recipients(workspace)) or 'none yet'}",
            "see `stillhouse guard signals pair`",
        )
    sender = _read(path, {})["sender"]
    salt, key = form.salt_of(_secret(workspace), recipient), read_signing_key(workspace)
    names = {"sender": sender, "recipient": recipient, "salt": salt, "key": key, "now": now}
    return sender, [form.copy_of(signal, **names, revoked=revoked) for signal in signals]


def _send(
    workspace: Workspace, recipient: str, sender: str, copies: Iterable[Mapping[str, Any]], now: datetime
) -> None:
    """Of each signal the newest copy is kept. What is added later has a later stamp, whatever the clock
    says."""
    last = max((sent["added"] for sent in sent_to(workspace, recipient)), default="")
    added = form.stamp(now)
    if added <= last:
        added = form.stamp(form.moment(last) + timedelta(milliseconds=1))
    fresh = {copy["id"]: {"added": added, "object": dict(copy)} for copy in copies}
    earlier = [sent for sent in sent_to(workspace, recipient) if sent["object"]["id"] not in fresh]
    _write(_sent(workspace, recipient), {"sender": sender, "copies": [*earlier, *fresh.values()]})


def _listed(objects: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    ids = [one["id"] for one in objects]
    return {"signals": ids, "sha256": sha256(canonical([dict(one) for one in objects])).hexdigest()}


def _same(values: Sequence[Any], part: Sequence[int]) -> int:
    if len(values) != len(part):
        return 0
    return sum(a == b != EMPTY for a, b in zip(values, part, strict=True))


def _lists(found: Any, holder: Any) -> Iterator[tuple[list[Any], Any]]:
    """Every list of numbers as long as a sketch, and what holds it."""
    if isinstance(found, list) and len(found) == SLOTS and all(type(value) is int for value in found):
        yield found, holder
    elif isinstance(found, list | dict):
        for inner in found.values() if isinstance(found, dict) else found:
            yield from _lists(inner, found)


def _plain(signal: Signal) -> dict[str, Any]:
    return {
        "id": signal.id,
        "kind": signal.kind,
        "created": form.stamp(signal.created),
        "valid_until": form.stamp(signal.valid_until),
        "confidence": signal.confidence,
        "labels": list(signal.labels),
        "template": signal.template and list(signal.template),
        "prompt_source": signal.prompt_source and list(signal.prompt_source),
        "behaviour": signal.behaviour and dict(signal.behaviour),
        "marks": list(signal.marks),
    }


def _signal(said: Mapping[str, Any]) -> Signal:
    template, source = (said[name] and tuple(said[name]) for name in ("template", "prompt_source"))
    return Signal(
        said["id"],
        form.moment(said["created"]),
        form.moment(said["valid_until"]),
        said["confidence"],
        tuple(said["labels"]),
        template,
        source,
        said["behaviour"],
        tuple(said["marks"]),
        said["kind"],
    )


def _secret(workspace: Workspace) -> bytes:
    path = workspace.signals / "secret.key"
    return _made_once(path, lambda: secrets.token_bytes(32))


def _private_key(workspace: Workspace) -> bytes:
    from stillhouse.guard.signals import private

    return _made_once(workspace.signals / "private.key", private.new_key)


def _made_once(path: Path, make: Callable[[], bytes]) -> bytes:
    """A key that is there, or made now: of two processes that make it at once, both get the same."""
    if not path.exists():
        with storage("write", path):
            _private_folders(path)
            write_once(path, make().hex().encode() + b"\n")
    with storage("read", path):
        return bytes.fromhex(path.read_text().strip())


def _since(workspace: Workspace) -> Path:
    return workspace.signals / "fetched.json"


def _own(workspace: Workspace) -> Path:
    return workspace.signals / "own.json"


def _gone(workspace: Workspace) -> Path:
    return workspace.signals / "revoked.json"


def _peers(workspace: Workspace) -> Path:
    return workspace.signals / "peers"


def _sent(workspace: Workspace, recipient: str) -> Path:
    return workspace.signals / "sent" / f"{form.name_of(recipient)}.json"


def _received(workspace: Workspace, sender: str) -> Path:
    return workspace.signals / "received" / f"{form.name_of(sender)}.json"


def _read(path: Path, without: Any) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return without
    except ValueError:
        raise UsageError(f"{path} is damaged", "it is no JSON", "restore it from a backup") from None


def _write(path: Path, value: Any) -> None:
    _write_private(path, json.dumps(value, separators=(",", ":")).encode() + b"\n")


def _write_private(path: Path, data: bytes) -> None:
    with storage("write", path):
        _private_folders(path)
    write_atomic(path, data)


def _private_folders(path: Path) -> None:
    """Nobody else may open them."""
    for folder in (path.parent.parent, path.parent):
        folder.mkdir(mode=0o700, exist_ok=True)


@contextmanager
def _alone(workspace: Workspace) -> Iterator[None]:
    """One change at a time, also of other processes."""
    with storage("write", workspace.signals):
        workspace.signals.mkdir(mode=0o700, exist_ok=True)
        handle = os.open(workspace.signals / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
