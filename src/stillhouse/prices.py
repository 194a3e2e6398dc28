"""What a teacher asks for its answers: by the operator's word, else as recorded in `prices.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from stillhouse.money import FREE, Price
from stillhouse.recipe import Teacher

DATA = Path(__file__).with_name("prices.toml")
RECIPE = "[teacher.price]"  # the source of a price that the operator gave
OLD = 90  # days after which a price that was read should be read again


@dataclass(frozen=True, slots=True)
class KnownPrice:
    """A price and who told it: `source` is the page on which it stood on `read_on`, `via` where that reading
    is kept when it was somebody else's. A price that no page told has no date.

    `batch` is the price in a batch job and `cached` that of input which the provider had in its cache (US
    dollars per million tokens), None where not known. It holds for prompts of at most `up_to` tokens, and
    until the end of the day `until`.
    """

    price: Price
    source: str
    read_on: date | None = None
    via: str | None = None
    batch: Price | None = None
    cached: float | None = None
    up_to: int | None = None
    until: date | None = None
    note: str | None = None

    def days_old(self, today: date) -> int | None:
        return None if self.read_on is None else (today - self.read_on).days

    def record(self) -> dict[str, Any]:
        """As JSON: what a plan prints and a run keeps."""
        return {
            "input": self.price.input,
            "output": self.price.output,
            "batch": None if self.batch is None else {"input": self.batch.input, "output": self.batch.output},
            "cached": self.cached,
            "source": self.source,
            "via": self.via,
            "read_on": None if self.read_on is None else self.read_on.isoformat(),
            "note": self.note,
        }


NO_BILL = KnownPrice(FREE, "nobody sends a bill")


def price_of(teacher: Teacher, today: date) -> KnownPrice | None:
    """The price by which a recipe's teacher is reckoned; None where it is somebody else's and not known.

    What `[teacher.price]` says goes before what is recorded for the endpoint's host and the model.
    """
    if teacher.imported:
        return NO_BILL
    if teacher.price is not None:
        price, batch = Price(teacher.price.input, teacher.price.output), teacher.price.batch
        return KnownPrice(price, RECIPE, batch=None if batch is None else price.times(batch))
    if teacher.endpoint is None:
        return NO_BILL
    return price_for(urlsplit(teacher.endpoint).hostname or "", teacher.model, today)


def price_for(endpoint_host: str, model: str, today: date) -> KnownPrice | None:
    """What is recorded for exactly this host and this model id: a name that is merely alike may cost more."""
    known = recorded().get((endpoint_host.lower(), model))
    return None if known is None or (known.until is not None and today > known.until) else known


@cache
def recorded() -> Mapping[tuple[str, str], KnownPrice]:
    """Every price of `prices.toml`, by host and model id."""
    found: dict[tuple[str, str], KnownPrice] = {}
    for page in tomllib.loads(DATA.read_text(encoding="utf-8"))["page"]:
        for row in page["models"]:
            price = Price(row["input"], row["output"])
            known = KnownPrice(
                price,
                page["source"],
                page["read_on"],
                page.get("via"),
                price.times(row["batch"]) if "batch" in row else None,
                row.get("cached"),
                row.get("up_to"),
                row.get("until"),
                row.get("note"),
            )
            found |= {(host, model): known for host in page["hosts"] for model in row["ids"]}
    return found
