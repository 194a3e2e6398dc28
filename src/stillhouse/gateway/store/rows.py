"""The tables of the accounts, and what their rows say."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from sys import intern
from typing import Any, Literal

from stillhouse.errors import UsageError
from stillhouse.guard.accounts import Account, Caller, Key, Organisation, State
from stillhouse.ledger.database import Connection

Kind = Literal["organisation", "account", "key"]
Holder = Organisation | Account | Key
_STATES: Mapping[str, State] = {"active": "active", "blocked": "blocked", "closed": "closed"}  # held once

TABLES = (
    "CREATE TABLE IF NOT EXISTS accounts_setting (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT",
    """CREATE TABLE IF NOT EXISTS organisation (
         id TEXT PRIMARY KEY, name TEXT NOT NULL, state TEXT NOT NULL, why TEXT NOT NULL,
         limits TEXT NOT NULL) STRICT""",
    """CREATE TABLE IF NOT EXISTS account (
         id TEXT PRIMARY KEY, organisation TEXT REFERENCES organisation, name TEXT NOT NULL,
         tier TEXT NOT NULL, state TEXT NOT NULL, why TEXT NOT NULL, limits TEXT NOT NULL, budget REAL,
         paid INTEGER NOT NULL, accepted TEXT, consent INTEGER NOT NULL, created REAL NOT NULL) STRICT""",
    "CREATE INDEX IF NOT EXISTS account_organisation ON account (organisation)",
    """CREATE TABLE IF NOT EXISTS api_key (
         id TEXT PRIMARY KEY, account TEXT NOT NULL REFERENCES account, name TEXT NOT NULL,
         state TEXT NOT NULL, why TEXT NOT NULL, models TEXT NOT NULL, created REAL NOT NULL, expires REAL,
         revoked REAL, limits TEXT NOT NULL) STRICT""",
    "CREATE INDEX IF NOT EXISTS api_key_account ON api_key (account)",
    """CREATE TABLE IF NOT EXISTS secret (
         digest BLOB PRIMARY KEY, key TEXT NOT NULL REFERENCES api_key, prefix TEXT NOT NULL,
         created REAL NOT NULL, expires REAL) STRICT""",
    "CREATE INDEX IF NOT EXISTS secret_key ON secret (key)",
    """CREATE TABLE IF NOT EXISTS payment (
         reference TEXT PRIMARY KEY, account TEXT NOT NULL REFERENCES account, amount INTEGER NOT NULL,
         at REAL NOT NULL, who TEXT NOT NULL) STRICT""",
    "CREATE INDEX IF NOT EXISTS payment_account ON payment (account)",
    """CREATE TABLE IF NOT EXISTS acceptance (
         account TEXT NOT NULL REFERENCES account, version TEXT NOT NULL, at REAL NOT NULL,
         who TEXT NOT NULL, PRIMARY KEY (account, version)) STRICT""",
    # Only added to; the newest of an account holds, and without a version it is a withdrawal.
    """CREATE TABLE IF NOT EXISTS training (
         id INTEGER PRIMARY KEY, account TEXT NOT NULL REFERENCES account, version TEXT, at REAL NOT NULL,
         who TEXT NOT NULL, reason TEXT NOT NULL) STRICT""",
    "CREATE INDEX IF NOT EXISTS training_account ON training (account, id)",
    """CREATE TABLE IF NOT EXISTS change (
         id INTEGER PRIMARY KEY, at REAL NOT NULL, who TEXT NOT NULL, what TEXT NOT NULL,
         subject TEXT NOT NULL, reason TEXT NOT NULL, before TEXT NOT NULL, after TEXT NOT NULL) STRICT""",
    "CREATE INDEX IF NOT EXISTS change_subject ON change (subject)",
)
_ORGANISATION = "o.id, o.name, o.state, o.why, o.limits"
_ACCOUNT = (
    "a.id, a.organisation, a.name, a.tier, a.state, a.why, a.limits, a.budget, a.paid, a.accepted, "
    "a.consent, a.created, t.version, t.at"
)
_TRAINING = "LEFT JOIN training t ON t.id = (SELECT max(id) FROM training WHERE account = a.id)"
_KEY = (
    "k.id, k.account, s.digest, s.prefix, k.name, k.state, k.why, k.models, k.created, k.expires, "
    "k.revoked, k.limits, s.expires"
)
# Of a key's secrets the newest stands for it where no digest was given.
_NEWEST = (
    "JOIN secret s ON s.digest = (SELECT digest FROM secret WHERE key = k.id"
    " ORDER BY created DESC, digest LIMIT 1)"
)
SOURCE = {
    "organisation": (_ORGANISATION, "organisation o", "o"),
    "account": (_ACCOUNT, f"account a {_TRAINING}", "a"),
    "key": (_KEY, f"api_key k {_NEWEST}", "k"),
}
TABLE = {"organisation": "organisation", "account": "account", "key": "api_key"}


class NotThere(UsageError):
    """No such organisation, account or key."""


@dataclass(frozen=True, slots=True)
class Change:
    """An entry of the log: of `subject` ("account:ID") the fields that changed, as they were and are."""

    id: int
    at: float
    who: str
    what: str
    subject: str
    reason: str
    before: Mapping[str, Any]
    after: Mapping[str, Any]


def callers(db: Connection, digests: Sequence[bytes]) -> dict[bytes, Caller]:
    """What accounts have in common is held once."""
    rows = db.execute(
        f"SELECT {_KEY}, {_ACCOUNT}, {_ORGANISATION} FROM secret s JOIN api_key k ON k.id = s.key"
        f" JOIN account a ON a.id = k.account {_TRAINING} LEFT JOIN organisation o ON o.id = a.organisation"
        f" WHERE s.digest IN ({_marks(digests)})",
        list(digests),
    )
    found = {}
    for row in rows:
        account = account_of(row[13:27])
        key = key_of([row[0], account.id, *row[2:13]])
        organisation = None if row[27] is None else _shared_organisation(tuple(row[27:]))
        found[key.digest] = Caller(organisation, account, key)
    return found


def digests_of(db: Connection, subjects: Iterable[str]) -> frozenset[bytes]:
    """Of all the secrets that lead to what has changed. A key stays its account's, and an account its
    organisation's: which they are does not change."""
    ids: dict[str, set[str]] = {}
    for subject in subjects:
        kind, _, id = subject.partition(":")
        ids.setdefault(kind, set()).add(id)
    found: set[bytes] = set()
    for kind, column in (("key", "k.id"), ("account", "k.account"), ("organisation", "a.organisation")):
        if of := sorted(ids.get(kind, ())):
            found |= {
                bytes(row[0])
                for row in db.execute(
                    "SELECT s.digest FROM secret s JOIN api_key k ON k.id = s.key"
                    f" JOIN account a ON a.id = k.account WHERE {column} IN ({_marks(of)})",
                    of,
                )
            }
    return frozenset(found)


def _marks(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values))


@lru_cache(4096)
def _shared_organisation(row: tuple[Any, ...]) -> Organisation:
    return organisation_of(row)


@lru_cache(4096)
def _limits(text: str) -> Mapping[str, int]:
    limits: Mapping[str, int] = json.loads(text)
    return limits


def organisation_of(row: Sequence[Any]) -> Organisation:
    id, name, state, why, limits = row
    return Organisation(id, name, state, why, _limits(limits))


def account_of(row: Sequence[Any]) -> Account:
    id, organisation, name, tier, state, why, limits, budget, paid, accepted, consent, created = row[:12]
    training, since = row[12:]
    return Account(
        id,
        organisation and intern(organisation),
        name,
        intern(tier),
        _STATES[state],
        why,
        _limits(limits),
        budget,
        paid,
        accepted and intern(accepted),
        bool(consent),
        created,
        training and intern(training),
        since if training else None,
    )


def key_of(row: Sequence[Any]) -> Key:
    id, account, digest, prefix, name, state, why, models, created, expires, revoked, limits, ends = row
    moments = [moment for moment in (expires, ends) if moment is not None]
    return Key(
        id,
        account,
        bytes(digest),
        prefix,
        name,
        _STATES[state],
        why,
        tuple(json.loads(models)),
        created,
        min(moments) if moments else None,
        revoked,
        _limits(limits),
    )


def change_of(row: Sequence[Any]) -> Change:
    id, at, who, what, subject, reason, before, after = row
    return Change(id, at, who, what, subject, reason, json.loads(before), json.loads(after))


def _one(db: Connection, kind: Kind, id: str) -> Sequence[Any]:
    columns, source, letter = SOURCE[kind]
    row = db.execute(f"SELECT {columns} FROM {source} WHERE {letter}.id = ?", (id,)).fetchone()
    if row is None:
        raise NotThere(
            f"there is no {kind} {id}", "the accounts hold none of this id", "list them to find it"
        )
    found: Sequence[Any] = row
    return found


def one_organisation(db: Connection, id: str) -> Organisation:
    return organisation_of(_one(db, "organisation", id))


def one_account(db: Connection, id: str) -> Account:
    return account_of(_one(db, "account", id))


def one_key(db: Connection, id: str) -> Key:
    return key_of(_one(db, "key", id))


ONE: Mapping[Kind, Callable[[Connection, str], Holder]] = {
    "organisation": one_organisation,
    "account": one_account,
    "key": one_key,
}
