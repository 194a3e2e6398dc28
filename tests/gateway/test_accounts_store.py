"""The accounts as the gateway keeps them, on real databases: found, changed, blocked everywhere, never lost."""

import asyncio
import secrets
import time

import pytest
from postgres_server import Unavailable, running

from stillhouse.gateway.store.accounts import Accounts
from stillhouse.gateway.store.register import Act, Register
from stillhouse.guard.accounts import digest_of, mint, standing
from stillhouse.guard.config import Store
from stillhouse.guard.orders import (
    NewAccount,
    NewKey,
    NewOrganisation,
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
    secret, digest, prefix = mint(PEPPER, secrets.token_bytes(32))

    async def body(accounts):
        assert await accounts.find(digest) is None
        await accounts.order(lambda r: r.add_key(act(), account.id, NewKey(), digest, prefix))
        assert (await accounts.find(digest)).account.id == account.id

    asyncio.run(finding(store, body))
