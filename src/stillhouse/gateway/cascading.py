"""A model that a student answers and its teacher stands behind.

The student is asked first and its answer waited for whole, with its probabilities, before anything leaves:
until then the decision can change. What the client gets is one model's answer from its first byte to its
last.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from stillhouse.cascade import drift
from stillhouse.cascade.calibration import Calibration, differ, judge, read
from stillhouse.cascade.deferred import Deferred, is_one_chat, learnable, sampling_in
from stillhouse.cascade.deferred import written as written_deferred
from stillhouse.cascade.risk import Guarantee
from stillhouse.cascade.saving import Taken
from stillhouse.cascade.scores import TOP, tokens_told
from stillhouse.errors import UsageError
from stillhouse.gateway import logs, marking
from stillhouse.gateway.answers import Message, Send
from stillhouse.gateway.aside import ask_aside
from stillhouse.gateway.exchange import LONGEST_KEPT
from stillhouse.gateway.marking import Request
from stillhouse.gateway.state import Served
from stillhouse.gateway.stream import Said, Unwritable, said_in
from stillhouse.gateway.upstream import Behind
from stillhouse.guard.asked import Denied
from stillhouse.guard.config import Cascade
from stillhouse.guard.limits import Used
from stillhouse.guard.marking import another

Why = Literal[
    "sure",
    "unsure",
    "audit",
    "traffic_changed",
    "not_judged",
    "student_failed",
    "nothing_promised",
    "teacher_down",
    "other_student",
]
FINGERPRINT = re.compile(r"fp_[0-9a-f]{12}")  # as `stillhouse serve` tells it: of the weights
HEADER = b"x-stillhouse-cascade"


@dataclass(slots=True)
class Cascading:
    """A student with its calibration, and what was seen of the traffic since. Of one process alone."""

    config: Cascade
    behind: tuple[Behind, ...]
    calibration: Calibration
    digest: str
    watch: drift.Watch
    answered: dict[tuple[str, Why], int] = field(default_factory=dict)
    taken: Taken = field(default_factory=Taken)
    draw: Callable[[], float] = random.random

    @property
    def promise(self) -> Guarantee:
        return self.calibration.promised(self.config.family)

    def count(self, who: str, why: Why) -> None:
        self.answered[who, why] = self.answered.get((who, why), 0) + 1


@dataclass(frozen=True, slots=True)
class Tried:
    """What the student answered: the completion as it was told, None where there is none; and whose it is."""

    told: dict[str, Any] | None = None
    behind: Behind | None = None
    text: str = ""
    used: tuple[int, int] | None = None  # tokens, as it told them
    risk: float | None = None
    strange: bool = False
    other: bool = False  # it is not the student that was calibrated


def opened(config: Cascade, behind: tuple[Behind, ...]) -> Cascading:
    """Raises UsageError for a calibration that cannot be read, or that lacks the family."""
    path = Path(config.calibration)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"cannot read {path}",
            error.strerror or str(error),
            "name the file that `stillhouse cascade calibrate RUN` wrote",
        ) from None
    calibration = read(data, str(path))
    calibration.promised(config.family)
    fresh = drift.watch(calibration.usual_strange, calibration.usual_differing)
    return Cascading(config, behind, calibration, sha256(data).hexdigest(), fresh)


def go_on(old: Mapping[str, Served], new: Mapping[str, Served]) -> None:
    """After a reload: what was seen of the traffic stays as long as the calibration is the same."""
    for name, served in new.items():
        before = old[name].cascade if name in old else None
        if served.cascade is not None and before is not None and before.digest == served.cascade.digest:
            served.cascade.watch, served.cascade.answered = before.watch, before.answered
            served.cascade.taken = before.taken


async def run(cascade: Cascading | None, request: Request) -> None:
    """Answer by the student where there is one that is sure enough, else by the model behind it. Raises what
    Exchange.run raises."""
    if cascade is None:
        await marking.run(request, request.send)
        return
    tried, why = Tried(), _not_asked(cascade, request)
    if why is None:
        began = request.gateway.clock()
        tried = await _ask_student(cascade, request)
        request.exchange.elsewhere = request.gateway.clock() - began
        tried = _judged(cascade, request, tried)
        why = _decide(cascade, tried)
        seen = drift.seen(cascade.watch, tried.strange, why != "sure")
        _go_on_watching(cascade, request, seen)
    if why == "sure":
        try:
            await _give(cascade, request, tried, why)
            cascade.taken = cascade.taken.given(tried.used)
            return
        except Unwritable:
            tried, why = Tried(), "student_failed"
    await _ask_teacher(cascade, request, tried, why)


def _not_asked(cascade: Cascading, request: Request) -> Why | None:
    """Why the student is not even asked. Of a request that is more than one chat in words to be answered once
    a calibration says nothing."""
    if cascade.promise.threshold is None:
        return "nothing_promised"
    chat = request.trail.route == "chat/completions"
    return None if chat and is_one_chat(request.body, request.asked.choices) else "not_judged"


def _decide(cascade: Cascading, tried: Tried) -> Why:
    threshold = cascade.promise.threshold
    if tried.told is None:
        return "student_failed"
    if tried.other:
        return "other_student"
    if tried.risk is None or threshold is None:
        return "not_judged"
    if drift.must_defer(cascade.watch, tried.strange):
        return "traffic_changed"
    if tried.risk > threshold:
        return "unsure"
    return "audit" if cascade.draw() < cascade.config.audit else "sure"


async def _ask_student(cascade: Cascading, request: Request) -> Tried:
    """Never raises for what the student does wrong; what it took is counted, at most what was set aside."""
    exchange, asked = request.exchange, request.asked
    wanted = another(request.body, 0) | {"temperature": 0, "logprobs": True, "top_logprobs": TOP}
    exchange.before, exchange.before_told = Used(asked.input_tokens, asked.output_tokens), False
    aside = await ask_aside(
        request.gateway, cascade.behind, request.trail, wanted, request.asked, request.patience
    )
    if aside.used is not None:
        exchange.before, exchange.before_told = aside.used if aside.used.sent else None, True
    used = None if aside.used is None else (aside.used.input_tokens, aside.used.output_tokens)
    if aside.used is None or aside.used.sent:
        cascade.taken = cascade.taken.asked(used)
    return Tried() if aside.whole is None else Tried(aside.whole.told, aside.behind, used=used)


def _judged(cascade: Cascading, request: Request, tried: Tried) -> Tried:
    """The answer with its risk, where that is known, and without the probabilities that nobody asked for."""
    choices = (tried.told or {}).get("choices")
    choice = choices[0] if isinstance(choices, list) and len(choices) == 1 else None
    message = choice.get("message") if isinstance(choice, dict) else None
    text = message.get("content") if isinstance(message, dict) else None
    if choice is None or message is None or not isinstance(text, str) or message.get("tool_calls"):
        return Tried()
    tokens = tokens_told(choice)
    choice["logprobs"] = None
    told = str((tried.told or {}).get("system_fingerprint"))
    if FINGERPRINT.fullmatch(told) and told != f"fp_{cascade.calibration.student[:12]}":
        return replace(tried, text=text, other=True)
    if tokens is None:
        return replace(tried, text=text)
    prompt = "\n".join(each["content"] for each in request.body["messages"])
    risk, strange = judge(cascade.calibration, tokens, text, str(choice.get("finish_reason")), prompt)
    return replace(tried, text=text, risk=risk, strange=strange)


async def _give(cascade: Cascading, request: Request, tried: Tried, why: Why) -> None:
    assert tried.told is not None
    request.trail.behind = tried.behind
    _say(request, "student", why)
    if request.marking is not None:
        request.exchange.say_mark(marking.UNMARKED % b"student")
    await request.exchange.give(tried.told, request.send)
    cascade.count("student", why)


async def _ask_teacher(cascade: Cascading, request: Request, tried: Tried, why: Why) -> None:
    exchange = request.exchange
    spare = tried.told is not None and cascade.config.teacher_down == "student"
    kept = _is_kept(request)
    passing, own = _Passing(request.send, spare, why == "audit" or kept), list(exchange.headers)
    _say(request, "teacher", why)
    try:
        await marking.run(request, passing)
        cascade.count("teacher", why)
        said = passing.said()
        if why == "audit" and said is not None:
            audited = drift.audited(cascade.watch, differ(tried.text, said.text))
            _go_on_watching(cascade, request, audited)
        if kept:
            _keep(request, why, said)
        return
    except _Down:
        pass
    except Denied as denied:
        if not spare or request.trail.began or denied.status < 500:
            raise
    exchange.headers = own
    await _give(cascade, request, tried, "teacher_down")


def _say(request: Request, who: str, why: Why) -> None:
    request.exchange.headers = [each for each in request.exchange.headers if each[0] != HEADER]
    request.exchange.headers.append((HEADER, f"{who}; {why}".encode()))
    request.trail.reason = f"cascade_{why}"


def _is_kept(request: Request) -> bool:
    """Whether what the teacher answers may be kept to be learned from: the operator wants that, the account
    agreed to it by the present terms, and it can become a row."""
    config, trail = request.gateway.config, request.trail
    if config.record.deferred != "with_consent" or config.terms is None or trail.caller is None:
        return False
    if trail.caller.account.training != config.terms.version or trail.route != "chat/completions":
        return False
    return learnable(request.body, request.asked.choices)


def _keep(request: Request, why: Why, said: Said | None) -> None:
    """Only a whole answer is one to learn from: any other is counted, and not kept."""
    trail, deferred = request.trail, request.gateway.record.deferred
    if trail.status != 200 or trail.ended != "whole":
        return
    if said is None or said.finish_reason != "stop" or not said.text.strip():
        deferred.lost["not to be read, cut short or empty"] += 1
        return
    assert trail.caller is not None
    assert trail.behind is not None
    account = trail.caller.account
    one = Deferred(
        trail.id,
        account.id,
        trail.model,
        request.gateway.wall(),
        why,
        account.training or "",
        trail.behind.url,
        trail.behind.config.model or trail.model,
        tuple(request.body["messages"]),
        sampling_in(request.body),
        said.text,
    )
    deferred.put(trail.id, account, *written_deferred(one))


class _Down(Exception):
    """The teacher said that it cannot answer, and nothing of that has left."""


class _Passing:
    """Passes the teacher's answer on. With `spare` one that only says that there is none is kept back; with
    `listening` its text is kept to be compared."""

    def __init__(self, send: Send, spare: bool, listening: bool) -> None:
        self._send = send
        self._spare = spare
        self._parts: list[bytes] | None = [] if listening else None
        self._room = LONGEST_KEPT
        self._status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            if self._spare and (self._status == 429 or self._status >= 500):
                raise _Down
        elif self._parts is not None:
            part = message.get("body", b"")
            self._room -= len(part)
            self._parts.append(part)
            if self._room < 0:
                self._parts = None
        await self._send(message)

    def said(self) -> Said | None:
        """What the teacher answered, whole or in the events of a stream; None where it cannot be read, or is
        too long to be held."""
        if self._parts is None or self._status != 200:
            return None
        return said_in(b"".join(self._parts))


def _go_on_watching(cascade: Cascading, request: Request, watch: drift.Watch) -> None:
    before, cascade.watch = cascade.watch, watch
    if watch.alarm is not None and before.alarm is None:
        logs.say(
            "cascade alarm",
            model=request.trail.model,
            why=watch.why,
            requests=watch.requests,
            labels_needed=watch.owed,
        )
