"""A provider and a client in simulated time: the controller against limits it does not know."""

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from stillhouse.ask import pace


@dataclass
class Provider:
    """Refuses what passes `slots` in flight or a sliding window of 60 s; each answer takes `service` seconds.

    `slots` and the rates may change with time. With `queue` nothing is refused: what passes `slots` waits.
    """

    slots: Callable[[float], int] = lambda now: 10**9
    requests_per_minute: Callable[[float], float] = lambda now: float("inf")
    tokens_per_minute: Callable[[float], float] = lambda now: float("inf")
    service: float = 1.0
    queue: bool = False
    retry_after: float | None = None
    busy: list[float] = field(default_factory=list)  # when each request under way ends
    window: deque = field(default_factory=deque)  # (moment, tokens) of what was let in
    used: float = 0.0

    def ask(self, now: float, tokens: float) -> tuple[float, bool]:
        """When the answer comes, and whether it is one (else a 429)."""
        self.busy = [end for end in self.busy if end > now]
        while self.window and self.window[0][0] <= now - 60:
            self.used -= self.window.popleft()[1]
        full = (
            len(self.window) + 1 > self.requests_per_minute(now)
            or self.used + tokens > self.tokens_per_minute(now)
            or (not self.queue and len(self.busy) >= self.slots(now))
        )
        if full:
            return now + 0.05, False
        self.window.append((now, tokens))
        self.used += tokens
        if len(self.busy) < self.slots(now):
            end = now + self.service
        else:
            end = sorted(self.busy)[-self.slots(now)] + self.service
        self.busy.append(end)
        return end, True


@dataclass
class Trace:
    """What happened: moments of sending, refusals, and (moment, limit, in flight) at each event."""

    sends: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)
    states: list[tuple[float, float, int]] = field(default_factory=list)


def simulate(
    state: pace.Pace,
    provider: Provider,
    seconds: float,
    tokens: Callable[[int], tuple[float, float]] = lambda n: (100.0, 100.0),
    output: int = 20,
    demand: Callable[[float], int] = lambda now: 10**9,
) -> Trace:
    """Run the controller against the provider; `tokens(n)` gives what is reserved for request n, and used.

    `demand(now)` bounds the requests in flight from the client's side.
    """
    trace, events, order, now = Trace(), [], itertools.count(), 0.0
    number = 0
    while now < seconds:
        estimate, used = tokens(number)
        delay = pace.wait(state, estimate, now) if state.in_flight < demand(now) else float("inf")
        if delay == 0:
            state, ticket = pace.sent(state, estimate, now)
            end, good = provider.ask(now, used)
            heapq.heappush(events, (end, next(order), good, ticket, used, now))
            trace.sends.append(now)
            number += 1
            continue
        coming = events[0][0] if events else float("inf")
        if now + delay < coming:
            now += max(delay, 1e-9)
            continue
        now, _, good, ticket, used, began = heapq.heappop(events)
        before = state
        if good:
            state = pace.answered(state, ticket, now, now - began, used, output)
            trace.answered.append(now)
        else:
            state = pace.limited(state, ticket, now, provider.retry_after, pace.Hints())
            trace.refused.append(now)
        assert state.blocked_until >= before.blocked_until
        trace.states.append((now, state.limit, state.in_flight))
    return trace
