"""The figures at /metrics, as Prometheus' own parser reads them."""

import contextlib
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families
from recorded import event, record

from stillhouse.gateway.metrics import MOST_REASONS, Metrics
from stillhouse.guard import config


def figures(metrics):
    """Every sample by its name and labels."""
    return {
        (sample.name.removeprefix("stillhouse_guard_"), *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }


def test_what_was_served_is_counted():
    metrics = Metrics(["m", "free"])
    for n in range(10):
        metrics.began()
        metrics.ended(event(n), 0.0012)
    metrics.began()
    metrics.ended(event(11, status=429, ended="refused", reason="requests_per_minute", first_byte=None))
    metrics.began()
    metrics.ended(event(12, status=502, ended="upstream_cut", model="free", cost=0), 0.004)
    metrics.began()
    found = figures(metrics)
    model = ("model", "m")
    assert found["requests_total", ("ended", "whole"), model, ("status", "2xx")] == 10
    assert found["requests_total", ("ended", "refused"), model, ("status", "4xx")] == 1
    assert found["requests_total", ("ended", "upstream_cut"), ("model", "free"), ("status", "5xx")] == 1
    assert found["refusals_total", ("reason", "requests_per_minute")] == 1
    assert found["tokens_total", ("direction", "input"), model] == 100
    assert found["tokens_total", ("direction", "output"), model] == 50
    assert found["cost_dollars_total", model] == pytest.approx(10 * 20_000 / 1e9)
    assert found["added_seconds_bucket", ("le", "0.001"), model] == 0
    assert found["added_seconds_bucket", ("le", "0.0015"), model] == 10
    assert found["first_byte_seconds_sum", model] == pytest.approx(0.1)
    assert found["request_seconds_count", model] == 10
    assert found["in_flight",] == 1


def test_no_account_key_or_name_of_a_client_s_choice_is_in_it():
    metrics = Metrics(["m"])
    metrics.began()
    metrics.ended(event(0))
    before = len(metrics.text())
    for n in range(3000):
        metrics.began()
        who = {"account": f"secretive-{n}", "key": f"key-{n}", "organisation": f"org-{n}", "id": f"req-{n}"}
        name = f'model-{n}"}}\nstillhouse_guard_in_flight 99\n'
        metrics.ended(event(n, model=name, status=404, ended="refused", reason=f"made-up-{n}", **who))
    text = metrics.text().decode()
    for hidden in ("secretive", "key-", "org-", "req-", "model-"):
        assert hidden not in text
    assert len(text) < before + 100 * (MOST_REASONS + 5)
    found = figures(metrics)
    assert found["in_flight",] == 0
    assert found["requests_total", ("ended", "refused"), ("model", "other"), ("status", "4xx")] == 3000
    assert sum(value for (name, *_), value in found.items() if name == "refusals_total") == 3000


def test_stores_and_servers_are_shown_and_no_password():
    metrics = Metrics(["m"])
    metrics.stored("reserve", 0.002)
    metrics.stored("reserve", 0.2)
    metrics.stored("events", 0.004)
    metrics.upstream("m", "http://me:hunter2@10.0.0.1:8000/v1?key=hunter2", True)
    metrics.upstream("m", "http://10.0.0.2:8000/v1", False)
    found = figures(metrics)
    assert found["store_seconds_count", ("operation", "reserve")] == 2
    assert found["upstream_up", ("model", "m"), ("upstream", "10.0.0.1:8000/v1")] == 1
    assert found["upstream_up", ("model", "m"), ("upstream", "10.0.0.2:8000/v1")] == 0
    assert b"hunter2" not in metrics.text()


def test_the_record_is_watched(tmp_path):
    metrics = Metrics(["m"])
    kept = record(
        config.Store(folder=str(tmp_path)), stored=lambda seconds: metrics.stored("events", seconds)
    )
    with contextlib.closing(kept):
        metrics.watch(kept)
        kept.put(event(1))
        kept.put(event(1))
        kept.put(event(2, cost=2**60))
        kept.flush(30)
        found = figures(metrics)
        assert found["events_written_total",] == 1
        assert found["events_repeated_total",] == 1
        assert found["events_lost_total", ("reason", "malformed")] == 1
        assert found["events_waiting",] == 0
        assert found["events_healthy",] == 1
        assert found["store_seconds_count", ("operation", "events")] >= 1
    assert figures(metrics)["events_healthy",] == 0


def test_models_come_and_what_was_counted_stays():
    metrics = Metrics(["m"])
    metrics.began()
    metrics.ended(event(1))
    metrics.serve(["m", "new"])
    metrics.began()
    metrics.ended(event(2, model="new"))
    found = figures(metrics)
    assert found["request_seconds_count", ("model", "m")] == 1
    assert found["request_seconds_count", ("model", "new")] == 1


def test_counting_a_request_is_cheap():
    """Microseconds, of the processor's time; the best of some tries."""
    metrics, one, best = Metrics(["m"]), event(1), 1.0
    for _ in range(5):
        began = time.thread_time()
        for _ in range(2000):
            metrics.began()
            metrics.ended(one, 0.001)
        best = min(best, (time.thread_time() - began) / 2000)
    assert best < 30e-6
