"""What batches may do that the mock provider's never do: lose lines, be refused, be forgotten, overcharge."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from aiohttp import web
from batch_collector import HABITS, HALF, LIMITS, PRICE, SAMPLING, put, questions, teacher
from provider import serving

from stillhouse.ask import Canary, Part, Question, Tally, ask_in_batches
from stillhouse.errors import BudgetReached, EndpointError, UsageError
from stillhouse.ledger import Ledger
from stillhouse.records import Progress, unwatched
from stillhouse.workspace import Workspace

Row = dict[str, Any]
Judge = Callable[[list[Row]], Row]  # requests of a batch -> its fields, and `answers` and `failures` as rows


@dataclass
class Batches:
    """A server whose batches are over at once, with what `judge` says. `create` may answer in its place, and
    `model` names who answers a question that is asked by itself, by its number."""

    judge: Judge
    create: Callable[[int], web.Response | None] = lambda number: None
    forgets: bool = False
    foreign: int = 0  # batches of somebody else in the list, newer than ours
    files: dict[str, bytes] = field(default_factory=dict)
    batches: dict[str, Row] = field(default_factory=dict)
    creations: int = 0
    model: Callable[[int], str] = lambda number: "m-1"
    online: list[str] = field(default_factory=list)
    url: str = ""

    @property
    def sizes(self) -> list[int]:
        return [self.files[batch["input_file_id"]].count(b"\n") for batch in self.batches.values()]

    async def upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        assert form["purpose"] == "batch"
        return web.json_response({"id": self._file(form["file"].file.read())})  # type: ignore[union-attr]

    async def make(self, request: web.Request) -> web.Response:
        asked = await request.json()
        self.creations += 1
        requests = [json.loads(line) for line in self.files[asked["input_file_id"]].splitlines()]
        instead = self.create(self.creations)
        if instead is None or instead.status >= 500:
            done = self.judge(requests)
            made = {"id": f"batch-{self.creations}", "object": "batch", "status": "completed"} | asked
            for name, key in (("answers", "output_file_id"), ("failures", "error_file_id")):
                rows = done.pop(name, [])
                if rows:
                    made[key] = self._file(b"".join(row + b"\n" for row in map(as_line, rows)))
            self.batches[made["id"]] = made | done
        return instead or web.json_response(self.batches[made["id"]])

    async def chat(self, request: web.Request) -> web.Response:
        self.online.append((await request.json())["messages"][-1]["content"])
        said = answered({"custom_id": ""})["response"]["body"]
        return web.json_response(said | {"model": self.model(len(self.online))})

    async def page(self, request: web.Request) -> web.Response:
        rows = [{"id": f"other-{i}", "status": "completed", "metadata": None} for i in range(self.foreign)]
        rows += list(self.batches.values())[::-1]
        names = [row["id"] for row in rows]
        start = names.index(request.query["after"]) + 1 if "after" in request.query else 0
        end = start + int(request.query["limit"])
        return web.json_response({"data": rows[start:end], "has_more": end < len(rows)})

    async def one(self, request: web.Request) -> web.Response:
        found = self.batches.get(request.match_info["name"])
        if found is None or self.forgets:
            return web.json_response({"error": {"message": "no such batch"}}, status=404)
        return web.json_response(found)

    async def content(self, request: web.Request) -> web.Response:
        return web.Response(body=self.files[request.match_info["name"]])

    def _file(self, data: bytes) -> str:
        name = f"file-{len(self.files)}"
        self.files[name] = data
        return name


def as_line(row: Row | bytes) -> bytes:
    return row if isinstance(row, bytes) else json.dumps(row).encode()


def answered(request: Row, tokens: int = 5) -> Row:
    body = {
        "model": "m-1",
        "choices": [{"index": 0, "message": {"content": "so"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": tokens},
    }
    response = {"status_code": 200, "request_id": "q", "body": body}
    return {"custom_id": request["custom_id"], "response": response, "error": None}


def all_answered(requests: list[Row]) -> Row:
    return {"answers": [answered(request) for request in requests]}


@pytest.fixture
def serve() -> Iterator[Callable[..., Batches]]:
    with serving() as start:

        def make(judge: Judge = all_answered, **settings: Any) -> Batches:
            made = Batches(judge, **settings)
            app = web.Application()
            app.router.add_post("/v1/chat/completions", made.chat)
            app.router.add_post("/v1/files", made.upload)
            app.router.add_get("/v1/files/{name}/content", made.content)
            app.router.add_post("/v1/batches", made.make)
            app.router.add_get("/v1/batches", made.page)
            app.router.add_get("/v1/batches/{name}", made.one)
            made.url = start(app)
            return made

        yield make


def test_lines_that_are_in_no_result_stay_unknown_and_are_shown(serve, workspace: Workspace):
    def forgets(requests: list[Row]) -> Row:
        return {"answers": [answered(request) for request in requests[3:]]}

    server = serve(forgets)
    tally = put(workspace, questions(10), teacher(server.url))
    assert (tally.answered, tally.unknown, server.creations) == (7, 3, 1)
    assert {failed.reason for failed in tally.failed} == {"sent, unknown"}
    with Ledger.open(workspace) as ledger:
        counts, spent = ledger.attempts("run"), ledger.spent("run")
    assert (counts.answered, counts.unknown, counts.open) == (7, 3, 0)
    assert spent.most > spent.known  # they may have been billed
    server.judge = all_answered
    left = put(workspace, questions(10), teacher(server.url), replace(LIMITS, unknown="leave"))
    assert (left.sent, len(left.failed)) == (0, 3)
    again = put(workspace, questions(10), teacher(server.url))
    assert (again.sent, again.answered) == (3, 3)


def test_lines_of_nobody_are_counted_and_harm_nothing(serve, workspace: Workspace):
    def strange(requests: list[Row]) -> Row:
        good = [answered(request) for request in requests]
        torn = as_line(good[0])[:50]
        return {"answers": [*good, good[1], b"", b"<html>", torn], "failures": [answered({"custom_id": "x"})]}

    tally = put(workspace, questions(10), teacher(serve(strange).url))
    assert (tally.answered, tally.failed, tally.unknown) == (10, [], 0)
    assert tally.failures == {"stray line": 5}


def test_usage_above_what_a_line_can_cost_is_disputed_and_the_rest_is_kept(serve, workspace: Workspace):
    def greedy(requests: list[Row]) -> Row:
        return {"answers": [answered(r, 10_000 if i == 2 else 5) for i, r in enumerate(requests)]}

    server = serve(greedy)
    with pytest.raises(EndpointError, match="claims usage"):
        put(workspace, questions(10), teacher(server.url))
    with Ledger.open(workspace) as ledger:
        assert ledger.attempts("run").answered == 10
        assert sum("disputed" in leaf.body for leaf in ledger.leaves("exchange")) == 1


def test_a_provider_with_little_room_gets_fewer_and_smaller_batches(serve, workspace: Workspace):
    def full(requests: list[Row]) -> Row:
        if len(requests) > 4:
            error = {"code": "token_limit_exceeded", "message": "Enqueued token limit reached", "line": None}
            return {"status": "failed", "errors": {"object": "list", "data": [error]}}
        return all_answered(requests)

    server = serve(full)
    tally = put(workspace, questions(32), teacher(server.url))
    assert (tally.answered, tally.failed) == (32, [])
    assert server.sizes[:6] == [15, 15, 2, 15, 7, 3]
    assert max(server.sizes[6:]) <= 3
    with Ledger.open(workspace) as ledger:
        assert ledger.spent("run").most == pytest.approx(ledger.spent("run").known)


def test_a_batch_that_is_refused_as_a_whole_stops_the_run_and_costs_nothing(serve, workspace: Workspace):
    def invalid(requests: list[Row]) -> Row:
        error = {"code": "model_not_found", "message": "m is not offered in batches", "line": 1}
        return {"status": "failed", "errors": {"object": "list", "data": [error]}}

    with pytest.raises(EndpointError, match="refused the batch") as caught:
        put(workspace, questions(10), teacher(serve(invalid).url))
    assert "not offered in batches" in caught.value.why
    with Ledger.open(workspace) as ledger:
        assert ledger.attempts("run").failed == 10
        assert ledger.spent("run").most == 0


def test_a_refusal_to_create_is_no_open_batch(serve, workspace: Workspace):
    def no_money(number: int) -> web.Response:
        return web.json_response(
            {"error": {"code": "billing_hard_limit_reached", "message": "limit reached"}}, status=400
        )

    server = serve(create=no_money)
    with pytest.raises(EndpointError, match="quota"):
        put(workspace, questions(10), teacher(server.url))
    with Ledger.open(workspace) as ledger:
        assert ledger.attempts("run").failed == 10
        assert ledger.spent("run").most == 0
    server.create = lambda number: None
    assert put(workspace, questions(10), teacher(server.url)).answered == 10


def test_a_batch_that_was_made_behind_an_error_is_found_on_whichever_page(serve, workspace: Workspace):
    def error_once(number: int) -> web.Response | None:
        return web.json_response({"error": {"message": "oh"}}, status=502) if number == 1 else None

    server = serve(create=error_once, foreign=250)
    tally = put(workspace, questions(20), teacher(server.url))
    assert (tally.answered, server.creations) == (20, 2)
    assert len(server.batches) == 2  # of 15 and 5 lines


def test_a_batch_that_the_provider_forgot_is_unknown(serve, workspace: Workspace):
    server = serve(forgets=True)
    with pytest.raises(EndpointError, match="no longer has the batch") as caught:
        put(workspace, questions(10), teacher(server.url))
    assert "10 questions" in caught.value.mend
    with Ledger.open(workspace) as ledger:
        assert ledger.attempts("run").unknown == 10


def test_the_response_is_kept_with_its_own_white_space(serve, workspace: Workspace):
    def spaced(requests: list[Row]) -> Row:
        return {"answers": [json.dumps(answered(r), separators=(" , ", " : ")).encode() for r in requests]}

    put(workspace, questions(1), teacher(serve(spaced).url), habits=replace(HABITS, lines=1))
    with Ledger.open(workspace) as ledger:
        (leaf,) = ledger.leaves("exchange")
        response = ledger.contents(leaf.index)["response"]
    assert response is not None
    assert response.startswith(b'{"model" : "m-1" , "choices"')


def watched(
    workspace: Workspace,
    url: str,
    asked: list[Question],
    stop: bool = False,
    max_cost: float | None = None,
    watch: Callable[[Progress], None] = unwatched,
) -> Tally:
    """Ask in batches, with a round of four canaries before and after."""
    part = Part(teacher(url), 0, asked, Canary(tuple(questions(4)), 1000, stop, 0.01))
    limits = replace(LIMITS, max_cost=max_cost)
    with Ledger.open(workspace) as ledger:
        return ask_in_batches([part], SAMPLING, limits, ledger, "run", watch, habits=HABITS)


def changes(workspace: Workspace) -> list[str]:
    with Ledger.open(workspace) as ledger:
        return [leaf.body["sign"] for leaf in ledger.leaves("correction")]


def test_canaries_are_asked_before_and_after_and_cost_the_ordinary_price(serve, workspace: Workspace):
    server, seen = serve(), list[Progress]()
    tally = watched(workspace, server.url, questions(20), max_cost=1.0, watch=seen.append)
    assert (server.online, server.sizes) == ([f"question {i}" for i in range(4)] * 3, [15, 5])
    assert tally.questions == tally.answered == tally.sent == tally.bought == 32
    assert tally.billed == pytest.approx(20 * HALF.of(10, 5) + 12 * PRICE.of(10, 5))
    assert tally.budget.spent == pytest.approx(tally.billed)
    again = watched(workspace, server.url, questions(20), max_cost=1.0)
    assert (again.sent, again.reused, again.bought) == (0, 20, 32)
    assert again.billed == pytest.approx(tally.billed)
    more = watched(workspace, server.url, questions(23), max_cost=1.0)
    assert more.sent == 3  # fewer than a round has
    assert watched(workspace, server.url, questions(30), max_cost=1.0).sent == 7 + 2 * 4
    assert not changes(workspace)


def test_the_line_tells_of_batches_and_money(serve, workspace: Workspace):
    server, seen = serve(), list[Progress]()
    watched(workspace, server.url, questions(20), watch=seen.append)
    traffic = [progress.traffic for progress in seen if progress.traffic]
    assert {each.batches for each in traffic} == {0, 1, 2}
    assert max(each.in_flight for each in traffic) == 20
    assert any(each.reserved and not each.expected for each in traffic)
    (total,) = {round(each.expected, 9) for each in traffic[-1:]}
    assert total == pytest.approx(traffic[-1].spent)
    between = next(each for each in traffic if each.expected and each.batches)
    left = 20 - 15 if between.in_flight == 5 else 20 - 5
    assert between.expected == pytest.approx(between.spent + left * HALF.of(10, 5))


def test_a_change_after_the_batches_stops_and_what_they_brought_is_kept(serve, workspace: Workspace):
    server = serve(model=lambda number: "m-1" if number <= 8 else "m-2")
    with pytest.raises(EndpointError, match="changed while it was asked"):
        watched(workspace, server.url, questions(20), stop=True)
    assert changes(workspace) == ["model id"]
    with Ledger.open(workspace) as ledger:
        assert ledger.attempts("run").answered == 20 + 12
    with pytest.raises(EndpointError, match="changed while it was asked"):
        watched(workspace, server.url, questions(40), stop=True)
    assert (server.creations, len(server.online)) == (2, 12)  # it is known: nothing more is bought
    assert changes(workspace) == ["model id"]
    tally = watched(workspace, server.url, questions(40))
    assert tally.notices == ["the teacher m changed: answers by m-2 instead of m-1"]
    assert tally.reused + tally.answered == tally.questions


def test_canaries_keep_the_cap_and_hold_no_batch_back(serve, workspace: Workspace):
    server = serve()
    with pytest.raises(BudgetReached) as caught:
        watched(workspace, server.url, questions(20), max_cost=0.0001)
    assert server.online == []
    assert "28 questions are left" in caught.value.why  # with the canaries that would have come first
    assert watched(workspace, server.url, questions(20), max_cost=1.0).answered == 32


def test_a_server_without_batches_is_asked_no_canary(provider, workspace: Workspace):
    server = provider()
    with pytest.raises(UsageError, match="has no batches"):
        watched(workspace, server.url, questions(20))
    assert server.bodies == []
