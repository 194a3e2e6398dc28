"""What the administration can do: the same for the admin API and the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from secrets import token_bytes
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import orjson
from pydantic import BaseModel

from stillhouse.errors import LedgerError, UsageError
from stillhouse.gateway.store.changing import Act, Conflict
from stillhouse.gateway.store.counts import StoreDown
from stillhouse.gateway.store.register import Register
from stillhouse.gateway.store.rows import Change, Kind, NotThere
from stillhouse.guard import orders
from stillhouse.guard.accounts import Account, Key, Organisation, State, mint
from stillhouse.guard.config import Guard
from stillhouse.guard.reading import checked_tier

if TYPE_CHECKING:
    from stillhouse.gateway.steps import Steps
    from stillhouse.gateway.texts import Erased

AnyShown = TypeVar("AnyShown")


@dataclass(frozen=True, slots=True)
class ShownKey:
    """A key without its digest; `prefix` is what of its newest secret may be seen."""

    id: str
    account: str
    prefix: str
    name: str
    state: State
    why: str
    models: tuple[str, ...]
    created: float
    expires: float | None
    revoked: float | None
    limits: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class NewSecret:
    """The only time that the secret is shown."""

    key: ShownKey
    secret: str


@dataclass(frozen=True, slots=True)
class Listed(Generic[AnyShown]):
    """`next` is where the next page goes on; None: this was the last."""

    data: list[AnyShown]
    next: str | int | None = None


@dataclass(frozen=True, slots=True)
class PaidIn:
    """`amount` in billionths of a US dollar, `at` in unix seconds."""

    reference: str
    amount: int
    at: float
    who: str


@dataclass(frozen=True, slots=True)
class Accepted:
    version: str
    at: float
    who: str


@dataclass(frozen=True, slots=True)
class Agreed:
    """A consent to training, by a version of the terms; None: it was taken back."""

    version: str | None
    at: float
    who: str
    reason: str


@dataclass(frozen=True, slots=True)
class ErasedTexts:
    """`complete` is False where another process was reading them just then: give the order again."""

    account: str
    texts: int
    complete: bool


@dataclass(frozen=True, slots=True)
class Desk:
    """What an operation works with. `erase` erases the kept texts of an account, `forget` what is known of
    its requests; `steps` answers questions about where accounts stand, None where that is not known."""

    register: Register
    config: Guard
    pepper: bytes
    erase: Callable[[str], Erased]
    forget: Callable[[str, Act], object]
    steps: Callable[[Callable[[Steps], Any]], Any] | None = None


@dataclass(frozen=True, slots=True)
class Operation:
    """`run` gets the desk, the id in the path (or ""), the order and the act. The order is the body, and the
    query where the method has no body."""

    name: str
    method: Literal["GET", "POST", "PATCH", "DELETE"]
    path: str
    summary: str
    run: Callable[[Desk, str, Any, Act], Any]
    answer: Any
    order: type[BaseModel] | None = None
    status: int = 200

    @property
    def has_body(self) -> bool:
        return self.order is not None and self.method in ("POST", "PATCH")


def list_organisations(desk: Desk, _: str, page: orders.Page, act: Act) -> Listed[Organisation]:
    return _listed(desk.register.organisations(page.search, page.after, page.limit), page.limit)


def list_accounts(desk: Desk, _: str, page: orders.AccountsPage, act: Act) -> Listed[Account]:
    found = desk.register.accounts(page.search, page.after, page.limit, page.organisation)
    return _listed(found, page.limit)


def list_keys(desk: Desk, _: str, page: orders.KeysPage, act: Act) -> Listed[ShownKey]:
    found = desk.register.keys(page.search, page.after, page.limit, page.account)
    return _listed([shown(key) for key in found], page.limit)


def list_changes(desk: Desk, _: str, page: orders.ChangesPage, act: Act) -> Listed[Change]:
    return _listed(desk.register.changes(page.after, page.limit, page.subject), page.limit)


def list_payments(desk: Desk, id: str, _: None, act: Act) -> Listed[PaidIn]:
    return Listed([PaidIn(*row) for row in desk.register.payments(id)])


def list_acceptances(desk: Desk, id: str, _: None, act: Act) -> Listed[Accepted]:
    return Listed([Accepted(*row) for row in desk.register.acceptances(id)])


def list_agreements(desk: Desk, id: str, _: None, act: Act) -> Listed[Agreed]:
    return Listed([Agreed(*row) for row in desk.register.agreements(id)])


def show_organisation(desk: Desk, id: str, _: None, act: Act) -> Organisation:
    return desk.register.organisation(id)


def show_account(desk: Desk, id: str, _: None, act: Act) -> Account:
    return desk.register.account(id)


def show_key(desk: Desk, id: str, _: None, act: Act) -> ShownKey:
    return shown(desk.register.key(id))


def add_organisation(desk: Desk, _: str, order: orders.NewOrganisation, act: Act) -> Organisation:
    return desk.register.add_organisation(act, order)


def add_account(desk: Desk, _: str, order: orders.NewAccount, act: Act) -> Account:
    checked_tier(desk.config, order.tier)
    return desk.register.add_account(act, order)


def add_key(desk: Desk, account: str, order: orders.NewKey, act: Act) -> NewSecret:
    if order.expires is not None and order.expires <= act.at:
        raise UsageError("the key would have expired already", "`expires` is past", "give a later moment")
    secret, digest, prefix = mint(desk.pepper, token_bytes(32))
    return NewSecret(shown(desk.register.add_key(act, account, order, digest, prefix)), secret)


def change_organisation(desk: Desk, id: str, order: orders.OrganisationChange, act: Act) -> Organisation:
    return desk.register.change_organisation(act, id, order)


def change_account(desk: Desk, id: str, order: orders.AccountChange, act: Act) -> Account:
    if order.tier is not None:
        checked_tier(desk.config, order.tier)
    return desk.register.change_account(act, id, order)


def change_key(desk: Desk, id: str, order: orders.KeyChange, act: Act) -> ShownKey:
    return shown(desk.register.change_key(act, id, order))


def rotate_key(desk: Desk, id: str, order: orders.Rotation, act: Act) -> NewSecret:
    secret, digest, prefix = mint(desk.pepper, token_bytes(32))
    return NewSecret(shown(desk.register.rotate(act, id, order.grace_seconds, digest, prefix)), secret)


def pay_in(desk: Desk, id: str, order: orders.Payment, act: Act) -> Account:
    return desk.register.pay(act, id, order)


def accept_terms(desk: Desk, id: str, order: orders.Acceptance, act: Act) -> Account:
    """On behalf of the account, as when it signed on paper. Raises Conflict for another version than the
    present one."""
    _present(desk, order.version, "these terms cannot be accepted")
    return desk.register.accept(act, id, order.version)


def agree_training(desk: Desk, id: str, order: orders.Agreement, act: Act) -> Account:
    """As the account said so. Raises Conflict for another version than the present one."""
    _present(desk, order.version, "nobody can agree to training by these terms")
    return desk.register.agree(act, id, order.version)


def withdraw_training(desk: Desk, id: str, order: orders.Perhaps, act: Act) -> Account:
    return desk.register.agree(act, id, None)


def _present(desk: Desk, version: str, what: str) -> None:
    terms = desk.config.terms
    if terms is None or version != terms.version:
        now = "there are none" if terms is None else f"they are in version {terms.version}"
        raise Conflict(what, now, "name the present version")


def erase_texts(desk: Desk, id: str, order: orders.Because, act: Act) -> ErasedTexts:
    """Raises StoreDown when what waits to be written cannot be."""
    desk.register.account(id)
    try:
        erased = ErasedTexts(id, *desk.erase(id))
    except TimeoutError as error:
        why = "those that came last are not written yet"
        raise StoreDown("the texts are not erased", why, "see that the disk has space") from error
    desk.register.note(act, "erase texts", id, {"texts": erased.texts})
    return erased


def prove_event(desk: Desk, id: str, _: None, act: Act) -> dict[str, Any]:
    """Raises NotThere, and Conflict where there is nothing to show yet, or here."""
    from stillhouse.gateway.served import NoSuchEvent, proof_in

    try:
        found: dict[str, Any] = orjson.loads(proof_in(desk.config.store, id))
    except NoSuchEvent as error:
        raise NotThere(error.what, error.why, error.mend) from error
    except LedgerError as error:
        raise Conflict(error.what, error.why, error.mend) from error
    return found


def set_state(kind: Kind, state: State) -> Callable[[Desk, str, Any, Act], Any]:
    def run(desk: Desk, id: str, order: Any, act: Act) -> Any:
        done = desk.register.set_state(act, kind, id, state)
        if kind == "account" and state == "closed":
            desk.forget(id, act)
        return shown(done) if isinstance(done, Key) else done

    return run


def shown(key: Key) -> ShownKey:
    return ShownKey(**{one.name: getattr(key, one.name) for one in fields(ShownKey)})


def _listed(data: list[AnyShown], limit: int) -> Listed[AnyShown]:
    last: Any = data[-1] if len(data) == limit else None
    return Listed(data, last and last.id)


def _states(kind: Kind) -> tuple[tuple[str, State, str, type[BaseModel]], ...]:
    end = "revoke" if kind == "key" else "close"
    return (
        ("block", "blocked", "Block it until it is unblocked.", orders.Because),
        ("unblock", "active", "Unblock it.", orders.Perhaps),
        (end, "closed", f"{end.capitalize()} it for ever.", orders.Because),
    )


API = "/admin/api"
_HOLDERS: tuple[tuple[Kind, Any], ...] = (
    ("organisation", Organisation),
    ("account", Account),
    ("key", ShownKey),
)
OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "list_organisations",
        "GET",
        f"{API}/organisations",
        "Organisations by id.",
        list_organisations,
        Listed[Organisation],
        orders.Page,
    ),
    Operation(
        "add_organisation",
        "POST",
        f"{API}/organisations",
        "Add an organisation.",
        add_organisation,
        Organisation,
        orders.NewOrganisation,
        201,
    ),
    Operation(
        "show_organisation",
        "GET",
        f"{API}/organisations/{{id}}",
        "One organisation.",
        show_organisation,
        Organisation,
    ),
    Operation(
        "change_organisation",
        "PATCH",
        f"{API}/organisations/{{id}}",
        "Change its name or limits.",
        change_organisation,
        Organisation,
        orders.OrganisationChange,
    ),
    Operation(
        "list_accounts",
        "GET",
        f"{API}/accounts",
        "Accounts by id.",
        list_accounts,
        Listed[Account],
        orders.AccountsPage,
    ),
    Operation(
        "add_account",
        "POST",
        f"{API}/accounts",
        "Add an account.",
        add_account,
        Account,
        orders.NewAccount,
        201,
    ),
    Operation("show_account", "GET", f"{API}/accounts/{{id}}", "One account.", show_account, Account),
    Operation(
        "change_account",
        "PATCH",
        f"{API}/accounts/{{id}}",
        "Change its name, tier, limits, budget or consent.",
        change_account,
        Account,
        orders.AccountChange,
    ),
    Operation(
        "list_payments",
        "GET",
        f"{API}/accounts/{{id}}/payments",
        "What was paid in.",
        list_payments,
        Listed[PaidIn],
    ),
    Operation(
        "pay_in",
        "POST",
        f"{API}/accounts/{{id}}/payments",
        "Add to what was paid in; once for each reference.",
        pay_in,
        Account,
        orders.Payment,
    ),
    Operation(
        "list_acceptances",
        "GET",
        f"{API}/accounts/{{id}}/acceptances",
        "Which terms it accepted.",
        list_acceptances,
        Listed[Accepted],
    ),
    Operation(
        "accept_terms",
        "POST",
        f"{API}/accounts/{{id}}/acceptances",
        "Record that it accepted the terms.",
        accept_terms,
        Account,
        orders.Acceptance,
    ),
    Operation(
        "list_agreements",
        "GET",
        f"{API}/accounts/{{id}}/training",
        "When it agreed that models may be trained on its texts, and took that back.",
        list_agreements,
        Listed[Agreed],
    ),
    Operation(
        "agree_training",
        "POST",
        f"{API}/accounts/{{id}}/training",
        "Record that it agreed that models may be trained on its texts.",
        agree_training,
        Account,
        orders.Agreement,
    ),
    Operation(
        "withdraw_training",
        "POST",
        f"{API}/accounts/{{id}}/training/withdraw",
        "Record that it took that back.",
        withdraw_training,
        Account,
        orders.Perhaps,
    ),
    Operation(
        "erase_texts",
        "POST",
        f"{API}/accounts/{{id}}/texts/erase",
        "Erase its kept prompts and answers.",
        erase_texts,
        ErasedTexts,
        orders.Because,
    ),
    Operation(
        "prove_event",
        "GET",
        f"{API}/events/{{id}}/proof",
        "What shows that an event was recorded.",
        prove_event,
        dict[str, Any],
    ),
    Operation(
        "add_key",
        "POST",
        f"{API}/accounts/{{id}}/keys",
        "Add a key; its secret is in this answer only.",
        add_key,
        NewSecret,
        orders.NewKey,
        201,
    ),
    Operation("list_keys", "GET", f"{API}/keys", "Keys by id.", list_keys, Listed[ShownKey], orders.KeysPage),
    Operation("show_key", "GET", f"{API}/keys/{{id}}", "One key.", show_key, ShownKey),
    Operation(
        "change_key",
        "PATCH",
        f"{API}/keys/{{id}}",
        "Change its name, models, expiry or limits.",
        change_key,
        ShownKey,
        orders.KeyChange,
    ),
    Operation(
        "rotate_key",
        "POST",
        f"{API}/keys/{{id}}/rotate",
        "Give it a new secret; the old one ends after a while.",
        rotate_key,
        NewSecret,
        orders.Rotation,
    ),
    *(
        Operation(
            f"{verb}_{kind}",
            "POST",
            f"{API}/{kind}s/{{id}}/{verb}",
            says,
            set_state(kind, state),
            answer,
            order,
        )
        for kind, answer in _HOLDERS
        for verb, state, says, order in _states(kind)
    ),
    Operation(
        "list_changes",
        "GET",
        f"{API}/changes",
        "Every act, oldest first.",
        list_changes,
        Listed[Change],
        orders.ChangesPage,
    ),
)
BY_NAME: Mapping[str, Operation] = {operation.name: operation for operation in OPERATIONS}
