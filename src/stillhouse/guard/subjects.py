"""For whom a request counts, and how much each of them may."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from stillhouse.guard.accounts import Account, Key, Organisation
from stillhouse.guard.config import Limits, Tier
from stillhouse.guard.limits import Limit, Measure, Subject, Window
from stillhouse.guard.windows import MOST

NANO = 1_000_000_000
LIMITS: Mapping[str, tuple[Measure, Window]] = {
    "requests_per_minute": ("requests", "minute"),
    "requests_per_day": ("requests", "day"),
    "input_tokens_per_minute": ("input_tokens", "minute"),
    "input_tokens_per_day": ("input_tokens", "day"),
    "output_tokens_per_minute": ("output_tokens", "minute"),
    "output_tokens_per_day": ("output_tokens", "day"),
    "concurrent": ("concurrent", "ever"),
}


@cache
def limits_of(limits: Limits) -> tuple[Limit, ...]:
    amounts = ((name, getattr(limits, name)) for name in LIMITS)
    return tuple(Limit(*LIMITS[name], amount) for name, amount in amounts if amount is not None)


def overridden(limits: tuple[Limit, ...], own: Mapping[str, int]) -> tuple[Limit, ...]:
    """`own` by the names of `config.Limits`; each goes before the limit of its measure and window."""
    if not own:
        return limits
    kinds = {(limit.measure, limit.window): limit for limit in limits}
    kinds |= {LIMITS[name]: Limit(*LIMITS[name], amount) for name, amount in own.items()}
    return tuple(kinds.values())


def account_limits(account: Account, tier: Tier) -> tuple[Limit, ...]:
    """With its budget, and what it paid in where it can spend no more than that."""
    limits = overridden(limits_of(tier.limits), account.limits)
    budget = tier.budget if account.budget is None else account.budget
    if budget is not None:
        limits += (Limit("money", "month", round(budget * NANO)),)
    if tier.prepaid:
        limits += (Limit("money", "ever", account.paid),)
    return limits


def subjects_of(
    organisation: Organisation | None, account: Account, key: Key, tier: Tier, model: str, of_model: Limits
) -> tuple[Subject, ...]:
    """The key, its account and organisation, and the model over all who ask it; the payer is the account.
    What it ever spent is counted in every tier: records tell no tiers, and counts made again of them must be
    those that were lost."""
    of_account = account_limits(account, tier)
    if not tier.prepaid:
        of_account += (Limit("money", "ever", MOST),)
    subjects = [Subject(f"account:{account.id}", of_account)]
    of_key = overridden(limits_of(tier.key_limits), key.limits)
    if of_key:
        subjects.append(Subject(f"key:{key.id}", of_key))
    if organisation is not None and organisation.limits:
        subjects.append(Subject(f"organisation:{organisation.id}", overridden((), organisation.limits)))
    shared = limits_of(of_model)
    if shared:
        subjects.append(Subject(f"model:{model}", shared))
    return tuple(subjects)
