"""A causal language model from a transformers folder or the hub: load it, let it answer, score texts with it.

Decoding is a loop of stillhouse's own, so that rows may join and leave a running batch, each with its own
sampling settings, and so that a row's answer does not depend on its neighbours:

- greedy answers in float32 are the same in any batch, but for ties: where two tokens' logits agree to about
  1e-5, the order of summation in a matrix product decides, and that may change with the batch's size;
- a sampled row draws from its own generator (its `seed`), one number per token, turned into a token by
  inversion (`sample`): in order of id without a nucleus (`top_p` 1), in order of probability within one. So
  a seed repeats an answer with the same settings, and says nothing about another `top_p`.

A batch holds as many rows as its places allow (rows x longest row <= `MAX_PLACES`), so that one long prompt
does not make room of its length for every other row.

Prompts are right-padded when they are read in; in the cache each row keeps its own length. Models whose cache
is not plain attention (sliding windows, state-space layers, ALiBi) go through a batch that is left-padded by
the usual rules and takes no newcomers until it is empty.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal, NamedTuple

import torch

from stillhouse.errors import ModelError, UsageError
from stillhouse.models.local import cache
from stillhouse.models.local.load import LocalModel, ids_text
from stillhouse.models.local.sampling import sample, widest, within_nucleus
from stillhouse.watermark.keys import Key
from stillhouse.watermark.marking import Mark, marked
from stillhouse.watermark.schemes import marks_greedy

MAX_PLACES = 65_536  # of keys and values in a batch: 0.5 B weights with 24 KiB per place take 1.6 GB
_GROWTH = 64  # places counted for an answer when its row asks to join: most are short, whatever is allowed
_PREFILL_TOKENS = 1024  # tokens read in at once: larger activations leave the CPU's caches
_SCORED_AT_ONCE = 512  # rows of logits: with 150,000 tokens in the vocabulary they take 300 MB


class TokenLogprob(NamedTuple):
    """Natural log-probability of a token under the model itself (temperature 1, no nucleus), with the
    likeliest tokens at its place, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """`temperature` 0 is greedy. `logprobs` is the number of likeliest tokens wanted beside each chosen one
    (0: the chosen one's only, None: no log-probabilities). `continues` keeps the white space with which the
    answer goes on from the prompt's text; without it the answer is decoded on its own. `mark` is the key
    that the answer is marked with."""

    prompt_ids: Sequence[int]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    logprobs: int | None = None
    continues: bool = False
    mark: Key | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """`token_ids` and `logprobs` leave out the final stop token; `completion_tokens` counts it, since it was
    computed. `text` ends before a stop string, `token_ids` after it. `end` is the stop token, where one ended
    the answer."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    logprobs: tuple[TokenLogprob, ...] | None = None
    end: int | None = None


class Event(NamedTuple):
    """What one step did for one row: text that is certain by now, new log-probabilities, and the whole answer
    when the row is done."""

    key: Hashable
    text: str
    logprobs: tuple[TokenLogprob, ...]
    done: Generation | None


@dataclass(slots=True)
class _Row:
    """A request under way. `text` is decoded so far, `given` of it were handed out."""

    key: Hashable
    request: Request
    limit: int
    watched: bool
    rng: random.Random
    stream: Any
    mark: Mark | None
    ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    text: str = ""
    given: int = 0


class Decoder:
    """A running batch: `add` rows, `step` until they are done, `cancel` what nobody waits for any more.

    Events of the rows whose keys are in `watched` carry text as soon as it is certain: no half
    of a UTF-8 character, and nothing that may yet turn out to be the beginning of a stop string. Other rows
    have one event, at their end. Not safe to share between threads.
    """

    def __init__(self, model: LocalModel) -> None:
        self.model = model
        self._state = cache.start(model.model)
        self._rows: list[_Row] = []

    def __len__(self) -> int:
        return len(self._rows)

    def admits(self, requests: Iterable[Request], rows: int) -> int:
        """How many of the first of `requests` may join now, for at most `rows` in the batch.

        Rows times the longest row stay within `MAX_PLACES`; an empty batch admits at least one.
        """
        if not self._state.accepts():
            return 0
        running = len(self._rows)
        longest = max((len(row.request.prompt_ids) + len(row.ids) for row in self._rows), default=0)
        admitted = 0
        for request in requests:
            longest = max(longest, len(request.prompt_ids) + min(request.max_tokens, _GROWTH))
            n = running + admitted + 1
            if n > rows or (n > 1 and n * longest > MAX_PLACES):
                break
            admitted += 1
        return admitted

    def add(
        self, jobs: Sequence[tuple[Hashable, Request]], watched: Collection[Hashable] = ()
    ) -> list[Event]:
        """Read in the prompts and choose the first token of each."""
        events: list[Event] = []
        fitting = []
        for key, request in jobs:
            if (limit := self._limit(request)) > 0:
                fitting.append((key, request, limit))
            else:
                n = len(request.prompt_ids)
                none = None if request.logprobs is None else ()
                events.append(Event(key, "", (), Generation("", (), "length", n, 0, none)))
        fitting.sort(key=lambda job: len(job[1].prompt_ids))
        whole = isinstance(self._state, cache.Whole)
        if fitting:
            self._state.expect(len(fitting), len(fitting[-1][1].prompt_ids))
        for chunk in [fitting] if whole and fitting else _chunks(fitting):
            with torch.inference_mode():
                logits = self._state.read([request.prompt_ids for _, request, _ in chunk])
                rows = [self._row(key, request, limit, key in watched) for key, request, limit in chunk]
                first = len(self._rows)
                self._rows += rows
                events += self._advance(logits, first)
        return events

    def step(self) -> list[Event]:
        """One token for every row."""
        if not self._rows:
            return []
        with torch.inference_mode():
            return self._advance(self._state.step([row.ids[-1] for row in self._rows]), 0)

    def cancel(self, key: Hashable) -> None:
        for at, row in enumerate(self._rows):
            if row.key == key:
                with torch.inference_mode():
                    self._drop(at)
                return

    def _limit(self, request: Request) -> int:
        context = self.model.context
        if not request.prompt_ids:
            return 0
        room = request.max_tokens if context is None else context - len(request.prompt_ids)
        return min(request.max_tokens, room)

    def _row(self, key: Hashable, request: Request, limit: int, watched: bool) -> _Row:
        stream = _TextStream(self.model, request) if watched or request.stop else None
        mark = None if request.mark is None else Mark(request.mark)
        return _Row(key, request, limit, watched, random.Random(request.seed), stream, mark)

    def _advance(self, logits: Any, first: int) -> list[Event]:
        rows = self._rows[first:]
        chosen, logprobs = _choose(logits.float(), rows)
        events: list[Event] = []
        for at in range(len(rows) - 1, -1, -1):  # from the end: dropping moves the last row
            event = self._push(rows[at], chosen[at], logprobs[at])
            if event.done is not None:
                self._drop(first + at)
            if event.done is not None or (rows[at].watched and (event.text or event.logprobs)):
                events.append(event)
        return events

    def _drop(self, at: int) -> None:
        self._state.drop(at)
        self._rows[at] = self._rows[-1]
        self._rows.pop()

    def _push(self, row: _Row, token: int, logprob: TokenLogprob | None) -> Event:
        if token in self.model.stop_ids:
            return self._finish(row, "stop", len(row.ids) + 1, (), end=token)
        row.ids.append(token)
        new = () if logprob is None else (logprob,)
        row.logprobs += new
        stop = row.request.stop
        if row.stream is not None:
            seen = len(row.text)
            row.text += row.stream.push(token)
            if (end := _stop_at(row.text, stop, seen)) is not None:
                return self._finish(row, "stop", len(row.ids), new, row.text[:end])
        if len(row.ids) >= row.limit:
            return self._finish(row, "length", len(row.ids), new)
        if not row.watched:
            return Event(row.key, "", (), None)
        certain = max(row.given, len(row.text) - _held(row.text, stop))
        text, row.given = row.text[row.given : certain], certain
        return Event(row.key, text, new, None)

    def _finish(
        self,
        row: _Row,
        reason: Literal["stop", "length"],
        computed: int,
        new: tuple[TokenLogprob, ...],
        text: str | None = None,
        end: int | None = None,
    ) -> Event:
        if text is None:
            text = _answer_text(self.model, row.request, row.ids)
            if (cut := _stop_at(text, row.request.stop, len(row.text))) is not None:
                text, reason = text[:cut], "stop"
        done = Generation(
            text=text,
            token_ids=tuple(row.ids),
            finish_reason=reason,
            prompt_tokens=len(row.request.prompt_ids),
            completion_tokens=computed,
            logprobs=None if row.request.logprobs is None else tuple(row.logprobs),
            end=end,
        )
        return Event(row.key, text[row.given :], new, done)


def _chunks(jobs: list[tuple[Hashable, Request, int]]) -> Iterator[list[tuple[Hashable, Request, int]]]:
    """Cut jobs, sorted by prompt length, so that each part holds at most `_PREFILL_TOKENS` places."""
    part: list[tuple[Hashable, Request, int]] = []
    for job in jobs:
        if part and (len(part) + 1) * len(job[1].prompt_ids) > _PREFILL_TOKENS:
            yield part
            part = []
        part.append(job)
    if part:
        yield part


def _marked(hot: Any, nucleus: Any, rows: Sequence[_Row]) -> tuple[Any, Any]:
    """What the rows are sampled from, and their nuclei: those of marked rows are cut out beforehand."""
    keyed = [at for at, row in enumerate(rows) if row.mark is not None]
    if keyed:
        marks = [mark for row in rows if (mark := row.mark) is not None]
        within = hot[keyed]
        if any(rows[at].request.top_p < 1 for at in keyed):
            within = within_nucleus(within, nucleus[keyed])
        hot[keyed] = marked(within, marks, [rows[at].ids for at in keyed])
        nucleus[keyed] = 1.0
    return hot, nucleus


def _bias(row: _Row) -> Mark | None:
    """The mark of a greedy answer, where its scheme has any."""
    greedy = row.request.temperature == 0
    return row.mark if greedy and row.mark and marks_greedy(row.mark.key.scheme) else None


def _choose(logits: Any, rows: Sequence[_Row]) -> tuple[list[int], list[TokenLogprob | None]]:
    """The next token of each row and, where wanted, its log-probability. `logits`: (rows, vocabulary)."""
    best, chosen = logits.max(dim=-1)
    if not bool(torch.isfinite(best).all()):
        raise ModelError(
            "the model's output is not a number",
            "a logit is NaN or infinite: the weights are damaged, or the number format is too narrow",
            "load it with dtype float32",
        )
    tokens: list[int] = chosen.tolist()
    biased = [(at, mark) for at, row in enumerate(rows) if (mark := _bias(row)) is not None]
    if biased:
        greedy = [at for at, _ in biased]
        found = marked(logits[greedy], [mark for _, mark in biased], [rows[at].ids for at in greedy])
        for at, token in zip(greedy, found.argmax(dim=-1).tolist(), strict=True):
            tokens[at] = token
    sampled = [at for at, row in enumerate(rows) if row.request.temperature > 0]
    if sampled:
        heat = torch.tensor([rows[at].request.temperature for at in sampled], device=logits.device)
        nucleus = torch.tensor([rows[at].request.top_p for at in sampled], device=logits.device)
        drawn = [rows[at].rng.random() for at in sampled]
        draws = torch.tensor(drawn, dtype=widest(logits), device=logits.device)
        hot, nucleus = _marked(logits[sampled] / heat[:, None], nucleus, [rows[at] for at in sampled])
        for at, token in zip(sampled, sample(hot, nucleus, draws), strict=True):
            tokens[at] = token
    logprobs: list[TokenLogprob | None] = [None] * len(rows)
    wanted = [at for at, row in enumerate(rows) if row.request.logprobs is not None]
    if wanted:
        tops = [rows[at].request.logprobs or 0 for at in wanted]
        found = _logprobs(logits[wanted], [tokens[at] for at in wanted], tops)
        for at, logprob in zip(wanted, found, strict=True):
            logprobs[at] = logprob
    return tokens, logprobs


def _logprobs(logits: Any, tokens: Sequence[int], tops: Sequence[int]) -> list[TokenLogprob]:
    """Log-probabilities of `tokens` and of the likeliest `tops` tokens. `logits`: (rows, vocabulary)."""
    scale = torch.log_softmax(logits.float(), dim=-1)
    taken = scale.gather(1, torch.tensor(tokens, device=scale.device)[:, None])[:, 0].tolist()
    k = min(max(tops, default=0), scale.shape[-1])
    if not k:
        return [TokenLogprob(t, v) for t, v in zip(tokens, taken, strict=True)]
    values, ids = scale.topk(k, dim=-1)
    ranked = [tuple(zip(i, v, strict=True)) for i, v in zip(ids.tolist(), values.tolist(), strict=True)]
    return [TokenLogprob(t, v, r[:n]) for t, v, r, n in zip(tokens, taken, ranked, tops, strict=True)]


class _TextStream:
    """Token by token to text, never half a character.

    Where the backend's stream gives up (a byte-fallback tokenizer takes back a character when the bytes
    after it are none), the row goes on by decoding its whole answer anew for each token.
    """

    def __init__(self, model: LocalModel, request: Request) -> None:
        from tokenizers.decoders import DecodeStream

        self.model = model
        self.request = request
        self.backend = getattr(model.tokenizer, "backend_tokenizer", None)
        self.ids: list[int] = []
        self.shown = 0
        if self.backend is not None:
            before = list(request.prompt_ids) if request.continues else None
            self.stream = DecodeStream(ids=before, skip_special_tokens=True)

    def push(self, token: int) -> str:
        self.ids.append(token)
        if self.backend is not None:
            try:
                new = self.stream.step(self.backend, token) or ""
            except Exception:  # the tokenizers library raises Exception itself
                self.backend = None
            else:
                self.shown += len(new)
                return new
        text = _answer_text(self.model, self.request, self.ids)
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        new, self.shown = text[self.shown :], max(self.shown, len(text))
        return new


def _answer_text(model: LocalModel, request: Request, ids: Sequence[int]) -> str:
    if not request.continues:
        return ids_text(model, ids)
    before = ids_text(model, request.prompt_ids)
    whole = ids_text(model, [*request.prompt_ids, *ids])
    return whole[len(before) :] if whole.startswith(before) else ids_text(model, ids)


def _stop_at(text: str, stops: Sequence[str], seen: int) -> int | None:
    """Where the first stop string begins, if one ends after the first `seen` characters."""
    found = [text.find(s, max(0, seen - len(s) + 1)) for s in stops]
    return min((at for at in found if at >= 0), default=None)


def _held(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of `text` with which a stop string may be beginning."""
    return max((n for s in stops for n in range(1, len(s)) if text.endswith(s[:n])), default=0)


def generate(
    model: LocalModel,
    requests: Sequence[Request],
    *,
    batch: int = 64,
    on_token: Callable[[int, str], None] | None = None,
) -> list[Generation]:
    """Answer every request, at most `batch` of them at a time; the answers are in the requests' order.

    `on_token(index, text)` is called with new text of an answer as it appears. A prompt that leaves no room
    in the model's context gets an empty answer that ended by `length` after 0 tokens.
    """
    answers: list[Generation | None] = [None] * len(requests)
    waiting = sorted(range(len(requests)), key=lambda at: len(requests[at].prompt_ids), reverse=True)
    decoder = Decoder(model)
    while waiting or len(decoder):
        n = decoder.admits((requests[at] for at in reversed(waiting)), batch)
        if n and (n * 8 >= len(decoder) or n == len(waiting)):
            now = [waiting.pop() for _ in range(n)]
            events = decoder.add([(at, requests[at]) for at in now], now if on_token else ())
        else:
            events = decoder.step()
        for event in events:
            at = event.key
            assert isinstance(at, int)
            if on_token is not None and event.text:
                on_token(at, event.text)
            if event.done is not None:
                answers[at] = event.done
    return [answer for answer in answers if answer is not None]


def score(
    model: LocalModel, texts: Sequence[Sequence[int]], *, top: int = 0, batch_tokens: int = 4096
) -> list[list[TokenLogprob | None]]:
    """Log-probability of each token of each text given those before it; None for the first, which has none.

    `top` likeliest tokens are given beside each. Raises UsageError for a text longer than the context.
    """
    for at, ids in enumerate(texts):
        if model.context is not None and len(ids) > model.context:
            raise UsageError(
                f"text {at} has {len(ids)} tokens", f"the model's context is {model.context}", "cut the text"
            )
    scored: list[list[TokenLogprob | None]] = [[] for _ in texts]
    order = sorted((at for at in range(len(texts)) if texts[at]), key=lambda at: len(texts[at]))
    if order:
        with torch.inference_mode():
            head = _head(model.model, texts[order[-1]][:8])
    while order:
        longest = len(texts[order[-1]])
        part = [order.pop() for _ in range(min(len(order), max(1, batch_tokens // longest)))]
        ids = torch.zeros((len(part), longest), dtype=torch.long)
        for row, at in enumerate(part):
            ids[row, : len(texts[at])] = torch.as_tensor(texts[at])
        with torch.inference_mode():  # causal: what pads the right end is never looked at
            run = model.model if head is None else model.model.base_model
            states = run(ids.to(model.model.device), use_cache=False)[0]
            wanted = [(row, place) for row, at in enumerate(part) for place in range(len(texts[at]) - 1)]
            found: list[TokenLogprob] = []
            for start in range(0, len(wanted), _SCORED_AT_ONCE):
                some = wanted[start : start + _SCORED_AT_ONCE]
                rows, places = torch.tensor(some, device=states.device).T
                logits = states[rows, places] if head is None else head(states[rows, places])
                tokens = [texts[part[row]][place + 1] for row, place in some]
                found += _logprobs(logits, tokens, [top] * len(some))
        rest = iter(found)
        for at in part:
            scored[at] = [None, *islice(rest, len(texts[at]) - 1)]
    return scored


def _head(model: Any, ids: Sequence[int]) -> Any:
    """The layer from a model's last states to its logits; None where something more lies between them.

    Whether it does (as a soft cap, or a factor) is told by trying: the logits of `ids` have to be the same.
    """
    base, head = model.base_model, model.get_output_embeddings()
    if base is model or head is None:
        return None
    shown = torch.as_tensor(list(ids), device=model.device)[None]
    logits = head(base(shown, use_cache=False)[0])
    return head if torch.equal(logits, model(shown, use_cache=False)[0]) else None
