"""Where a training stands, and when it ends before its last step: the held-out loss has ceased to fall."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

from torch import Tensor

from stillhouse.train import health

Taken = tuple[float, int, dict[str, float] | None]


@dataclass(frozen=True, slots=True)
class Best:
    """The lowest held-out loss so far in nats per token, the step after which it was measured, and how many
    measurements since were no better."""

    loss: float = math.inf
    step: int = 0
    since: int = 0


@dataclass(slots=True)
class Standing:
    """What a training that goes on has to know beside weights and optimisers.

    `recent` has of each step of the last epoch its loss, its target tokens and what the student's own text
    was like; `weights` are those of the best step, where they are kept.
    """

    recent: deque[Taken]
    done: int = 0
    tokens: int = 0
    targets: int = 0
    held_out: float | None = None
    window: health.Window = field(default_factory=health.Window)
    best: Best = field(default_factory=Best)
    weights: dict[str, Tensor] | None = None

    def take(self, loss: float, targets: int, tokens: int, own: Mapping[str, float] | None) -> None:
        """One more step."""
        self.done, self.tokens, self.targets = self.done + 1, self.tokens + tokens, self.targets + targets
        self.window = health.after(self.window, own)
        self.recent.append((loss, targets, dict(own) if own else None))

    def measured(self, held_out: float, patience: int | None, weights: Sequence[tuple[str, Tensor]]) -> None:
        """The held-out loss as it is now; with patience the weights are kept where it is the lowest."""
        self.held_out = held_out
        if not held_out < self.best.loss:
            self.best = Best(self.best.loss, self.best.step, self.best.since + 1)
            return
        self.best = Best(held_out, self.done)
        if patience is not None:
            self.weights = {name: value.detach().cpu().clone() for name, value in weights}

    def ended(self, steps: int, patience: int | None) -> bool:
        return self.done == steps or (patience is not None and self.best.since >= patience)

    @property
    def loss(self) -> float:
        """The mean over the target tokens of the last epoch's steps, in nats."""
        bearing = sum(count for _, count, _ in self.recent)
        return sum(loss * count for loss, count, _ in self.recent) / max(1, bearing)

    @property
    def own(self) -> dict[str, float] | None:
        """The figures of the student's own text over the last epoch."""
        return health.mean([said for *_, said in self.recent if said])

    def content(self) -> dict[str, Any]:
        """As a checkpoint keeps it."""
        names = ("done", "tokens", "targets", "held_out", "weights")
        made = {name: getattr(self, name) for name in names}
        return made | {
            "recent": list(self.recent),
            "window": astuple(self.window),
            "best": astuple(self.best),
        }


def standing(per_epoch: int, content: Mapping[str, Any] | None = None) -> Standing:
    """The beginning, or what a checkpoint kept."""
    if content is None:
        return Standing(deque(maxlen=per_epoch))
    own = {"recent": deque(content["recent"], maxlen=per_epoch), "window": health.Window(*content["window"])}
    return Standing(**{**content, **own, "best": Best(*content["best"])})


def notices(best: Best, steps: int, patience: int | None) -> list[str]:
    """What whoever asked for a training with patience should know of its end."""
    if patience is None or best.step == steps:
        return []
    return [
        f"the held-out loss was lowest at step {best.step} of {steps} ({best.loss:.4f} nats per token), and "
        "the student has the weights of then"
    ]
