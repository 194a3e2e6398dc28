"""A text classifier behind OpenAI's chat completions: one user message in, the label out as one token.

The classifier is anything with scikit-learn's `predict` and `classes_`; where it has `predict_proba`, the
logprobs of labels can be asked for. What it cannot do is refused by name, never passed over: system prompts
and earlier turns, streams, several answers. It is deterministic, so temperature, top_p and seed change
nothing. It has no tokens of its own, so no usage is claimed.
"""

from __future__ import annotations

import json
import math
import secrets
import socket
import time
from collections.abc import Callable
from typing import Any, Protocol

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from stillhouse.models import wire

LEAST_LOGPROB = -9999.0  # how the wire format writes a probability of 0


class Classifier(Protocol):
    classes_: Any

    def predict(self, texts: list[str]) -> Any: ...


def application(classifier: Classifier, name: str, fingerprint: str | None = None) -> Starlette:
    """The server for one classifier. `fingerprint` says which one it is, as `system_fingerprint`."""
    started = int(time.time())
    model = {"id": name, "object": "model", "created": started, "owned_by": "the operator of this server"}

    async def models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [model]})

    async def chat(http: Request) -> Response:
        try:
            body = json.loads(await http.body())
        except ValueError as error:
            raise wire.WireError(400, f"the request body is not JSON: {error}") from None
        text, top = question(wire.chat_request(body), body, name)
        said = choice(classifier, text, top)
        envelope = wire.Envelope(f"chatcmpl-{secrets.token_hex(12)}", int(time.time()), name, fingerprint)
        return JSONResponse(envelope.wrap("chat", [said], part=False))

    return Starlette(
        routes=[
            Route("/v1/models", models),
            Route("/v1/chat/completions", chat, methods=["POST"]),
        ],
        exception_handlers={
            wire.WireError: lambda _, error: JSONResponse(error.body(), error.status),
        },
    )


def question(ask: wire.ChatRequest, body: dict[str, Any], name: str) -> tuple[str, int | None]:
    """The text to classify and the number of labels to give logprobs of, None where none are asked for.

    Raises WireError 404 for another model, 400 for what a classifier cannot do.
    """
    settings = ask.settings
    if settings.model != name:
        raise wire.WireError(
            404, f"the model {settings.model!r} does not exist here; this server has {name!r}", "model"
        )
    if [message.role for message in ask.messages] != ["user"]:
        raise wire.WireError(400, "a classifier reads one user message and nothing else", "messages")
    for field, asked in (("stream", settings.stream), ("n", settings.n > 1), ("stop", bool(settings.stop))):
        if asked:
            said = f"{field} is not supported by this server"
            raise wire.WireError(400, said, field, "unsupported_parameter")
    return ask.messages[0].content, settings.logprobs


def choice(classifier: Classifier, text: str, top: int | None) -> dict[str, Any]:
    """`choices[0]`: the label, with logprobs of it and of the `top` likeliest labels where `top` is given.

    Where the classifier has probabilities, the likeliest label is the answer, logprobs asked for or not.
    Raises WireError 400 when they are asked for and it has none.
    """
    scores = label_logprobs(classifier, text)
    if scores is None and top is not None:
        said = "this classifier has no probabilities, so there are no logprobs"
        raise wire.WireError(400, said, "logprobs", "unsupported_parameter")
    label = str(classifier.predict([text])[0]) if scores is None else scores[0][0]
    logprobs = None
    if scores is not None and top is not None:
        rivals = tuple((known, known.encode(), logprob) for known, logprob in scores[:top])
        logprobs = wire.chat_logprobs([wire.TokenScore(label, label.encode(), scores[0][1], rivals)])
    message = {"role": "assistant", "content": label, "refusal": None}
    return {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": "stop"}


def label_logprobs(classifier: Classifier, text: str) -> list[tuple[str, float]] | None:
    """Every label with its log-probability, the likeliest first; None for a classifier without them."""
    probabilities: Callable[[list[str]], Any] | None = getattr(classifier, "predict_proba", None)
    if probabilities is None:
        return None
    found = zip(classifier.classes_, probabilities([text])[0], strict=True)
    scored = [(str(label), math.log(p) if p > 0 else LEAST_LOGPROB) for label, p in found]
    return sorted(scored, key=lambda pair: -pair[1])


def serve(app: Starlette, port: int, ready: Callable[[str], None]) -> None:
    """Answer on loopback until interrupted; `ready` is told the base URL. Port 0 takes a free one."""
    with socket.create_server(("127.0.0.1", port), backlog=2048) as listener:
        ready(f"http://127.0.0.1:{listener.getsockname()[1]}/v1")
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, lifespan="off", timeout_keep_alive=75
        )
        uvicorn.Server(config).run(sockets=[listener])
