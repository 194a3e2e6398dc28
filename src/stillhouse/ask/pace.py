"""How many requests may be under way, and when the next one may leave: a state machine without clock or I/O.

Three bounds at once: requests in flight, requests a minute, tokens a minute. The first is found by trying
(more while all goes well and the room was really used, less when the server says so), the other two are
given by the user or read from the server's headers. Time is passed in, in seconds of any steady clock.

Slow start, additive increase and multiplicative decrease are those of TCP (RFC 5681, with 0.75 in place of
0.5). A server that queues and never refuses is followed by the gradient of its latency: by Little's law
(requests in flight = rate * latency) more requests bring a higher rate as long as latency grows more slowly
than their number. Latency is counted in seconds per output token, because answers differ in length.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

START = 20  # requests in flight before anything is known
CUT = 0.75
USED = 0.8  # share of the limit that must have been in flight for a clean round to count
CEILING_SECONDS = 600.0  # how long the limit at the last cut is remembered, if it is not passed by a tenth
COOLDOWN = 2.0  # seconds after a 429 that names none; doubles while the next ones fail as well
LONGEST_COOLDOWN = 60.0
RAMP = 1.0  # seconds over which the room opens again after a cooldown, so that no herd leaves at once
BREAKER = 10  # failures in a row after which new requests are held back
MARGIN = 0.97  # of a stated rate: what a burst and a long request may use on top stays within it
BURST = 1.0  # seconds' worth of a rate that may leave at once
KNEE = 0.5  # d log(latency) / d log(requests in flight) from which on more of them only wait
UP, DOWN = 1.25, 0.9  # steps on either side of the knee


class Bucket(NamedTuple):
    """What a rate lets through: it fills evenly and holds one burst. `per_minute` None is no limit.

    An amount larger than the burst leaves when the bucket is full and takes it below zero, so the rate
    holds in the long run whatever the sizes are.
    """

    per_minute: float | None = None
    level: float = 0.0
    at: float = 0.0

    def size(self) -> float:
        return math.inf if self.per_minute is None else max(1.0, self.per_minute * MARGIN / 60 * BURST)

    def wait(self, amount: float, now: float) -> float:
        """Seconds until `amount` may be taken."""
        if self.per_minute is None:
            return 0.0
        missing = min(amount, self.size()) - self._filled(now)
        return max(0.0, missing * 60 / (self.per_minute * MARGIN))

    def take(self, amount: float, now: float) -> Bucket:
        """The bucket after `amount` is taken (put back, where negative)."""
        if self.per_minute is None:
            return self
        return self._replace(level=min(self.size(), self._filled(now) - amount), at=now)

    def limited(self, per_minute: float, now: float) -> Bucket:
        """The bucket with another rate; a bucket without one begins full."""
        if per_minute == self.per_minute:
            return self
        new = Bucket(per_minute, 0.0, now)
        level = new.size() if self.per_minute is None else min(new.size(), self._filled(now))
        return new._replace(level=level)

    def lowered(self, level: float, now: float) -> Bucket:
        """The bucket with at most this level: what the server says is left."""
        if self.per_minute is None or level >= self._filled(now):
            return self
        return self._replace(level=level, at=now)

    def _filled(self, now: float) -> float:
        assert self.per_minute is not None
        gained = max(0.0, now - self.at) * self.per_minute * MARGIN / 60
        return min(self.size(), self.level + gained)


class Ticket(NamedTuple):
    """Leave to send one request: the epoch in which it was given, and the tokens reserved for it."""

    epoch: int
    tokens: float


class Hints(NamedTuple):
    """What headers say of rates: a minute's worth, what is left, seconds until it is full again."""

    requests: float | None = None
    requests_left: float | None = None
    requests_reset: float | None = None
    tokens: float | None = None
    tokens_left: float | None = None
    tokens_reset: float | None = None


class Pace(NamedTuple):
    """The state of one endpoint. `limit` is the number of requests that may be in flight, at most `most`.

    `follow` says what moves it: `limits` (429 and its kin) or `latency` as well, for a server that queues
    and never refuses. `epoch` counts the changes of the limit that an answer is charged to only if its
    request left after them. `clean`, `peak` and `seconds` are of the current round: answers, most in flight,
    sum of seconds per output token; `mark` is the limit and the latency that the round is compared with.
    """

    most: int
    follow: Literal["limits", "latency"] = "limits"
    limit: float = START
    in_flight: int = 0
    epoch: int = 0
    slow_start: bool = True
    clean: int = 0
    peak: int = 0
    ceiling: float = math.inf
    ceiling_at: float = -math.inf
    blocked_until: float = -math.inf
    cooldowns: int = 0
    failures: int = 0
    seconds: float = 0.0
    mark: tuple[float, float] | None = None
    requests: Bucket = Bucket()
    tokens: Bucket = Bucket()
    most_requests: float = math.inf  # a minute, by the user
    most_tokens: float = math.inf


class Size(NamedTuple):
    """How large requests are, learnt from those that were answered: what a rate of tokens is charged with.

    `per_byte` is the mean number of prompt tokens per byte of text, `output` a length that nine in ten
    answers stay below (a running quantile: up by nine steps for a longer one, down by one for a shorter).
    """

    per_byte: float = 0.3
    output: float = math.inf
    answers: int = 0

    def estimate(self, text_bytes: int, max_tokens: int) -> float:
        """Tokens that a request will use, prompt and answer."""
        return self.per_byte * text_bytes + min(self.output, max_tokens)

    def seen(self, text_bytes: int, prompt_tokens: int, output: int) -> Size:
        answers = min(self.answers + 1, 500)
        if math.isinf(self.output):
            high = float(output)
        else:
            step = max(1.0, self.output) * max(0.01, 1 / answers) / 10
            high = max(1.0, self.output + (9 * step if output > self.output else -step))
        each = prompt_tokens / max(1, text_bytes)
        return Size(self.per_byte + (each - self.per_byte) / answers, high, answers)


def pace(
    most: int,
    now: float,
    *,
    start: int = START,
    follow: Literal["limits", "latency"] = "limits",
    requests_per_minute: float | None = None,
    tokens_per_minute: float | None = None,
) -> Pace:
    """The state in which asking begins: at most `start` requests in flight, both buckets full."""
    requests, tokens = Bucket(), Bucket()
    if requests_per_minute is not None:
        requests = requests.limited(requests_per_minute, now)
    if tokens_per_minute is not None:
        tokens = tokens.limited(tokens_per_minute, now)
    return Pace(
        most,
        follow,
        float(min(start, most)),
        requests=requests,
        tokens=tokens,
        most_requests=requests_per_minute or math.inf,
        most_tokens=tokens_per_minute or math.inf,
    )


def wait(state: Pace, tokens: float, now: float) -> float:
    """Seconds until a request of so many tokens may leave: 0 now, `inf` not before another one ended."""
    if state.in_flight >= max(1, math.floor(state.limit)):
        return math.inf
    blocked = state.blocked_until - now
    # The room opens over `RAMP` seconds after a cooldown: place k of n at the moment k/n of it
    blocked += RAMP * state.in_flight / max(1.0, state.limit)
    seconds = max(blocked, state.requests.wait(1, now), state.tokens.wait(tokens, now))
    return seconds if seconds > 1e-6 else 0.0  # less than that is rounding, and a clock may never show it


def sent(state: Pace, tokens: float, now: float) -> tuple[Pace, Ticket]:
    """The state with one more request in flight; call it when `wait` gives 0, before anything is awaited."""
    in_flight = state.in_flight + 1
    after = state._replace(
        in_flight=in_flight,
        peak=max(state.peak, in_flight),
        requests=state.requests.take(1, now),
        tokens=state.tokens.take(tokens, now),
    )
    return after, Ticket(state.epoch, tokens)


def answered(
    state: Pace, ticket: Ticket, now: float, seconds: float, tokens_used: float | None, output: int | None
) -> Pace:
    """After an answer that took `seconds`; `tokens_used` is its usage, `output` its completion tokens."""
    current = ticket.epoch == state.epoch
    counts = current and now >= state.blocked_until
    state = state._replace(
        in_flight=state.in_flight - 1,
        tokens=state.tokens.take((tokens_used or 0) - ticket.tokens if tokens_used is not None else 0.0, now),
        failures=0,
        cooldowns=0 if current else state.cooldowns,
        clean=state.clean + counts,
        seconds=state.seconds + (seconds / max(1, output or 1) if counts else 0.0),
    )
    if not counts:
        return state
    return _by_latency(state) if state.follow == "latency" else _by_round(state, now)


def limited(state: Pace, ticket: Ticket, now: float, retry_after: float | None, hints: Hints) -> Pace:
    """After a 429 or the like. One burst of them cuts once; a cooldown is extended and never shortened."""
    state = _ended(state, ticket, now, 0.0)
    first = ticket.epoch == state.epoch
    cooldowns = state.cooldowns + first
    named = [s for s in (retry_after, _until_free(hints)) if s is not None]
    own = min(LONGEST_COOLDOWN, COOLDOWN * 2 ** min(9, max(0, cooldowns - 1)))
    state = state._replace(
        blocked_until=max(state.blocked_until, now + max(named, default=own)), cooldowns=cooldowns
    )
    if not first:
        return state
    return state._replace(
        limit=max(1.0, CUT * state.limit),
        ceiling=state.limit,
        ceiling_at=now,
        epoch=state.epoch + 1,
        slow_start=False,
        clean=0,
        peak=state.in_flight,
    )


def failed(state: Pace, ticket: Ticket, now: float, billed: bool, retry_after: float | None = None) -> Pace:
    """After a failure that is no refusal: it ends the round, and many in a row hold new requests back, as
    does a server that asks to wait."""
    state = _ended(state, ticket, now, ticket.tokens if billed else 0.0)
    failures = state.failures + 1
    blocked = max(state.blocked_until, now + (retry_after or 0.0)) if retry_after else state.blocked_until
    if failures >= BREAKER:
        blocked = max(blocked, now + min(LONGEST_COOLDOWN, 2.0 ** min(9, failures // BREAKER - 1)))
    return state._replace(failures=failures, blocked_until=blocked, clean=0, peak=state.in_flight)


def lost(state: Pace, ticket: Ticket, now: float) -> Pace:
    """After a request of which nothing is known, because its sender died: it says nothing of the server."""
    return _ended(state, ticket, now, ticket.tokens)


def cancelled(state: Pace, ticket: Ticket, now: float) -> Pace:
    """After a request that never left."""
    after = _ended(state, ticket, now, 0.0)
    return after._replace(requests=after.requests.take(-1, now))


def learned(state: Pace, hints: Hints, now: float) -> Pace:
    """Rates from an answer's headers, up and down; where the user set one too, the lower holds."""
    requests, tokens = state.requests, state.tokens
    if hints.requests:
        requests = requests.limited(min(hints.requests, state.most_requests), now)
    if hints.requests_left is not None:
        requests = requests.lowered(hints.requests_left, now)
    if hints.tokens:
        tokens = tokens.limited(min(hints.tokens, state.most_tokens), now)
    if hints.tokens_left is not None:
        tokens = tokens.lowered(hints.tokens_left, now)
    if requests is state.requests and tokens is state.tokens:
        return state
    return state._replace(requests=requests, tokens=tokens)


def _ended(state: Pace, ticket: Ticket, now: float, used: float) -> Pace:
    """One request fewer in flight, and what it used in place of what was reserved for it."""
    return state._replace(in_flight=state.in_flight - 1, tokens=state.tokens.take(used - ticket.tokens, now))


def _by_round(state: Pace, now: float) -> Pace:
    """Grow after a round of answers without a failure in which the room was used."""
    if state.clean < max(4, math.floor(state.limit)):
        return state
    fresh = state._replace(clean=0, seconds=0.0, peak=state.in_flight)
    if state.peak < USED * math.floor(state.limit):
        return fresh
    known = now - state.ceiling_at < CEILING_SECONDS and state.limit <= 1.1 * state.ceiling
    ceiling = state.ceiling if known else math.inf
    if state.slow_start:
        limit = 2 * state.limit
    elif not known:
        limit = state.limit + max(1.0, 0.25 * state.limit)
    elif state.limit >= 0.9 * ceiling:
        limit = state.limit + 1
    else:
        limit = state.limit + max(1.0, 0.05 * state.limit)
    return fresh._replace(limit=min(float(state.most), limit), ceiling=ceiling)


def _by_latency(state: Pace) -> Pace:
    """After a round, one step along the gradient of log(latency) over log(limit), up or down."""
    if state.clean < max(8, math.floor(state.limit)):
        return state
    latency = max(1e-9, state.seconds / state.clean)
    fresh = state._replace(clean=0, seconds=0.0, peak=state.in_flight)
    if state.peak < USED * math.floor(state.limit):
        return fresh
    up = True
    if state.mark is not None and state.mark[0] != state.limit:
        gradient = math.log(latency / state.mark[1]) / math.log(state.limit / state.mark[0])
        up = gradient < KNEE
    limit = max(state.limit * UP, state.limit + 1) if up else state.limit * DOWN
    limit = max(1.0, min(float(state.most), limit))
    return fresh._replace(limit=limit, mark=(state.limit, latency), epoch=state.epoch + 1)


def _until_free(hints: Hints) -> float | None:
    """Seconds until the rate that ran out is full again, where the headers say which one did."""
    waits = [
        reset
        for left, reset in (
            (hints.requests_left, hints.requests_reset),
            (hints.tokens_left, hints.tokens_reset),
        )
        if left is not None and left < 1 and reset is not None
    ]
    return max(waits, default=None)


def hints_of(headers: Mapping[str, str], now_utc: float) -> Hints:
    """Reads `x-ratelimit-*` (OpenAI and many others) and `anthropic-ratelimit-*`; lower-case names.

    Resets come as `1s`, `6m0s`, `120ms`, plain seconds, Unix seconds or RFC 3339. A limit is taken for that
    of a minute: one of a day lets its requests through until they are used up, and then the server refuses.
    """
    values: dict[str, float | None] = {}
    for kind in ("requests", "tokens"):
        limit = _number(headers, f"x-ratelimit-limit-{kind}", f"anthropic-ratelimit-{kind}-limit")
        left = _number(headers, f"x-ratelimit-remaining-{kind}", f"anthropic-ratelimit-{kind}-remaining")
        text = headers.get(f"x-ratelimit-reset-{kind}") or headers.get(f"anthropic-ratelimit-{kind}-reset")
        reset = _seconds(text, now_utc) if text else None
        values |= {kind: limit, f"{kind}_left": left, f"{kind}_reset": reset}
    return Hints(**values)


def _number(headers: Mapping[str, str], *names: str) -> float | None:
    for name in names:
        try:
            value = float(headers[name])
        except (KeyError, ValueError):
            continue
        if math.isfinite(value) and value >= 0:
            return value
    return None


def _seconds(text: str, now_utc: float) -> float | None:
    import re
    from datetime import UTC, datetime

    units = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
    if re.fullmatch(r"(?:\d+(?:\.\d+)?(?:ms|[smhd]))+", text):
        return sum(float(n) * units[u] for n, u in re.findall(r"(\d+(?:\.\d+)?)(ms|[smhd])", text))
    try:
        number = float(text)
    except ValueError:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            return None
        return max(0.0, moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() - now_utc)
    if not math.isfinite(number) or number < 0:
        return None
    return max(0.0, number - now_utc) if number > 1e9 else number
