"""The HTTP side of a served model: requests are checked and tokenised here, answers written."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from stillhouse.errors import StillhouseError, UsageError
from stillhouse.models import weights_digest, wire
from stillhouse.models.local import (
    Event,
    Generation,
    LocalModel,
    Request,
    Token,
    TokenLogprob,
    ids_text,
    prompt_ids,
    text_ids,
    vocabulary,
)
from stillhouse.models.serve.worker import Cancel, Job, Scoring, Worker
from stillhouse.watermark.keys import Key
from stillhouse.watermark.schemes import marks_greedy

MAX_BODY_BYTES = 16 << 20
MARKED_BY = "x-stillhouse-watermark"


class Served:
    """A model under its name, with what its answers need; up to `workers` threads run it, a batch each."""

    def __init__(
        self,
        model: LocalModel,
        name: str | None,
        workers: int = 1,
        max_logprobs: int = wire.MAX_TOP_LOGPROBS,
        mark: Key | None = None,
    ) -> None:
        local = Path(model.folder).is_dir()
        embedded = model.source.startswith("embedded:")
        own = Path(model.folder).name if local and not embedded else model.source
        self.model = model
        self.name = name or own
        self.names = {self.name, own, model.source}
        self.started = int(time.time())
        commit = weights_digest(model.folder) if local else getattr(model.model.config, "_commit_hash", None)
        self.fingerprint = f"fp_{commit[:12]}" if commit else None
        self.most = workers
        self.max_logprobs = max_logprobs  # of `prompt_logprobs`; -1 for no bound
        self.mark = mark
        self.workers: list[Worker] = []

    @cached_property
    def vocabulary(self) -> list[Token]:
        return vocabulary(self.model)

    def start(self) -> Worker:
        """The worker with the least to do; a further one is started while all have work."""
        least = min(self.workers, key=Worker.load, default=None)
        if least is None or (least.load() and len(self.workers) < self.most):
            least = Worker(self.model, asyncio.get_running_loop())
            least.start()
            self.workers.append(least)
        return least

    def envelope(self, prefix: str) -> wire.Envelope:
        return wire.Envelope(
            f"{prefix}-{secrets.token_hex(12)}", int(time.time()), self.name, self.fingerprint
        )

    def shown(self, token: TokenLogprob) -> wire.TokenScore:
        own = self._token(token.token_id)
        rivals = [(self._token(at), value) for at, value in token.top]
        top = tuple((rival.name, rival.raw, value) for rival, value in rivals)
        return wire.TokenScore(own.name, own.raw, token.logprob, top, own.special)

    def ranked(self, token: TokenLogprob, wanted: int) -> dict[str, dict[str, Any]]:
        """As vLLM tells it: the `wanted` likeliest tokens and the token itself, by id and each with its rank,
        which is null where it is not among them; JSON has no infinity, and -9999 stands for it."""
        told: dict[int, tuple[float, int | None]] = {
            at: (value, rank) for rank, (at, value) in enumerate(token.top[:wanted], 1)
        }
        told.setdefault(token.token_id, (token.logprob, None))
        return {
            str(at): {
                "logprob": value if value > -math.inf else -9999.0,
                "rank": rank,
                "decoded_token": self._token(at).name,
            }
            for at, (value, rank) in told.items()
        }

    def unscored(self, token_id: int) -> wire.TokenScore:
        own = self._token(token_id)
        return wire.TokenScore(own.name, own.raw, None, (), own.special)

    def _token(self, at: int) -> Token:
        """Models may have more rows in the head than their tokenizer has tokens."""
        return self.vocabulary[at] if at < len(self.vocabulary) else Token(b"", "", True)


def application(served: Served) -> Starlette:
    async def models(request: HttpRequest) -> Response:
        row = {"id": served.name, "object": "model", "created": served.started, "owned_by": "stillhouse"}
        return _json({"object": "list", "data": [row]})

    async def one_model(request: HttpRequest) -> Response:
        _known(served, request.path_params["name"])
        row = {"id": served.name, "object": "model", "created": served.started, "owned_by": "stillhouse"}
        return _json(row)

    async def health(request: HttpRequest) -> Response:
        dead = not all(worker.is_alive() for worker in served.workers)
        told = {"status": "the model's thread has ended" if dead else "ok", "model": served.name}
        return _json(told, 503 if dead else 200)

    async def chat(request: HttpRequest) -> Response:
        return await _chat(served, request)

    async def completions(request: HttpRequest) -> Response:
        return await _completions(served, request)

    routes = [
        Route("/health", health),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", one_model),
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/completions", completions, methods=["POST"]),
    ]
    handlers: dict[Any, Any] = {
        wire.WireError: lambda _, error: _json(error.body(), error.status),
        HTTPException: _http_error,
        ClientDisconnect: lambda _, error: Response(status_code=499),
        Exception: lambda _, error: _json(wire.WireError(500, _reason(error)).body(), 500),
    }
    return Starlette(routes=routes, exception_handlers=handlers)


def _http_error(request: HttpRequest, error: HTTPException) -> Response:
    said = {404: f"no such path: {request.url.path}", 405: f"{request.method} is not allowed here"}
    body = wire.WireError(error.status_code, said.get(error.status_code, error.detail)).body()
    return _json(body, error.status_code, dict(error.headers or {}))


async def _chat(served: Served, http: HttpRequest) -> Response:
    ask = wire.chat_request(await _body(http))
    settings = ask.settings
    _known(served, settings.model)
    try:
        ids = prompt_ids(served.model, ask.messages)
    except UsageError as error:
        raise wire.WireError(400, f"{error.what}: {error.why}", "messages") from error
    jobs = _requests(served, settings, [ids], continues=False)
    envelope = served.envelope("chatcmpl")
    running = _Running(served, http, jobs, watched=settings.stream)
    if settings.stream:
        parts = _stream(running, lambda: _chat_parts(served, envelope, settings, running))
        return _named(served, settings, parts)
    answers = await running.answers()
    choices = [
        {
            "index": at,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": None
            if answer.logprobs is None
            else wire.chat_logprobs([served.shown(token) for token in answer.logprobs]),
            "finish_reason": answer.finish_reason,
        }
        for at, answer in enumerate(answers)
    ]
    computed = sum(answer.completion_tokens for answer in answers)
    whole = envelope.wrap("chat", choices, part=False) | {"usage": wire.usage(len(ids), computed)}
    return _named(served, settings, _json(whole))


async def _chat_parts(
    served: Served, envelope: wire.Envelope, settings: wire.Settings, running: _Running
) -> AsyncIterator[bytes]:
    """Server-sent events: the role, text as it becomes certain, the finish reason, usage, [DONE]."""

    def part(at: int, delta: dict[str, Any], reason: str | None, new: Sequence[TokenLogprob] = ()) -> bytes:
        logprobs = wire.chat_logprobs([served.shown(token) for token in new]) if new else None
        choice = {"index": at, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return _event(envelope.wrap("chat", [choice], part=True) | unmeasured)

    unmeasured: dict[str, Any] = {"usage": None} if settings.include_usage else {}
    for at in range(len(running.jobs)):
        yield part(at, {"role": "assistant", "content": ""}, None)
    async for at, event in running.events():
        if event.text or event.logprobs:
            yield part(at, {"content": event.text}, None, event.logprobs)
        if event.done is not None:
            yield part(at, {}, event.done.finish_reason)
    if settings.include_usage:
        yield _event(envelope.wrap("chat", [], part=True) | {"usage": running.usage()})


async def _completions(served: Served, http: HttpRequest) -> Response:
    ask = wire.completion_request(await _body(http), served.max_logprobs)
    settings = ask.settings
    _known(served, settings.model)
    prompts = [text_ids(served.model, p) if isinstance(p, str) else list(p) for p in ask.prompts]
    size = served.model.model.get_input_embeddings().weight.shape[0]
    if any(at >= size for ids in prompts for at in ids):
        raise wire.WireError(400, f"a token id is not below {size}", "prompt", "invalid_value")
    jobs = _requests(served, settings, prompts, continues=True)
    envelope = served.envelope("cmpl")
    before: list[list[TokenLogprob | None]] = []
    echoed_too = ask.echo and settings.logprobs is not None
    wanted = size if ask.prompt_logprobs == -1 else ask.prompt_logprobs
    if echoed_too or wanted is not None:
        before = await _scored(served, prompts, max(settings.logprobs or 0, wanted or 0))
    running = _Running(served, http, jobs, watched=settings.stream)
    if settings.stream:
        parts = _stream(running, lambda: _text_parts(served, envelope, settings, running))
        return _named(served, settings, parts)
    answers = await running.answers()
    choices = []
    for at, answer in enumerate(answers):
        prompt, ids = ask.prompts[at // settings.n], prompts[at // settings.n]
        told = (prompt if isinstance(prompt, str) else ids_text(served.model, ids)) if ask.echo else ""
        tokens = [served.shown(token) for token in answer.logprobs or ()]
        offsets = wire.Offsets()
        if echoed_too:
            scores = zip(ids, before[at // settings.n], strict=True)
            few = settings.logprobs or 0
            echoed = [
                served.unscored(i) if t is None else served.shown(t._replace(top=t.top[:few]))
                for i, t in scores
            ]
            offsets = wire.Offsets(wire.unwritten(echoed, told))
            tokens = echoed + tokens
        logprobs = None if settings.logprobs is None else wire.text_logprobs(tokens, offsets)
        text, reason = told + answer.text, answer.finish_reason
        choice = {"index": at, "text": text, "logprobs": logprobs, "finish_reason": reason}
        if wanted is not None:
            scored = before[at // settings.n]
            choice["prompt_logprobs"] = [None if t is None else served.ranked(t, wanted) for t in scored]
        choices.append(choice)
    counts = wire.usage(sum(len(ids) for ids in prompts), sum(a.completion_tokens for a in answers))
    return _named(served, settings, _json(envelope.wrap("text", choices, part=False) | {"usage": counts}))


async def _text_parts(
    served: Served, envelope: wire.Envelope, settings: wire.Settings, running: _Running
) -> AsyncIterator[bytes]:
    unmeasured: dict[str, Any] = {"usage": None} if settings.include_usage else {}
    offsets = [wire.Offsets() for _ in running.jobs]
    async for at, event in running.events():
        tokens = [served.shown(token) for token in event.logprobs]
        choice = {
            "index": at,
            "text": event.text,
            "logprobs": wire.text_logprobs(tokens, offsets[at]) if tokens else None,
            "finish_reason": event.done.finish_reason if event.done else None,
        }
        yield _event(envelope.wrap("text", [choice], part=True) | unmeasured)
    if settings.include_usage:
        yield _event(envelope.wrap("text", [], part=True) | {"usage": running.usage()})


# ---------------------------------------------------------------- requests under way


class _Running:
    """The answers to one HTTP request: sent to the model at once, cancelled when the client goes."""

    def __init__(self, served: Served, http: HttpRequest, jobs: Sequence[Request], watched: bool) -> None:
        self.jobs = jobs
        self._worker = served.start()
        self._http = http
        self._inbox: asyncio.Queue[tuple[int, Event] | Exception] = asyncio.Queue()
        self._done: dict[int, Generation] = {}
        self._keys = [(id(self), at) for at in range(len(jobs))]
        self._watcher = asyncio.create_task(self._watch())
        for at, (key, job) in enumerate(zip(self._keys, jobs, strict=True)):
            self._worker.put(Job(key, job, watched, self._sink(at)))

    def _sink(self, at: int) -> Callable[[Event | Exception], None]:
        return lambda event: self._inbox.put_nowait(event if isinstance(event, Exception) else (at, event))

    async def _watch(self) -> None:
        while (await self._http.receive())["type"] != "http.disconnect":
            pass
        self._inbox.put_nowait(ClientDisconnect())

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """What happens to each answer until all are done. Raises ClientDisconnect, or the model's error."""
        try:
            while len(self._done) < len(self.jobs):
                item = await self._inbox.get()
                if isinstance(item, Exception):
                    raise item
                at, event = item
                if event.done is not None:
                    self._done[at] = event.done
                yield at, event
        finally:
            self._watcher.cancel()
            if left := [key for key in self._keys if key[1] not in self._done]:
                self._worker.put(Cancel(left))

    async def answers(self) -> list[Generation]:
        async for _ in self.events():
            pass
        return [self._done[at] for at in range(len(self.jobs))]

    def usage(self) -> dict[str, int]:
        """Tokens of every prompt once, however many answers it has, and of all answers."""
        prompts = {id(job.prompt_ids): len(job.prompt_ids) for job in self.jobs}
        return wire.usage(sum(prompts.values()), sum(d.completion_tokens for d in self._done.values()))


def _requests(
    served: Served, settings: wire.Settings, prompts: Sequence[list[int]], continues: bool
) -> list[Request]:
    """`n` requests for each prompt; a seed counts up with the choice."""
    context = served.model.context
    for ids in prompts:
        if not ids:
            raise wire.WireError(400, "the prompt has no tokens", "prompt", "invalid_value")
        if context is not None and len(ids) + (settings.max_tokens != 0) > context:
            said = f"the prompt has {len(ids)} tokens; this model's context is {context} tokens"
            field = "prompt" if continues else "messages"
            raise wire.WireError(400, said, field, "context_length_exceeded")
    return [
        Request(
            prompt_ids=ids,
            max_tokens=settings.max_tokens if settings.max_tokens is not None else context or 1024,
            temperature=settings.temperature,
            top_p=settings.top_p,
            stop=settings.stop,
            seed=None if settings.seed is None else settings.seed + choice,
            logprobs=settings.logprobs,
            continues=continues,
            mark=served.mark,
        )
        for ids in prompts
        for choice in range(settings.n)
    ]


async def _scored(served: Served, texts: Sequence[list[int]], top: int) -> list[list[TokenLogprob | None]]:
    waiting: asyncio.Queue[Any] = asyncio.Queue()
    served.start().put(Scoring(texts, top, waiting.put_nowait))
    found = await waiting.get()
    if isinstance(found, Exception):
        raise found
    result: list[list[TokenLogprob | None]] = found
    return result


# ---------------------------------------------------------------- reading and writing


async def _body(http: HttpRequest) -> object:
    chunks: list[bytes] = []
    size = 0
    async for chunk in http.stream():
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise wire.WireError(413, f"the request passes {MAX_BODY_BYTES} bytes", None, "request_too_large")
        chunks.append(chunk)
    try:
        body: object = orjson.loads(b"".join(chunks))
    except ValueError as error:
        raise wire.WireError(400, f"the request body is not JSON: {error}") from None
    return body


def _known(served: Served, name: str) -> None:
    if name not in served.names:
        said = f"the model {name!r} does not exist here; this server has {served.name!r}"
        raise wire.WireError(404, said, "model", "model_not_found")


def _stream(running: _Running, parts: Callable[[], AsyncIterator[bytes]]) -> Response:
    async def written() -> AsyncIterator[bytes]:
        try:
            async for part in parts():
                yield part
        except ClientDisconnect:
            return
        except Exception as error:  # the status is out already; the error is told in the stream
            yield _event(wire.WireError(500, _reason(error)).body())
        yield b"data: [DONE]\n\n"

    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(written(), media_type="text/event-stream", headers=headers)


def _event(value: Any) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(value), status, headers, media_type="application/json")


def _named(served: Served, settings: wire.Settings, answer: Response) -> Response:
    """The answer with a header that says by which key it is marked, where it can be: not where a scheme needs
    sampling, or an answer has no token with the whole context before it."""
    mark, longest = served.mark, settings.max_tokens
    if (
        mark is not None
        and (settings.temperature > 0 or marks_greedy(mark.scheme))
        and (longest is None or longest > mark.scheme.width)
    ):
        answer.headers[MARKED_BY] = mark.id
    return answer


def _reason(error: Exception) -> str:
    if isinstance(error, StillhouseError):
        return f"{error.what}: {error.why}"
    return f"the model failed: {type(error).__name__}: {error}"
