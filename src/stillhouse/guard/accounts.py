"""Who may ask: organisations, their accounts, and the keys of these."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from hmac import digest as hmac_digest
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from stillhouse.guard.config import Tier

State = Literal["active", "blocked", "closed"]

BEGINNING = "sk-still-"
_LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_RANDOM = 32  # bytes of a secret
_BODY, _CHECK = 43, 6  # letters that hold these bytes, and their CRC-32
_SHOWN = len(BEGINNING) + 6
SECRET = re.compile(rf"{BEGINNING}[0-9A-Za-z]{{{_BODY + _CHECK}}}")


@dataclass(frozen=True, slots=True)
class Organisation:
    """`limits` are over all of its accounts, as in `config.Limits`; `why` says who blocked it and why."""

    id: str
    name: str
    state: State = "active"
    why: str = ""
    limits: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Account:
    """A customer. `limits` go before its tier's; `budget` (US dollars a month) too; `paid` is what was paid
    in, in billionths of a dollar. `accepted` is the version of the terms that it agreed to, `consent` whether
    its texts may be kept. `training` is the version of the terms under which it agreed that models may be
    trained on its texts, since when (unix seconds); None where it never did, or took that back."""

    id: str
    organisation: str | None
    name: str
    tier: str
    state: State = "active"
    why: str = ""
    limits: Mapping[str, int] = field(default_factory=dict)
    budget: float | None = None
    paid: int = 0
    accepted: str | None = None
    consent: bool = False
    created: float = 0.0
    training: str | None = None
    training_since: float | None = None


@dataclass(frozen=True, slots=True)
class Key:
    """`digest` is the HMAC-SHA256 of the secret under the pepper: the secret itself is shown once and kept
    nowhere. `prefix` is what of it may be seen. `models` bounds what it may ask; empty: as its account.

    A rotated key keeps its id and its limits; for some time it has two secrets, of which the old one ends
    earlier: `digest`, `prefix` and `expires` are those of the secret by which it was found."""

    id: str
    account: str
    digest: bytes
    prefix: str
    name: str = ""
    state: State = "active"
    why: str = ""
    models: tuple[str, ...] = ()
    created: float = 0.0
    expires: float | None = None
    revoked: float | None = None
    limits: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose key it is."""

    organisation: Organisation | None
    account: Account
    key: Key


STANDINGS: Mapping[str, str] = {
    "organisation_blocked": "The organisation of this account is blocked.",
    "organisation_closed": "The organisation of this account is closed.",
    "account_blocked": "This account is blocked.",
    "account_closed": "This account is closed.",
    "key_blocked": "This key is blocked.",
    "key_revoked": "This key was revoked.",
    "key_expired": "This key has expired.",
    "terms_not_accepted": "This account has not accepted the terms as they are now.",
}


def mint(pepper: bytes, random: bytes) -> tuple[str, bytes, str]:
    """A new secret of 32 `random` bytes, its digest under `pepper`, and what of it may be shown.

    The secret is `sk-still-`, the bytes in base 62 and the CRC-32 of these letters, so that typing errors
    are told at once and scanners of source code know one from a mere look-alike.
    """
    if len(random) != _RANDOM:
        raise ValueError(f"a secret is made of {_RANDOM} bytes, not of {len(random)}")
    body = _base62(int.from_bytes(random, "big"), _BODY)
    secret = BEGINNING + body + _checksum(body)
    return secret, hmac_digest(pepper, secret.encode(), "sha256"), secret[:_SHOWN]


def well_formed(secret: str) -> bool:
    """Whether it can be a secret of ours: told from its letters alone, and so of no help in guessing one."""
    if SECRET.fullmatch(secret) is None:
        return False
    body, check = secret[len(BEGINNING) : -_CHECK], secret[-_CHECK:]
    return _checksum(body) == check


def digest_of(pepper: bytes, secret: str) -> bytes | None:
    """By which a secret is looked up, or None where it is none of ours.

    What is compared afterwards are digests: how long that takes tells nothing of a secret to whoever does
    not know the pepper.
    """
    return hmac_digest(pepper, secret.encode(), "sha256") if well_formed(secret) else None


def standing(caller: Caller, now: float, terms_version: str | None, must_accept: bool) -> str:
    """Why this caller is refused, one of `STANDINGS`; empty when it is not. `now` in unix seconds."""
    key, account, organisation = caller.key, caller.account, caller.organisation
    if key.revoked is not None:
        return "key_revoked"
    if key.expires is not None and key.expires <= now:
        return "key_expired"
    if key.state != "active":
        return "key_blocked"
    if account.state != "active":
        return f"account_{account.state}"
    if organisation is not None and organisation.state != "active":
        return f"organisation_{organisation.state}"
    if must_accept and terms_version is not None and account.accepted != terms_version:
        return "terms_not_accepted"
    return ""


def may_ask(caller: Caller, tier: Tier, model: str) -> bool:
    """Whether the account's tier and the key name the model, or a pattern that fits it."""
    models = caller.key.models
    return _named(model, tier.models) and (not models or _named(model, models))


def harms(before: Mapping[str, object], after: Mapping[str, object]) -> bool:
    """Whether a change takes something from whom it concerns, so that it needs a reason. Both hold the
    changed fields. A tier may be worth more or less, so another one counts as less."""
    return any(_less(name, before.get(name), value) for name, value in after.items())


def _less(name: str, before: object, after: object) -> bool:
    match name:
        case "state":
            return after != "active"
        case "tier" | "revoked":
            return before != after
        case "limits":
            return _tighter(before, after)
        case "budget" | "expires":
            return isinstance(after, int | float) and (not isinstance(before, int | float) or after < before)
        case "models":
            assert isinstance(before, Iterable)
            assert isinstance(after, Iterable)
            return bool(set(after)) and not (set(before) and set(before) <= set(after))
    return False


def _tighter(before: object, after: object) -> bool:
    """Whether a limit is new or lower. One taken away leaves the tier's, which may be lower: that counts."""
    assert isinstance(before, Mapping)
    assert isinstance(after, Mapping)
    return any(name not in after or after[name] < limit for name, limit in before.items()) or bool(
        set(after) - set(before)
    )


def _named(model: str, patterns: Iterable[str]) -> bool:
    return any(pattern in ("*", model) or fnmatchcase(model, pattern) for pattern in patterns)


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), _CHECK)


def _base62(number: int, length: int) -> str:
    letters = []
    for _ in range(length):
        number, rest = divmod(number, 62)
        letters.append(_LETTERS[rest])
    return "".join(reversed(letters))
