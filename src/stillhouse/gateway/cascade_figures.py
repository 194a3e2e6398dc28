"""What a cascade did since the process began, or its calibration changed: for /metrics and the console."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from stillhouse.cascade.calibration import Calibration
from stillhouse.cascade.drift import Watch
from stillhouse.cascade.risk import Guarantee
from stillhouse.cascade.saving import Taken, saved
from stillhouse.gateway.cascading import Why
from stillhouse.gateway.state import Served
from stillhouse.guard.config import TokenPrice
from stillhouse.money import Price
from stillhouse.stats import Interval, wilson


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one cascade. `agreement` is the share of audited answers that the teacher gives as well, with its
    95 % interval (Wilson 1927); `saved` is in US dollars, None where a price is unknown."""

    model: str
    watch: Watch
    answered: Mapping[tuple[str, Why], int]
    calibration: Calibration
    promise: Guarantee
    agreement: Interval
    taken: Taken
    saved: float | None


def figures_of(served: Served) -> Figures | None:
    """None for a model without a student."""
    cascade = served.cascade
    if cascade is None:
        return None
    watch, config = cascade.watch, cascade.config
    return Figures(
        served.config.name,
        watch,
        cascade.answered.copy(),
        cascade.calibration,
        cascade.promise,
        wilson(watch.audited - watch.differed, watch.audited),
        cascade.taken,
        saved(cascade.taken, _price(config.student_price), _price(config.teacher_price)),
    )


def _price(told: TokenPrice | None) -> Price | None:
    return None if told is None else Price(told.input, told.output)


class CascadeFigures(Collector):
    """Read when Prometheus asks. A share of nothing, and what no price is known for, is left out."""

    def __init__(self, models: Callable[[], Mapping[str, Served]]) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        name, model = "stillhouse_guard_cascade", ["model"]
        answers = CounterMetricFamily(f"{name}_answers", "Answers, by whose.", labels=[*model, "by", "why"])
        tokens = CounterMetricFamily(
            f"{name}_tokens",
            "Tokens of the student: all, and of kept answers.",
            labels=[*model, "of", "direction"],
        )
        untold = CounterMetricFamily(
            f"{name}_untold", "Answers of the student whose tokens are not known.", labels=model
        )
        gauges = {
            what: GaugeMetricFamily(f"{name}_{what}", said, labels=model)
            for what, said in (
                ("deferred_share", "Share of requests that went to the teacher."),
                ("unfamiliar_share", "Share of prompts unlike those of the training."),
                ("agreement", "Share of audited answers that the teacher gives as well."),
                ("alarm", "1 after the traffic was found to have changed."),
                ("labels_needed", "Unfamiliar prompts that are still to be answered by both."),
                ("saved_dollars", "Against asking the teacher alone; not there where a price is unknown."),
            )
        }
        for served in self._models().values():
            found = figures_of(served)
            if found is None:
                continue
            watch, label = found.watch, [found.model]
            for (who, why), count in found.answered.items():
                answers.add_metric([*label, who, why], count)
            for of, taken in (("student", found.taken.student), ("kept", found.taken.kept)):
                for direction, count in zip(("input", "output"), taken, strict=True):
                    tokens.add_metric([*label, of, direction], count)
            untold.add_metric(label, found.taken.untold)
            gauges["alarm"].add_metric(label, watch.alarm is not None)
            gauges["labels_needed"].add_metric(label, watch.owed)
            if watch.requests:
                gauges["deferred_share"].add_metric(label, watch.deferred / watch.requests)
                gauges["unfamiliar_share"].add_metric(label, watch.unfamiliar / watch.requests)
            if found.agreement.value is not None:
                gauges["agreement"].add_metric(label, found.agreement.value)
            if found.saved is not None:
                gauges["saved_dollars"].add_metric(label, found.saved)
        yield answers
        yield tokens
        yield untold
        yield from gauges.values()
