"""How much of a model's output layer an API gives away under the guard's policies.

    .venv/bin/python benchmarks/extraction.py [--quick] [--json FILE]

The attacks are those of Carlini et al. 2024, "Stealing part of a production language model" (arXiv
2403.06634), and what else comes to the same, on stories260K (hidden size 64, 512 tokens), through
`guard.leaks.decide` and the filter that it gives: each query is a request body that the guard passes or
refuses, and each answer what the guard leaves of it. An attacker collects logits for many prompts; they are a
matrix of the rank of the hidden size, which shows as a gap in its singular values, and its row space is the
output layer up to a linear map.

The rule, fixed before the first run: the hidden size counts as found where the largest ratio of neighbouring
singular values stands at it and is at least 3. The first and last five are left out, as every matrix has gaps
there. Logits that an attacker could not see leave a block of those seen for all of some prompts; where no
block is large enough to show the size, the unseen ones are filled with the least that was seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rows import DATA, Row, arguments, header, need, show

from stillhouse.guard.answers import Cut
from stillhouse.guard.config import Leaks
from stillhouse.guard.leaks import Refusal, decide

SEED = 29
GAP = 3.0
EDGE = 5
SCREENED = 20  # prompts after which a search keeps to the tokens within reach most often
KEPT = 140
MODEL = DATA / "models" / "stories260K"
OPEN = Leaks(
    logprobs="allow",
    logit_bias="allow",
    bias_with_logprobs="allow",
    reasoning="allow",
    n=4,
)
DEFAULT = Leaks()

Array = NDArray[np.float64]


class Server:
    """Answers as a server of completions would that stands behind the guard. `logits` has a row for each
    prompt. With `after_bias` log-probabilities are those of the biased distribution, as in the paper."""

    def __init__(self, logits: Array, leaks: Leaks, after_bias: bool = True) -> None:
        self._logits = logits
        self.leaks = leaks
        self._after_bias = after_bias
        self._random = np.random.default_rng(SEED)
        self.queries = 0
        self.refused = 0

    def ask(self, prompt: int, **fields: Any) -> list[dict[str, Any]]:
        """The choices of an answer of one token each; none where the guard refuses."""
        self.queries += 1
        body = {"model": "m", "prompt": f"token {prompt}", "max_tokens": 1, **fields}
        decision = decide("completions", body, self.leaks)
        if isinstance(decision, Refusal):
            self.refused += 1
            return []
        sent = decision.body
        bare = self._logits[prompt]
        logits = bare.copy()
        for token, size in (sent.get("logit_bias") or {}).items():
            logits[int(token)] += size
        told = logits if self._after_bias else bare
        answer = {"choices": [self._choice(logits, told, sent) for _ in range(sent.get("n", 1))]}
        if decision.filter is not None:
            Cut(decision.filter).apply(answer)
        return answer["choices"]

    def _choice(self, logits: Array, told: Array, sent: Any) -> dict[str, Any]:
        heat = sent.get("temperature", 0)
        # The largest of logits with Gumbel noise is a draw from their softmax
        token = int(
            (logits / heat + self._random.gumbel(size=len(logits))).argmax() if heat else logits.argmax()
        )
        choice = {"index": 0, "text": f"token_id:{token}", "finish_reason": "length", "logprobs": None}
        if (number := sent.get("logprobs")) is not None:
            logs = told - _log_sum(told)
            best = np.argpartition(logs, -number)[-number:] if number else ()
            tokens = [token, *(int(each) for each in best if each != token)]
            choice["logprobs"] = {
                "tokens": [f"token_id:{token}"],
                "token_logprobs": [float(logs[token])],
                "top_logprobs": [{f"token_id:{each}": float(logs[each]) for each in tokens}],
            }
        return choice


@dataclass(frozen=True, slots=True)
class Found:
    """`at` is where the largest gap stands, `error` the part of the output layer that the recovered space
    does not hold, over the `tokens` seen; `seen` is the mean number of logits known of a prompt."""

    gap: float
    at: int
    error: float
    tokens: int
    seen: float
    queries: int
    refused: int

    def has(self, size: int) -> bool:
        return self.at == size and self.gap >= GAP


def by_bias_and_logprobs(server: Server, prompts: int, vocabulary: int, bias: float = 100.0) -> Array:
    """Four tokens and one that all are compared with raised into the top five together: the paper's first."""
    known = np.full((prompts, vocabulary), np.nan)
    for prompt in range(prompts):
        choices = server.ask(prompt, temperature=0)
        if not choices:
            continue
        reference = _id(choices[0]["text"])
        known[prompt, reference] = 0.0
        others = [token for token in range(vocabulary) if token != reference]
        for start in range(0, len(others), 4):
            group = [reference, *others[start : start + 4]]
            raised = {str(token): bias for token in group}
            choices = server.ask(prompt, temperature=0, logprobs=5, logit_bias=raised)
            if not choices:
                continue
            top = {_id(name): value for name, value in choices[0]["logprobs"]["top_logprobs"][0].items()}
            for token in group:
                if token in top and reference in top:
                    known[prompt, token] = top[token] - top[reference]
    return known


def by_logprobs(server: Server, prompts: int, vocabulary: int) -> Array:
    """What the likeliest tokens tell by themselves."""
    known = np.full((prompts, vocabulary), np.nan)
    for prompt in range(prompts):
        for choice in server.ask(prompt, temperature=0, logprobs=5):
            for name, value in choice["logprobs"]["top_logprobs"][0].items():
                known[prompt, _id(name)] = value
    return known


def by_hot_sampling(server: Server, prompts: int, vocabulary: int, most: int = 1200) -> Array:
    """Tokens written at random, each with its own log-probability, until all were seen; `most` requests."""
    known = np.full((prompts, vocabulary), np.nan)
    for prompt in range(prompts):
        for _ in range(most):
            for choice in server.ask(prompt, temperature=100, logprobs=0, n=4):
                value = choice["logprobs"]["token_logprobs"][0]
                if value > -1000:
                    known[prompt, _id(choice["text"])] = value
            if not np.isnan(known[prompt]).any():
                break
    return known


def by_bias(
    server: Server, prompts: int, vocabulary: int, bias: float, lowered: int, precision: float
) -> Array:
    """Nothing but the written token: by how much each must be raised to become it, by halving to `precision`.

    First with nothing else, then with the `lowered` likeliest tokens lowered, which reaches further.
    """

    def search(prompt: int, token: int, down: Sequence[int]) -> float | None:
        return _search(server, prompt, token, bias, down, precision)

    known = np.full((prompts, vocabulary), np.nan)
    wanted = np.arange(vocabulary)
    for prompt in range(prompts):
        row = known[prompt]
        row[_id(server.ask(prompt, temperature=0)[0]["text"])] = 0.0
        down: list[int] = []
        for _ in range(2 if lowered else 1):
            seen = [int(token) for token in np.flatnonzero(~np.isnan(row))]
            beaten = max(row[token] - bias * (token in down) for token in seen)
            # Its error would be one more direction of the matrix: tokens that were measured before tell it
            again = [token for token in seen if token not in down][:16] if down else []
            told = [(row[token], search(prompt, token, down)) for token in again]
            both = [value + found for value, found in told if found is not None]
            beaten = float(np.mean(both)) if both else beaten
            for token in wanted[np.isnan(row[wanted])]:
                value = search(prompt, int(token), down)
                if value is not None:
                    row[token] = beaten - value
            likeliest = np.argsort(-np.where(np.isnan(row), -np.inf, row))[:lowered]
            down = [int(token) for token in likeliest if not np.isnan(row[token])]
        if prompt == SCREENED and lowered:
            often = (~np.isnan(known[: prompt + 1])).sum(axis=0)
            wanted = np.argsort(-often, kind="stable")[:KEPT]
    return known


def _search(
    server: Server, prompt: int, token: int, bias: float, down: Sequence[int], precision: float
) -> float | None:
    """The least bias with which a token is written; None where none suffices."""

    def wins(size: float) -> bool:
        biases = {str(token): size, **{str(each): -bias for each in down}}
        choices = server.ask(prompt, temperature=0, logit_bias=biases)
        return bool(choices) and _id(choices[0]["text"]) == token

    low, high = -bias if down else 0.0, bias
    if not wins(high):
        return None
    while high - low > precision:
        middle = (low + high) / 2
        low, high = (low, middle) if wins(middle) else (middle, high)
    return (low + high) / 2


def judged(known: Array, layer: Array, server: Server) -> Found:
    """Look for the gap in what is known, [prompts, tokens]; `layer` is the true output layer."""
    seen = float((~np.isnan(known)).sum(axis=1).mean())
    rows, columns = _block(known)
    if min(len(rows), len(columns)) <= layer.shape[1] + 2 * EDGE:
        rows, columns = np.arange(known.shape[0]), np.arange(known.shape[1])
        least = np.nanmin(known, axis=1, keepdims=True) if seen else np.zeros((len(known), 1))
        matrix = np.where(np.isnan(known), least, known)
    else:
        matrix = known[np.ix_(rows, columns)]
    # A constant of each prompt is unknown: without the mean over tokens it does not matter
    matrix = matrix - matrix.mean(axis=1, keepdims=True)
    _, values, right = np.linalg.svd(matrix, full_matrices=False)
    ratios = values[:-1] / np.maximum(values[1:], 1e-12 * values[0] + 1e-300)
    inner = range(EDGE, len(ratios) - EDGE)
    at = max(inner, key=lambda place: ratios[place], default=0)
    true = layer[columns] - layer[columns].mean(axis=0)
    space = right[: layer.shape[1]].T
    error = float(np.linalg.norm(true - space @ (space.T @ true)) / np.linalg.norm(true))
    return Found(float(ratios[at]), at + 1, error, len(columns), seen, server.queries, server.refused)


def _block(known: Array) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of a large block without gaps: the columns known most often, as many as go with as
    many rows as possible."""
    there = ~np.isnan(known)
    order = np.argsort(-there.sum(axis=0), kind="stable")
    whole = np.cumprod(there[:, order], axis=1).sum(axis=0)  # rows that know all of the first columns
    sizes = np.minimum(whole, np.arange(1, len(order) + 1))
    size = int(np.flatnonzero(sizes == sizes.max())[-1]) + 1
    columns = order[:size]
    return np.flatnonzero(there[:, columns].all(axis=1)), columns


def read_model(path: Path, prompts: int) -> tuple[Array, Array]:
    """The logits after random prompts of eight tokens, [prompts, vocabulary], and the output layer,
    [vocabulary, hidden]."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    random = torch.Generator().manual_seed(SEED)
    texts = torch.randint(3, model.config.vocab_size, (prompts, 8), generator=random)
    with torch.no_grad():
        logits = model(texts).logits[:, -1]
    layer = model.get_output_embeddings().weight.detach()
    return logits.double().numpy(), layer.double().numpy()


def _id(name: str) -> int:
    return int(name.removeprefix("token_id:"))


def _log_sum(logits: Array) -> float:
    most = float(logits.max())
    return most + math.log(float(np.exp(logits - most).sum()))


Attack = Callable[[Server, int, int], Array]


def main() -> None:
    given = arguments(__doc__ or "")
    need(MODEL)
    few, more, many = (76, 240, 1000) if given.quick else (128, 500, 4000)
    logits, layer = read_model(MODEL, many)
    vocabulary, size = layer.shape
    together = Leaks(bias_with_logprobs="allow")
    wide = Leaks(logit_bias_size=5.0)

    def small(server: Server, prompts: int, words: int) -> Array:
        return by_bias_and_logprobs(server, prompts, words, bias=DEFAULT.logit_bias_size)

    def warm(server: Server, prompts: int, words: int) -> Array:
        return by_hot_sampling(server, prompts, words, most=200)

    def bounded(server: Server, prompts: int, words: int) -> Array:
        bias = 5.0 if server.leaks is wide else DEFAULT.logit_bias_size
        return by_bias(server, prompts, words, bias, DEFAULT.logit_bias_tokens - 1, 0.005)

    def unbounded(server: Server, prompts: int, words: int) -> Array:
        return by_bias(server, prompts, words, 30.0, 0, 0.03)

    runs: list[tuple[str, Leaks, Attack, int]] = [
        ("all allowed: bias with log-probabilities", OPEN, by_bias_and_logprobs, few),
        ("default: the same", DEFAULT, by_bias_and_logprobs, few),
        ("default but for the two together", together, small, more),
        ("log-probabilities allowed: hot sampling", Leaks(logprobs="allow"), by_hot_sampling, few),
        ("default: the same", DEFAULT, warm, few),
        ("default: log-probabilities alone", DEFAULT, by_logprobs, many),
        ("bias allowed: the text alone", Leaks(logit_bias="allow"), unbounded, few),
        ("bias of at most 5 allowed: the text alone", wide, bounded, more),
        ("default: the same", DEFAULT, bounded, more),
    ]
    rows = []
    for name, leaks, attack, prompts in runs:
        server = Server(logits[:prompts], leaks, after_bias=attack not in (by_hot_sampling, warm))
        found = judged(attack(server, prompts, vocabulary), layer, server)
        target = f"no gap of {GAP:g} at {size}" if leaks is DEFAULT else None
        rows += [
            Row(
                f"{name}: largest gap, at {found.at}",
                found.gap,
                "x",
                target=target,
                holds=None if target is None else not found.has(size),
            ),
            Row("  part of the output layer not recovered", found.error, f"over {found.tokens} tokens"),
            Row("  logits seen of a prompt", found.seen, f"of {vocabulary}"),
            Row("  queries", found.queries, f"for {prompts} prompts, {found.refused} refused"),
        ]
    show(header(SEED, ["numpy", "torch", "transformers"]), rows, given.json)


if __name__ == "__main__":
    main()
