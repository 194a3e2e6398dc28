"""Questions and their answers: what identifies them, what they can cost, and where the ledger holds them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from typing import Any, Literal, NamedTuple, Protocol
from urllib.parse import urlsplit

import orjson

from stillhouse.errors import UsageError
from stillhouse.ledger import Ledger, StoredExchange, canonical, exchange_key, read_workspace_key
from stillhouse.models.endpoint import parse_chat
from stillhouse.money import Budget, Price, worst_prompt_tokens
from stillhouse.records import Completion, Exchange, Message

PATH = "/chat/completions"
READING_PATH = "/completions"
LOOKUP = 512  # questions looked up in the ledger at once
READINGS = 32  # the same of readings, whose answers are a thousand times as long as what was read


LEFT_OUT = frozenset({"erased", "no imported answer", "sent, unknown", "in a batch"})  # not asked, by rule


@dataclass(frozen=True, slots=True)
class Teacher:
    """Whom to ask. `endpoint` and `revision` are lasting names and enter every exchange key; `url` may
    change. `url` is called when the first question must really be sent, so that a local teacher is
    started only when it is needed; None means that nothing can be asked (imported answers). `room` is how
    many requests its server works on at once, where that is known and need not be found out; `batch_price`
    what the same tokens cost in a batch, None where that is not known; `upstream` the only provider to which
    a router may pass a question on."""

    model: str
    endpoint: str
    revision: str
    url: Callable[[], str] | None
    key_env: str | None = None
    system: str = ""
    price: Price | None = None
    room: int | None = None
    batch_price: Price | None = None
    upstream: str | None = None


@dataclass(frozen=True, slots=True)
class Sampling:
    """`top_logprobs` is how many likeliest tokens to name beside each one of an answer; None asks for no
    probabilities. Of token ids that are read it says how many to name beside each of them, -1 all."""

    temperature: float
    top_p: float
    max_tokens: int
    top_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """`concurrency` is the most in flight at one teacher, `timeout` in seconds for one attempt, `retries`
    after it, `max_cost` in US dollars for the whole run, `max_failures` a share of the questions. A rate
    that is None is learnt from the server's headers, if it sends any. `unknown` says what becomes of a
    question that was sent without a known answer when a process died: ask again, and perhaps pay twice, or
    leave it unanswered."""

    concurrency: int
    timeout: float
    retries: int
    max_cost: float | None = None
    max_failures: float = 1.0
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    unknown: Literal["ask", "leave"] = "ask"


@dataclass(frozen=True, slots=True)
class Question:
    """`tools` are those that may be called, as canonical JSON. `epoch` tells apart the times at which the
    same is asked anew; what is learned from has 0. With `ids` nothing is to be answered: the teacher reads
    these tokens and tells how likely it held each (see `ask.scores`)."""

    prompt_id: str
    messages: tuple[Message, ...]
    sample_index: int = 0
    tools: str = ""
    epoch: int = 0
    ids: tuple[int, ...] = ()


class Questions(Protocol):
    """Questions that can be counted and gone through more than once; a list will do."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Question]: ...


@dataclass(frozen=True, slots=True)
class Canary:
    """The questions that are asked again and again, to see whether the teacher is still the same: before the
    first of the others, after every so many of them, and after the last. `stop` says that a change ends the
    work, and is not only noted. `alpha` is the chance, over all rounds, of a change where there is none."""

    questions: tuple[Question, ...]
    every: int
    stop: bool
    alpha: float


@dataclass(frozen=True, slots=True)
class Part:
    """What one teacher is asked, and the leaf of the gate's decision that allows it."""

    teacher: Teacher
    decision: int
    questions: Questions
    canary: Canary | None = None


class Unanswered(NamedTuple):
    """A question without an answer, the last reason, and what the server said, where it was asked."""

    prompt_id: str
    sample_index: int
    teacher: str
    reason: str
    detail: str = ""


@dataclass(slots=True)
class Tally:
    """What became of the questions: questions = reused + answered + failed, once the work is over.

    `sent` counts the attempts of this call, retries included, and `failures` those that failed, by kind;
    `unknown` the attempts of this run that a process left open when it died. Tokens and `billed` (US dollars)
    are of the `bought` answers: those to these questions for which this run has paid. `budget.spent` is
    what the whole run can have cost, with the worst case of every request that may have been billed
    without saying how much. Canaries count as questions once they are asked. `notices` are for whoever
    watches.
    """

    questions: int = 0
    reused: int = 0
    answered: int = 0
    sent: int = 0
    unknown: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    failed: list[Unanswered] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    bought: int = 0
    billed: float = 0.0
    budget: Budget = field(default_factory=Budget)
    notices: list[str] = field(default_factory=list)

    def count(self, completion: Completion, cost: float | None) -> None:
        self.prompt_tokens += completion.usage.prompt_tokens or 0
        self.completion_tokens += completion.usage.completion_tokens or 0
        self.bought += 1
        self.billed += cost or 0.0


def logical_endpoint(url: str, provider: str | None) -> str:
    return provider or urlsplit(url).hostname or url


def request_body(question: Question, teacher: Teacher, sampling: Sampling) -> dict[str, Any]:
    """The JSON body as it is sent. A seed is sent only where answers are drawn, one for each sample."""
    if question.ids:
        # max_tokens 0 is not allowed by every vLLM, and one token costs next to nothing beside those read
        return {
            "model": teacher.model,
            "prompt": list(question.ids),
            "temperature": 0.0,
            "max_tokens": 1,
            "prompt_logprobs": sampling.top_logprobs,
        }
    system = (Message("system", teacher.system),) if teacher.system else ()
    body: dict[str, Any] = {
        "model": teacher.model,
        "messages": [_wire(message) for message in (*system, *question.messages)],
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
    }
    if sampling.temperature > 0:
        body["seed"] = question.sample_index
    if sampling.top_logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": sampling.top_logprobs}
    if question.tools:
        body["tools"] = orjson.loads(question.tools)
    if teacher.upstream is not None:
        body["provider"] = {"order": [teacher.upstream], "allow_fallbacks": False}
    return body


def _wire(message: Message) -> dict[str, Any]:
    body: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.extra:
        body |= orjson.loads(message.extra)
        if not message.content and "tool_calls" in body:
            body["content"] = None
    return body


def request_bytes(question: Question, teacher: Teacher, sampling: Sampling) -> bytes:
    """The body as it is sent and as the exchange key has it: canonical JSON.

    Requests to a teacher differ in messages and seed alone, unless there are tools; the rest is written once.
    """
    if question.tools or question.ids:
        return canonical(request_body(question, teacher, sampling))
    before, after = _around_messages(teacher.model, teacher.upstream, sampling, question.sample_index)
    return before + _messages(question, teacher) + after


@lru_cache(maxsize=4096)
def _around_messages(model: str, upstream: str | None, sampling: Sampling, seed: int) -> tuple[bytes, bytes]:
    nobody = Teacher(model, "", "", None, upstream=upstream)
    body = canonical(request_body(Question("", (), seed), nobody, sampling))
    before, after = body.split(b'"messages":[]')  # in a text its quotes would be escaped
    return before + b'"messages":', after


def _messages(question: Question, teacher: Teacher) -> bytes:
    system = (Message("system", teacher.system),) if teacher.system else ()
    return canonical([_wire(message) for message in (*system, *question.messages)])


def path_of(question: Question) -> str:
    """The route below the base URL."""
    return READING_PATH if question.ids else PATH


def question_key(workspace_key: bytes, question: Question, teacher: Teacher, sampling: Sampling) -> str:
    """The exchange key. Imported answers have no sampling settings, so their key holds only the messages."""
    if teacher.url is None:
        body = b'{"messages":%b,"model":%b}' % (_messages(question, teacher), canonical(teacher.model))
    else:
        body = request_bytes(question, teacher, sampling)
    return exchange_key(
        workspace_key,
        path=path_of(question),
        endpoint=teacher.endpoint,
        revision=teacher.revision,
        body=body,
        sample_index=question.sample_index,
        epoch=question.epoch,
    )


def worst_cost(question: Question, teacher: Teacher, sampling: Sampling, size: int | None = None) -> float:
    """US dollars that one attempt can cost at most; 0 where no price is known and so none can be capped.
    `size` is the `text_bytes` of the question, where they are known."""
    if teacher.price is None:
        return 0.0
    return teacher.price.of(worst_tokens(question, teacher.system, size), sampling.max_tokens)


def worst_tokens(question: Question, system: str, size: int | None = None) -> int:
    """A bound on the tokens of the prompt that is sent."""
    if question.ids:
        return len(question.ids)
    size = text_bytes(question, system) if size is None else size
    return worst_prompt_tokens(size, len(question.messages) + 1)


def text_bytes(question: Question, system: str) -> int:
    """All text that goes along with a request, in bytes; token ids count as four each."""
    if question.ids:
        return 4 * len(question.ids)
    size = len(system.encode()) + len(question.tools.encode())
    for message in question.messages:
        size += len(message.content.encode()) + len(message.extra.encode())
    return size


def at_batch_price(teacher: Teacher) -> Teacher:
    """The teacher as it is reckoned in batches: its ordinary price is a bound where that of batches is not
    known."""
    return replace(teacher, price=teacher.batch_price or teacher.price)


def check_cap(max_cost: float | None, price: Price | None) -> None:
    """Raises UsageError for a cap that could not be kept, because no price is known."""
    if max_cost is not None and price is None:
        raise UsageError(
            "collect.max_cost is set, but the price of the teacher is not known",
            "a cap can only be kept when each request's worst case is known",
            "add [teacher.price] with input and output in US dollars per million tokens, or remove max_cost",
        )


def before_the_price(parts: Sequence[Part], limits: Limits, ledger: Ledger, run: str) -> float:
    """US dollars, by today's price, for what the run asked when no price was known.

    Raises UsageError under a cap when that cannot be told.
    """
    if limits.max_cost is None:
        return 0.0
    prices = {part.teacher.model: part.teacher.price for part in parts}
    total = 0.0
    for teacher, read, written in ledger.unpriced(run):
        price = prices.get(teacher)
        if price is None or read is None or written is None:
            raise UsageError(
                f"collect.max_cost cannot be kept: what {run} has spent cannot be told",
                f"it asked {teacher} when no price was known, and some of that came back without usage",
                "give the run another `name` to begin a bill that is known from the start",
            )
        total += price.of(read, written)
    return total


def answers(
    questions: Iterable[Question], teacher: Teacher, sampling: Sampling, ledger: Ledger
) -> Iterator[tuple[Question, Exchange | None]]:
    """Each question with its exchange from the ledger, in order; None where there is none (yet)."""
    for question, _, stored in stored_answers(questions, teacher, sampling, ledger):
        yield question, None if stored is None else as_exchange(question, teacher, stored)


def stored_answers(
    questions: Iterable[Question], teacher: Teacher, sampling: Sampling, ledger: Ledger
) -> Iterator[tuple[Question, str, StoredExchange | None]]:
    """Each question with its key and what the ledger holds under it."""
    for batch in looked_up(questions, teacher, sampling, ledger):
        yield from batch


def looked_up(
    questions: Iterable[Question], teacher: Teacher, sampling: Sampling, ledger: Ledger
) -> Iterator[list[tuple[Question, str, StoredExchange | None]]]:
    """As `stored_answers`, in the batches in which the ledger is read."""
    secret = read_workspace_key(ledger.workspace)
    remaining = iter(questions)
    for first in remaining:
        batch = [first, *islice(remaining, (READINGS if first.ids else LOOKUP) - 1)]
        keys = [question_key(secret, q, teacher, sampling) for q in batch]
        found = {stored.key: stored for stored in ledger.exchanges(set(keys))}
        yield [(question, key, found.get(key)) for question, key in zip(batch, keys, strict=True)]


def as_exchange(question: Question, teacher: Teacher, stored: StoredExchange) -> Exchange | None:
    """The stored exchange, or None where its content was erased or no longer parses."""
    if stored.response is None:
        return None
    try:
        completion = parse_chat(stored.response)[0]
    except (ValueError, IndexError):
        return None
    return Exchange(
        key=stored.key,
        leaf=stored.leaf,
        decision=int(stored.body["decision"]),
        teacher=teacher.model,
        prompt_id=question.prompt_id,
        messages=question.messages,
        completion=completion,
        sample_index=question.sample_index,
        run=str(stored.body.get("run", "")),
        cost=None if (bill := stored.body.get("nanodollars")) is None else bill / 1e9,
    )
