"""The console over HTTP: who gets in, what a form needs, and what the acts do."""

from __future__ import annotations

import re
import sqlite3
import time
from contextlib import closing, contextmanager
from urllib.parse import quote

import pytest
from console_house import SECRET, form_in, house, token_in, tree_of
from recorded import schema_of

from stillhouse.gateway.console import console_routes
from stillhouse.gateway.console.doors import HEADERS
from stillhouse.gateway.store.sessions import FILE, IDLE, LONGEST
from stillhouse.gateway.store.tables import Tables
from stillhouse.guard.accounts import digest_of
from stillhouse.guard.events import Event
from stillhouse.guard.orders import NewOrganisation

ODD = "x\"'><img src=q onerror=alert(1)>"
HOSTILE = ("/admin/login", "/admin/static/{name}")


@contextmanager
def settled(kind, folder, request):
    """Settings with their tables in files, or on a server."""
    tree = tree_of(folder)
    if kind == "sqlite":
        yield tree
        return
    with schema_of(request.getfixturevalue("server"), folder / "store") as store:
        tree["store"]["database"] = store.database
        yield tree


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def at(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("console")
    with settled(request.param, folder, request) as tree, house(folder, tree) as made:
        yield made


@pytest.fixture(params=["sqlite", "postgres"])
def fresh(request, tmp_path):
    """One that no other test uses."""
    with settled(request.param, tmp_path, request) as tree, house(tmp_path, tree) as made:
        yield made


@pytest.fixture
def ada(at):
    with at.log_in("Ada Lovelace") as client:
        yield client


def event(account: str, **given) -> Event:
    told = {
        "id": f"req_{time.time_ns():x}",
        "at": time.time(),
        "organisation": "",
        "account": account,
        "key": "key_1",
        "model": "large",
        "upstream": "http://127.0.0.1:9/v1",
        "route": "chat/completions",
        "stream": False,
        "status": 200,
        "ended": "whole",
    }
    return Event(**told | given)


def paths(at) -> list[tuple[str, str]]:
    """Every route with every method that it takes, but for the door itself."""
    account = at.account("one for every route")
    ids = {"id": account, "verb": "block", "name": "console.css"}
    routes = [route for route in console_routes(at.console) if route.path not in HOSTILE]
    return [(method, route.path.format_map(ids)) for route in routes for method in sorted(route.methods)]


def test_no_page_is_shown_and_no_form_taken_without_a_login(at):
    with at.client() as client:
        for method, path in paths(at):
            for cookie in ("", "stillhouse_console=guessed", "stillhouse_console=" + "A" * 43):
                answer = client.request(method, path, headers={"cookie": cookie} if cookie else {})
                assert answer.status_code in (303, 401), (method, path)
                assert answer.headers.get("location", "/admin/login").startswith("/admin/login")
                assert "Log out" not in answer.text
        for method in ("PUT", "DELETE", "PATCH", "TRACE"):
            assert client.request(method, "/admin/accounts").status_code == 405
    assert at.do(lambda register, _: register.accounts("one for every route"))[0].state == "active"


def test_every_answer_has_its_strict_headers(at, ada):
    missing = (
        ada.get("/admin/accounts/acct_none"),
        ada.get("/admin/static/../secret"),
        ada.get("/admin/nothing"),
    )
    for answer in (ada.get("/admin"), ada.get("/admin/live"), at.client().get("/admin/login"), missing[0]):
        assert {name: answer.headers[name] for name in HEADERS} == dict(HEADERS)
    policy = ada.get("/admin").headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert "default-src 'none'" in policy
    assert [answer.status_code for answer in missing] == [404, 404, 404]
    page = ada.get("/admin").text
    assert not re.search(r"\sstyle=|\son[a-z]+=|<style|javascript:|<script>", page)


def test_the_cookie_is_kept_from_scripts_and_other_sites(at):
    given = {"name": "Ada", "secret": SECRET, "next": "/admin"}
    with at.client() as client:
        plain = client.post("/admin/login", data=given).headers.get_list("set-cookie")
        tls = client.post("/admin/login", data=given, headers={"x-forwarded-proto": "https"})
    assert len(plain) == 2
    for cookie in plain:
        assert {"httponly", "samesite=strict", "path=/admin"} <= {
            part.strip().lower() for part in cookie.split(";")
        }
        assert "secure" not in cookie.lower()
    assert all("; secure" in cookie.lower() for cookie in tls.headers.get_list("set-cookie"))
    assert "max-age" not in plain[0].lower()


def test_a_session_ends_with_logout_and_with_time(at):
    with at.log_in() as client:
        cookie = client.cookies["stillhouse_console"]
        left = client.post("/admin/logout", data={"token": token_in(client.get("/admin").text)})
        assert left.status_code == 303
        stolen = {"cookie": f"stillhouse_console={cookie}"}
        assert client.get("/admin", headers=stolen).status_code == 303
    with at.log_in() as client:
        began = at.clock
        try:
            at.clock += IDLE - 60
            assert client.get("/admin/live").status_code == 200
            at.clock += 120
            assert client.get("/admin").status_code == 303, "what is live keeps nobody logged in"
            at.clock = began
            for _ in range(int(LONGEST / (IDLE - 60)) - 1):
                at.clock += IDLE - 60
                assert client.get("/admin").status_code == 200
            at.clock = began + LONGEST + 1
            assert client.get("/admin").status_code == 303
        finally:
            at.clock = began


def test_sessions_are_kept_as_hashes(at, ada):
    kept = b"".join(path.read_bytes() for path in (at.folder / "store").glob("console.sqlite*"))
    with closing(Tables(at.config.store, FILE, ())) as tables:
        kept += repr(tables.read("SELECT * FROM console_session")).encode()
    assert ada.cookies["stillhouse_console"].encode() not in kept
    assert SECRET.encode() not in kept
    assert b"Ada Lovelace" in kept


def test_a_form_needs_the_token_of_its_own_session(at, ada):
    account = at.account("to be blocked")
    path = f"/admin/accounts/{account}/block"
    form = form_in(ada.get(path).text) | {"reason": "because"}
    with at.log_in("Eve") as eve:
        other = token_in(eve.get("/admin").text)
    for token in (None, "", "0" * 64, other, form["token"].upper(), form["token"] + "0", "é"):
        answer = ada.post(path, data=form | {"token": token} if token is not None else {"reason": "because"})
        assert answer.status_code == 403, token
    elsewhere = ada.post(path, data=form, headers={"sec-fetch-site": "cross-site"})
    assert elsewhere.status_code == 403
    as_json = ada.post(path, json=form)
    assert as_json.status_code == 400
    assert at.do(lambda register, _: register.account(account)).state == "active"
    assert ada.post(path, data=form).status_code == 303
    done = at.do(lambda register, _: register.account(account))
    assert (done.state, done.why) == ("blocked", "Ada Lovelace: because")


def test_a_login_leads_to_no_other_place(at):
    for asked in (
        "https://evil.example",
        "//evil.example",
        "/\\evil",
        "/admin/../v1",
        "/admin//evil.example/",
        "/admin\r\nset-cookie: a=b",
        "javascript:alert(1)",
        "/admin@evil",
        "/administrator",
        "",
    ):
        with at.client() as client:
            at.clock += 11
            page = client.get("/admin/login", params={"next": asked})
            assert 'name="next" value="/admin"' in page.text
            done = client.post("/admin/login", data={"name": "Ada", "secret": SECRET, "next": asked})
            assert done.headers["location"] == "/admin", asked
    with at.client() as client:
        wanted = client.get("/admin/events?account=a&status=429")
        page = client.get(wanted.headers["location"])
        assert 'value="/admin/events?account=a&amp;status=429"' in page.text


def test_tries_are_few_and_keep_the_operator_out_of_nothing(tmp_path):
    wrong = {"name": "Eve", "secret": "not the secret", "next": ""}
    right = {"name": "Ada", "secret": SECRET, "next": ""}
    with house(tmp_path) as at, at.log_in("Ada") as known, at.client() as stranger:
        told = [stranger.post("/admin/login", data=wrong).status_code for _ in range(10)]
        assert told.count(401) <= 5
        assert told[-1] == 429
        refused = stranger.post("/admin/login", data=right)
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 10
        assert known.post("/admin/login", data=right).status_code == 303, "its browser was here before"
        at.clock += 11
        assert stranger.post("/admin/login", data=right).status_code == 303
        forged = at.client(headers={"cookie": "stillhouse_browser=a.b"})
        told = [forged.post("/admin/login", data=wrong).status_code for _ in range(10)]
        assert told[-1] == 429


def test_the_secret_is_compared_by_digests_and_never_shown(at):
    with at.client() as client:
        at.clock += 60
        swapped = client.post("/admin/login", data={"name": SECRET, "secret": SECRET, "next": ""})
        assert swapped.status_code == 422
        assert SECRET not in swapped.text
        wrong = client.post("/admin/login", data={"name": SECRET, "secret": "Ada", "next": ""})
        assert wrong.status_code == 401
        assert SECRET not in wrong.text
        at.clock += 60
    assert SECRET not in str(at.said)


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", "Ada\r\nwhat: forged", "Ada\u202e", "é" * 3, "   ", "a" * 65]
)
def test_an_operators_name_writes_no_line_of_its_own(at, name):
    at.clock += 60
    with at.client() as client:
        answer = client.post("/admin/login", data={"name": name, "secret": SECRET, "next": ""})
    assert answer.status_code == 422
    assert "<script>alert" not in answer.text
    assert not [fields for _, fields in at.said if fields.get("operator") in (name, name.strip())]


def test_bodies_that_are_no_forms_are_refused(at, ada):
    path = f"/admin/accounts/{at.account()}/block"
    token = token_in(ada.get("/admin").text)
    kind = {"content-type": "application/x-www-form-urlencoded"}
    for body in (
        b"token=" + b"a" * 40_000,
        b"&".join(b"a%d=1" % n for n in range(100)),
        b"\xff\xfe=1",
        b"token=%ff%fe",
        f"token={token}&token={token}".encode(),
    ):
        assert ada.post(path, content=body, headers=kind).status_code == 400
    assert (
        ada.post(
            path, content=b"--x", headers={"content-type": "multipart/form-data; boundary=x"}
        ).status_code
        == 400
    )


def test_an_act_is_looked_at_and_then_done_with_its_reason(at, ada):
    account = at.account("limits")
    path = f"/admin/accounts/{account}/change"
    page = ada.get(path).text
    form = form_in(page) | {
        "name": "limits",
        "tier": "default",
        "requests_per_minute": "90",
        "budget": "12.50",
    }
    assert ada.post(path, data=form).status_code == 422, "no reason"
    looked = ada.post(path, data=form | {"reason": "agreed"})
    assert looked.status_code == 200
    assert "This will change" in looked.text
    assert at.do(lambda register, _: register.account(account)).limits == {}
    again = form_in(looked.text)
    assert ada.post(path, data=again).status_code == 303
    done = at.do(lambda register, _: register.account(account))
    assert (dict(done.limits), done.budget) == ({"requests_per_minute": 90}, 12.5)
    (change,) = at.do(lambda register, _: register.changes(subject=f"account:{account}"))[1:]
    assert (change.who, change.reason, change.what) == ("Ada Lovelace", "agreed", "change")
    assert set(change.after) == {"budget", "limits"}
    stale = ada.post(path, data=again | {"requests_per_minute": "10"})
    assert stale.status_code == 409, "made from what it was before"
    assert (
        "console: act",
        {"operator": "Ada Lovelace", "act": "change_account", "subject": f"account:{account}"},
    ) in at.said


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("requests_per_minute", "-1"),
        ("requests_per_minute", "0"),
        ("requests_per_minute", "1e9"),
        ("concurrent", "٣"),
        ("concurrent", "9" * 40),
        ("budget", "-3"),
        ("budget", "nan"),
        ("budget", "1e999"),
        ("tier", "none such"),
        ("name", "turned \u202e round"),
        ("name", ""),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_changes(at, ada, name, value):
    account = at.account("as it was")
    path = f"/admin/accounts/{account}/change"
    before = at.do(lambda register, _: register.account(account))
    form = form_in(ada.get(path).text) | {
        "name": "as it was",
        "tier": "default",
        "reason": "why",
        "sure": "yes",
    }
    assert ada.post(path, data=form | {name: value}).status_code == 422
    assert at.do(lambda register, _: register.account(account)) == before


def test_a_new_secret_is_shown_once_and_its_form_taken_once(at, ada):
    account = at.account("keys")
    path = f"/admin/accounts/{account}/key"
    form = form_in(ada.get(path).text) | {
        "name": "server",
        "models": "large",
        "expires": "",
        "reason": "asked for",
    }
    made = ada.post(path, data=form)
    secret = re.search(r"sk-still-[0-9A-Za-z]{49}", made.text).group()
    assert made.headers["cache-control"] == "no-store"
    assert at.run(at.accounts.find(digest_of(at.pepper, secret))).account.id == account
    assert ada.post(path, data=form).status_code == 409
    (key,) = at.do(lambda register, _: register.keys(account=account))
    page = ada.get(f"/admin/accounts/{account}").text
    assert key.prefix in page
    assert secret not in page
    turn = f"/admin/keys/{key.id}/rotate"
    rotated = ada.post(turn, data=form_in(ada.get(turn).text) | {"grace_hours": "0", "reason": "it was seen"})
    assert secret not in rotated.text
    assert at.run(at.accounts.find(digest_of(at.pepper, secret))).key.expires <= time.time() + at.clock
    assert key.prefix not in str(at.said)


def test_what_is_for_ever_needs_a_tick(at, ada):
    account = at.account("to be closed")
    key, _ = at.key(account)
    for path, field in (
        (f"/admin/keys/{key}/revoke", "revoked"),
        (f"/admin/accounts/{account}/close", "state"),
    ):
        form = form_in(ada.get(path).text) | {"reason": "the end"}
        assert ada.post(path, data=form).status_code == 422
        assert ada.post(path, data=form | {"sure": "yes"}).status_code == 303, field
        assert ada.post(path, data=form | {"sure": "yes"}).status_code == 409
    assert at.do(lambda register, _: register.account(account)).state == "closed"
    assert at.do(lambda register, _: register.key(key)).revoked is not None


def test_money_is_paid_in_once(at, ada):
    account = at.account("payer", tier="gold")
    path = f"/admin/accounts/{account}/pay"
    form = form_in(ada.get(path).text) | {
        "amount": "25.50",
        "reference": "transfer 7",
        "reason": "came today",
    }
    looked = ada.post(path, data=form)
    assert "$25.50" in looked.text
    assert ada.post(path, data=form_in(looked.text)).status_code == 303
    assert ada.post(path, data=form_in(looked.text)).status_code == 409
    assert at.do(lambda register, _: register.account(account)).paid == 25_500_000_000
    back = form | {
        "amount": "-100",
        "reference": "back",
        "sure": "yes",
        "seen": form_in(ada.get(path).text)["seen"],
    }
    assert ada.post(path, data=back).status_code == 409


def test_new_organisations_and_accounts_are_made_here(at, ada):
    form = form_in(ada.get("/admin/organisations/new").text) | {"name": "Harbour & Sons", "reason": "signed"}
    made = ada.post("/admin/organisations/new", data=form)
    organisation = made.headers["location"].split("?")[0].split("/")[-1]
    path = f"/admin/accounts/new?organisation={organisation}"
    page = ada.get(path).text
    assert f'value="{organisation}"' in page
    form = form_in(page) | {
        "name": "one of them",
        "organisation": organisation,
        "tier": "gold",
        "reason": "signed",
    }
    account = ada.post("/admin/accounts/new", data=form).headers["location"].split("?")[0]
    assert "Harbour &amp; Sons" in ada.get(account).text
    assert "one of them" in ada.get(f"/admin/organisations/{organisation}").text


def test_names_are_shown_as_what_they_are(at, ada):
    """Whatever gets past the orders: rows of other programs, and names of models that clients send."""
    organisation = at.do(lambda register, act: register.add_organisation(act, NewOrganisation(name=ODD)))
    account = at.account(ODD, organisation=organisation.id)
    at.key(account, name=ODD)
    at.do(lambda register, act: register.set_state(act, "account", account, "blocked"), ODD)
    at.put(
        event(account, model=ODD + "\u202e\x00\n", reason=ODD, upstream=ODD, changed=(ODD.replace(" ", "_"),))
    )
    pages = [
        "/admin",
        "/admin/live",
        "/admin/accounts",
        f"/admin/accounts/{account}",
        "/admin/organisations",
        f"/admin/organisations/{organisation.id}",
        "/admin/events",
        f"/admin/events?account={account}",
        "/admin/changes",
        f"/admin/accounts/{account}/unblock",
        f"/admin/accounts/{account}/change",
        f"/admin/accounts?search={quote(ODD)}",
        f"/admin/events?model={quote(ODD)}",
        f"/admin/changes?subject={quote(ODD)}",
        f"/admin/accounts?done={quote(ODD)}",
    ]
    for path in pages:
        page = ada.get(path).text
        assert "<img" not in page, path
        assert not set(page) & set("\u202e\x00\u2066\u200b"), path
    assert "&lt;img" in ada.get(f"/admin/accounts/{account}").text


def test_searches_find_by_name_key_and_request(at, ada):
    account = at.account("Paper Kite")
    key, secret = at.key(account, name="laptop")
    events = [
        event(account, id=f"req_kite{n}", at=1.7e9 + n, status=429 if n % 2 else 200) for n in range(120)
    ]
    at.put(*events)
    for sought in ("per ki", account, secret[:15], secret, key):
        page = ada.get("/admin/accounts", params={"search": sought}).text
        assert "Paper Kite" in page, sought
        assert secret not in page
    seen: list[str] = []
    url = f"/admin/events?account={account}&status=429"
    while url:
        page = ada.get(url).text
        seen += re.findall(r"/admin/events/(req_kite\d+)", page)
        further = re.search(r'href="(\?[^"]*)" rel="next"', page)
        url = "/admin/events" + further.group(1).replace("&amp;", "&") if further else ""
    assert seen == [f"req_kite{n}" for n in range(119, 0, -2)]
    assert "req_kite7" in ada.get("/admin/events?id=req_kite7").text
    assert "429 " in ada.get("/admin/events/req_kite7").text
    assert ada.get("/admin/events/req_nothing").status_code == 404
    for odd in (
        "after=1",
        "after=1-2-3",
        "status=x",
        "status=²",
        "ended=x",
        "after=9999999999999999999-1",
    ):
        assert ada.get(f"/admin/events?{odd}").status_code == 200


def test_the_overview_counts_what_came(fresh):
    at = fresh
    with at.log_in() as ada:
        assert "All is well." in ada.get("/admin").text
        account = at.account("counted")
        now = time.time()
        at.put(
            *(
                event(account, id=f"req_a{n}", at=now - n, input_tokens=10, output_tokens=5, cost=30_000)
                for n in range(40)
            )
        )
        at.put(
            *(
                event(account, id=f"req_b{n}", at=now - n, status=429, ended="refused", reason="over <limit>")
                for n in range(10)
            )
        )
        at.gateway.models["large"].behind[0].failed(time.monotonic())
        at.clock += 1.5
        page = ada.get("/admin/live").text
        assert "<dd>50</dd>" in page
        assert "20% refused" in page
        assert "over &lt;limit&gt;" in page
        assert "1 of 3 upstreams does not answer." in page
        assert "counted" in page
        at.gateway.models["small"].behind[0].failed(time.monotonic())
        at.clock += 1.5
        assert "small has no upstream that answers." in ada.get("/admin/live?span=day").text
        assert ada.get("/admin/live?span=<script>").status_code == 200


def test_a_store_that_is_down_is_told_and_lets_nobody_in(tmp_path):
    with house(tmp_path) as at, at.log_in() as ada:
        with closing(sqlite3.connect(tmp_path / "store" / "console.sqlite")) as db:
            db.execute("DROP TABLE console_session")
        answer = ada.get("/admin/accounts")
        assert answer.status_code == 503
        assert "Log out" not in answer.text
        assert str(tmp_path) not in answer.text
        assert ada.post("/admin/login", data={"name": "Ada", "secret": SECRET, "next": ""}).status_code == 503


def test_a_server_that_is_down_is_told_and_let_in_again_when_it_is_back(tmp_path, request, server):
    with settled("postgres", tmp_path, request) as tree, house(tmp_path, tree) as at, at.log_in() as ada:
        server.stop()
        for path in ("/admin", "/admin/accounts", "/admin/events"):
            answer = ada.get(path)
            assert answer.status_code == 503
            assert "Log out" not in answer.text
            assert str(server.folder) not in answer.text
        server.start()
        for path in ("/admin", "/admin/accounts", "/admin/events"):
            assert ada.get(path).status_code == 200


def test_a_consent_to_training_is_recorded_and_taken_back_with_its_reason(at, ada):
    account = at.account("one that agrees")
    page = ada.get(f"/admin/accounts/{account}").text
    assert "no model may be trained on its texts: it did not agree" in page
    for verb, shown in (("training", "it agreed by version 2026-10"), ("withdraw", "took its consent back")):
        path = f"/admin/accounts/{account}/{verb}"
        form = form_in(ada.get(path).text) | {"version": "2026-10", "reason": f"a letter: {verb}"}
        assert ada.post(path, data=form).status_code == 303
        page = ada.get(f"/admin/accounts/{account}").text
        assert shown in page
        assert f"a letter: {verb}" in page
    assert at.do(lambda register, _: register.account(account)).training is None
