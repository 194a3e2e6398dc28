"""Exchanges that a cascade passed on to its teacher: which of them may be learned from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

# What of a request leads to an answer whose text alone says too little: tools, and more than one answer
MORE = ("tools", "functions", "response_format", "logprobs", "audio", "modalities", "prediction")
SAMPLED = ("temperature", "top_p", "max_tokens", "max_completion_tokens", "stop", "seed")
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Deferred:
    """What the teacher of a cascade was asked and answered. `at` in unix seconds; `why` the student's answer
    was not given; `consent` the version of the terms by which the account agreed to training; `upstream` the
    URL that answered, and `called` the model's name there; `sampling` what the request said of it."""

    id: str
    account: str
    model: str
    at: float
    why: str
    consent: str
    upstream: str
    called: str
    messages: tuple[Mapping[str, str], ...]
    sampling: Mapping[str, Any]
    answer: str


@dataclass(slots=True)
class Sorted:
    """Deferred exchanges that may be learned from, and how many may not, by why."""

    taken: list[Deferred] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def is_one_chat(body: Mapping[str, Any], choices: int) -> bool:
    """Whether a request to the chat route is a conversation in words that wants one answer, as likely as can
    be: of anything else a student's answer cannot be judged, and nothing is learned."""
    if choices != 1 or any(body.get(name) for name in MORE) or body.get("temperature"):
        return False
    return all(isinstance(each, dict) and isinstance(each.get("content"), str) for each in body["messages"])


def learnable(body: Mapping[str, Any], choices: int) -> bool:
    """Whether an answer to the request can become a row: one chat, of the usual roles, that a user ends."""
    if not is_one_chat(body, choices):
        return False
    messages = body["messages"]
    plain = all(each.keys() == {"role", "content"} and each["role"] in ROLES for each in messages)
    return plain and bool(messages) and messages[-1]["role"] == "user" and bool(messages[-1]["content"])


def sampling_in(body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: body[name] for name in SAMPLED if body.get(name) is not None}


def written(one: Deferred) -> tuple[bytes, bytes]:
    """The request with what is known of it, and the answer, as they are sealed."""
    told = {
        "model": one.model,
        "at": one.at,
        "why": one.why,
        "consent": one.consent,
        "upstream": one.upstream,
        "called": one.called,
        "messages": list(one.messages),
        "sampling": dict(one.sampling),
    }
    return orjson.dumps(told), one.answer.encode("utf-8", "replace")


def read(id: str, account: str, request: bytes, answer: bytes) -> Deferred:
    told = orjson.loads(request)
    messages = tuple(told.pop("messages"))
    return Deferred(id, account, messages=messages, answer=answer.decode(), **told)


def sort(found: Iterable[Deferred | str], asked: Mapping[str, frozenset[str]]) -> Sorted:
    """Those that are taken: of `asked`, the servers of the teacher and its names there. A string says why one
    was not to be had."""
    done = Sorted()
    for each in found:
        if isinstance(each, str):
            done.left_out[each] += 1
        elif each.called not in asked.get(each.upstream, ()):
            done.left_out["another server answered it than the recipe's teacher"] += 1
        else:
            done.taken.append(each)
    return done
