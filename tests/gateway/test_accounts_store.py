"""The accounts as the gateway keeps them, on real databases: found, changed, blocked, never lost."""

import asyncio
import os
import secrets
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing

import pytest
from postgres_server import Unavailable, running
from pydantic import ValidationError

from stillhouse.errors import UsageError
from stillhouse.gateway.store import accounts as accounts_module
from stillhouse.gateway.store.accounts import Accounts
from stillhouse.gateway.store.changing import Act, Conflict
from stillhouse.gateway.store.counts import StoreDown
from stillhouse.gateway.store.place import pepper_of
from stillhouse.gateway.store.register import Register
from stillhouse.gateway.store.rows import NotThere
from stillhouse.guard.accounts import digest_of, mint, standing
from stillhouse.guard.config import Store
from stillhouse.guard.orders import (
    AccountChange,
    KeyChange,
    NewAccount,
    NewKey,
    NewOrganisation,
    OrganisationChange,
    Payment,
)

PEPPER = b"p" * 32


@pytest.fixture(scope="module")
def postgres():
    try:
        with running() as server:
            yield server
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture(params=["sqlite", "postgres"])
def store(request, tmp_path):
    """Where accounts may lie: a folder, or a schema of its own on a server."""
    if request.param == "sqlite":
        return Store(folder=str(tmp_path / "guard"))
    server = request.getfixturevalue("postgres")
    schema = f"options=-csearch_path%3Dtest_{secrets.token_hex(4)}"
    return Store(folder=str(tmp_path / "guard"), database=f"{server.url}&{schema}")


@pytest.fixture
def register(store):
    opened = Register(store, PEPPER)
    yield opened
    opened.close()


def act(reason="", at=1000.0):
    return Act("a test", at, reason)


def add_key(register, account, **given):
    secret, digest, prefix = mint(PEPPER, secrets.token_bytes(32))
    return register.add_key(act(), account, NewKey(**given), digest, prefix), secret


def populated(register, **given):
    organisation = register.add_organisation(act(), NewOrganisation(name="the house"))
    account = register.add_account(act(), NewAccount(name="ann", organisation=organisation.id, **given))
    return organisation, account, *add_key(register, account.id)


def of(secret):
    digest = digest_of(PEPPER, secret)
    assert digest is not None
    return digest


async def finding(store, body, **given):
    accounts = Accounts(store, PEPPER, **given)
    try:
        return await body(accounts)
    finally:
        await accounts.close()


def test_a_key_is_found_with_its_account_and_organisation(store, register):
    limits = {"requests_per_minute": 5}
    organisation, account, key, secret = populated(register, limits=limits, budget=2.5, consent=True)
    _, lonely_secret = add_key(register, register.add_account(act(), NewAccount(name="bob")).id)

    async def body(accounts):
        for _ in range(2):
            caller = await accounts.find(of(secret))
            assert (caller.organisation, caller.account, caller.key) == (organisation, account, key)
            assert caller.account.limits == limits
            assert caller.account.consent is True
            assert caller.account.budget == 2.5
            assert (await accounts.find(of(lonely_secret))).organisation is None
            assert await accounts.find(b"x" * 32) is None

    asyncio.run(finding(store, body))


def test_what_is_ordered_is_known_at_once_here_and_within_a_second_elsewhere(store, register):
    organisation, account, key, secret = populated(register)

    async def body(accounts):
        assert standing(await accounts.find(of(secret)), 1000.0, None, False) == ""
        for kind, holder in (("key", key), ("account", account), ("organisation", organisation)):
            await accounts.order(lambda r, k=kind, h=holder: r.set_state(act("abuse"), k, h.id, "blocked"))
            blocked = await accounts.find(of(secret))
            assert standing(blocked, 1000.0, None, False) == f"{kind}_blocked"
            await accounts.order(lambda r, k=kind, h=holder: r.set_state(act(), k, h.id, "active"))
            assert standing(await accounts.find(of(secret)), 1000.0, None, False) == ""
        # and by another process
        register.set_state(act("abuse"), "key", key.id, "blocked")
        began = time.monotonic()
        while standing(await accounts.find(of(secret)), 1000.0, None, False) != "key_blocked":
            assert time.monotonic() - began < 1.0
            await asyncio.sleep(0.01)

    asyncio.run(finding(store, body))


def test_a_new_key_is_found_though_it_was_asked_for_before(store, register):
    _, account, _, _ = populated(register)
    _, digest, prefix = mint(PEPPER, secrets.token_bytes(32))

    async def body(accounts):
        assert await accounts.find(digest) is None
        await accounts.order(lambda r: r.add_key(act(), account.id, NewKey(), digest, prefix))
        assert (await accounts.find(digest)).account.id == account.id

    asyncio.run(finding(store, body))


def test_a_flood_of_wrong_keys_costs_few_queries_and_little_memory(store, register):
    _, _, _, secret = populated(register)

    async def body(accounts):
        looks = []
        look = accounts._reader.look
        accounts._reader.look = lambda revision, digests: (
            looks.append(len(digests)) or look(revision, digests)
        )
        known = await accounts.find(of(secret))
        for _ in range(30):
            wrong = [secrets.token_bytes(32) for _ in range(1000)]
            assert set(await asyncio.gather(*map(accounts.find, wrong))) == {None}
        assert await accounts.find(of(secret)) == known
        assert len(accounts._unknown) <= 20_000 + 200
        assert len(looks) < 30_000 / 100
        before = len(looks)
        for _ in range(1000):
            assert await accounts.find(wrong[0]) is None
        assert len(looks) - before < 20  # only the revision was looked at
        too_many = [asyncio.ensure_future(accounts.find(secrets.token_bytes(32))) for _ in range(3000)]
        answers = await asyncio.gather(*too_many, return_exceptions=True)
        assert sum(isinstance(one, StoreDown) for one in answers) >= 1000
        assert not accounts._waiting

    # On a busy machine what is held grows old between two of them, and the later ones wait for a second look
    asyncio.run(finding(store, body, clock=lambda: 0.0))


def test_what_is_held_is_bounded_and_the_longest_unused_goes_first(store, register):
    _, account, _, first = populated(register)
    others = [of(add_key(register, account.id)[1]) for _ in range(10)]

    async def body(accounts):
        for digest in others:
            assert await accounts.find(digest) is not None
            assert await accounts.find(of(first)) is not None
        assert len(accounts._callers) == 4
        assert of(first) in accounts._callers
        assert await accounts.find(others[0]) is not None  # from the database again

    asyncio.run(finding(store, body, held=4))


def test_while_the_server_is_down_what_costs_money_is_refused(postgres, tmp_path):
    """Known callers may list the models for a while; unknown ones may nothing. Nothing passes silently."""
    schema = f"options=-csearch_path%3Dtest_{secrets.token_hex(4)}"
    store = Store(folder=str(tmp_path), database=f"{postgres.url}&{schema}", stale_seconds=60)
    register = Register(store, PEPPER)
    _, account, key, secret = populated(register)
    now = [1000.0]

    async def body(accounts):
        assert (await accounts.find(of(secret))).key == key
        postgres.stop()
        try:
            now[0] += 0.2
            assert (await accounts.find(of(secret))).key == key  # it was looked at a moment ago
            now[0] += 1.0
            with pytest.raises(StoreDown, match="could not read"):
                await accounts.find(of(secret))
            assert (await accounts.find(of(secret), costs=False)).key == key
            with pytest.raises(StoreDown):
                await accounts.find(b"x" * 32, costs=False)
            with pytest.raises(StoreDown):
                await accounts.order(lambda r: r.set_state(act("x"), "key", key.id, "blocked"))
            now[0] += 59.0
            with pytest.raises(StoreDown):
                await accounts.find(of(secret), costs=False)
            with pytest.raises(StoreDown):
                Register(store, PEPPER)
        finally:
            postgres.start()
        now[0] += 1.0
        assert (await accounts.find(of(secret))).key == key
        await accounts.order(lambda r: r.set_state(act("x"), "account", account.id, "blocked"))
        assert (await accounts.find(of(secret))).account.state == "blocked"

    asyncio.run(finding(store, body, clock=lambda: now[0]))
    register.close()


def test_a_database_that_was_put_back_to_an_older_state_is_noticed(store, register):
    _, account, _, secret = populated(register)
    register.set_state(act("x"), "account", account.id, "blocked")

    async def body(accounts):
        assert (await accounts.find(of(secret))).account.state == "blocked"
        with register._writing("test") as db:  # as a backup from before the block would be
            db.execute("DELETE FROM change WHERE what = 'block'")
            db.execute("UPDATE account SET state = 'active'")
        deadline = time.monotonic() + 2.0
        while (await accounts.find(of(secret))).account.state == "blocked":
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)

    asyncio.run(finding(store, body))


def test_a_rotated_key_keeps_its_id_and_its_old_secret_for_a_while(store, register):
    _, _, key, old = populated(register)
    new, digest, prefix = mint(PEPPER, secrets.token_bytes(32))
    rotated = register.rotate(act(at=2000.0), key.id, 600.0, digest, prefix)
    assert (rotated.id, rotated.prefix, rotated.expires) == (key.id, prefix, None)

    async def body(accounts):
        by_old, by_new = [await accounts.find(of(secret)) for secret in (old, new)]
        assert by_old.key.id == by_new.key.id == key.id
        assert standing(by_old, 2599.0, None, False) == standing(by_new, 2601.0, None, False) == ""
        assert standing(by_old, 2600.0, None, False) == "key_expired"

    asyncio.run(finding(store, body))
    third = mint(PEPPER, secrets.token_bytes(32))
    register.rotate(act(at=2100.0), key.id, 0.0, *third[1:])
    look = register.look(0, [of(old), of(new), of(third[0])]).callers
    assert [look[of(secret)].key.expires for secret in (old, new, third[0])] == [2100.0, 2100.0, None]
    assert [one.prefix for one in register.keys(limit=9)] == [third[2]]
    for secret in (old, new, third[0]):  # as when somebody finds an old one
        assert [one.id for one in register.keys(secret[:15])] == [key.id]
    register.set_state(act("leaked"), "key", key.id, "closed")
    with pytest.raises(Conflict, match="revoked"):
        register.rotate(act(), key.id, 0.0, *mint(PEPPER, secrets.token_bytes(32))[1:])


def test_a_payment_counts_once_and_is_never_taken_for_another(register):
    _, account, _, _ = populated(register)
    other = register.add_account(act(), NewAccount(name="bob"))
    for _ in range(3):
        paid = register.pay(act(), account.id, Payment(amount="12.345678901", reference="r1"))
        assert paid.paid == 12_345_678_901
    for where, amount in ((account.id, "12"), (other.id, "12.345678901")):
        with pytest.raises(Conflict, match="another payment"):
            register.pay(act(), where, Payment(amount=amount, reference="r1"))
    with pytest.raises(UsageError, match="reason"):
        register.pay(act(), account.id, Payment(amount="-1", reference="r2"))
    with pytest.raises(Conflict, match="more would be paid back"):
        register.pay(act("refund"), account.id, Payment(amount="-100", reference="r2"))
    back = register.pay(act("refund"), account.id, Payment(amount="-2.345678901", reference="r2"))
    assert back.paid == 10_000_000_000
    assert [row[:2] for row in register.payments(account.id)] == [
        ("r1", 12_345_678_901),
        ("r2", -2_345_678_901),
    ]
    with pytest.raises(ValidationError):
        Payment(amount="0.0000000001", reference="too fine")
    with pytest.raises(ValidationError):
        Payment(amount="NaN", reference="r")


def test_every_act_is_logged_with_who_why_and_what_changed(register):
    _, account, key, _ = populated(register)
    with pytest.raises(UsageError, match="needs a reason"):
        register.change_account(act(), account.id, AccountChange(limits={"concurrent": 1}))
    with pytest.raises(UsageError, match="needs a reason"):
        register.set_state(act(), "key", key.id, "blocked")
    register.change_account(act("asked for it"), account.id, AccountChange(budget=3, name="ann b"))
    register.change_account(act(), account.id, AccountChange(budget=None))
    register.change_account(act(), account.id, AccountChange(name="ann b"))  # nothing new: nothing logged
    register.change_key(act("less"), key.id, KeyChange(models=["a", "b-*"], expires=5000.0))
    register.change_organisation(act(), account.organisation, OrganisationChange(name="house"))
    register.accept(act(), account.id, "2026-01")
    register.accept(act(), account.id, "2026-01")
    assert register.account(account.id).accepted == "2026-01"
    assert register.acceptances(account.id) == [("2026-01", 1000.0, "a test")]
    log = register.changes()
    assert [one.id for one in log] == sorted(one.id for one in log)
    told = [(one.what, one.subject.partition(":")[0], one.reason, one.before, one.after) for one in log[3:]]
    assert told == [
        (
            "change",
            "account",
            "asked for it",
            {"budget": None, "name": "ann"},
            {"budget": 3.0, "name": "ann b"},
        ),
        ("change", "account", "", {"budget": 3.0}, {"budget": None}),
        (
            *("change", "key", "less"),
            {"expires": None, "models": []},
            {"expires": 5000.0, "models": ["a", "b-*"]},
        ),
        ("change", "organisation", "", {"name": "the house"}, {"name": "house"}),
        ("accept terms", "account", "", {"accepted": None}, {"accepted": "2026-01"}),
    ]
    assert {one.subject for one in register.changes(subject=f"key:{key.id}")} == {f"key:{key.id}"}
    assert [one.id for one in register.changes(after=log[1].id, limit=2)] == [one.id for one in log[2:4]]


def test_what_is_closed_stays_so(register):
    organisation, account, _, _ = populated(register)
    register.set_state(act("left"), "account", account.id, "closed")
    for call in (
        lambda: register.set_state(act(), "account", account.id, "active"),
        lambda: register.change_account(act(), account.id, AccountChange(name="x")),
        lambda: add_key(register, account.id),
    ):
        with pytest.raises(Conflict, match="closed"):
            call()
    register.set_state(act("left"), "organisation", organisation.id, "closed")
    with pytest.raises(Conflict, match="closed"):
        register.add_account(act(), NewAccount(name="x", organisation=organisation.id))
    with pytest.raises(NotThere):
        register.account("acct_none")


def test_lists_go_page_by_page_and_search_takes_no_patterns(register):
    for name in ("Ann 100%", "ann_b", "Bob", "anna"):
        register.add_account(act(), NewAccount(name=name))
    assert {one.name for one in register.accounts("ANN")} == {"Ann 100%", "ann_b", "anna"}
    assert [one.name for one in register.accounts("n_")] == ["ann_b"]
    assert [one.name for one in register.accounts("0%")] == ["Ann 100%"]
    assert register.accounts("'; DROP TABLE account; --") == []
    pages, after = [], ""
    while page := register.accounts(after=after, limit=3):
        pages += page
        after = page[-1].id
    assert [one.id for one in pages] == sorted(one.id for one in register.accounts())


def test_another_pepper_is_told_at_once(store, register):
    with pytest.raises(UsageError, match="cannot be used") as caught:
        Register(store, b"q" * 32)
    assert "pepper" in caught.value.why


def test_the_pepper_is_made_once_and_a_damaged_one_is_told(tmp_path):
    store = Store(folder=str(tmp_path / "guard"))
    pepper = pepper_of(store, {})
    assert (len(pepper), pepper) == (32, pepper_of(store, {}))
    path = tmp_path / "guard" / "pepper.key"
    assert path.stat().st_mode & 0o077 == 0
    assert (tmp_path / "guard").stat().st_mode & 0o077 == 0
    path.write_text("short")
    with pytest.raises(UsageError, match="damaged"):
        pepper_of(store, {})
    by_variable = Store(folder=str(tmp_path), pepper_env="PEPPER")
    assert pepper_of(by_variable, {"PEPPER": "p" * 32}) == PEPPER
    with pytest.raises(UsageError, match="not set"):
        pepper_of(by_variable, {})


PAY = """
import json, sys
from stillhouse.gateway.store.changing import Act
from stillhouse.gateway.store.register import Register
from stillhouse.guard.config import Store
from stillhouse.guard.orders import Payment

store, account, first = Store(**json.loads(sys.argv[1])), sys.argv[2], int(sys.argv[3])
register = Register(store, b"p" * 32)
print("ready", flush=True)
for number in range(first, 10_000):
    register.pay(Act("a test", 1.0), account, Payment(amount=1, reference=f"r{number}"))
    print(number, flush=True)
"""


def test_a_process_that_is_killed_while_it_records_payments_loses_and_doubles_none(store, register):
    account = register.add_account(act(), NewAccount(name="ann"))
    told = 0
    for _ in range(4):
        command = [sys.executable, "-c", PAY, store.model_dump_json(), account.id, str(max(0, told - 5))]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "ready\n"
            for _ in range(25):
                told = int(process.stdout.readline())
            os.kill(process.pid, signal.SIGKILL)
            told = max([told, *map(int, process.stdout.read().split("\n")[:-1])])
    references = {row[0] for row in register.payments(account.id)}
    assert references >= {f"r{number}" for number in range(told + 1)}
    assert len(references) <= told + 2  # one may have been committed and not told
    assert register.account(account.id).paid == len(references) * 1_000_000_000
    assert len(register.changes(limit=1000)) == 1 + len(references)


BLOCK = """
import json, sys
from stillhouse.gateway.store.changing import Act
from stillhouse.gateway.store.register import Register
from stillhouse.guard.config import Store

register = Register(Store(**json.loads(sys.argv[1])), b"p" * 32)
sys.stdin.readline()
register.set_state(Act("a test", 1.0, "abuse"), "key", sys.argv[2], "blocked")
print("blocked", flush=True)
"""


def test_a_key_that_another_process_blocks_is_refused_within_a_second(store, register):
    _, _, key, secret = populated(register)

    async def body(accounts, process):
        assert standing(await accounts.find(of(secret)), 1.0, None, False) == ""
        process.stdin.write("\n")
        process.stdin.flush()
        await asyncio.to_thread(process.stdout.readline)
        blocked = time.monotonic()
        while standing(await accounts.find(of(secret)), 1.0, None, False) != "key_blocked":
            assert time.monotonic() - blocked < 1.0
            await asyncio.sleep(0.005)

    command = [sys.executable, "-c", BLOCK, store.model_dump_json(), key.id]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        asyncio.run(finding(store, lambda accounts: body(accounts, process)))


def test_no_secret_is_in_the_files_or_in_the_log(tmp_path):
    store = Store(folder=str(tmp_path / "guard"))
    pepper = pepper_of(store, {})
    register = Register(store, pepper)
    account = register.add_account(act(), NewAccount(name="ann"))
    given = []
    for _ in range(5):
        secret, digest, prefix = mint(pepper, secrets.token_bytes(32))
        key = register.add_key(act(), account.id, NewKey(), digest, prefix)
        again, digest, prefix = mint(pepper, secrets.token_bytes(32))
        register.rotate(act(), key.id, 60.0, digest, prefix)
        given += [secret, again]
    log = repr(register.changes())
    register.set_state(act("x"), "key", key.id, "closed")
    whole = b"".join(path.read_bytes() for path in (tmp_path / "guard").iterdir())
    register.close()
    whole += b"".join(path.read_bytes() for path in (tmp_path / "guard").iterdir())
    for secret in given:
        assert secret[:15].encode() in whole  # the prefix is there, and nothing more
        assert secret[:18].encode() not in whole
        assert secret[15:].encode() not in whole
        assert secret[15:] not in log
    digests = {of_digest.hex() for of_digest in register_digests(store, pepper)}
    assert not any(digest in log for digest in digests)


def register_digests(store, pepper):
    register = Register(store, pepper)
    found = [key.digest for key in register.keys(limit=99)]
    register.close()
    return found


def test_a_database_that_does_not_answer_holds_nobody_up_for_long(tmp_path, monkeypatch):
    """As when its machine vanished: no error comes, and no answer."""
    monkeypatch.setattr(accounts_module, "LOOK_SECONDS", 0.2)
    store = Store(folder=str(tmp_path))
    register = Register(store, PEPPER)
    _, _, key, secret = populated(register)
    register.close()
    now = [1000.0]

    async def body(accounts):
        assert (await accounts.find(of(secret))).key == key
        look, goes_on = accounts._reader.look, threading.Event()
        accounts._reader.look = lambda *given: goes_on.wait(30) and look(*given)
        now[0] += 1.0
        for digest in (of(secret), b"x" * 32):
            with pytest.raises(StoreDown, match="cannot be read"):
                await asyncio.wait_for(accounts.find(digest), 5)
            now[0] += 1.0
        assert (await accounts.find(of(secret), costs=False)).key == key
        goes_on.set()
        now[0] += 1.0
        assert (await accounts.find(of(secret))).key == key

    asyncio.run(finding(store, body, clock=lambda: now[0]))


def test_a_caller_who_leaves_while_it_is_looked_up_takes_nobody_along(store, register):
    _, _, key, secret = populated(register)

    async def body(accounts):
        await accounts.find(b"x" * 32)
        leaving, staying = (asyncio.ensure_future(accounts.find(of(secret))) for _ in range(2))
        await asyncio.sleep(0)
        leaving.cancel()
        assert (await staying).key == key
        with pytest.raises(asyncio.CancelledError):
            await leaving

    asyncio.run(finding(store, body))


def test_a_consent_to_training_is_apart_from_the_one_to_keep_and_is_taken_back_at_any_time(store, register):
    _, account, _, secret = populated(register, consent=True)
    assert (account.training, account.training_since) == (None, None)
    agreed = register.agree(act("by mail", 1001.0), account.id, "2026-01")
    assert (agreed.training, agreed.training_since, agreed.consent) == ("2026-01", 1001.0, True)
    assert register.agree(act(at=1002.0), account.id, "2026-01") == agreed  # nothing new was said

    async def body(accounts):
        assert (await accounts.find(of(secret))).account == agreed
        await accounts.order(lambda r: r.agree(act("by phone", 1003.0), account.id, None))
        assert (await accounts.find(of(secret))).account == account

    asyncio.run(finding(store, body))
    register.agree(act(at=1004.0), account.id, "2026-02")
    register.set_state(act("left"), "account", account.id, "closed")
    assert register.agree(act(at=1005.0), account.id, None).training is None
    with pytest.raises(Conflict, match="closed"):
        register.agree(act(), account.id, "2026-02")
    assert register.agreements(account.id) == [
        ("2026-01", 1001.0, "a test", "by mail"),
        (None, 1003.0, "a test", "by phone"),
        ("2026-02", 1004.0, "a test", ""),
        (None, 1005.0, "a test", ""),
    ]
    log = [(one.what, one.before, one.after) for one in register.changes() if "training" in one.what]
    assert log[1] == ("withdraw training", {"training": "2026-01"}, {"training": None})
    assert len(log) == 4


def test_accounts_of_a_store_that_knew_no_consent_to_training_are_read_as_before(tmp_path):
    store = Store(folder=str(tmp_path / "guard"))
    with closing(Register(store, PEPPER)) as register:
        _, account, _, _ = populated(register)
    with closing(sqlite3.connect(tmp_path / "guard" / "accounts.db")) as db:
        db.execute("DROP TABLE training")
    with closing(Register(store, PEPPER)) as register:
        assert register.account(account.id) == account
