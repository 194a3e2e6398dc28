"""The record on a real file and a real server: what was put is there once, counted once, and can be shown."""

import contextlib
import sqlite3
import threading
import time
from datetime import date
from pathlib import Path

import orjson
import pytest
from recorded import NOON, RATES, event, record, schema_of

from stillhouse.errors import LedgerError, StorageError, UsageError
from stillhouse.gateway import record as record_module
from stillhouse.gateway import worker as worker_module
from stillhouse.gateway.served import proof_of
from stillhouse.gateway.store.events import FILE, Events
from stillhouse.guard import config
from stillhouse.guard.events import Usage, number_of, totals
from stillhouse.guard.proof import read_event_proof
from stillhouse.ledger import Ledger
from stillhouse.ledger.keys import read_public_key
from stillhouse.workspace import Workspace

DAYS = (0, 10**6)


def ledger_of(store):
    return Ledger.open(Workspace(Path(store.folder) / ".stillhouse"))


def ids(store):
    with contextlib.closing(Events(store)) as events:
        return sorted(each.id for each in events.newest(most=10**6))


def used(store):
    with contextlib.closing(Events(store)) as events:
        return events.usage(*DAYS)


def whole(usage):
    total = Usage()
    for each in usage.values():
        total = total.plus(each)
    return total


def soon(said, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not said():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_was_put_is_there_and_summed(store):
    events = [event(n) for n in range(2500)]
    with contextlib.closing(record(store)) as kept:
        for each in events:
            kept.put(each)
        kept.flush(30)
        assert kept.written == 2500
        assert kept.waiting == 0
        assert kept.healthy()
        with contextlib.closing(Events(store)) as reading:
            assert reading.newest(most=3) == events[:-4:-1]
            mine = reading.newest("a3", before=NOON + 1000, most=5)
            assert mine == [event(n) for n in (993, 983, 973, 963, 953)]
    assert used(store) == totals(events, RATES)
    assert not kept.lost


def test_groups_become_leaves_and_each_event_can_be_shown(store, monkeypatch):
    monkeypatch.setattr(record_module, "GROUP", 40)
    monkeypatch.setattr(record_module, "BATCH", 16)
    events = [event(n) for n in range(130)]
    with contextlib.closing(record(store)) as kept:
        for each in events:
            kept.put(each)
    with ledger_of(store) as ledger, contextlib.closing(Events(store)) as reading:
        leaves = list(ledger.leaves("served"))
        assert [leaf.body["count"] for leaf in leaves] == [48, 48, 34]
        assert leaves[0].body["first"] == "2026-11-22T12:00:00.000000Z"
        assert leaves[0].body["last"] == "2026-11-22T12:00:47.000000Z"
        assert {leaf.body["replica"] for leaf in leaves} == {"one"}
        public = read_public_key(ledger.workspace)
        for each in events:
            shown = read_event_proof(proof_of(reading, ledger, each.id), public)
            assert shown.event == each
        verification = ledger.verify()
        assert verification.ok, verification.state


def test_usage_is_exact_while_groups_are_filled_and_after(store, monkeypatch):
    monkeypatch.setattr(record_module, "GROUP", 40)
    monkeypatch.setattr(record_module, "BATCH", 16)
    events = [event(n, at=NOON + n * 5000) for n in range(100)]
    mine = {part: sums for part, sums in totals(events, RATES).items() if part.account == "a4"}
    with contextlib.closing(record(store)) as kept:
        for each in events:
            kept.put(each)
        kept.flush(30)
        assert used(store) == totals(events, RATES)
        with contextlib.closing(Events(store)) as reading:
            assert reading.group(1).root is not None
            assert reading.group(3).root is None
            first, last = min(mine).day, max(mine).day
            assert last - first >= 4
            assert reading.usage(first, last, account="a4") == mine
            assert reading.usage(first, first, "a4") == {
                part: sums for part, sums in mine.items() if part.day == first
            }
            assert reading.usage(*DAYS, organisation="o1") == {
                part: sums for part, sums in totals(events, RATES).items() if part.organisation == "o1"
            }
    assert used(store) == totals(events, RATES)


def test_the_events_of_an_account_are_found_in_sealed_and_filled_groups(store, monkeypatch):
    monkeypatch.setattr(record_module, "GROUP", 40)
    monkeypatch.setattr(record_module, "BATCH", 16)
    events = [event(n) for n in range(200)] + [event(200, account="rare")]
    with contextlib.closing(record(store)) as kept:
        for each in events:
            kept.put(each)
        kept.flush(30)
        with contextlib.closing(Events(store)) as reading:
            mine = [each for each in reversed(events) if each.account == "a4"]
            assert reading.newest("a4") == mine
            assert reading.newest("a4", most=7) == mine[:7]
            assert reading.newest("a4", before=NOON + 100) == [each for each in mine if each.at < NOON + 100]
            assert reading.newest("rare") == [events[-1]]
            assert reading.newest("nobody") == []
            assert reading.newest(before=NOON + 3) == events[2::-1]


def test_a_proof_that_was_changed_shows_nothing(file_store):
    with contextlib.closing(record(file_store)) as kept:
        for n in range(9):
            kept.put(event(n))
    with ledger_of(file_store) as ledger, contextlib.closing(Events(file_store)) as reading:
        public = read_public_key(ledger.workspace)
        proof = proof_of(reading, ledger, "req_000004")
        other = orjson.loads(proof_of(reading, ledger, "req_000005"))
    said = orjson.loads(proof)
    assert read_event_proof(proof, public).event.id == "req_000004"
    for name, value in {
        "event": said["event"].replace('"cost":20000', '"cost":10000'),
        "n": 5,
        "events": 8,
        "hashes": other["hashes"],
        "leaf": said["leaf"].replace("index 0", "index 1"),
        "v": 2,
    }.items():
        with pytest.raises(LedgerError):
            read_event_proof(orjson.dumps(said | {name: value}), public)
    for nonsense in (b"", b"[]", b'{"v":1}', orjson.dumps(said | {"hashes": ["zz"]})):
        with pytest.raises(LedgerError, match="no proof"):
            read_event_proof(nonsense, public)
    with pytest.raises(LedgerError):
        read_event_proof(proof, bytes(32))


def test_what_cannot_be_shown_says_why(file_store, monkeypatch):
    with contextlib.closing(record(file_store)) as kept:
        kept.put(event(1))
        kept.flush(30)
        with contextlib.closing(Events(file_store)) as reading, ledger_of(file_store) as ledger:
            with pytest.raises(LedgerError, match="under no leaf yet"):
                proof_of(reading, ledger, "req_000001")
            with pytest.raises(LedgerError, match="no event"):
                proof_of(reading, ledger, "req_999999")


def test_a_leaf_comes_after_a_minute_however_few_the_events(file_store, monkeypatch):
    monkeypatch.setattr(record_module, "GROUP_SECONDS", 0.3)
    with contextlib.closing(record(file_store)) as kept, ledger_of(file_store) as ledger:
        kept.put(event(1))
        soon(lambda: ledger.size() == 1)
        kept.put(event(2))
        soon(lambda: ledger.size() == 2)


def test_an_event_that_comes_again_counts_once(store):
    with contextlib.closing(record(store)) as kept:
        for n in (1, 2, 2, 3):
            kept.put(event(n))
        kept.flush(30)
        for n in (3, 4, 1, 5):
            kept.put(event(n))
        kept.flush(30)
        assert (kept.written, kept.repeated) == (5, 3)
    assert ids(store) == [f"req_{n:06}" for n in (1, 2, 3, 4, 5)]
    assert whole(used(store)).requests == 5


def test_one_event_that_cannot_be_stored_takes_none_along(store):
    told = []
    with contextlib.closing(record(store, log=lambda what, **said: told.append((what, said)))) as kept:
        kept.put(event(1))
        kept.put(event(2, cost=2**60))
        kept.put(event(3, upstream="\ud800"))
        kept.put(event(4, account=None))
        kept.put(event(5))
        kept.flush(30)
        assert kept.lost == {"malformed": 3}
        assert kept.healthy()
    assert ids(store) == ["req_000001", "req_000005"]
    assert [said["event"] for what, said in told if what == "event lost"] == [
        "req_000002",
        "req_000003",
        "req_000004",
    ]
    assert whole(used(store)).requests == 2


def test_names_that_a_client_wrote_are_kept_as_labels(store):
    with contextlib.closing(record(store)) as kept:
        kept.put(event(1, model="a\x00b\n\x1b[31m\ud800" + "x" * 10**5))
    with contextlib.closing(Events(store)) as reading:
        (kept_event,) = reading.newest()
    assert kept_event.model.startswith("a\\x00b\\n\\x1b[31m\\ud800xxx")
    assert len(kept_event.model) == 128


def test_a_full_disk_is_told_and_loses_nothing(file_store, monkeypatch):
    monkeypatch.setattr(record_module, "GRACE", 0.2)
    monkeypatch.setattr(worker_module, "RETRY", 0.02)
    told = []
    with contextlib.closing(record(file_store, log=lambda what, **said: told.append((what, said)))) as kept:
        kept.put(event(0))
        kept.flush(30)
        database = kept._events._tables._db
        pages = database.execute("PRAGMA page_count").fetchone()[0]
        database.execute(f"PRAGMA max_page_count = {pages + 2}")
        for n in range(1, 3000):
            kept.put(event(n))
        with pytest.raises(TimeoutError):
            kept.flush(0.5)
        soon(lambda: not kept.healthy())
        assert kept.waiting
        assert [what for what, _ in told] == ["events are not being stored"]
        assert "full" in told[0][1]["why"]
        database.execute("PRAGMA max_page_count = 1073741823")
        kept.flush(30)
        assert kept.healthy()
        assert kept.written == 3000
        assert not kept.lost
    assert len(ids(file_store)) == whole(used(file_store)).requests == 3000


def test_a_ledger_that_fails_holds_no_event_up_and_gets_its_leaves_later(store, monkeypatch):
    monkeypatch.setattr(record_module, "GROUP", 20)
    monkeypatch.setattr(record_module, "BATCH", 10)
    told = []
    with contextlib.closing(record(store, log=lambda what, **said: told.append((what, said)))) as kept:
        whole_append = kept._ledger.append

        def full(*_):
            raise LedgerError("no space left")

        kept._ledger.append = full
        for n in range(60):
            kept.put(event(n))
        kept.flush(30)
        assert kept.healthy()
        assert kept.written == 60
        assert {what for what, _ in told} == {"events are stored, and under no leaf yet"}
        assert used(store) == totals([event(n) for n in range(60)], RATES)
        kept._ledger.append = whole_append
        kept.put(event(60))
    assert (kept.repeated, kept.lost.total()) == (0, 0)
    with ledger_of(store) as ledger:
        assert [leaf.body["count"] for leaf in ledger.leaves("served")] == [20, 20, 20, 1]


def test_the_gateway_is_warned_before_anything_is_lost_and_told_what_was(file_store, monkeypatch):
    monkeypatch.setattr(record_module, "WAITING", 100)
    monkeypatch.setattr(worker_module, "RETRY", 0.02)
    told = []
    kept = record(file_store, log=lambda what, **said: told.append((what, said)))
    blocker = sqlite3.connect(Path(file_store.folder) / FILE, isolation_level=None, check_same_thread=False)
    blocker.execute("BEGIN IMMEDIATE")
    for n in range(80):
        kept.put(event(n))
    assert not kept.healthy()
    assert not kept.lost
    began = time.perf_counter()
    for n in range(80, 200):
        kept.put(event(n))
    assert time.perf_counter() - began < 1.0
    assert kept.lost.total() == kept.lost["the queue was full"] == 100
    blocker.execute("ROLLBACK")
    blocker.close()
    kept.flush(30)
    soon(lambda: any(what == "events lost" and said["count"] == 100 for what, said in told))
    assert kept.healthy()
    assert kept.close() == 0
    assert ids(file_store) == [f"req_{n:06}" for n in range(100)]


def test_what_comes_after_the_end_is_counted_as_lost(file_store):
    kept = record(file_store)
    kept.close()
    kept.put(event(1))
    assert kept.lost.total() == 1
    assert not kept.healthy()


def test_a_store_that_fails_until_the_end_is_not_silent(file_store, monkeypatch):
    monkeypatch.setattr(worker_module, "RETRY", 0.02)
    told = []
    kept = record(file_store, log=lambda what, **said: told.append((what, said)))
    kept.put(event(0))
    kept.flush(30)
    kept._events._tables._db.execute("PRAGMA max_page_count = 1")
    for n in range(1, 900):
        kept.put(event(n))
    left = kept.close(0.3)
    assert left == kept.lost.total() == 899
    assert told[-1] == ("events lost", {"count": 899, "why": "not written at the end"})


def test_events_expire_and_the_usage_and_the_leaf_stay(store, monkeypatch):
    monkeypatch.setattr(record_module, "GROUP", 10)
    monkeypatch.setattr(record_module, "BATCH", 10)
    old = [event(n, at=time.time() - 11 * 86_400) for n in range(30)]
    young = [event(n, at=time.time()) for n in range(30, 40)]
    settings = config.Record(event_days=10)
    with contextlib.closing(record(store, settings=settings)) as kept:
        for each in old + young:
            kept.put(each)
        kept.flush(30)
        monkeypatch.setattr(record_module, "TIDY", 0.0)
        soon(lambda: len(ids(store)) == 10)
    assert used(store) == totals(old + young, RATES)
    with ledger_of(store) as ledger, contextlib.closing(Events(store)) as reading:
        assert len(list(ledger.leaves("served"))) == 4
        assert reading.group(1).expired == 1
        with pytest.raises(LedgerError) as gone:
            proof_of(reading, ledger, old[0].id)
        assert "expired" in gone.value.why
        assert proof_of(reading, ledger, young[0].id)
        assert ledger.verify().ok


@pytest.mark.parametrize("died", ["filling", "sealed", "appended"])
def test_what_a_process_left_behind_gets_its_leaf_once(store, died, monkeypatch):
    """As after a kill: while a group was filled, after it was sealed, and after its leaf was written."""
    kept = record(store)
    for n in range(7):
        kept.put(event(n))
    kept.flush(30)
    if died != "filling":
        stage = "append" if died == "sealed" else "link"
        where = kept._ledger if died == "sealed" else kept._events

        def dies(*_):
            raise LedgerError("killed")

        monkeypatch.setattr(where, stage, dies)
        monkeypatch.setattr(worker_module, "RETRY", 0.02)
        kept.close(0.1)
    else:
        kept._seal = lambda now=False: None
        kept.close()
    with contextlib.closing(record(store)) as again:
        with ledger_of(store) as ledger:
            assert [leaf.body["count"] for leaf in ledger.leaves("served")] == [7]
        again.put(event(8))
        again.flush(30)
    with ledger_of(store) as ledger, contextlib.closing(Events(store)) as reading:
        assert [leaf.body["count"] for leaf in ledger.leaves("served")] == [7, 1]
        public = read_public_key(ledger.workspace)
        assert read_event_proof(proof_of(reading, ledger, "req_000003"), public).leaf.index == 0
        assert reading.unlinked("one") == []


def test_a_group_gets_one_leaf_though_a_second_process_begins_while_it_is_given(store, monkeypatch):
    looked, unlinked = threading.Event(), Events.unlinked

    def seen(self, replica):
        found = unlinked(self, replica)
        if found and threading.current_thread() is other:
            looked.set()
        return found

    monkeypatch.setattr(Events, "unlinked", seen)
    other = threading.Thread(target=lambda: record(store).close())
    with contextlib.closing(record(store)) as kept:
        append = kept._ledger.append

        def slowly(*words):
            other.start()
            looked.wait(0.5)  # time to see the group without its leaf
            leaf = append(*words)
            other.join(0.5)  # and to give it one
            return leaf

        monkeypatch.setattr(kept._ledger, "append", slowly)
        for n in range(7):
            kept.put(event(n))
        kept.flush(30)
    other.join(30)
    assert not other.is_alive()
    with ledger_of(store) as ledger, contextlib.closing(Events(store)) as reading:
        assert [leaf.body["count"] for leaf in ledger.leaves("served")] == [7]
        assert reading.group(1).leaf == 0


def test_a_second_process_of_the_same_name_harms_nothing(store):
    """As when one replaces another while that one drains."""
    with contextlib.closing(record(store)) as old:
        for n in range(5):
            old.put(event(n))
        old.flush(30)
        with contextlib.closing(record(store)) as new:
            for n in range(5, 10):
                old.put(event(n))
                new.put(event(n + 100))
            old.flush(30)
            new.flush(30)
            old.put(event(10))
    assert not old.lost
    assert len(ids(store)) == 16
    assert whole(used(store)).requests == 16
    with ledger_of(store) as ledger:
        assert sum(leaf.body["count"] for leaf in ledger.leaves("served")) == 16
        assert ledger.verify().ok


def test_replicas_share_a_server_and_each_keeps_its_ledger(server, tmp_path):
    with schema_of(server, tmp_path / "one") as store:
        stores = [store.model_copy(update={"folder": str(tmp_path / f"r{n}")}) for n in range(3)]
        records = [record(each, replica=f"r{n}") for n, each in enumerate(stores)]

        def put(n):
            for i in range(400):
                records[n].put(event(i, id=f"r{n}-{i}"))
            records[n].flush(30)

        threads = [threading.Thread(target=put, args=(n,)) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for each in records:
            each.close()
        assert whole(used(store)).requests == len(ids(store)) == 1200
        for n, each in enumerate(stores):
            with ledger_of(each) as ledger, contextlib.closing(Events(store)) as reading:
                assert proof_of(reading, ledger, f"r{n}-7")
                other = f"r{(n + 1) % 3}"
                with pytest.raises(LedgerError) as elsewhere:
                    proof_of(reading, ledger, f"{other}-7")
                assert f"replica {other}" in elsewhere.value.why


def test_a_server_that_goes_and_comes_back_loses_nothing(server, tmp_path, monkeypatch):
    monkeypatch.setattr(worker_module, "RETRY", 0.05)
    with schema_of(server, tmp_path / "guard") as store:
        with contextlib.closing(record(store)) as kept:
            for n in range(100):
                kept.put(event(n))
            kept.flush(30)
            server.stop()
            for n in range(100, 300):
                kept.put(event(n))
            with pytest.raises(TimeoutError):
                kept.flush(0.5)
            server.start()
            kept.flush(60)
        assert len(ids(store)) == whole(used(store)).requests == 300


def test_a_password_in_the_url_is_refused_and_not_repeated(tmp_path):
    store = config.Store(folder=str(tmp_path), database="postgresql://me:hunter2@127.0.0.1/x")
    with pytest.raises(UsageError) as refused:
        record(store)
    assert "hunter2" not in f"{refused.value.what} {refused.value.why} {refused.value.mend}"


def test_settings_read_anew_hold_from_then_on(file_store):
    with contextlib.closing(record(file_store, rates={})) as kept:
        kept.put(event(1))
        kept.flush(30)
        kept.apply(config.Record(), RATES)
        kept.put(event(2))
    assert {(part.model, part.schedule) for part in used(file_store)} == {("", ""), ("m", "list")}
    assert {part.day for part in used(file_store)} == {number_of(date(2026, 11, 22))}


def test_a_newer_schema_is_left_alone(file_store):
    record(file_store).close()
    with contextlib.closing(sqlite3.connect(Path(file_store.folder) / FILE)) as db:
        db.execute("INSERT INTO event_schema VALUES (99)")
        db.commit()
    with pytest.raises(Exception, match="newer"):
        record(file_store)


def test_a_flood_of_refusals_is_counted_and_fills_no_store(store):
    """Of three accounts, one of which is refused 500 times in a minute and 100 times in the next."""
    refused = {"status": 429, "ended": "refused", "reason": "rate_limit_exceeded", "cost": 0}
    refused |= {"input_tokens": 0, "output_tokens": 0}
    times = [NOON + n / 10 for n in range(500)] + [NOON + 60 + n / 10 for n in range(100)]
    flood = [event(n, at=at, account="a0", **refused) for n, at in enumerate(times)]
    others = [event(1000 + n, **({} if n % 2 else refused)) for n in range(60)]
    with contextlib.closing(record(store)) as kept:
        late = event(9999, at=NOON + 59, account="a0", **refused)
        for each in [*flood, late, *others]:
            kept.put(each)
    assert not kept.lost
    assert used(store) == totals([*flood, *others, late], RATES)
    with contextlib.closing(Events(store)) as reading:
        assert len(reading.newest("a0", most=1000)) == 120 + sum(each.account == "a0" for each in others)
        assert len(reading.newest(most=1000)) == 120 + 60
        minutes = reading.traffic(0, 10**9)
    assert sum(sums.requests for sums in minutes.values()) == 661
    assert sum(sums.requests for minute, sums in minutes.items() if minute.status == 4) == 631


def test_refusals_are_counted_once_though_the_store_failed(file_store, monkeypatch):
    monkeypatch.setattr(worker_module, "RETRY", 0.05)
    refused = {"status": 429, "ended": "refused", "account": "a0", "at": NOON}
    adding, failures = Events.add, iter(range(3))

    def failing(self, *sums):
        if next(failures, None) is not None:
            raise StorageError("no", "not now", "wait")
        adding(self, *sums)

    monkeypatch.setattr(Events, "add", failing)
    with contextlib.closing(record(file_store)) as kept:
        for n in range(200):
            kept.put(event(n, **refused))
    assert whole(used(file_store)).refused == 200


def test_refusals_that_could_not_be_written_until_the_end_are_told_as_lost(file_store, monkeypatch):
    def failing(*_):
        raise StorageError("no", "not now", "wait")

    monkeypatch.setattr(Events, "add", failing)
    kept = record(file_store)
    for n in range(200):
        kept.put(event(n, status=429, ended="refused", account="a0", at=NOON))
    assert kept.close(0.1) == 140
    assert kept.lost == {"not written at the end": 140}
