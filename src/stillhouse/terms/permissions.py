"""A written permission: what it covers, whether it is in force, and what is signed of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from fnmatch import fnmatchcase
from typing import Any

from stillhouse.ledger import canonical
from stillhouse.ledger.keys import pre_authentication
from stillhouse.terms.facts import Asked, Mode, Row, Use, host_of
from stillhouse.text import host_name

OFFERED = "offered:"  # keys of rows that a server told of itself begin so
PAYLOAD_TYPE = "application/vnd.stillhouse.permission+json"


@dataclass(frozen=True, slots=True)
class Scope:
    """What is permitted. `models` and `students` are shell patterns without regard to case; `volume` is how
    many exchanges in all; `servers` are patterns of hosts (`import` for imported answers), and only these are
    covered where a server's own terms are not known. Weights that no server has are none of theirs, but of
    `*`. Otherwise an empty field but `models` and `uses` limits nothing."""

    models: tuple[str, ...]
    uses: tuple[Use, ...]
    volume: int | None = None
    competing: bool = False
    students: tuple[str, ...] = ()
    modes: tuple[Mode, ...] = ()
    territory: tuple[str, ...] = ()
    servers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Permission:
    """`valid_from` and `valid_to` are its first and last day (UTC). `leaf` is where it is recorded, `used`
    how many exchanges were had under it, `revoked` the leaf that ended it, `recalled` the one that recalled
    it, `fault` what is wrong with its signatures."""

    id: str
    grantor: str
    grantee: str
    signatory: str
    document: str
    document_sha256: str
    scope: Scope
    valid_from: date
    valid_to: date | None
    revocable: bool
    approver: str
    disclosure: bool
    leaf: int = -1
    used: int = 0
    revoked: int | None = None
    recalled: int | None = None
    fault: str = ""

    @property
    def used_up(self) -> bool:
        return self.scope.volume is not None and self.used >= self.scope.volume

    def names(self, asked: Asked) -> bool:
        return fits(asked.model, self.scope.models)

    def covers_server(self, asked: Asked) -> bool:
        return fits(asked.server, map(host_name, self.scope.servers))

    def speaks_for(self, row: Row) -> bool:
        """Whether whoever granted it can permit what this row's text does not: only its own author can.

        Of what a server told of itself that is whoever runs it. A maker's name may be made of the very words
        of a host, so there the permission has to name the host itself, whole: in `servers`, without a
        wildcard, or in the grantor, where it has a dot and so is seen to be a host.
        """
        if row.key.startswith(OFFERED):
            words = map(host_of, re.split(r"[\s,;()<>\"'`]+", self.grantor))
            hosts = {word for word in words if "." in word}
            return row.vendor in hosts | set(map(host_name, self.scope.servers))
        said = _words(self.grantor)
        vendors = [_words(name) - {"others"} for name in row.vendor.split("/")]
        return any(words and words <= said for words in vendors)


def why_not(permission: Permission, asked: Asked, today: date, further: int = 1) -> str:
    """Why a permission is not in force for what is asked; empty where it is. `further` is how many exchanges
    are still wanted."""
    scope, student = permission.scope, asked.student
    if permission.fault:
        return permission.fault
    if permission.revoked is not None:
        return f"it was revoked (leaf {permission.revoked})"
    if permission.recalled is not None:
        return f"it was recalled (leaf {permission.recalled}); `stillhouse ledger recall --lift` undoes that"
    if today < permission.valid_from:
        return f"it is not valid before {permission.valid_from}"
    if permission.valid_to is not None and today > permission.valid_to:
        return f"it ended on {permission.valid_to}"
    if not permission.names(asked):
        return f"it is for {', '.join(scope.models)}, not for {asked.model}"
    if scope.servers and not permission.covers_server(asked):
        return (
            f"it is for answers of {', '.join(scope.servers)}, not of {asked.server or 'weights in a folder'}"
        )
    if asked.use not in scope.uses:
        return f"it is for {', '.join(scope.uses)}, not for {asked.use}"
    if not scope.competing and student.competes is not False:
        return "it is for a student that does not compete, and nobody said that this one does not"
    if scope.students and not fits(student.name, scope.students):
        return f"it is for a student called {', '.join(scope.students)}, not {student.name}"
    if scope.modes and student.mode not in scope.modes:
        return f"it is for a student given out as {', '.join(scope.modes)}, not as {student.mode}"
    if scope.territory:
        if asked.operator.territory is None:
            return "it is limited to places, and nobody said `territory` in .stillhouse/operator.toml"
        if asked.operator.territory.upper() not in {place.upper() for place in scope.territory}:
            return f"it is for {', '.join(scope.territory)}, not for {asked.operator.territory}"
    if scope.volume is not None and permission.used + further > scope.volume:
        return f"it is used up: {permission.used:,} of {scope.volume:,} exchanges"
    return ""


def statement(permission: Permission) -> dict[str, Any]:
    """What is signed, as JSON: all but what the ledger knows beside it."""
    scope = permission.scope
    return {
        "id": permission.id,
        "grantor": permission.grantor,
        "grantee": permission.grantee,
        "signatory": permission.signatory,
        "document": {"name": permission.document, "sha256": permission.document_sha256},
        "scope": {
            "models": list(scope.models),
            "uses": list(scope.uses),
            "volume": scope.volume,
            "competing": scope.competing,
            "students": list(scope.students),
            "modes": list(scope.modes),
            "territory": list(scope.territory),
            # Left out where it says nothing, so that what was signed before there were any stays the same
            **({"servers": list(scope.servers)} if scope.servers else {}),
        },
        "valid_from": permission.valid_from.isoformat(),
        "valid_to": permission.valid_to and permission.valid_to.isoformat(),
        "revocable": permission.revocable,
        "approver": permission.approver,
        "disclosure": permission.disclosure,
    }


def from_statement(said: Mapping[str, Any]) -> Permission:
    """Raises KeyError, TypeError or ValueError for what is no such statement."""
    scope = said["scope"]
    ends = said["valid_to"]
    return Permission(
        said["id"],
        said["grantor"],
        said["grantee"],
        said["signatory"],
        said["document"]["name"],
        said["document"]["sha256"],
        Scope(
            tuple(scope["models"]),
            tuple(scope["uses"]),
            scope["volume"],
            scope["competing"],
            tuple(scope["students"]),
            tuple(scope["modes"]),
            tuple(scope["territory"]),
            tuple(scope.get("servers", ())),
        ),
        date.fromisoformat(said["valid_from"]),
        None if ends is None else date.fromisoformat(ends),
        said["revocable"],
        said["approver"],
        said["disclosure"],
    )


def to_sign(said: Mapping[str, Any]) -> bytes:
    """The bytes under a signature: DSSE's pre-authentication encoding of the canonical JSON."""
    return pre_authentication(PAYLOAD_TYPE, canonical(dict(said)))


def _words(name: str) -> set[str]:
    return set(re.findall(r"[^\W_]+", name.casefold()))


def fits(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of these shell patterns is a name's, without regard to case."""
    return any(fnmatchcase(name.casefold(), pattern.casefold()) for pattern in patterns)
