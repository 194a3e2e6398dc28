"""The admin API over a real socket: who may, what is asked of an order, what is answered."""

import asyncio
import http.client
import json
import logging
import re
import socket
import threading

import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette

from stillhouse.errors import UsageError
from stillhouse.gateway.admin import ROUTES, Api, accept_terms, admin_routes, openapi_paths
from stillhouse.gateway.store.accounts import Accounts
from stillhouse.guard.accounts import digest_of
from stillhouse.guard.config import Guard, Terms

PEPPER = b"p" * 32
ADMIN = "Zk3vT9qLw8RxY2nB5mHc7PdJ4sGf6EaU"
TERMS = {"version": "2026-01", "document": "terms.txt", "training": "forbidden"}


class Served:
    """A server in a thread, and requests to it."""

    def __init__(self, folder):
        self.config = Guard.model_validate(
            {
                "store": {"folder": str(folder)},
                "models": [{"name": "m", "upstreams": [{"url": "http://127.0.0.1:1/v1"}]}],
                "tiers": {"default": {}, "gold": {}},
                "terms": TERMS,
            }
        )
        ready = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)))
        self.thread.start()
        assert ready.wait(30)

    async def _serve(self, ready):
        self.accounts = Accounts(self.config.store, PEPPER)
        self.loop = asyncio.get_running_loop()

        async def usage(period):
            return {"account": period.account, "tokens": 7}

        api = Api(self.accounts, lambda: self.config, PEPPER, ADMIN, usage, None, lambda *_: None)
        app = Starlette(routes=admin_routes(api))
        self.server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        listening = socket.create_server(("127.0.0.1", 0))
        self.port = listening.getsockname()[1]
        ready.set()
        await self.server.serve([listening])
        await self.accounts.close()

    def stop(self):
        self.server.should_exit = True
        self.thread.join()

    def ask(self, method, path, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        sent = {"Authorization": f"Bearer {ADMIN}", "X-Operator": "ann"} | headers
        data = body if body is None or isinstance(body, bytes) else json.dumps(body)
        path = path if path.startswith("/admin") else f"/admin/api/{path}"
        connection.request(method, path, data, {k: v for k, v in sent.items() if v is not None})
        answer = connection.getresponse()
        read = answer.read()
        connection.close()
        return answer.status, json.loads(read) if read.startswith((b"{", b"[")) else read

    def find(self, secret):
        return asyncio.run_coroutine_threadsafe(
            self.accounts.find(digest_of(PEPPER, secret)), self.loop
        ).result(10)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    server = Served(tmp_path_factory.mktemp("guard"))
    yield server
    server.stop()


def test_a_customer_from_its_first_day_to_its_last(served):
    status, house = served.ask("POST", "organisations", {"name": "the house", "limits": {"concurrent": 9}})
    assert status == 201
    order = {"name": "ann", "organisation": house["id"], "tier": "gold", "budget": 12.5}
    status, account = served.ask("POST", "accounts", order)
    assert (status, account["tier"], account["budget"], account["paid"]) == (201, "gold", 12.5, 0)
    status, made = served.ask("POST", f"accounts/{account['id']}/keys", {"name": "main", "models": ["m"]})
    assert status == 201
    assert made["secret"].startswith(made["key"]["prefix"])
    assert "digest" not in made["key"]
    assert served.find(made["secret"]).key.id == made["key"]["id"]
    key = f"keys/{made['key']['id']}"
    for _ in range(2):
        payment = {"amount": "20.5", "reference": "invoice 1"}
        status, paid = served.ask("POST", f"accounts/{account['id']}/payments", payment)
        assert (status, paid["paid"]) == (200, 20_500_000_000)
    payments = served.ask("GET", f"accounts/{account['id']}/payments")[1]["data"]
    assert [(one["reference"], one["amount"], one["who"]) for one in payments] == [
        ("invoice 1", 20_500_000_000, "ann")
    ]
    status, blocked = served.ask("POST", f"{key}/block", {"reason": "leaked"})
    assert (status, blocked["state"], blocked["why"]) == (200, "blocked", "ann: leaked")
    assert served.find(made["secret"]).key.state == "blocked"
    assert served.ask("POST", f"{key}/unblock", {})[1]["state"] == "active"
    status, rotated = served.ask("POST", f"{key}/rotate", {"grace_seconds": 60})
    assert rotated["key"]["id"] == made["key"]["id"]
    assert served.find(made["secret"]).key.expires is not None
    assert served.find(rotated["secret"]).key.expires is None
    status, changed = served.ask(
        "PATCH", f"accounts/{account['id']}", {"limits": {"concurrent": 3}, "reason": "x"}
    )
    assert (status, changed["limits"], changed["budget"]) == (200, {"concurrent": 3}, 12.5)
    assert served.ask("PATCH", f"accounts/{account['id']}", {"budget": None})[1]["budget"] is None
    status, accepted = served.ask("POST", f"accounts/{account['id']}/acceptances", {"version": "2026-01"})
    assert (status, accepted["accepted"]) == (200, "2026-01")
    assert served.ask("POST", f"{key}/revoke", {"reason": "left"})[1]["revoked"] is not None
    assert served.ask("POST", f"{key}/unblock", {})[0] == 409
    assert served.ask("POST", f"accounts/{account['id']}/close", {"reason": "left"})[1]["state"] == "closed"
    log = served.ask("GET", f"changes?subject=account:{account['id']}")[1]["data"]
    assert [one["what"] for one in log] == ["add", "pay", "change", "change", "accept terms", "close"]
    assert {one["who"] for one in log} == {"ann"}
    assert made["secret"][15:] not in json.dumps(served.ask("GET", "changes?limit=1000"))


def test_lists_are_searched_and_go_on_page_by_page(served):
    for number in range(5):
        served.ask("POST", "accounts", {"name": f"page {number}"})
    status, first = served.ask("GET", "accounts?search=PAGE&limit=3")
    assert (status, len(first["data"])) == (200, 3)
    rest = served.ask("GET", f"accounts?search=page&limit=3&after={first['next']}")[1]
    assert len(rest["data"]) == 2
    assert rest["next"] is None
    assert served.ask("GET", f"accounts/{rest['data'][0]['id']}")[1] == rest["data"][0]
    status, told = served.ask("GET", "usage?account=x&since=2026-11-01")
    assert (status, told["tokens"]) == (200, 7)


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": None},
        {"Authorization": ADMIN},
        {"Authorization": f"Basic {ADMIN}"},
        {"Authorization": f"Bearer {ADMIN[:-1]}"},
        {"Authorization": f"Bearer {ADMIN}x"},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer \u00e9\u00ff"},
    ],
)
def test_without_the_secret_nothing_is_told(served, headers):
    for operation in ROUTES:
        path = operation.path.replace("{id}", "acct_x")
        status, said = served.ask(operation.method, path, b"{}", **headers)
        assert (status, said["error"]["code"]) == (401, "unauthorised")
    assert served.ask("GET", "usage?account=x", **headers)[0] == 401


@pytest.mark.parametrize("who", [None, "", "a" * 65, "<script>", "-x"])
def test_whoever_changes_something_says_who_it_is(served, who):
    status, said = served.ask("POST", "organisations", {"name": "x"}, **{"X-Operator": who})
    assert (status, said["error"]["code"]) == (400, "operator_needed")
    assert served.ask("GET", "organisations", **{"X-Operator": who})[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "accounts", {"name": "x", "teir": "gold"}, 400),
        ("POST", "accounts", {"name": 5}, 400),
        ("POST", "accounts", {"name": "x", "budget": "12"}, 400),
        ("POST", "accounts", {"name": "x", "consent": "yes"}, 400),
        ("POST", "accounts", {"name": "x", "limits": {"concurrent": 0}}, 400),
        ("POST", "accounts", {"name": "x", "limits": {"concurrents": 1}}, 400),
        ("POST", "accounts", {"name": "x\n2026 admin did it"}, 400),
        ("POST", "accounts", {"name": "a\u202eb"}, 400),
        ("POST", "accounts", {"name": "x" * 201}, 400),
        ("POST", "accounts", {"name": "x", "tier": "silver"}, 422),
        ("POST", "accounts", {"name": "x", "organisation": "org_none"}, 404),
        ("POST", "accounts", b"{", 400),
        ("POST", "accounts", b"", 400),
        ("POST", "accounts", b"[]", 400),
        ("POST", "accounts", b'{"name": "\xff"}', 400),
        ("POST", "accounts", b'{"name": "\\ud800"}', 400),
        ("POST", "accounts", b"[" * 60_000, 400),
        ("POST", "accounts", b'{"name": "' + b"x" * 70_000 + b'"}', 413),
        ("POST", "accounts/acct_none/payments", {"amount": 1, "reference": "r"}, 404),
        ("POST", "accounts/acct_none/payments", {"amount": "1e400", "reference": "r"}, 400),
        ("POST", "accounts/acct_none/block", {}, 400),
        ("POST", "accounts/acct_none/block", {"reason": ""}, 400),
        ("POST", "accounts/acct_none/block", {"reason": "x"}, 404),
        ("POST", "accounts/acct_none/acceptances", {"version": "2020"}, 409),
        ("GET", "accounts/a%00b", None, 404),
        ("GET", "accounts/..%2Forganisations", None, 404),
        ("GET", "accounts?limit=0", None, 400),
        ("GET", "accounts?limit=x", None, 400),
        ("GET", "accounts?serach=x", None, 400),
        ("GET", "accounts?search=%00", None, 400),
        ("GET", "changes?after=99999999999999999999", None, 400),
        ("GET", "usage?subject=nobody", None, 400),
        ("POST", "organisations", {"name": "vast", "limits": {"requests_per_day": 2**64}}, 400),
        ("DELETE", "accounts/acct_none", None, 405),
        ("GET", "nothing", None, 404),
    ],
)
def test_what_is_not_in_order_is_refused_with_its_reason(served, method, path, body, status):
    answered, said = served.ask(method, path, body)
    assert answered == status
    if status not in (405,) and path != "nothing" and "%2F" not in path:
        assert said["error"]["message"]


def test_what_harms_needs_a_reason(served):
    account = served.ask("POST", "accounts", {"name": "x", "limits": {"concurrent": 5}})[1]["id"]
    for change in ({"limits": {"concurrent": 1}}, {"budget": 1}, {"tier": "gold"}):
        status, said = served.ask("PATCH", f"accounts/{account}", change)
        assert (status, "reason" in said["error"]["message"]) == (422, True)
        assert served.ask("PATCH", f"accounts/{account}", change | {"reason": "agreed"})[0] == 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "limits", "reason", "budget", "amount", "version", "models"])
            | st.text(max_size=5),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(ROUTES), JSON, st.text(max_size=12))
def test_no_request_whatever_is_answered_with_a_fault_of_our_own(served, operation, body, id):
    from urllib.parse import quote

    path = operation.path.replace("{id}", quote(id, safe="") or "x")
    if operation.method == "GET":
        values = body if isinstance(body, dict) else {"search": body}
        path += "?" + "&".join(f"{quote(k)}={quote(str(v))}" for k, v in values.items())
    status, _ = served.ask(operation.method, path, None if operation.method == "GET" else body)
    assert status < 500


def test_a_weak_admin_secret_is_refused():
    with pytest.raises(UsageError, match="weak"):
        admin_routes(Api(None, None, PEPPER, "secret", None, None, None))


def test_the_holder_of_a_key_accepts_the_terms_itself(served):
    account = served.ask("POST", "accounts", {"name": "self"})[1]["id"]
    secret = served.ask("POST", f"accounts/{account}/keys", {})[1]["secret"]
    caller, terms = served.find(secret), Terms.model_validate(TERMS)

    def accept(body, terms=terms):
        call = accept_terms(served.accounts, caller, terms, body, 5.0)
        return asyncio.run_coroutine_threadsafe(call, served.loop).result(10)

    assert accept(b"{}", None)[0] == 404
    assert accept(b"{}")[0] == 400
    assert accept(b'{"version": "2025-01"}')[0] == 409
    assert accept(b'{"version": "2026-01"}') == (200, {"account": account, "accepted": "2026-01"})
    caller = served.find(secret)
    assert caller.account.accepted == "2026-01"
    again = accept_terms(None, caller, terms, b'{"version": "2026-01"}', 6.0)
    assert asyncio.run(again)[0] == 200, "without asking the store"
    told = served.ask("GET", f"accounts/{account}/acceptances")[1]["data"]
    assert told == [{"version": "2026-01", "at": 5.0, "who": f"key:{caller.key.id}"}]


def test_no_secret_reaches_a_log(served, caplog):
    caplog.set_level(logging.DEBUG)
    account = served.ask("POST", "accounts", {"name": "logged"})[1]["id"]
    secret = served.ask("POST", f"accounts/{account}/keys", {})[1]["secret"]
    served.ask("POST", f"accounts/{account}/keys", {"name": 5, "sk": secret})
    assert secret[15:] not in caplog.text
    assert ADMIN not in caplog.text


def test_the_document_describes_every_route_and_each_reference_in_it_leads_somewhere():
    document = openapi_paths()
    described = {(path, method.upper()) for path, of in document["paths"].items() for method in of}
    others = {("/admin/api/usage", "GET"), ("/admin/api/watermark", "POST")}
    assert described == {(one.path, one.method) for one in ROUTES} | others
    ids = [entry["operationId"] for of in document["paths"].values() for entry in of.values()]
    assert len(set(ids)) == len(ids)
    text = json.dumps(document)
    for name in re.findall(r'"#/components/schemas/([^"]+)"', text):
        assert name in document["components"]["schemas"]
    assert '"digest"' not in text


def test_consent_to_training_is_for_the_present_terms_and_is_listed_with_its_withdrawal(served):
    _, account = served.ask("POST", "accounts", {"name": "ann"})
    path = f"accounts/{account['id']}/training"
    assert served.ask("POST", path, {"version": "2025-01"})[0] == 409
    status, agreed = served.ask("POST", path, {"version": "2026-01", "reason": "signed"})
    assert (status, agreed["training"], agreed["consent"]) == (200, "2026-01", False)
    assert served.ask("POST", f"{path}/withdraw", {})[1]["training"] is None
    _, listed = served.ask("GET", path)
    assert [(one["version"], one["who"], one["reason"]) for one in listed["data"]] == [
        ("2026-01", "ann", "signed"),
        (None, "ann", ""),
    ]
