"""What an operator may order about organisations, accounts and keys, or look for: each with its bounds."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Self

from pydantic import Field, model_validator

from stillhouse.guard.config import Dollars, Limits, Name
from stillhouse.recipe.base import Table

# Nothing that ends a line of a log, moves the cursor, hides or turns the direction of what is shown.
SHOWN = r"^[^\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]*$"

Called = Annotated[str, Field(min_length=1, max_length=200, pattern=SHOWN)]
Reason = Annotated[str, Field(max_length=500, pattern=SHOWN, description="Why, for those who read it later.")]
Id = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-]+$")]
Pattern = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:/*?-]{1,128}$")]
Models = Annotated[
    list[Pattern], Field(max_length=50, description="Names or patterns; none: as its account.")
]
Moment = Annotated[float, Field(gt=0, le=4e9, description="Unix seconds.")]

_ALL = "All that shall hold from now on."
BILLION = 1_000_000_000


class NewOrganisation(Table):
    name: Called
    limits: Limits = Limits()


class OrganisationChange(Table):
    """Only what is given changes. `reason` is needed where a limit is lowered or added."""

    name: Called | None = None
    limits: Limits | None = Field(default=None, description=_ALL)
    reason: Reason = ""


class NewAccount(Table):
    name: Called
    organisation: Id | None = None
    tier: Name = "default"
    limits: Limits = Field(default=Limits(), description="These go before the tier's.")
    budget: Dollars | None = Field(default=None, description="US dollars a calendar month (UTC).")
    consent: bool = Field(default=False, description="It agreed that its texts may be kept.")


class AccountChange(Table):
    """Only what is given changes. `reason` is needed where something is lowered, and for another tier."""

    name: Called | None = None
    tier: Name | None = None
    limits: Limits | None = Field(default=None, description=_ALL)
    budget: Dollars | None = Field(default=None, description="null: as its tier.")
    consent: bool | None = None
    reason: Reason = ""


class NewKey(Table):
    name: Annotated[str, Field(max_length=200, pattern=SHOWN)] = ""
    models: Models = Field(default=[])
    expires: Moment | None = None
    limits: Limits = Limits()


class KeyChange(Table):
    """Only what is given changes. `reason` is needed where something is lowered."""

    name: Annotated[str, Field(max_length=200, pattern=SHOWN)] | None = None
    models: Models | None = None
    expires: Moment | None = Field(default=None, description="null: never.")
    limits: Limits | None = Field(default=None, description=_ALL)
    reason: Reason = ""


class Because(Table):
    """Why somebody is blocked, closed or revoked."""

    reason: Annotated[str, Field(min_length=1, max_length=500, pattern=SHOWN)]


class Perhaps(Table):
    """Why, if there is something to say."""

    reason: Reason = ""


class Rotation(Table):
    """A new secret for the same key; the old one goes on for `grace_seconds`."""

    grace_seconds: float = Field(default=86_400.0, ge=0, le=90 * 86_400)
    reason: Reason = ""


class Payment(Table):
    """Paid in, in US dollars; the same `reference` counts once. Below 0 it is paid back, for a `reason`."""

    amount: Decimal = Field(ge=-1_000_000, le=1_000_000, decimal_places=9)
    reference: Called
    reason: Reason = ""

    @property
    def billionths(self) -> int:
        return int(self.amount * BILLION)

    @model_validator(mode="after")
    def is_something(self) -> Self:
        if not self.amount:
            raise ValueError("nothing is paid")
        return self


class Agreement(Table):
    """Models may be trained on its texts, by the terms as they are in this version."""

    version: Annotated[str, Field(min_length=1, max_length=64, pattern=SHOWN)]
    reason: Reason = ""


class Acceptance(Table):
    """The terms, as they are in this version, are accepted."""

    version: Annotated[str, Field(min_length=1, max_length=64, pattern=SHOWN)]


# What is looked for

Search = Annotated[str, Field(max_length=200, pattern=SHOWN, description="Part of a name, or a whole id.")]
After = Annotated[
    str,
    Field(max_length=64, pattern=SHOWN, description="Only what comes after this id: `next` of a page."),
]
Limit = Annotated[int, Field(ge=1, le=1000)]


class Page(Table):
    search: Search = ""
    after: After = ""
    limit: Limit = 100


class AccountsPage(Page):
    organisation: Id | None = None


class KeysPage(Page):
    account: Id | None = None


class ChangesPage(Table):
    after: int = Field(default=0, ge=0, le=1 << 62)
    limit: Limit = 100
    subject: (
        Annotated[str, Field(max_length=80, pattern=SHOWN, description="`account:ID` or such.")] | None
    ) = None
