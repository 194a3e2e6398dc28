"""Steps of the ladder as they are taken: each in the store first, then as a leaf in the ledger.

A leaf `standing` names no account: its body says what was done from which rung to which, and its content,
which can be erased, is the whole step. What was stored and has no leaf yet, since a process died in between,
gets one when the next one begins. Several processes take steps in one folder, so one at a time goes from the
store to the ledger: what then has no leaf is of a process that died, or failed, and not of one at work.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import orjson

from stillhouse.errors import LedgerError, UsageError
from stillhouse.gateway.store.alone import alone
from stillhouse.gateway.store.changing import Act, Conflict
from stillhouse.gateway.store.findings import Answer
from stillhouse.gateway.store.place import folder_of, replica_of
from stillhouse.gateway.store.standings import Standings, Step
from stillhouse.guard import config, ladder
from stillhouse.guard.clusters import Cluster, in_words
from stillhouse.guard.config import Detection
from stillhouse.guard.ladder import Decision, Standing
from stillhouse.guard.scoring import Reading
from stillhouse.ledger import Ledger, canonical
from stillhouse.ledger.tombstones import bury
from stillhouse.workspace import init_workspace

LADDER, CUSTOMER = "ladder", "customer"  # who, where it is no person
REASONS = 6  # terms of a score that are written down with a step
PATIENCE = 30.0  # seconds in which another process should have taken its step, as for the database
LONGEST_SAID = 4000  # characters of an appeal


class Steps:
    """For one thread at a time; close it. Every method raises StorageError or LedgerError when the store or
    the ledger fails."""

    def __init__(self, store: config.Store) -> None:
        self.replica = replica_of(store)
        self._lock = folder_of(store) / "steps.lock"
        with ExitStack() as opened:
            self.standings = opened.enter_context(closing(Standings(store)))
            self.ledger = opened.enter_context(Ledger.open(init_workspace(Path(store.folder))))
            self.link()
            self._opened = opened.pop_all()

    def close(self) -> None:
        self._opened.close()

    def climb(self, before: Standing, after: Standing, told: Reading, at: float) -> Standing | None:
        """The standing after a step that was due; None where somebody else took one."""
        return self._take(before, after, at, "step", LADDER, told=told)

    def found(self, cluster: Cluster, month: int, at: float) -> int:
        """Record a cluster, and with each account that is new to it that it was found there: no step, and
        nothing follows but that a person is to look. Its number."""
        findings = self.standings.findings
        id, fresh = findings.take(cluster, month, at)
        said = f"cluster {id}: {in_words(cluster)}"
        for account in fresh:
            self._note(account, at, "cluster", LADDER, said)
            findings.join(id, account)
        return id

    def answer(
        self, id: int, answer: Answer, settings: Detection, who: str, reason: str, at: float
    ) -> list[str]:
        """A person decides on a cluster: `review` puts each of its accounts there that is not yet, `dismiss`
        leaves them where they are. Which accounts were put to review. Raises Conflict where there is no such
        cluster."""
        _need(reason, "decide on a cluster")
        findings = self.standings.findings
        if findings.cluster(id) is None:
            raise Conflict(f"there is no cluster {id}", "none with that number was found", "see the list")
        put = []
        for account in findings.accounts(id):
            if answer != "review":
                self._note(account, at, answer, who, reason)
                continue
            with suppress(UsageError):  # it is there already
                before = self.standings.standing(account)
                after = ladder.decided(before, "review", settings, at, ladder.CLUSTER)
                _done(self._take(before, after, at, "review", who, said=reason))
                put.append(account)
        findings.answer(id, answer, who, reason, at)
        return put

    def lapse(self, before: Standing, after: Standing, at: float) -> Standing | None:
        return self._take(before, after, at, "lapse", LADDER)

    def decide(
        self, account: str, decision: Decision, settings: Detection, who: str, reason: str, at: float
    ) -> Standing:
        """A person decides, and says why to the customer. Raises UsageError for what is not to be decided,
        and Conflict where a step came between."""
        _need(reason, "decide on an account")
        before = self.standings.standing(account)
        after = ladder.decided(before, decision, settings, at)
        return _done(self._take(before, after, at, decision, who, said=reason))

    def appeal(self, account: str, text: str, at: float) -> Standing:
        """Raises UsageError where there is nothing to appeal against, or an appeal is open."""
        if not 0 < len(text.strip()) <= LONGEST_SAID:
            raise UsageError(
                "this appeal cannot be taken",
                f"it has {len(text):,} characters",
                f"say in 1 to {LONGEST_SAID:,} characters what your requests are for",
            )
        before = self.standings.standing(account)
        if before.appeal:
            raise Conflict("an appeal is open", "a person has not decided on it yet", "wait for the answer")
        if before.rung == "observe":
            raise Conflict("there is nothing to appeal against", "no step was taken", "")
        return _done(self._take(before, before, at, "appeal", CUSTOMER, said=text.strip()))

    def declare(self, account: str, use: str, who: str, reason: str, at: float) -> Standing:
        """Record the use that an account declared; "" for none any more."""
        _need(reason, "change a declared use")
        before = self.standings.standing(account)
        after = before._replace(declared=use)
        return _done(self._take(before, after, at, "declare", who, said=f"{use or 'none'}: {reason}"))

    def forget(self, account: str, who: str, reason: str, at: float) -> bool:
        """Erase all that is known of an account's requests and its standing, and the contents of its leaves
        here. False where another process has to end its reading for the last bytes to go."""
        _need(reason, "forget an account")
        step = Step(0, account, at, "forget", who, "", "", False, "", None, "[]", reason, self.replica, None)
        with self._alone():
            number = self.standings.forget(step)
            self._witness(step._replace(id=number))
        return self.erase()

    def erase(self) -> bool:
        """Erase what the ledger here still has of steps that were forgotten, by this replica or another."""
        rows = self.standings.to_erase(self.replica)
        if not rows:
            return self.standings.scrub()
        leaves = [leaf for _, leaf in rows]
        try:
            bury(self.ledger, leaves, "an account was forgotten")
        except LedgerError:
            # Nothing is left to erase where another process of this replica did it just then
            if any(content is not None for leaf in leaves for content in self.ledger.contents(leaf).values()):
                raise
        self.standings.drop([number for number, _ in rows])
        return self.standings.scrub()

    def link(self) -> None:
        """Give each step of this replica its leaf that has none."""
        if not self.standings.unlinked(self.replica):
            return
        with self._alone():
            open_ = self.standings.unlinked(self.replica)  # those just looked at may have one by now
            if not open_:
                return
            # Leaves of a replica come in the order of its steps, but where they were made up for here
            start = self.standings.last_leaf(self.replica, open_[0].id) + 1
            known = {leaf.body["step"]: leaf.index for leaf in self.ledger.leaves("standing", start)}
            for step in open_:
                if step.id in known:
                    self.standings.link(step.id, known[step.id])
            for step in open_:  # last, so that no leaf of an older step comes before one that is not known
                if step.id not in known:
                    self._witness(step)

    def differs(self, step: Step) -> str:
        """Why a step is not shown by the ledger here; empty where it is."""
        if step.leaf is None:
            return "it has no leaf yet"
        if step.replica != self.replica:
            return f"its leaf is in the ledger of {step.replica}"
        try:
            body = self.ledger.leaf(step.leaf).body
        except LedgerError:
            return f"the ledger has no leaf {step.leaf}"
        same = body == _body(step) and self.ledger.contents(step.leaf) == {"step": _content(step)}
        return "" if same else f"leaf {step.leaf} says something else"

    def _note(self, account: str, at: float, act: str, who: str, said: str) -> None:
        """A row of the trail that changes nothing."""
        taken = None
        while taken is None:  # another one came between
            before = self.standings.standing(account)
            taken = self._take(before, before, at, act, who, said, code=ladder.CLUSTER)

    def _take(
        self,
        before: Standing,
        after: Standing,
        at: float,
        act: str,
        who: str,
        said: str = "",
        told: Reading | None = None,
        code: str = "",
    ) -> Standing | None:
        step = Step(
            0,
            before.account,
            at,
            act,
            who,
            before.rung,
            after.rung,
            after.shadow,
            code or after.code or before.code,
            None if told is None else round(told.score, 4),
            orjson.dumps([] if told is None else reasons_of(told)).decode(),
            said,
            self.replica,
            None,
        )
        with self._alone():
            taken = self.standings.take(before, after, step)
            if taken is None:
                return None
            standing, number = taken
            self._witness(step._replace(id=number))
        return standing

    def _alone(self) -> AbstractContextManager[None]:
        return alone(self._lock, "no step can be taken", PATIENCE)

    def _witness(self, step: Step) -> None:
        leaf = self.ledger.append("standing", _body(step), {"step": _content(step)})
        self.standings.link(step.id, leaf)


def forget_in(store: config.Store, account: str, act: Act) -> bool:
    """As `Steps.forget`, for whoever holds none: a gateway that runs learns it within a second."""
    with closing(Steps(store)) as steps:
        return steps.forget(account, act.who, act.reason, act.at)


def reasons_of(told: Reading) -> list[dict[str, Any]]:
    """What added most to a score, as it is written down."""
    return [
        {
            "words": reason.words,
            "of": reason.where,
            "found": round(reason.found, 4),
            "ordinary": round(reason.ordinary, 4),
            "adds": round(reason.adds, 4),
        }
        for reason in told.reasons[:REASONS]
        if reason.adds > 0.0
    ]


def why(reasons: Sequence[dict[str, Any]]) -> str:
    """The terms of a score in words."""
    return "; ".join(
        f"{each['words']} ({each['found']:.2f}, in ordinary accounts {each['ordinary']:.2f}"
        f"{', over the whole account' if each['of'] == 'account' else ''})"
        for each in reasons
    )


def read_reasons(step: Step) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = orjson.loads(step.reasons)
    return found


def _body(step: Step) -> dict[str, Any]:
    return {
        "act": step.act,
        "from": step.was,
        "mode": "shadow" if step.shadow else "enforce",
        "replica": step.replica,
        "step": step.id,
        "to": step.rung,
    }


def _content(step: Step) -> bytes:
    told = step._asdict()
    del told["leaf"]
    return canonical(told)


def _done(standing: Standing | None) -> Standing:
    if standing is None:
        raise Conflict("nothing was changed", "a step came between", "look at it again")
    return standing


def _need(reason: str, what: str) -> None:
    if not reason.strip():
        raise UsageError(f"to {what} needs a reason", "it is recorded, and shown to the customer", "say why")
