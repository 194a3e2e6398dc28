"""What a server says of its own terms to machines, at `WELL_KNOWN`, and what the gate makes of it.

The document that was fetched is kept as a terms snapshot, and what a server said last speaks for it: as a row
of the layer "host", beside all others. So it can make the gate stricter about any model, and allow in its own
name alone: whose weights it serves, and under what licence, is not its to say. docs/guard-terms.md has the
format.

What forbids outlasts what allows: it stands when the server falls silent, and under the other scheme of the
same host.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from hashlib import sha256
from typing import Any, Literal
from urllib.parse import urlsplit

from stillhouse.ledger import Leaf, Ledger
from stillhouse.terms.deciding import Decision, DeclaredTerms, Reason, gap_in
from stillhouse.terms.facts import OPEN, Asked, Licence, Need, Row, host_of
from stillhouse.terms.permissions import OFFERED
from stillhouse.terms.snapshots import clauses_digest
from stillhouse.text import host_name

WELL_KNOWN = "/.well-known/ai-terms.json"
SCHEMA = "ai-terms/1"
LARGEST = 64 << 10  # bytes of a document
WORDS = ("forbidden", "with_permission", "allowed")
Word = Literal["forbidden", "with_permission", "allowed"]
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Offer:
    """The provider's word on what its answers may train: other models, and models that compete with its own.
    `text`, `version` and `sha256` are of the terms that people read, `contact` is whom to ask."""

    training: Word
    competing: Word
    version: str
    text: str
    sha256: str
    contact: str


def read(data: bytes) -> Offer:
    """Raises ValueError, with what is wrong, for what is no such document. Unknown fields are passed over."""
    if len(data) > LARGEST:
        raise ValueError(f"it is longer than {LARGEST >> 10} KiB")
    try:
        said: Any = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("it is no JSON") from None
    if not isinstance(said, dict):
        raise ValueError("it is no JSON object")
    if said.get("schema") != SCHEMA:
        raise ValueError(f"its `schema` is not {SCHEMA}")
    answers, terms = said.get("answers"), said.get("terms")
    if not isinstance(answers, dict) or not isinstance(terms, dict):
        raise ValueError("it lacks `answers` or `terms`")
    return Offer(
        _word(answers, "train_other_models"),
        _word(answers, "train_competing_models"),
        _line(terms, "version"),
        _line(terms, "url"),
        _line(terms, "sha256"),
        _line(said, "contact"),
    )


def origin_of(endpoint: str) -> str:
    """Scheme, host and port of a server, the same however it was typed: the host as `host_name` has it, and
    no port that is the scheme's own. Empty for what is no URL."""
    try:
        parts = urlsplit(endpoint)
        port, host = parts.port, host_name(parts.hostname or "")
    except ValueError:
        return ""
    where = f"[{host}]" if ":" in host else host
    own = port is None or port == _PORTS.get(parts.scheme)
    return f"{parts.scheme}://{where}{'' if own else f':{port}'}" if host else ""


def banning_twins(ledger: Ledger, origin: str) -> list[str]:
    """The other scheme of the same host, where what it said last forbids something: that counts here too
    until it says otherwise, so it has to be asked as well."""
    said = {each: _last_read(_words(ledger, each)) for each in _twin(origin)}
    return [
        each
        for each, leaf in said.items()
        if leaf is not None
        and {leaf.body["offer"][name] for name in ("training", "competing")} != {"allowed"}
    ]


def leads_on(origin: str, address: str) -> bool:
    """Whether a server that sends its reader there lets its own word stand there: within itself, or from
    http to https of the same host, both at their usual ports."""
    there = origin_of(address)
    return there == origin or (origin.startswith("http:") and there in _twin(origin))


def keep(ledger: Ledger, origin: str, data: bytes | None, today: date) -> int | None:
    """Record what a server said today, None for nothing at all; returns the leaf, or None where there is
    nothing to record. Silence is recorded only of a server that spoke before."""
    before = next(reversed(_words(ledger, origin)), None)
    if data is None and (before is None or before.body["state"] == "absent"):
        return None
    body: dict[str, Any] = {
        "row": _key(origin),
        "document": origin + WELL_KNOWN,
        "sha256": sha256(data or b"").hexdigest(),
        "clauses_sha256": clauses_digest((data or b"").decode("utf-8", "replace")),
        "bytes": len(data or b""),
        "read_on": today.isoformat(),
        "read_by": "stillhouse",
        "method": "fetched from the server",
        **_understood(data),
    }
    if before is not None and before.body == body:
        return before.index
    return ledger.append("terms_snapshot", body, {} if data is None else {"document": data})


@dataclass(frozen=True, slots=True)
class Heard:
    """`leaves` are the snapshots, `row` what the server said, None where nothing of it stands. `lifts` and
    `to_declare` are, as those of a decision, what would change that. `reason` says what a declaration lifted,
    which is `declared`."""

    leaves: tuple[int, ...]
    row: Row | None = None
    lifts: tuple[str, ...] = ()
    to_declare: tuple[str, ...] = ()
    declared: DeclaredTerms | None = None
    reason: Reason | None = None


def heard(ledger: Ledger, asked: Asked, declarations: Sequence[DeclaredTerms], today: date) -> list[Heard]:
    """What stands of what the server that is asked ever said; nothing where it never spoke. Weights at a
    server of one's own have no other server's terms.

    What it said last that can be read holds until it says otherwise. When it falls silent after that, or
    says what nobody can read, it takes back what it allowed; what it forbade stands, for silence is no leave,
    until a person who read its terms since then declares about its host. What is forbidden under http at the
    usual port is so under https as well, and the other way round; what is allowed is not.
    """
    origin = origin_of(asked.endpoint)
    if not origin or asked.access in OPEN:
        return []
    found = [
        _heard(ledger, each, asked, declarations, today, own=each == origin)
        for each in (origin, *_twin(origin))
    ]
    return [each for each in found if each is not None]


def heard_since(
    ledger: Ledger, asked: Asked, declarations: Sequence[DeclaredTerms], today: date
) -> list[Heard]:
    """What stands of what a host forbade, of whom a record tells the host alone: under any of its origins."""
    host = host_of(asked.endpoint)
    if not host or asked.access in OPEN:
        return []
    origins = dict.fromkeys(_origin(leaf) for leaf in ledger.leaves("terms_snapshot"))
    found = [
        _heard(ledger, each, asked, declarations, today, own=False)
        for each in origins
        if each and host_of(each) == host
    ]
    return [each for each in found if each is not None]


def _heard(
    ledger: Ledger, origin: str, asked: Asked, declarations: Sequence[DeclaredTerms], today: date, own: bool
) -> Heard | None:
    words = _words(ledger, origin)
    said = _last_read(words)
    since = next((leaf for leaf in words if said is None or leaf.index > said.index), None)
    faults: tuple[str, ...] = ()
    if own and since is not None and words[-1].body["state"] == "malformed":
        body = words[-1].body
        faults = (f"{body['document']} tells nothing that can be relied on: {body['fault']}",)
    forbids = said is not None and _wanted(said, asked) != {"allowed"}
    if said is None or (since is not None and not forbids):
        return Heard((words[-1].index,), lifts=faults) if faults else None
    if since is None:
        row = _row(ledger, said, asked, own)
        if not own:
            row = replace(row, lifted_by=row.lifted_by or _of_twin(origin))
        return Heard((said.index,), row) if own or forbids else None
    leaves, day = (said.index, since.index), date.fromisoformat(since.body["read_on"])
    for each in declarations:
        if asked.server in each.about and each.read_on >= day and not gap_in(each, asked.use, today):
            return Heard(leaves, lifts=faults, declared=each, reason=_lifted(origin, day, each, asked))
    lift = (
        f"{origin} says nothing since {day}, and what it forbade before stands; if its terms, read on that "
        f'day or later, allow this use, declare so, with about = ["{asked.server}"]'
    )
    row = _row(ledger, said, asked, False)
    row = replace(row, lifted_by=row.lifted_by or lift)
    return Heard(leaves, row, (lift, *faults), (asked.server,))


def resting_on(decision: Decision, offers: Sequence[Heard]) -> Decision:
    """The decision, with the declarations that lifted what a server forbade among those that it rests on."""
    declared = [each.declared for each in offers if each.declared is not None]
    reasons = [each.reason for each in offers if each.reason is not None]
    if not declared:
        return decision
    said = [reason.words() for reason in reasons] if decision.allowed else []
    return replace(
        decision,
        reason=" | ".join([decision.reason, *said]),
        reasons=(*decision.reasons, *reasons),
        declared=tuple(dict.fromkeys([*decision.declared, *declared])),
        basis="declaration" if decision.basis == "registry" else decision.basis,
    )


def _lifted(origin: str, day: date, declared: DeclaredTerms, asked: Asked) -> Reason:
    return Reason(
        row=_key(origin),
        verdict="allow",
        text=f"the terms of {origin}",
        version="",
        read_on=declared.read_on,
        read_by=declared.declared_by,
        clause="",
        clause_ref="",
        source="",
        why=(f"it forbade this until {day} and is silent since; {declared.says(asked.use, asked.server)}",),
        lifted_by="declaration",
    )


def _of_twin(origin: str) -> str:
    """What frees of a ban that is only said under the other scheme."""
    lead = " or lead to https" if origin.startswith("http:") else ""
    return (
        f"{origin} forbids it, and that counts for the other scheme too; it is asked again before each "
        f"run, so whoever runs it can let {origin}{WELL_KNOWN} say what holds now{lead}"
    )


def _wanted(leaf: Leaf, asked: Asked) -> set[Word]:
    """What a server said of such a student."""
    said = leaf.body["offer"]
    return {said["training"]} if asked.student.competes is False else {said["training"], said["competing"]}


def _row(ledger: Ledger, leaf: Leaf, asked: Asked, own: bool) -> Row:
    """What a server said, as a row. One that is not `own` tells of no terms in force of whoever answers: it
    only forbids."""
    document = ledger.contents(leaf.index).get("document")
    contact = "" if document is None else read(document).contact
    said: Mapping[str, Any] = leaf.body["offer"]
    training, competing = said["training"], said["competing"]
    origin = _origin(leaf)
    host = urlsplit(origin).hostname or ""
    wanted = _wanted(leaf, asked)
    asking = "with_permission" in wanted and "forbidden" not in wanted
    clause = (
        f"answers may train another model: {training.replace('_', ' ')}; "
        f"one that competes: {competing.replace('_', ' ')}"
    )
    names = "grantor or `servers`" if "." in host else "`servers`"
    permission = f"a permission of whoever runs {host}, whose {names} name it"
    permission += f" (ask {contact})" if contact else ""
    licence = Need(
        "model_licence", "review", "the server speaks for itself; whose weights it serves is not known"
    )
    return Row(
        key=_key(origin),
        vendor=host,
        covers=f"all answers of {host}",
        access="api" if own else "any",
        models=(),
        licence=Licence(f"the terms of {host}"),
        trains_others="yes" if training == "allowed" else "no",
        trains_competing="yes" if competing == "allowed" else "no",
        verdict="allow" if training == "allowed" else "refuse",
        liftable=asking,
        clause=clause,
        clause_ref="answers",
        version=said["version"],
        source=leaf.body["document"],
        source_seen=True,
        read_via="stillhouse",
        read_on=date.fromisoformat(leaf.body["read_on"]),
        evidence="primary",
        confidence="high",
        lifted_by=permission if asking else "",
        conditions=(licence,),
    )


def _understood(data: bytes | None) -> dict[str, Any]:
    """What the gate decides by, which stays when the document is erased; whom to ask stands there alone."""
    if data is None:
        return {"state": "absent"}
    try:
        offer = read(data)
    except ValueError as error:
        return {"state": "malformed", "fault": str(error)}
    names = ("training", "competing", "version", "text", "sha256")
    return {"state": "read", "offer": {name: getattr(offer, name) for name in names}}


def _words(ledger: Ledger, origin: str) -> list[Leaf]:
    """All that was heard of a server, in the order of the log."""
    return [leaf for leaf in ledger.leaves("terms_snapshot") if _origin(leaf) == origin]


def _last_read(words: Sequence[Leaf]) -> Leaf | None:
    return next((leaf for leaf in reversed(words) if leaf.body["state"] == "read"), None)


def _origin(leaf: Leaf) -> str:
    """Of which server a snapshot is; empty for one that no server gave. Early leaves have it as typed."""
    row = str(leaf.body.get("row", ""))
    return origin_of(row.removeprefix(OFFERED)) if row.startswith(OFFERED) else ""


def _twin(origin: str) -> list[str]:
    """The same host under the other scheme, where both are at their usual ports."""
    scheme, _, where = origin.partition("://")
    other = {"http": "https", "https": "http"}.get(scheme)
    return [f"{other}://{where}"] if other and urlsplit(origin).port is None else []


def _key(origin: str) -> str:
    return f"{OFFERED}{origin}"


def _word(holder: Mapping[str, Any], name: str) -> Word:
    said = holder.get(name)
    for word in WORDS:
        if said == word:
            return word  # type: ignore[return-value]
    raise ValueError(f"its `{name}` is none of {', '.join(WORDS)}")


def _line(holder: Mapping[str, Any], name: str) -> str:
    """A line that can be shown to a person; empty where there is none."""
    said = holder.get(name, "")
    if not isinstance(said, str) or len(said) > 200 or not said.isprintable():
        raise ValueError(f"its `{name}` is no line of at most 200 characters")
    return said
