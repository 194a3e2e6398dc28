"""What a cascade deferred becomes what the next student learns: answers in the ledger, under a decision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

from stillhouse.ask import Question, question_key
from stillhouse.cascade.deferred import Deferred, sort
from stillhouse.collect import PromptSet, load_prompts, sampling_of
from stillhouse.collect.imported import response_of
from stillhouse.collect.prompts import question_of
from stillhouse.errors import UsageError
from stillhouse.ledger import Ledger, read_workspace_key
from stillhouse.ledger.permissions import append_answers
from stillhouse.ledger.subject import account_mark
from stillhouse.pipeline.setup import hear_terms, open_teacher
from stillhouse.recipe import Recipe
from stillhouse.records import Message, Prompt
from stillhouse.terms import gate

FAMILY = "deferred"  # of all prompts that come from a cascade
STAGE = "cascade"  # of the leaf that names them


@dataclass(frozen=True, slots=True)
class Landed:
    """What became of deferred exchanges: found = taken + left out. `leaf` names those that were taken, of
    which the ledger held `known` already, and `decision` the one of the gate that allowed it."""

    leaf: int
    decision: int
    taken: int
    known: int
    left_out: Mapping[str, int]


def land(
    recipe: Recipe,
    model: str,
    servers: Iterable[tuple[str, str]],
    found: Iterable[Deferred | str],
    ledger: Ledger,
) -> tuple[Recipe, Landed]:
    """Take what the cascade of `model` deferred into the ledger, as answers of the recipe's teacher, and give
    the recipe that also learns from them. `servers` are those behind the cascade, as URL and name there.

    Whether the teacher may be learned from is asked before anything is taken, and nothing is where that is
    refused. An answer goes under the key by which the recipe would ask, so it is not bought again; how it was
    sampled is what the customer asked for, and its leaf says so. The same set a second time makes nothing
    new. Raises UsageError where the recipe cannot have such answers, its teacher is not the one behind the
    cascade, or nothing is left to be taken; and GateRefused.
    """
    _check(recipe)
    asked = _asked(recipe, servers, model)
    hear_terms(recipe, ledger)
    decision = gate.admit(recipe, recipe.teacher, "train_target", ledger, datetime.now(UTC))
    done = sort(found, asked)
    prompts = _fresh(done.taken, load_prompts(recipe), done.left_out)
    secret = read_workspace_key(ledger.workspace)
    with open_teacher(recipe.teacher) as teacher:
        sampling = sampling_of(recipe)
        keys = {
            question_key(secret, Question(each.id, _messages(each)), teacher, sampling): each
            for each in prompts
        }
        who = {"endpoint": teacher.endpoint, "model": teacher.model, "revision": teacher.revision}
    held: dict[str, int] = {}
    for stored in list(ledger.exchanges(keys)):
        if stored.response is not None:
            held[stored.key] = stored.leaf
        else:
            del keys[stored.key]
            done.left_out["it was erased from this workspace"] += 1
    left_out = dict(sorted(done.left_out.items()))
    if not keys:
        reasons = "; ".join(f"{count:,}: {why}" for why, count in left_out.items()) or "it deferred nothing"
        raise UsageError(
            f"nothing that the cascade of {model} deferred can be learned from",
            reasons,
            "see docs/cascade.md: what is kept, and of whom",
        )
    new = [key for key in keys if key not in held]
    leaves = append_answers(ledger, decision, [_answer(key, keys[key], who, decision, secret) for key in new])
    held |= zip(new, leaves, strict=True)
    rows = [[each.id, held[key], account_mark(secret, each.account)] for key, each in keys.items()]
    body = {
        "stage": STAGE,
        "cascade": model,
        "decision": decision,
        "taken": len(rows),
        "left_out": left_out,
    }
    leaf = _named_once(ledger, body, rows)
    landed = Landed(leaf, decision, len(rows), len(rows) - len(new), left_out)
    with_them = recipe.prompts.model_copy(update={"landed": leaf})
    return recipe.model_copy(update={"prompts": with_them}), landed


def with_landed(prompts: PromptSet, recipe: Recipe, ledger: Ledger) -> PromptSet:
    """With the prompts that a recipe's `prompts.landed` names; those that were erased since are not there.

    Raises UsageError where the leaf is none that a landing wrote.
    """
    leaf = recipe.prompts.landed
    if leaf is None:
        return prompts
    named = ledger.leaf(leaf)
    rows = ledger.contents(leaf).get("rows") if named.body.get("stage") == STAGE else None
    if rows is None:
        raise UsageError(
            f"prompts.landed = {leaf} names nothing that was taken from a cascade",
            f"leaf {leaf} of this ledger is of the kind {named.kind}",
            "leave it out, and use `stillhouse run RECIPE --from-cascade GUARD`, which writes it",
        )
    there = {prompt.id for prompt in prompts.further}
    more = []
    for id, answer, _ in orjson.loads(rows):
        request = ledger.contents(answer).get("request")
        if request is None or id in there:
            continue
        messages = orjson.loads(request)["messages"]
        more.append(Prompt(id, tuple(Message(each["role"], each["content"]) for each in messages), FAMILY))
    return replace(prompts, further=(*prompts.further, *more))


def _check(recipe: Recipe) -> None:
    """Raises UsageError for settings under which an answer to a customer is none to the recipe's question."""
    for wrong, what, mend in (
        (recipe.teachers, "[[teachers]] stand beside [teacher]", "one teacher answered, so name one"),
        (recipe.teacher.imported, "the teacher's answers are imported", "name its endpoint, or its folder"),
        (
            recipe.teacher.system,
            "`teacher.system` is set, which customers' requests did not have",
            "remove it",
        ),
        (recipe.collect.samples > 1, "`collect.samples` asks for several answers", "set it to 1"),
        (
            recipe.collect.top_logprobs is not None,
            "`collect.top_logprobs` asks for more than text",
            "remove it",
        ),
    ):
        if wrong:
            raise UsageError("this recipe cannot learn from what a cascade deferred", what, mend)


def _asked(recipe: Recipe, servers: Iterable[tuple[str, str]], model: str) -> dict[str, frozenset[str]]:
    """Which of the servers are the recipe's teacher. Raises UsageError for none: the gate would be asked
    about another model than the one that answered."""
    teacher = recipe.teacher
    names = {teacher.model} if teacher.endpoint else {teacher.model, Path(teacher.model).name}
    servers = list(servers)
    found = {
        url: frozenset(names)
        for url, called in servers
        if called in names and (_same(url, teacher.endpoint) if teacher.endpoint else _is_here(url))
    }
    if not found:
        where = teacher.endpoint or "this machine"
        raise UsageError(
            f"the recipe's teacher is not the one behind the cascade of {model}",
            f"the recipe names {teacher.model} at {where}, and there stands "
            + ", ".join(f"{called} at {url}" for url, called in servers),
            "give [teacher] the `model` and `endpoint` of that server; a local teacher is to be served on "
            "loopback by its own name",
        )
    return found


def _same(url: str, endpoint: str) -> bool:
    return url.rstrip("/").lower() == endpoint.rstrip("/").lower()


def _is_here(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _fresh(taken: Iterable[Deferred], prompts: PromptSet, left_out: Counter[str]) -> list[Deferred]:
    """Each question once, and none that the recipe asks anyway or tests by."""
    tested = {question_of(prompt) for prompt in prompts.test}
    learned = {question_of(prompt) for prompt in (*prompts.train, *prompts.further)}
    fresh: dict[int, Deferred] = {}
    for each in taken:
        question = question_of(Prompt(each.id, _messages(each), FAMILY))
        if question in tested:
            left_out["a test prompt asks the same"] += 1
        elif question in learned:
            left_out["a prompt of the recipe asks the same"] += 1
        elif question in fresh:
            left_out["it was asked before"] += 1
        else:
            fresh[question] = each
    return list(fresh.values())


def _messages(one: Deferred) -> tuple[Message, ...]:
    return tuple(Message(each["role"], each["content"]) for each in one.messages)  # type: ignore[arg-type]


def _answer(
    key: str, one: Deferred, who: Mapping[str, Any], decision: int, secret: bytes
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The body and the contents of an `import` leaf: who the account is can be told from it only by whoever
    has the workspace's key, to erase what came from it."""
    body = {
        "key": key,
        "decision": decision,
        "teacher": dict(who),
        "declared": True,
        "deferred": {
            "account": account_mark(secret, one.account),
            "cascade": one.model,
            "consent": one.consent,
            "day": f"{datetime.fromtimestamp(one.at, UTC):%Y-%m-%d}",
            "event": one.id,
            "why": one.why,
        },
    }
    request = {"model": one.called, "messages": list(one.messages), **one.sampling}
    return body, {"request": orjson.dumps(request), "response": response_of(one.called, one.answer, "stop")}


def _named_once(ledger: Ledger, body: Mapping[str, Any], rows: list[list[Any]]) -> int:
    """The leaf that names what was taken; the newest one again where it names the same."""
    told = orjson.dumps(rows)
    newest = None
    for leaf in ledger.leaves("transform"):
        if leaf.body.get("stage") == STAGE and leaf.body["cascade"] == body["cascade"]:
            newest = leaf.index
    if newest is not None and ledger.contents(newest).get("rows") == told:
        return newest
    return ledger.append("transform", body, {"rows": told})
