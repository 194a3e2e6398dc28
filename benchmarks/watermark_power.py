"""How much marked text a test needs, what edits leave of a mark, and what marking costs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from random import Random

import numpy as np
import torch
from rows import DATA, Row
from watermark_texts import stories

from stillhouse.models.embedded import measure, world
from stillhouse.models.local import (
    Generation,
    LocalModel,
    Request,
    generate,
    load_model,
    prompt_ids,
    text_ids,
)
from stillhouse.stats import wilson
from stillhouse.watermark import Gumbel, Key, Kgw, Scheme, Selection, Tournament, evidence, word_ids
from stillhouse.watermark.hashing import Ids
from stillhouse.watermark.marking import Mark, marked
from stillhouse.watermark.selection import select

SCHEMES: tuple[Scheme, ...] = (
    Gumbel(), Tournament(), Kgw(bias=1.0), Kgw(), Kgw(bias=4.0), Kgw(self_hash=True), Kgw(width=1)
)  # fmt: skip
QUICK: tuple[Scheme, ...] = (Gumbel(), Tournament(), Kgw())
EDITED: tuple[Scheme, ...] = (Gumbel(), Gumbel(width=2), Tournament(), Kgw(), Kgw(self_hash=True))
LENGTHS = (25, 50, 100, 200)
LAID = (100, 400, 1600)  # of short answers with little choice in them, laid end to end
LEVELS = (1e-2, 1e-5)
LONGEST = 230
TIMED = 64  # answers: as many as are written at once
SEED = 7


@dataclass(frozen=True, slots=True)
class House:
    """A model, and what it is asked. `known` keeps what it answered: many figures are of the same answers."""

    name: str
    model: LocalModel
    prompts: list[list[int]]
    continues: bool
    lengths: tuple[int, ...]
    known: dict[Key | None, list[Generation]] = field(default_factory=dict)

    def answers(self, mark: Key | None) -> list[Generation]:
        if mark not in self.known:
            self.known[mark] = self.fresh(mark, len(self.prompts))
        return self.known[mark]

    def fresh(self, mark: Key | None, count: int) -> list[Generation]:
        asked = enumerate(self.prompts[:count])
        return generate(
            self.model,
            [
                Request(ids, LONGEST, 1.0, seed=SEED + at, mark=mark, continues=self.continues, logprobs=0)
                for at, ids in asked
            ],
        )


def storyteller(count: int) -> House:
    model = load_model(str(DATA / "models" / "stories260K"))
    return House("stories260K", model, [text_ids(model, "Once upon a time")] * count, True, LENGTHS)


def desk(count: int) -> House:
    model = load_model("embedded:desk")
    asked = [one.prompt for one in islice(world.examples("test", SEED), count)]
    return House("embedded:desk", model, [prompt_ids(model, one.messages) for one in asked], False, LAID)


def label(scheme: Scheme) -> str:
    if isinstance(scheme, Kgw):
        return (
            f"kgw, bias {scheme.bias:g}"
            + (", self-hashed" if scheme.self_hash else "")
            + ("" if scheme.width == 4 else f", width {scheme.width}")
        )
    return scheme.name + ("" if scheme.width == 4 else f", width {scheme.width}")


def key_of(scheme: Scheme, like: Key) -> Key:
    return Key(scheme, like.secret, like.created)


def found(what: str, p: Sequence[float], level: float) -> Row:
    hits = sum(one <= level for one in p)
    span = wilson(hits, len(p))
    return Row(f"{what}, p <= {level:g}", hits / len(p), f"of {len(p)}", span.low, span.high)


def p_of(key: Key, texts: Sequence[Ids]) -> list[float]:
    return [evidence(key.scheme, key.sip, [ids]).p for ids in texts]


def power(house: House, like: Key, schemes: Sequence[Scheme]) -> list[Row]:
    """Shares of stretches of so many tokens that are called marked. Short answers are laid end to end."""
    rows = []
    for scheme in schemes:
        key = key_of(scheme, like)
        answers = house.answers(key)
        for length in house.lengths:
            if p := p_of(key, [ids[:length] for ids in long_texts(answers, length)]):
                rows += [
                    found(f"{house.name}, {label(scheme)}: {length} tokens", p, level) for level in LEVELS
                ]
        whole = evidence(scheme, key.sip, [np.array(answer.token_ids) for answer in answers])
        what = (
            f"{house.name}, {label(scheme)}: log10 p of all {whole.tokens:,} tokens, {whole.scored:,} scored"
        )
        rows.append(Row(what, whole.log_p / math.log(10), ""))
    return rows


def long_texts(answers: Sequence[Generation], length: int) -> list[Ids]:
    """Answers of at least so many tokens; where they are short, several as one."""
    ids = [list(answer.token_ids) for answer in answers]
    if np.mean([len(one) >= length for one in ids]) > 0.5:
        return [np.array(one) for one in ids if len(one) >= length]
    joined, texts = [], []
    for one in ids:
        joined += one
        if len(joined) >= length:
            texts.append(np.array(joined))
            joined = []
    return texts


# ---------------------------------------------------------------- edits


def cropped(text: str, rng: Random) -> str:
    words = text.split(" ")
    start = rng.randrange(max(len(words) // 2, 1))
    return " ".join(words[start : start + len(words) // 2])


def mixed(text: str, rng: Random) -> str:
    """A marked fifth in text of others."""
    pool = stories()
    words = " ".join(rng.sample(pool, 6)).split(" ")[: 4 * len(text.split(" "))]
    at = rng.randrange(len(words))
    return " ".join([*words[:at], text, *words[at:]])


def with_synonyms(text: str, rng: Random) -> str:
    return " ".join(SYNONYMS.get(word, word) for word in text.split(" "))


def replaced(share: float) -> Callable[[str, Random], str]:
    def edit(text: str, rng: Random) -> str:
        pool = rng.choice(stories()).split()
        return " ".join(rng.choice(pool) if rng.random() < share else word for word in text.split(" "))

    return edit


SYNONYMS = {
    "big": "large", "little": "small", "happy": "glad", "sad": "unhappy", "scared": "afraid", "nice": "kind",
    "said": "told them", "saw": "noticed", "went": "walked", "started": "began", "wanted": "wished",
    "looked": "gazed", "smiled": "grinned", "found": "discovered", "asked": "begged", "loved": "adored",
    "ran": "hurried", "mom": "mother", "dad": "father", "mommy": "mother", "house": "home", "friend": "pal",
    "friends": "pals", "girl": "lass", "boy": "lad", "rock": "stone", "very": "really", "pretty": "lovely",
    "many": "several", "time": "moment", "day": "morning", "and": "as well as", "but": "yet", "so": "thus",
}  # fmt: skip
EDITS: dict[str, Callable[[str, Random], str]] = {
    "read back as text": lambda text, rng: text,
    "cropped to half": cropped,
    "a fifth of a longer text": mixed,
    "10 % of words replaced": replaced(0.1),
    "20 % of words replaced": replaced(0.2),
    "40 % of words replaced": replaced(0.4),
    "synonyms wherever one is known": with_synonyms,
    "lower case": lambda text, rng: text.lower(),
}


def robustness(house: House, like: Key, schemes: Sequence[Scheme]) -> list[Row]:
    """Of texts of about 200 tokens: the share that is called marked after an edit, and the median p-value.

    A replaced word is some other word, not one that means the same: where the test is local this is the same.
    """
    rows = []
    for scheme in schemes:
        key = key_of(scheme, like)
        texts = [answer.text for answer in house.answers(key) if len(answer.token_ids) >= 150]
        for name, edit in EDITS.items():
            rng = Random(SEED)
            edited = [edit(text, rng) for text in texts]
            p = p_of(key, [read_back(house.model, text) for text in edited])
            row = found(f"{label(scheme)}, {name}", p, LEVELS[0])
            middle = math.log10(max(float(np.median(p)), 1e-300))
            rows += [row, Row("  median log10 p", middle, "")]
    return rows


def read_back(model: LocalModel, text: str) -> Ids:
    return np.array(model.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)


# ---------------------------------------------------------------- cost


def cost(house: House, like: Key, schemes: Sequence[Scheme], rounds: int) -> list[Row]:
    """Processor time of marked and plain generation in turn, of some of the answers, and what became of the
    text, of all."""
    rows = written(f"{house.name}, unmarked", house.answers(None))
    for scheme in schemes:
        key, ratios = key_of(scheme, like), []
        for _ in range(rounds):
            speeds = []
            for mark in (None, key):
                begun = time.process_time()
                answers = house.fresh(mark, TIMED)
                speeds.append(sum(a.completion_tokens for a in answers) / (time.process_time() - begun))
            ratios.append(speeds[1] / speeds[0])
        name = f"{house.name}, {label(scheme)}"
        rows.append(Row(f"{name}: tokens/s against unmarked", float(np.median(ratios)), "x"))
        rows += written(name, house.answers(key))
    return rows


def written(name: str, answers: Sequence[Generation]) -> list[Row]:
    """Bits of the model's own surprise, length, and how much the texts repeat themselves."""
    surprise = [-one.logprob for answer in answers for one in answer.logprobs or ()]
    grams = [tuple(a.token_ids[at : at + 4]) for a in answers for at in range(len(a.token_ids) - 3)]
    lengths = [answer.completion_tokens for answer in answers]
    half = 1.96 * float(np.std(lengths)) / math.sqrt(len(lengths))
    mean = float(np.mean(lengths))
    at_limit = float(np.mean([answer.finish_reason == "length" for answer in answers]))
    inside = [1 - len({*one}) / len(one) for one in _grams(answers)]
    return [
        Row(f"{name}: surprise under the model itself", float(np.mean(surprise)), "nats/token"),
        Row(f"{name}: length", mean, "tokens", mean - half, mean + half),
        Row(f"{name}: ended by the limit", at_limit, "of answers"),
        Row(
            f"{name}: 4-grams repeated within an answer",
            float(np.mean(inside)) if grams else 0.0,
            "of 4-grams",
        ),
    ]


def _grams(answers: Sequence[Generation]) -> list[list[tuple[int, ...]]]:
    ids = [answer.token_ids for answer in answers if len(answer.token_ids) >= 4]
    return [[one[at : at + 4] for at in range(len(one) - 3)] for one in ids]


def divergence(house: House, like: Key, texts: int) -> list[Row]:
    """KL(marked || unmarked) of the next token, in contexts of its own texts. Of gumbel and tournament
    it is 0 on average over keys."""
    rows = []
    answers = [np.array(a.token_ids) for a in house.answers(None)[:texts]]
    for scheme in SCHEMES[2:]:
        key, parts = key_of(scheme, like), []
        for ids in answers:
            with torch.inference_mode():
                whole = torch.tensor([[*house.prompts[0], *ids.tolist()]])
                logits = house.model.model(whole).logits[0, len(house.prompts[0]) - 1 : -1].float()
            before = [ids[:at].tolist() for at in range(len(ids))]
            plain = torch.log_softmax(logits, dim=-1)
            biased = torch.log_softmax(marked(logits, [Mark(key)] * len(ids), before), dim=-1)
            parts.append((biased.exp() * (biased - plain)).sum(dim=-1))
        rows.append(
            Row(f"{label(scheme)}: divergence of the next token", float(torch.cat(parts).mean()), "nats")
        )
    return rows


def scores(house: House, like: Key, schemes: Sequence[Scheme]) -> list[Row]:
    """The share of the desk's questions that are answered rightly at temperature 1, marked and not."""
    count = len(house.prompts)
    asked = [one.prompt for one in islice(world.examples("test", SEED), count)]
    rows = []
    for scheme in (None, *schemes):
        answers = house.answers(None if scheme is None else key_of(scheme, like))
        right = sum(measure.right(one, answer.text) for one, answer in zip(asked, answers, strict=True))
        span = wilson(right, count)
        name = "unmarked" if scheme is None else label(scheme)
        rows.append(Row(f"embedded:desk, {name}: score", right / count, "", span.low, span.high))
    return rows


# ---------------------------------------------------------------- selection


def selection(like: Key, trials: int) -> list[Row]:
    """Stories in the place of the answers to one prompt: the best of m, and so many chosen ones together."""
    rows = []
    texts = stories()
    for m, responses in ((2, 35), (4, 10), (4, 23), (8, 5), (8, 12)):
        level = 1e-5 if (m, responses) in ((4, 23), (8, 12)) else 1e-2
        rng, p = Random(SEED), []
        for trial in range(trials):
            key = Key(Selection(), trial.to_bytes(32, "big"), like.created)
            groups = [rng.sample(texts, m) for _ in range(responses)]
            chosen = [word_ids(group[select(key, group)]) for group in groups]
            p.append(evidence(key.scheme, key.sip, chosen).p)
        rows.append(found(f"selection, best of {m}: {responses} answers", p, level))
    return rows
