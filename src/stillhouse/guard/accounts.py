"""Who may ask: organisations, their accounts, and the keys of these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

State = Literal["active", "blocked", "closed"]


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
    its texts may be kept."""

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


@dataclass(frozen=True, slots=True)
class Key:
    """`digest` is the HMAC-SHA256 of the secret under the pepper: the secret itself is shown once and kept
    nowhere. `prefix` is what of it may be seen. `models` bounds what it may ask; empty: as its account."""

    id: str
    account: str
    digest: bytes
    prefix: str
    name: str = ""
    models: tuple[str, ...] = ()
    created: float = 0.0
    expires: float | None = None
    revoked: float | None = None
    limits: Mapping[str, int] = field(default_factory=dict)
