"""Organisations, accounts and keys in SQLite or PostgreSQL; one transaction for each act and its log entry.

The log of changes is append-only, and its last number is the revision by which other processes see that
something changed, and what: writers take turns, so numbers become visible in their order.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hmac import compare_digest
from hmac import digest as hmac_digest
from typing import Any

from stillhouse.errors import StillhouseError, UsageError
from stillhouse.gateway.store.changing import (
    Act,
    Conflict,
    change,
    changed_by,
    given_limits,
    json_of,
    log,
    needs_reason,
    new_id,
    refuse_ended,
)
from stillhouse.gateway.store.counts import StoreDown
from stillhouse.gateway.store.place import CACHE_KB, place_of
from stillhouse.gateway.store.rows import (
    ONE,
    SOURCE,
    TABLES,
    Change,
    Holder,
    Kind,
    account_of,
    callers,
    change_of,
    digests_of,
    key_of,
    one_account,
    one_key,
    one_organisation,
    organisation_of,
)
from stillhouse.guard import config
from stillhouse.guard.accounts import Account, Caller, Key, Organisation, State
from stillhouse.guard.orders import (
    AccountChange,
    KeyChange,
    NewAccount,
    NewKey,
    NewOrganisation,
    OrganisationChange,
    Payment,
)
from stillhouse.ledger.database import Connection, Database, SQLite

FILE = "accounts.db"
SCHEMA = "1"
MANY_CHANGES = 1000  # after more than these a reader forgets all that it held


@dataclass(frozen=True, slots=True)
class Look:
    """What a reader learns: the revision, the digests of which something changed since the one that it knew
    (None: of any it may have), and whose those are that it asked for."""

    revision: int
    changed: frozenset[bytes] | None
    callers: Mapping[bytes, Caller]


class Register:
    """The tables, by one connection, from one thread at a time. What the database refuses is a StoreDown."""

    def __init__(self, store: config.Store, pepper: bytes) -> None:
        """Raises UsageError when the keys in it were hashed under another `pepper`."""
        self._database = place_of(store, FILE)
        self._lock = threading.Lock()
        with _told(self._database, "open"):
            self._db: Connection = self._database.connect()
            if isinstance(self._database, SQLite):
                self._db.execute(f"PRAGMA cache_size = -{CACHE_KB}")
        try:
            with self._writing("open") as db:
                for statement in TABLES:
                    db.execute(statement)
            self._settle("schema", SCHEMA, "was written by another version of stillhouse", "upgrade it")
            self._settle(
                "pepper",
                hmac_digest(pepper, b"stillhouse guard: which pepper", "sha256").hex(),
                "hashed its keys under another pepper: none of them would be found",
                "give the pepper that it was made with (store.pepper_env, or pepper.key in store.folder)",
            )
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._db.close()

    # What is read

    def look(self, revision: int, digests: Sequence[bytes]) -> Look:
        """Changes are read before the callers, so that a change between the two is told the next time."""
        with self._reading("read") as db:
            newest = db.execute("SELECT coalesce(max(id), 0) FROM change").fetchone()[0]
            changed: frozenset[bytes] | None = frozenset()
            if newest != revision:
                rows = db.execute(
                    "SELECT subject FROM change WHERE id > ? AND id <= ? ORDER BY id LIMIT ?",
                    (revision, newest, MANY_CHANGES),
                ).fetchall()
                known = revision and newest > revision and len(rows) < MANY_CHANGES
                changed = digests_of(db, (row[0] for row in rows)) if known else None
            return Look(newest, changed, callers(db, digests) if digests else {})

    def organisations(self, search: str = "", after: str = "", limit: int = 100) -> list[Organisation]:
        return [organisation_of(row) for row in self._list("organisation", search, after, limit)]

    def accounts(
        self, search: str = "", after: str = "", limit: int = 100, organisation: str | None = None
    ) -> list[Account]:
        return [
            account_of(row)
            for row in self._list("account", search, after, limit, ("organisation", organisation))
        ]

    def keys(
        self, search: str = "", after: str = "", limit: int = 100, account: str | None = None
    ) -> list[Key]:
        return [key_of(row) for row in self._list("key", search, after, limit, ("account", account))]

    def organisation(self, id: str) -> Organisation:
        with self._reading("read") as db:
            return one_organisation(db, id)

    def account(self, id: str) -> Account:
        with self._reading("read") as db:
            return one_account(db, id)

    def key(self, id: str) -> Key:
        with self._reading("read") as db:
            return one_key(db, id)

    def tiers(self) -> set[str]:
        """Those that accounts have which are not closed."""
        with self._reading("read") as db:
            return {row[0] for row in db.execute("SELECT DISTINCT tier FROM account WHERE state != 'closed'")}

    def changes(
        self, after: int = 0, limit: int = 100, subject: str | None = None, before: int | None = None
    ) -> list[Change]:
        """Those after a number, oldest first; with `before` those before it, newest first."""
        side, order = ("id > ?", "id") if before is None else ("id < ?", "id DESC")
        where, values = ("AND subject = ?", [subject]) if subject is not None else ("", [])
        with self._reading("read") as db:
            rows = db.execute(
                "SELECT id, at, who, what, subject, reason, before, after FROM change"
                f" WHERE {side} {where} ORDER BY {order} LIMIT ?",
                [after if before is None else before, *values, limit],
            ).fetchall()
        return [change_of(row) for row in rows]

    def payments(self, account: str) -> list[tuple[str, int, float, str]]:
        """Reference, billionths of a dollar, when and by whom."""
        with self._reading("read") as db:
            one_account(db, account)
            return db.execute(
                "SELECT reference, amount, at, who FROM payment WHERE account = ? ORDER BY at, reference",
                (account,),
            ).fetchall()

    def acceptances(self, account: str) -> list[tuple[str, float, str]]:
        """Version of the terms, when and by whom it was accepted."""
        with self._reading("read") as db:
            one_account(db, account)
            return db.execute(
                "SELECT version, at, who FROM acceptance WHERE account = ? ORDER BY at, version", (account,)
            ).fetchall()

    def agreements(self, account: str) -> list[tuple[str | None, float, str, str]]:
        """Every consent to training and every withdrawal (no version), oldest first: version of the terms,
        when, by whom and why."""
        with self._reading("read") as db:
            one_account(db, account)
            return db.execute(
                "SELECT version, at, who, reason FROM training WHERE account = ? ORDER BY id", (account,)
            ).fetchall()

    # What is ordered

    def add_organisation(self, act: Act, order: NewOrganisation) -> Organisation:
        made = Organisation(new_id("org"), order.name, limits=given_limits(order.limits))
        with self._writing("write to") as db:
            db.execute(
                "INSERT INTO organisation VALUES (?, ?, ?, ?, ?)",
                (made.id, made.name, made.state, made.why, json_of(made.limits)),
            )
            log(db, act, "add", f"organisation:{made.id}", {}, {"name": made.name, "limits": made.limits})
        return made

    def add_account(self, act: Act, order: NewAccount) -> Account:
        made = Account(
            new_id("acct"),
            order.organisation,
            order.name,
            order.tier,
            limits=given_limits(order.limits),
            budget=order.budget,
            consent=order.consent,
            created=act.at,
        )
        with self._writing("write to") as db:
            if made.organisation is not None:
                refuse_ended(one_organisation(db, made.organisation))
            values = asdict(made) | {"limits": json_of(made.limits), "consent": int(made.consent)}
            del values["training"], values["training_since"]  # these are acts, in a table of their own
            db.execute(f"INSERT INTO account VALUES ({', '.join('?' * len(values))})", list(values.values()))
            told = ("organisation", "name", "tier", "limits", "budget", "consent")
            log(db, act, "add", f"account:{made.id}", {}, {name: getattr(made, name) for name in told})
        return made

    def add_key(self, act: Act, account: str, order: NewKey, digest: bytes, prefix: str) -> Key:
        made = Key(
            new_id("key"),
            account,
            digest,
            prefix,
            order.name,
            models=tuple(order.models),
            created=act.at,
            expires=order.expires,
            limits=given_limits(order.limits),
        )
        with self._writing("write to") as db:
            refuse_ended(one_account(db, account))
            db.execute(
                "INSERT INTO api_key VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    *(made.id, account, made.name, made.state, made.why, json_of(made.models)),
                    *(made.created, made.expires, made.revoked, json_of(made.limits)),
                ],
            )
            db.execute("INSERT INTO secret VALUES (?, ?, ?, ?, ?)", (digest, made.id, prefix, act.at, None))
            told = ("account", "prefix", "name", "models", "expires", "limits")
            log(db, act, "add", f"key:{made.id}", {}, {name: getattr(made, name) for name in told})
        return made

    def change_organisation(self, act: Act, id: str, order: OrganisationChange) -> Organisation:
        with self._writing("write to") as db:
            change(db, act, "change", one_organisation(db, id), changed_by(order))
            return one_organisation(db, id)

    def change_account(self, act: Act, id: str, order: AccountChange) -> Account:
        with self._writing("write to") as db:
            change(db, act, "change", one_account(db, id), changed_by(order))
            return one_account(db, id)

    def change_key(self, act: Act, id: str, order: KeyChange) -> Key:
        with self._writing("write to") as db:
            change(db, act, "change", one_key(db, id), changed_by(order))
            return one_key(db, id)

    def set_state(self, act: Act, kind: Kind, id: str, state: State) -> Holder:
        """Block, unblock or close; what is closed stays so. A key is revoked in place of being closed."""
        with self._writing("write to") as db:
            before = ONE[kind](db, id)
            what = {"active": "unblock", "blocked": "block", "closed": "close"}[state]
            changed: dict[str, Any] = {
                "state": state,
                "why": "" if state == "active" else f"{act.who}: {act.reason}",
            }
            if kind == "key" and state == "closed":
                what, changed = "revoke", {"revoked": act.at, "why": changed["why"]}
            change(db, act, what, before, changed)
            return ONE[kind](db, id)

    def rotate(self, act: Act, id: str, grace_seconds: float, digest: bytes, prefix: str) -> Key:
        """A new secret for the key; the others end after `grace_seconds`, unless they end before."""
        with self._writing("write to") as db:
            before = one_key(db, id)
            refuse_ended(before)
            ends = act.at + grace_seconds
            db.execute(
                "UPDATE secret SET expires = ? WHERE key = ? AND (expires IS NULL OR expires > ?)",
                (ends, id, ends),
            )
            db.execute("INSERT INTO secret VALUES (?, ?, ?, ?, ?)", (digest, id, prefix, act.at, None))
            log(
                db,
                act,
                "rotate",
                f"key:{id}",
                {"prefix": before.prefix},
                {"prefix": prefix, "earlier_ends": ends},
            )
            return one_key(db, id)

    def pay(self, act: Act, account: str, order: Payment) -> Account:
        """Add to what was paid in. The same reference again changes nothing.

        Raises Conflict where the reference stands for another payment, or more is paid back than was in."""
        with self._writing("write to") as db:
            before = one_account(db, account)
            row = db.execute(
                "SELECT account, amount FROM payment WHERE reference = ?", (order.reference,)
            ).fetchone()
            if row is not None:
                if tuple(row) == (account, order.billionths):
                    return before
                raise Conflict(
                    f"the reference {order.reference} stands for another payment",
                    "it is recorded for another account, or with another amount",
                    "give a payment a reference of its own",
                )
            paid = before.paid + order.billionths
            if order.amount < 0 and not act.reason:
                raise needs_reason("pay back")
            if paid < 0:
                raise Conflict(
                    "more would be paid back than was paid in",
                    f"{before.paid / 1e9:.2f} US dollars were paid in",
                    "pay back less",
                )
            db.execute(
                "INSERT INTO payment VALUES (?, ?, ?, ?, ?)",
                (order.reference, account, order.billionths, act.at, act.who),
            )
            db.execute("UPDATE account SET paid = ? WHERE id = ?", (paid, account))
            told = {"paid": paid, "reference": order.reference}
            log(db, act, "pay", f"account:{account}", {"paid": before.paid}, told)
            return one_account(db, account)

    def accept(self, act: Act, account: str, version: str) -> Account:
        """Record that the account accepted a version of the terms; a second time changes nothing."""
        with self._writing("write to") as db:
            before = one_account(db, account)
            if before.accepted == version:
                return before
            db.execute(
                "INSERT INTO acceptance VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (account, version, act.at, act.who),
            )
            change(db, act, "accept terms", before, {"accepted": version})
            return one_account(db, account)

    def agree(self, act: Act, account: str, version: str | None) -> Account:
        """Record that models may be trained on the account's texts, by this version of the terms; None: not
        any more, which a closed account can say as well. What holds already changes nothing."""
        with self._writing("write to") as db:
            before = one_account(db, account)
            if version is not None:
                refuse_ended(before)
            if before.training == version:
                return before
            db.execute(
                "INSERT INTO training (account, version, at, who, reason) VALUES (?, ?, ?, ?, ?)",
                (account, version, act.at, act.who, act.reason),
            )
            what = "withdraw training" if version is None else "agree to training"
            log(db, act, what, f"account:{account}", {"training": before.training}, {"training": version})
            return one_account(db, account)

    def note(self, act: Act, what: str, account: str, told: Mapping[str, Any]) -> None:
        """Log what was done about an account outside of these tables."""
        with self._writing("write to") as db:
            one_account(db, account)
            log(db, act, what, f"account:{account}", {}, told)

    # How

    def _list(
        self,
        kind: Kind,
        search: str,
        after: str,
        limit: int,
        of: tuple[str, str | None] = ("", None),
    ) -> list[Any]:
        columns, source, letter = SOURCE[kind]
        where, values = [f"{letter}.id > ?"], [after]
        if search:
            pattern = search.lower().replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
            beside = " OR k.id IN (SELECT key FROM secret WHERE prefix = ?)" if kind == "key" else ""
            where.append(f"(lower({letter}.name) LIKE ? ESCAPE '\\' OR {letter}.id = ?{beside})")
            values += [f"%{pattern}%", search] + [search] * bool(beside)
        if of[1] is not None:
            where.append(f"{letter}.{of[0]} = ?")
            values.append(of[1])
        with self._reading("read") as db:
            return db.execute(
                f"SELECT {columns} FROM {source} WHERE {' AND '.join(where)} ORDER BY {letter}.id LIMIT ?",
                [*values, limit],
            ).fetchall()

    def _settle(self, name: str, value: str, why: str, mend: str) -> None:
        """Recorded when the register is made, and the same ever after."""
        with self._writing("open") as db:
            db.execute("INSERT INTO accounts_setting VALUES (?, ?) ON CONFLICT DO NOTHING", (name, value))
            (kept,) = db.execute("SELECT value FROM accounts_setting WHERE name = ?", (name,)).fetchone()
        if not compare_digest(kept, value):
            raise UsageError(f"the accounts in {self._database.name} cannot be used", f"it {why}", mend)

    @contextmanager
    def _reading(self, doing: str) -> Iterator[Connection]:
        with self._lock, _told(self._database, doing):
            yield self._db

    @contextmanager
    def _writing(self, doing: str) -> Iterator[Connection]:
        """A transaction in which nobody else writes. It is on disk when this ends."""
        with self._lock, _told(self._database, doing):
            self._database.begin(self._db)
            try:
                yield self._db
                self._db.commit()
            except BaseException:
                self._database.roll_back(self._db)
                raise


@contextmanager
def _told(database: Database, doing: str) -> Iterator[None]:
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        why = error.why if isinstance(error, StillhouseError) else str(error)
        if isinstance(error, StillhouseError) or database.concerns_all(error):
            raise StoreDown(
                f"could not {doing} the accounts in {database.name}",
                why,
                "see that the server runs, or that the disk has space and can be written",
            ) from error
        raise
