"""One walk through the leaves that a release shows: permission, decision, exchange, row, training.

Leaves come in the order of the log, and nothing may rest on what came later; so one pass is enough.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path, PurePath
from typing import Any

import orjson

from stillhouse.errors import LedgerError
from stillhouse.ledger import Leaf, canonical
from stillhouse.ledger.disclosure import disclosed
from stillhouse.ledger.keys import rotation_signed
from stillhouse.ledger.leaves import utc_stamp
from stillhouse.ledger.quarantine import LIFTED, SET_ASIDE

ALLOWS = ("allow", "allow_with_obligations")
Teacher = tuple[str, str]  # model, revision


@dataclass(slots=True)
class Given:
    """What a teacher gave: rows, answers that they were chosen from, and its readings of rows."""

    rows: int = 0
    answers: int = 0
    uncounted: int = 0
    readings: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first: str | None = None
    last: str | None = None
    decisions: set[int] = field(default_factory=set)

    def as_stated(self) -> dict[str, Any]:
        """By the names of `teachers.json`."""
        return {
            "rows": self.rows,
            "answers": self.answers,
            "answersWithoutCounts": self.uncounted,
            "tokensRead": self.prompt_tokens,
            "tokensWritten": self.completion_tokens,
            "firstAnswer": self.first,
            "lastAnswer": self.last,
        }


@dataclass(slots=True)
class Trail:
    """`faults` say which leaves are not what the log has, `wrongs` where a use was not allowed at its time.

    `exchanges` are (teacher, decision) by leaf, `rows` the exchanges that a row names by its leaf and
    `curated` the transform that made it, `given` is what each teacher gave; `rotations` are changes of the
    signing key that the old key signed, `lost` keys that were replaced without. Permissions whose leaf is not
    shown are `undisclosed`; `used` are the exchanges that rest on each, `counted` those of them that are in
    its volume, as it is for the teacher that was asked. `graced` exchanges say only when they were answered,
    and so had a day of grace.
    """

    seen: set[int] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)
    wrongs: list[str] = field(default_factory=list)
    decisions: dict[int, Leaf] = field(default_factory=dict)
    permissions: dict[int, Leaf] = field(default_factory=dict)
    revoked: dict[int, Leaf] = field(default_factory=dict)
    exchanges: dict[int, tuple[Teacher, int]] = field(default_factory=dict)
    rows: dict[int, tuple[int, ...]] = field(default_factory=dict)
    curated: dict[int, int] = field(default_factory=dict)
    given: dict[Teacher, Given] = field(default_factory=dict)
    used: Counter[int] = field(default_factory=Counter)
    counted: Counter[int] = field(default_factory=Counter)
    undisclosed: set[int] = field(default_factory=set)
    graced: int = 0
    held: set[int] = field(default_factory=set)
    read: set[int] = field(default_factory=set)
    rotations: list[tuple[bytes, bytes]] = field(default_factory=list)
    lost: set[bytes] = field(default_factory=set)
    transforms: set[int] = field(default_factory=set)
    trained: Leaf | None = None
    evaluated: Leaf | None = None
    release: Leaf | None = None

    @property
    def decided(self) -> int:
        return len({decision for _, decision in self.exchanges.values()})

    @property
    def permitted(self) -> int:
        return sum(used for index, used in self.used.items() if index in self.permissions)


def follow(proofs: Path, hashes: bytes) -> Trail:
    """Check every shown leaf against the log's hashes (32 bytes each), and follow what rests on what.

    Raises LedgerError where the leaves cannot be read.
    """
    trail = Trail()
    for leaf in disclosed(proofs):
        trail.seen.add(leaf.index)
        if hashes[32 * leaf.index : 32 * leaf.index + 32] != leaf.hash:
            trail.faults.append(f"leaf {leaf.index} is not the one in the log")
        elif not _plain(leaf):
            trail.faults.append(f"leaf {leaf.index} is not canonical")
        else:
            try:
                _take(trail, leaf)
            except (KeyError, TypeError, ValueError, IndexError) as error:
                trail.faults.append(f"leaf {leaf.index} is not a {leaf.kind}: it lacks {error}")
    _check_uses(trail)
    return trail


def _plain(leaf: Leaf) -> bool:
    try:
        return canonical(orjson.loads(leaf.data)) == leaf.data
    except LedgerError:
        return False


def _take(trail: Trail, leaf: Leaf) -> None:
    body = leaf.body
    if leaf.kind == "authorisation":
        trail.permissions[leaf.index] = leaf
    elif leaf.kind == "decision":
        trail.decisions[leaf.index] = leaf
    elif leaf.kind == "correction":
        _correct(trail, leaf)
    elif leaf.kind in ("exchange", "import"):
        _exchange(trail, leaf)
    elif leaf.kind == "transform":
        trail.transforms.add(leaf.index)
    elif leaf.kind == "row":
        _row(trail, leaf)
    elif leaf.kind == "train_run":
        trail.trained = leaf
    elif leaf.kind == "evaluation":
        trail.evaluated = leaf
    elif leaf.kind == "release":
        trail.release = leaf
        for name, found in (("train_run", trail.trained), ("evaluation", trail.evaluated)):
            if found is None or body[name] != found.index:
                trail.faults.append(f"the release rests on {name} {body[name]}, which is not shown")


def _correct(trail: Trail, leaf: Leaf) -> None:
    if trail.release is None and leaf.body["what"] in (SET_ASIDE, LIFTED):
        named = set(leaf.body["decisions"])
        trail.held = trail.held | named if leaf.body["what"] == SET_ASIDE else trail.held - named
    if leaf.body["what"] == "signing key replaced":
        old, new = (base64.b64decode(leaf.body[name]) for name in ("old_public_key", "new_public_key"))
        if signed := rotation_signed(leaf.body):
            trail.rotations.append((old, new))
        elif signed is None:
            trail.lost.add(old)
    elif leaf.body["what"] == "permission revoked":
        trail.revoked[leaf.body["authorisation"]] = leaf
    elif leaf.body["what"] == SET_ASIDE and "authorisation" in leaf.body:
        trail.revoked.setdefault(leaf.body["authorisation"], leaf)
    elif leaf.body["what"] == LIFTED and "authorisation" in leaf.body:
        ended = trail.revoked.get(leaf.body["authorisation"])
        if ended is not None and ended.body["what"] == SET_ASIDE:
            del trail.revoked[leaf.body["authorisation"]]


def _exchange(trail: Trail, leaf: Leaf) -> None:
    """An exchange is allowed by a decision from before it about the same teacher."""
    body = leaf.body
    asked, decision = body["teacher"], trail.decisions.get(body["decision"])
    teacher = name_of(asked["model"]), asked["revision"]
    trail.exchanges[leaf.index] = teacher, body["decision"]
    given = trail.given.setdefault(teacher, Given())
    given.decisions.add(body["decision"])
    if body.get("stage") == "read":
        given.readings += 1
        trail.read.add(body["decision"])
    else:
        read, written = body.get("prompt_tokens"), body.get("completion_tokens")
        given.answers += 1
        given.uncounted += read is None or written is None
        given.prompt_tokens += read or 0
        given.completion_tokens += written or 0
        if leaf.kind == "exchange":  # of an imported answer only the day of its import is known
            given.first, given.last = (
                min(given.first or leaf.time, leaf.time),
                max(given.last or "", leaf.time),
            )
    wrong = _not_allowed(trail, leaf, decision)
    if wrong:
        trail.wrongs.append(f"the exchange at leaf {leaf.index} {wrong}")


def _not_allowed(trail: Trail, exchange: Leaf, decision: Leaf | None) -> str:
    """Why this decision did not allow this exchange when it was made; empty when it did."""
    if decision is None:
        return f"names the decision {exchange.body['decision']}, which is not shown before it"
    body = decision.body
    if body.get("use") == "base":
        return f"rests on leaf {decision.index}, which is about the model that the student begins with"
    if body["verdict"] not in ALLOWS:
        return f"was made although leaf {decision.index} says {body['verdict']}"
    if name_of(body["teacher"]["model"]) != name_of(exchange.body["teacher"]["model"]):
        return f"asks another teacher than leaf {decision.index} is about"
    first, last = _asked_between(exchange)
    for index in permissions_of(body):
        permission = trail.permissions.get(index)
        trail.used[index] += 1
        trail.counted[index] += index in body.get("teacher_permissions", permissions_of(body))
        if permission is None and (index in trail.seen or index >= decision.index):
            return f"rests on leaf {index}, which is no permission from before it"
        if permission is None:
            trail.undisclosed.add(index)
            continue
        trail.graced += first != last
        ended = trail.revoked.get(index)
        fault = out_of_force(permission.body["permission"], first, last, ended.time if ended else None)
        if fault:
            return fault
    return ""


def _asked_between(exchange: Leaf) -> tuple[str, str]:
    """When it was asked for: at once where the leaf says so, else on the day up to its being recorded."""
    began = exchange.body.get("began")
    if began is not None:
        return began, began
    return utc_stamp(datetime.fromisoformat(exchange.time) - timedelta(days=1)), exchange.time


def name_of(model: str) -> str:
    """A teacher's name; of one that was a folder the last part, for some leaves hold the whole path."""
    path = PurePath(model)
    return path.name if path.is_absolute() else model


def permissions_of(decision: Mapping[str, Any]) -> list[int]:
    """The leaves of the written permissions that a decision rests on."""
    return list(decision.get("permissions") or ())


def out_of_force(permission: dict[str, Any], first: str, last: str, revoked: str | None) -> str:
    """Why a permission was not in force at any time between two (as leaves have it); empty when it was."""
    if last[:10] < permission["valid_from"]:
        return f"is of {last[:10]}, and its permission begins on {permission['valid_from']}"
    if permission.get("valid_to") and first[:10] > permission["valid_to"]:
        return f"is of {last[:10]}, and its permission ended with {permission['valid_to']}"
    if revoked is not None and first > revoked:
        return f"is of {last}, and its permission was revoked at {revoked}"
    return ""


def _row(trail: Trail, leaf: Leaf) -> None:
    made_from, transform = tuple(leaf.body["exchanges"]), leaf.body["transform"]
    trail.rows[leaf.index], trail.curated[leaf.index] = made_from, transform
    if transform not in trail.transforms:
        trail.faults.append(f"the row at leaf {leaf.index} is of transform {transform}, which is not shown")
    missing = [index for index in made_from if index not in trail.exchanges]
    if missing or not made_from:
        trail.faults.append(f"the row at leaf {leaf.index} names exchanges {missing} that are not shown")
        return
    trail.given[trail.exchanges[made_from[0]][0]].rows += 1


def not_trained_on(trail: Trail, release: Leaf, trained: Leaf) -> list[str]:
    """The rows that are shown and were not what was trained on: of another transform, or from after it."""
    learned = trained.body["transform"]
    faults = []
    if release.body["transform"] != learned:
        faults.append(
            f"the release is of transform {release.body['transform']}, its training learned from {learned}"
        )
    for index, transform in trail.curated.items():
        if transform != learned:
            faults.append(
                f"the row at leaf {index} is of transform {transform}, the training learned from {learned}"
            )
        elif index >= trained.index:
            faults.append(f"the row at leaf {index} came after its training at leaf {trained.index}")
    return faults


def _check_uses(trail: Trail) -> None:
    """Each teacher of the rows needs a decision that allows training; permissions have a volume."""
    if trail.release is None:
        return
    allowed = {
        name_of(leaf.body["teacher"]["model"])
        for index in trail.release.body["decisions"]
        if (leaf := trail.decisions.get(index))
        and leaf.body["use"] == "train_target"
        and leaf.body["verdict"] in ALLOWS
    }
    for model in sorted({model for model, _ in trail.given} - allowed):
        trail.wrongs.append(f"no decision that is shown allows training on answers of {model}")
    answers = {answer for row in trail.rows.values() for answer in row} & trail.exchanges.keys()
    learned = {trail.exchanges[answer][1] for answer in answers}
    for index in sorted(trail.held & {*learned, *trail.read, *trail.release.body["decisions"]}):
        trail.wrongs.append(f"the release rests on leaf {index}, which was recalled before it")
    for index, used in trail.counted.items():
        permission = trail.permissions.get(index)
        most = permission.body["permission"]["scope"].get("volume") if permission else None
        if most is not None and used > most:
            trail.wrongs.append(f"{used} exchanges rest on the permission {index}, which is for {most}")
