"""Prices, estimates and caps. An unknown price stays unknown; it is never taken for nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens, in and out."""

    input: float
    output: float

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        return (prompt_tokens * self.input + completion_tokens * self.output) / 1e6

    def times(self, share: float) -> Price:
        return Price(self.input * share, self.output * share)


FREE = Price(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure that is not yet known, as low, expected and high; None means that it cannot be told."""

    low: float | None
    expected: float | None
    high: float | None


UNKNOWN = Estimate(None, None, None)


@dataclass(frozen=True, slots=True)
class Budget:
    """Money spent and reserved (US dollars) against a cap. A reservation is the worst case of a request
    in flight, so `spent + reserved` is what the bill can reach; `cap` None means that there is none."""

    cap: float | None = None
    spent: float = 0.0
    reserved: float = 0.0

    def admits(self, worst: float) -> bool:
        return self.cap is None or self.spent + self.reserved + worst <= self.cap

    def reserve(self, worst: float) -> Budget:
        return Budget(self.cap, self.spent, self.reserved + worst)

    def settle(self, worst: float, actual: float) -> Budget:
        return Budget(self.cap, self.spent + actual, max(0.0, self.reserved - worst))


def worst_prompt_tokens(text_bytes: int, messages: int) -> int:
    """No byte-level tokenizer makes more tokens than bytes; 16 more a message cover the template."""
    return text_bytes + 16 * messages + 16
