"""What the gateway does, in figures that Prometheus reads at /metrics.

No figure is kept by account or by key, whose numbers grow without bound, and none by a name that a client can
choose: what was asked of a model that is not served counts under "other". The children of labels are held,
because `labels()` takes several times as long as what is then done with its child.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from urllib.parse import urlsplit

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from stillhouse.gateway.record import Record
from stillhouse.gateway.watcher import Watcher
from stillhouse.guard.events import Event

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OTHER = "other"
MOST_REASONS = 64
ADDED = (0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)  # seconds
ANSWER = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
STORE = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)


class _Families:
    """The metrics themselves, by their names in the text."""

    def __init__(self, to: CollectorRegistry) -> None:
        name, model = "stillhouse_guard", ["model"]
        self.requests = Counter(
            f"{name}_requests", "Requests that ended.", [*model, "status", "ended"], registry=to
        )
        self.refusals = Counter(f"{name}_refusals", "Requests refused, by why.", ["reason"], registry=to)
        self.tokens = Counter(f"{name}_tokens", "Tokens.", [*model, "direction"], registry=to)
        self.not_given = Counter(
            f"{name}_tokens_not_given",
            "Tokens of answers that were only chosen from, at the operator's cost.",
            [*model, "direction"],
            registry=to,
        )
        self.cost = Counter(f"{name}_cost_dollars", "What was charged.", model, registry=to)
        self.added = Histogram(
            f"{name}_added_seconds", "Time that the gateway added.", model, registry=to, buckets=ADDED
        )
        self.first = Histogram(
            f"{name}_first_byte_seconds", "Until the answer's first byte.", model, registry=to, buckets=ANSWER
        )
        self.whole = Histogram(
            f"{name}_request_seconds", "Until the answer's end.", model, registry=to, buckets=ANSWER
        )
        self.flying = Gauge(f"{name}_in_flight", "Requests in flight.", registry=to)
        self.store = Histogram(
            f"{name}_store_seconds", "Time that a store took.", ["operation"], registry=to, buckets=STORE
        )
        self.upstream = Gauge(f"{name}_upstream_up", "1 where it answers.", [*model, "upstream"], registry=to)


class _Model:
    """The children of one model."""

    __slots__ = ("added", "cost", "first", "input", "output", "whole")

    def __init__(self, families: _Families, model: str) -> None:
        self.input = families.tokens.labels(model, "input")
        self.output = families.tokens.labels(model, "output")
        self.cost = families.cost.labels(model)
        self.added = families.added.labels(model)
        self.first = families.first.labels(model)
        self.whole = families.whole.labels(model)


class Metrics:
    """`models` are those that are served."""

    def __init__(self, models: Iterable[str]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._families = _Families(self._registry)
        ProcessCollector(registry=self._registry)
        self._models: dict[str, _Model] = {}
        self.serve((*models, OTHER))
        self._requests: dict[tuple[str, int, str], Counter] = {}
        self._reasons: dict[str, Counter] = {}
        self._stores: dict[str, Histogram] = {}
        self.began = self._families.flying.inc  # a request has come

    def serve(self, models: Iterable[str]) -> None:
        """These are served from now on; what was counted for others stays."""
        for model in models:
            if model not in self._models:
                self._models[model] = _Model(self._families, model)

    def ended(self, event: Event, added: float | None = None) -> None:
        """A request that began has ended. `added` is for how long the gateway itself worked on it before it
        went on to the upstream, in seconds, where it was sent on."""
        self._families.flying.dec()
        name = event.model if event.model in self._models else OTHER
        key = (name, event.status // 100, event.ended)
        requests = self._requests.get(key)
        if requests is None:
            requests = self._families.requests.labels(name, f"{key[1]}xx", event.ended)
            self._requests[key] = requests
        requests.inc()
        if event.ended == "refused":
            self._refused(event.reason)
            return
        model = self._models[name]
        model.input.inc(event.input_tokens)
        model.output.inc(event.output_tokens)
        if event.cost:
            model.cost.inc(event.cost / 1e9)
        if added is not None:
            model.added.observe(added)
        if event.first_byte is not None:
            model.first.observe(event.first_byte)
        model.whole.observe(event.seconds)

    def not_given(self, model: str, input_tokens: int, output_tokens: int) -> None:
        """What an answer took that was chosen from and not given, nor charged."""
        self._families.not_given.labels(model, "input").inc(input_tokens)
        self._families.not_given.labels(model, "output").inc(output_tokens)

    def in_flight(self) -> int:
        return round(next(iter(self._families.flying.collect())).samples[0].value)

    def stored(self, operation: str, seconds: float) -> None:
        """A store did what it was asked: `reserve`, `settle`, `events` and so on."""
        child = self._stores.get(operation)
        if child is None:
            child = self._stores[operation] = self._families.store.labels(operation)
        child.observe(seconds)

    def upstream(self, model: str, url: str, up: bool) -> None:
        parts = urlsplit(url)  # a password may stand before the host
        self._families.upstream.labels(model, parts.netloc.rpartition("@")[2] + parts.path).set(up)

    def watch(self, record: Record) -> None:
        """Show how the record keeps up."""
        self.show(_Kept(record))

    def show(self, figures: Collector) -> None:
        """Figures that are read when Prometheus asks."""
        self._registry.register(figures)

    def watch_accounts(self, watching: Watcher) -> None:
        """Show how many requests were looked at, and how many accounts stand on each step."""
        self._registry.register(_Watched(watching))

    def text(self) -> bytes:
        """Prometheus' text format, of the content type CONTENT_TYPE."""
        return generate_latest(self._registry)

    def _refused(self, reason: str) -> None:
        child = self._reasons.get(reason)
        if child is None:
            name = reason if len(self._reasons) < MOST_REASONS else OTHER
            child = self._families.refusals.labels(name)
            if name == reason:
                self._reasons[reason] = child
        child.inc()


class _Kept(Collector):
    """Read from the record when Prometheus asks."""

    def __init__(self, record: Record) -> None:
        self._record = record

    def collect(self) -> Iterator[Metric]:
        record, name = self._record, "stillhouse_guard_events"
        for what, value, said in (
            ("written", record.written, "Events on disk."),
            ("repeated", record.repeated, "Events that were in the store before."),
        ):
            yield CounterMetricFamily(f"{name}_{what}", said, value=value)
        lost = CounterMetricFamily(
            f"{name}_lost", "Events that were not recorded, by why.", labels=["reason"]
        )
        for reason, count in record.lost.copy().items():
            lost.add_metric([reason], count)
        yield lost
        yield GaugeMetricFamily(f"{name}_waiting", "Events in memory.", value=record.waiting)
        kept = CounterMetricFamily("stillhouse_guard_texts_kept", "Sealed texts on disk.", labels=["of"])
        missed = CounterMetricFamily(
            "stillhouse_guard_texts_lost", "Texts that were not kept, by why.", labels=["of", "reason"]
        )
        for of, texts in (("text", record.texts), ("deferred", record.deferred)):
            kept.add_metric([of], texts.kept)
            for reason, count in texts.lost.copy().items():
                missed.add_metric([of, reason], count)
        yield kept
        yield missed
        yield GaugeMetricFamily(
            f"{name}_healthy", "0 where the store fails or is too slow.", value=record.healthy()
        )


class _Watched(Collector):
    """Read from what is watched when Prometheus asks."""

    def __init__(self, watching: Watcher) -> None:
        self._watching = watching

    def collect(self) -> Iterator[Metric]:
        watching, name = self._watching, "stillhouse_guard_requests"
        yield CounterMetricFamily(f"{name}_observed", "Looked at for copying.", value=watching.observed)
        missed = CounterMetricFamily(
            f"{name}_unobserved", "Answered and not looked at, by why.", labels=["reason"]
        )
        for reason, count in watching.unobserved.copy().items():
            missed.add_metric([reason], count)
        yield missed
        stand = GaugeMetricFamily("stillhouse_guard_standing", "Accounts on a step.", labels=["rung"])
        for rung, accounts in watching.rungs().items():
            stand.add_metric([rung], accounts)
        yield stand
        yield GaugeMetricFamily(
            "stillhouse_guard_clusters", "Clusters that wait for a person.", value=watching.clusters
        )
