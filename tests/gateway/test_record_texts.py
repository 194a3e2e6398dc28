"""Texts: kept by consent only, sealed wherever they lie, and gone when they are erased."""

import contextlib
import shutil
import sqlite3
import time
from pathlib import Path

import pytest
import zstandard
from recorded import SECRET, event, record

from stillhouse.errors import StorageError
from stillhouse.gateway import texts as texts_module
from stillhouse.gateway import worker as worker_module
from stillhouse.gateway.sealing import Sealer, seal
from stillhouse.gateway.store.texts import FILE, TextStore
from stillhouse.gateway.texts import Erased, Texts
from stillhouse.guard import config
from stillhouse.guard.accounts import Account

KEEP = config.Record(text="with_consent", text_days=30)
ASKED, ANSWERED = b'{"prompt":"the heron at Tolka weir"}', b'{"text":"it waits for the eels"}'


def account(name="a1", consent=True):
    return Account(name, None, name, "default", consent=consent)


def kept_in(store, settings=KEEP, secret=SECRET, told=None):
    log = (lambda what, **said: told.append(what)) if told is not None else lambda *_, **__: None
    return contextlib.closing(Texts(store, settings, secret, log))


def in_the_folder(store, *needles):
    """Which of them stand in any byte of any file: databases, WALs, keys, the ledger."""
    files = [path.read_bytes() for path in Path(store.folder).rglob("*") if path.is_file()]
    assert files
    return [needle for needle in needles if any(needle in data for data in files)]


def sealed_bytes(store):
    with contextlib.closing(sqlite3.connect(Path(store.folder) / FILE)) as db:
        rows = db.execute("SELECT sealed FROM kept_text ORDER BY id").fetchall()
        keys = db.execute("SELECT wrapped FROM text_key ORDER BY account").fetchall()
    return [row[0] for row in rows], [row[0] for row in keys]


def test_what_was_kept_can_be_read(store):
    with kept_in(store) as texts:
        for n in range(100):
            texts.put(f"e{n}", account(f"a{n % 3}"), ASKED + b"%d" % n, ANSWERED)
        texts.put("empty", account(), b"", b"")
        texts.put("binary", account(), b"\x00\xff" * 1000, bytes(range(256)))
        texts.flush(30)
        assert texts.read("e42") == (ASKED + b"42", ANSWERED)
        assert texts.read("empty") == (b"", b"")
        assert texts.read("binary") == (b"\x00\xff" * 1000, bytes(range(256)))
        assert texts.read("e100") is None
    with kept_in(store) as texts:
        assert texts.read("e7") == (ASKED + b"7", ANSWERED)


@pytest.mark.parametrize(
    ("settings", "consent"), [(config.Record(), True), (KEEP, False), (config.Record(), False)]
)
def test_without_the_operator_s_word_and_the_account_s_nothing_is_kept(file_store, settings, consent):
    with contextlib.closing(record(file_store, settings=settings)) as kept:
        kept.put(event(1))
        kept.put_text("req_000001", account(consent=consent), ASKED, ANSWERED)
        kept.flush(30)
        kept.texts.flush(30)
        assert kept.texts.read("req_000001") is None
    assert sealed_bytes(file_store) == ([], [])
    assert not in_the_folder(file_store, b"heron", b"eels")


def test_no_byte_of_the_folder_tells_the_text(file_store):
    with contextlib.closing(record(file_store, settings=KEEP)) as kept:
        for n in range(50):
            kept.put(event(n))
            kept.put_text(f"req_{n:06}", account(), ASKED, ANSWERED)
        kept.flush(30)
        kept.texts.flush(30)
        assert kept.texts.read("req_000001") == (ASKED, ANSWERED)
        packed = zstandard.compress(len(ASKED).to_bytes(8) + ASKED + ANSWERED)
        hidden = (b"heron", b"Tolka", b"eels", packed, ASKED.hex().encode(), SECRET)
        assert not in_the_folder(file_store, *hidden)
    assert not in_the_folder(file_store, *hidden)
    texts, keys = sealed_bytes(file_store)
    assert len(texts) == len(set(texts)) == 50
    assert len(keys) == 1


def test_what_is_erased_is_in_no_byte_of_the_folder(file_store):
    with kept_in(file_store) as texts:
        for n in range(300):
            texts.put(f"gone{n:03}", account("gone"), ASKED * 20 + b"%d" % n, ANSWERED)
            texts.put(f"kept{n:03}", account("kept"), ASKED, ANSWERED)
        texts.flush(30)
        rows, keys = sealed_bytes(file_store)
        went, stay = rows[:300], rows[300:]
        assert len(in_the_folder(file_store, *[each[-40:] for each in went])) == 300
        assert texts.erase("gone") == Erased(300, True)
        needles = [each[at : at + 24] for each in went for at in (0, len(each) // 2, len(each) - 24)]
        assert not in_the_folder(file_store, *needles, keys[0], b"gone0")
        assert len(in_the_folder(file_store, *[each[-40:] for each in stay], keys[1])) == 301
        assert texts.read("gone007") is None
        assert texts.read("kept007") == (ASKED, ANSWERED)
        assert texts.erase("gone") == Erased(0, True)
        texts.put("anew", account("gone"), ASKED, ANSWERED)
        texts.flush(30)
        assert texts.read("anew") == (ASKED, ANSWERED)
    assert not in_the_folder(file_store, *needles, keys[0], b"gone0")


def test_erasing_reaches_what_waits_and_what_another_replica_held_the_key_of(store):
    with kept_in(store) as one, kept_in(store) as two:
        for n in range(5):
            one.put(f"one{n}", account("a"), ASKED, ANSWERED)
            two.put(f"two{n}", account("a"), ASKED, ANSWERED)
        two.flush(30)
        assert one.erase("a").texts == 10
        assert one.read("two3") is None
        two.put("after", account("a"), ASKED, ANSWERED)  # under a key that is gone: it takes a new one
        two.flush(30)
        assert one.read("after") == (ASKED, ANSWERED)


def test_an_erasure_that_was_killed_leaves_no_key_behind(file_store, tmp_path, monkeypatch):
    with kept_in(file_store) as texts:
        texts.put("e", account("a"), ASKED, ANSWERED)
        texts.flush(30)
        (sealed,), (key,) = sealed_bytes(file_store)
        monkeypatch.setattr(texts._store._tables, "scrub", lambda whole=(): True)
        texts.erase("a")
        left = config.Store(folder=str(tmp_path / "as a kill leaves it"))
        shutil.copytree(file_store.folder, left.folder)
    assert in_the_folder(left, sealed[:24], key)
    with kept_in(left):
        assert not in_the_folder(left, sealed[:24], key)


def test_texts_expire_with_their_keys(store):
    sealer, today = Sealer(SECRET), int(time.time()) // 86_400
    with contextlib.closing(TextStore(store)) as texts:
        for day in (today - 31, today - 30, today):
            wrapped = texts.wrapped("a", day, sealer.under, sealer.fresh("a", day))
            key = sealer.unwrapped(wrapped, "a", day)
            texts.write([(f"e{day}", "a", day, sealer.under, seal(key, f"e{day}", "a", ASKED, ANSWERED))])
    with kept_in(store) as texts:
        deadline = time.monotonic() + 20
        while texts.read(f"e{today - 31}") is not None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert texts.read(f"e{today - 30}") == (ASKED, ANSWERED)
        assert texts.read(f"e{today}") == (ASKED, ANSWERED)


def test_under_another_secret_nothing_opens_and_what_comes_then_is_kept(store):
    with kept_in(store) as texts:
        texts.put("before", account(), ASKED, ANSWERED)
    with kept_in(store, secret=b"another secret, as long as it is") as texts:
        with pytest.raises(StorageError, match="cannot be opened"):
            texts.read("before")
        texts.put("after", account(), ASKED, ANSWERED)
        texts.flush(30)
        assert texts.read("after") == (ASKED, ANSWERED)
    with kept_in(store) as texts:
        assert texts.read("before") == (ASKED, ANSWERED)


def test_a_text_that_was_moved_or_changed_does_not_open(file_store):
    with kept_in(file_store) as texts:
        texts.put("e1", account("a"), ASKED, ANSWERED)
        texts.put("e2", account("a"), b"2", b"2")
        texts.flush(30)
        with contextlib.closing(sqlite3.connect(Path(file_store.folder) / FILE)) as db:
            db.execute(
                "UPDATE kept_text SET sealed = (SELECT sealed FROM kept_text WHERE id = 'e1') WHERE id = 'e2'"
            )
            db.commit()
        assert texts.read("e1") == (ASKED, ANSWERED)
        with pytest.raises(StorageError, match="cannot be opened"):
            texts.read("e2")


def test_waiting_texts_take_bounded_memory_and_what_is_left_out_is_counted(file_store, monkeypatch):
    monkeypatch.setattr(texts_module, "WAITING_BYTES", 10_000)
    monkeypatch.setattr(worker_module, "RETRY", 0.02)
    told = []
    with kept_in(file_store, told=told) as texts:
        texts.flush(30)
        with contextlib.closing(sqlite3.connect(Path(file_store.folder) / FILE, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            for n in range(20):
                texts.put(f"e{n}", account(), b"x" * 999, b"y")
            assert texts.lost == {"the queue was full": 10}
            db.execute("ROLLBACK")
        texts.flush(60)
        texts.put("later", account(), b"x" * 999, b"y")
        texts.flush(60)
        assert [texts.read(f"e{n}") is not None for n in range(20)] == [True] * 10 + [False] * 10
        assert texts.read("later")


def test_a_full_disk_keeps_texts_waiting(file_store, monkeypatch):
    monkeypatch.setattr(worker_module, "RETRY", 0.02)
    told = []
    with kept_in(file_store, told=told) as texts:
        texts.put("e0", account(), ASKED, ANSWERED)
        texts.flush(30)
        database = texts._store._tables._db
        database.execute("PRAGMA max_page_count = 1")
        for n in range(1, 50):
            texts.put(f"e{n}", account(), bytes(range(256)) * 40 + b"%d" % n, ANSWERED)
        with pytest.raises(TimeoutError):
            texts.flush(0.5)
        assert told == ["texts are not being stored"]
        database.execute("PRAGMA max_page_count = 1073741823")
        texts.flush(30)
        assert texts.read("e49")
        assert not texts.lost
