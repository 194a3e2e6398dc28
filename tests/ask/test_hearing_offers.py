"""Which answers of a server tell of its terms: real sockets, and the ledger that keeps what was told."""

import asyncio
import json
import threading
import time
from contextlib import contextmanager
from datetime import date

import pytest
from aiohttp import web

from stillhouse.ask import offers
from stillhouse.ledger import Ledger
from stillhouse.terms.offered import WELL_KNOWN
from stillhouse.workspace import init_workspace

TODAY = date(2026, 11, 22)
FORBIDS = {
    "schema": "ai-terms/1",
    "contact": "",
    "terms": {"version": "1", "url": "https://h/terms", "sha256": "0" * 64},
    "answers": {"train_other_models": "forbidden", "train_competing_models": "forbidden"},
}


@pytest.fixture
def ledger(tmp_path):
    with Ledger.open(init_workspace(tmp_path)) as ledger:
        yield ledger


@contextmanager
def served(handler):
    """A server of which every address is answered by `handler`; gives its origin."""
    loop, ready, origin = asyncio.new_event_loop(), threading.Event(), []

    async def start():
        app = web.Application()
        app.router.add_get("/{path:.*}", handler)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        origin.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
        ready.set()
        return runner

    def serve():
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(start())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield origin[0]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


def states(ledger):
    return [leaf.body["state"] for leaf in ledger.leaves("terms_snapshot")]


@contextmanager
def forbade(ledger):
    """A server that said so once; `answers` is what it says from then on."""
    answers = []

    async def handler(request):
        status, headers, body = answers[-1](request)
        return web.Response(status=status, headers=headers, body=body)

    with served(handler) as origin:
        answers.append(lambda request: (200, {}, json.dumps(FORBIDS).encode()))
        offers.hear([origin], ledger, TODAY)
        assert states(ledger) == ["read"]
        yield origin, answers


@pytest.mark.parametrize("status", [404, 410])
def test_no_document_is_told_by_two_answers_alone(ledger, status):
    with forbade(ledger) as (origin, answers):
        answers.append(lambda request: (status, {}, b""))
        offers.hear([origin], ledger, TODAY)
    assert states(ledger) == ["read", "absent"]


@pytest.mark.parametrize(
    "status", [204, 206, 304, 400, 401, 402, 403, 405, 406, 408, 421, 425, 429, 451, 500, 503]
)
def test_any_other_answer_tells_nothing_and_what_is_known_stays(ledger, status):
    with forbade(ledger) as (origin, answers):
        answers.append(lambda request: (status, {}, b""))
        offers.hear([origin], ledger, TODAY)
    assert states(ledger) == ["read"]


@pytest.mark.parametrize(
    "where", ["http://127.0.0.2:1/", "https://elsewhere.example/x", "//[", "", "ftp://127.0.0.1/", WELL_KNOWN]
)
def test_a_way_that_leads_elsewhere_or_nowhere_tells_nothing(ledger, where):
    with forbade(ledger) as (origin, answers):
        answers.append(lambda request: (302, {"Location": where}, b""))
        offers.hear([origin], ledger, TODAY)
    assert states(ledger) == ["read"]


def test_a_way_within_the_same_server_is_followed(ledger):
    with forbade(ledger) as (origin, answers):
        answers.append(
            lambda request: (
                (302, {"Location": f"{origin}/terms"}, b"")
                if request.path == WELL_KNOWN
                else (200, {}, b"{}")
            )
        )
        offers.hear([origin], ledger, TODAY)
    assert states(ledger) == ["read", "malformed"]


def test_one_server_has_its_seconds_for_all_of_its_answers_together(ledger, monkeypatch):
    """It leads on and on, each time a moment before a bound on the single answer."""
    monkeypatch.setattr(offers, "SECONDS", 0.6)
    led = []

    async def handler(request):
        led.append(request.path)
        await asyncio.sleep(0.4)
        if len(led) < 4:
            return web.Response(status=302, headers={"Location": f"/{len(led)}"})
        return web.Response(body=json.dumps(FORBIDS).encode())

    with served(handler) as origin:
        began = time.monotonic()
        offers.hear([origin], ledger, TODAY)
        took = time.monotonic() - began
    assert states(ledger) == []
    assert len(led) == 2
    assert took < 5


def test_a_server_is_heard_once_however_it_is_typed(ledger):
    asked = []

    async def handler(request):
        asked.append(request.path)
        return web.Response(body=json.dumps(FORBIDS).encode())

    with served(handler) as origin:
        offers.hear([origin, f"{origin}/v1", origin.replace("http", "HTTP")], ledger, TODAY)
    assert asked == [WELL_KNOWN]
    assert states(ledger) == ["read"]


PLAIN, SECURE = "http://api.example.com", "https://api.example.com"


@pytest.fixture
def web_of(monkeypatch):
    """Servers at the usual ports, where no test can listen: status, Location and body by address."""
    found, asked = {}, []

    class Answer:
        def __init__(self, status, headers=None, body=b""):
            self.status, self.headers = status, headers or {}
            self.content = asyncio.StreamReader()
            self.content.feed_data(body)
            self.content.feed_eof()

        async def __aenter__(self):
            return self

        async def __aexit__(self, *_):
            pass

    class Session(Answer):
        def __init__(self, **_):
            pass

        def get(self, url, allow_redirects):
            asked.append(str(url))
            return Answer(*found.get(str(url), (503,)))

    monkeypatch.setattr(offers.aiohttp, "ClientSession", Session)
    monkeypatch.setattr(offers.aiohttp, "DummyCookieJar", lambda: None)
    return found, asked


def says(word):
    answers = {"train_other_models": word, "train_competing_models": word}
    return 200, None, json.dumps(FORBIDS | {"answers": answers}).encode()


def last_word(ledger, origin):
    of = [leaf.body for leaf in ledger.leaves("terms_snapshot") if leaf.body["row"] == f"offered:{origin}"]
    return of[-1]["offer"]["training"] if of else None


@pytest.mark.parametrize(("typed", "twin"), [(SECURE, PLAIN), (PLAIN, SECURE)])
def test_the_other_scheme_is_asked_where_it_forbade_and_only_there(ledger, web_of, typed, twin):
    found, asked = web_of
    found |= {typed + WELL_KNOWN: says("allowed"), twin + WELL_KNOWN: says("forbidden")}
    offers.hear([typed], ledger, TODAY)
    assert asked == [typed + WELL_KNOWN]
    offers.hear([twin], ledger, TODAY)
    asked.clear()
    found[twin + WELL_KNOWN] = says("allowed")
    offers.hear([typed], ledger, TODAY)
    assert asked == [typed + WELL_KNOWN, twin + WELL_KNOWN]
    assert last_word(ledger, twin) == "allowed"
    asked.clear()
    offers.hear([typed], ledger, TODAY)
    assert asked == [typed + WELL_KNOWN]


def test_from_http_to_https_of_the_same_host_the_word_is_its_own(ledger, web_of):
    found, _ = web_of
    found[PLAIN + WELL_KNOWN] = says("forbidden")
    offers.hear([PLAIN], ledger, TODAY)
    found[PLAIN + WELL_KNOWN] = 301, {"Location": SECURE + WELL_KNOWN}
    found[SECURE + WELL_KNOWN] = says("allowed")
    offers.hear([SECURE], ledger, TODAY)
    assert last_word(ledger, PLAIN) == last_word(ledger, SECURE) == "allowed"


@pytest.mark.parametrize(
    ("origin", "where"),
    [
        (SECURE, PLAIN),
        (PLAIN, f"{SECURE}:8443"),
        (PLAIN, "https://www.api.example.com"),
        (f"{PLAIN}:8080", SECURE),
    ],
)
def test_no_other_way_to_another_server_is_its_word(ledger, web_of, origin, where):
    found, _ = web_of
    found[origin + WELL_KNOWN] = 301, {"Location": where + WELL_KNOWN}
    found[where + WELL_KNOWN] = says("allowed")
    offers.hear([origin], ledger, TODAY)
    assert states(ledger) == []
