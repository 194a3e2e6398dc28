"""Accounts to be watched: what they ask, and what is then known of them."""

from __future__ import annotations

from contextlib import closing, contextmanager
from random import Random

from stillhouse.gateway.steps import Steps
from stillhouse.gateway.store.standings import Standings
from stillhouse.guard.config import Detection
from stillhouse.guard.evidence import Evidence, observe
from stillhouse.guard.lines import Lines, shipped
from stillhouse.guard.seen import seen_of

KEY = b"a key of the test, 32 bytes long"
AT = 1_790_000_000.0
ENFORCED = Detection(mode="enforce", step_hours=0.0)
NOBODY = shipped().model_copy(update={"source": "nobody"})
EVERYBODY = Lines.model_validate(
    shipped().model_dump() | {"flag": {"score": -1e9, "alarm": 0.5, "accounts": 9}, "source": "a test"}
)
SECRET_WORD = "quinquagesimal"


def body(number, who="acct_1"):
    draw = Random(f"{who}/{number}")
    words = " ".join("".join(draw.choices("abcdefghij", k=6)) for _ in range(30))
    return {"model": "m", "messages": [{"role": "user", "content": f"{SECRET_WORD} {words}"}]}


@contextmanager
def watching(by, store, settings=ENFORCED, lines=EVERYBODY, **more):
    """`by` is `Watching` or `Watcher`."""
    made = by(store, settings, lines, KEY, **more)
    try:
        yield made
    finally:
        made.close()


def direct(count, who="acct_1"):
    evidence = Evidence()
    for number in range(count):
        observe(evidence, seen_of(KEY, body(number, who), "chat/completions", 50, AT + number))
    return evidence.packed()


def evidence_of(store, who="acct_1"):
    with closing(Standings(store)) as standings:
        found = standings.strongest(who)
    return found and found.evidence


def standing_of(store, who="acct_1"):
    with closing(Standings(store)) as standings:
        return standings.standing(who)


def asked(store, question):
    """By another process, as the administration asks."""
    with closing(Steps(store)) as steps:
        return question(steps)
