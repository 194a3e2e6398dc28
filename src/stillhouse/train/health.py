"""Whether a student that learns from its own text is well: what the text is like, how near the teacher is.

Students that are taught on their own text go astray in known ways: answers grow until all of them are cut,
repeat themselves, or narrow to one continuation, while the loss looks well all along. So these are measured
at every step, and one of them stops the training (`collapsed`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stillhouse.train.losses import Head, SparseTargets, Targets, TeacherStates
from stillhouse.train.losses.whole import exact, teacher_products, teacher_scores
from stillhouse.train.rows import Row

GRAM = 4  # tokens that count as said again when they stand together a second time
LIKELIEST = 8  # tokens of each model that are compared
EXAMINED = 256  # positions of a batch at which they are

WINDOW = 64  # answers over which shares are taken: the standard error of a half is 0.06
# Shares of cut answers: a student that once was below the one has collapsed at the other. Ten standard errors
# lie between them, so that no steady student ever seems to have gone from one to the other.
ENDED, CUT = 0.2, 0.8
LONG, OFTEN = 2.0, 0.2  # what is worth a word at the end: times the teacher's length, share of cut answers

OF_ROWS = ("length", "answer_length", "truncated")
OF_TOKENS = ("loss", "repeated", "entropy", "teacher_entropy", "overlap", "student_mass", "teacher_mass")


@dataclass(frozen=True, slots=True)
class Window:
    """The last steps, as answers and how many of them were cut, until they hold `WINDOW` answers; `least` is
    the smallest share of cut answers that a whole window has had, 1 before there was one."""

    steps: tuple[tuple[int, int], ...] = ()
    least: float = 1.0

    @property
    def answers(self) -> int:
        return sum(rows for rows, _ in self.steps)

    @property
    def truncated(self) -> float:
        return sum(cut for _, cut in self.steps) / max(1, self.answers)


def after(window: Window, own: Mapping[str, float] | None) -> Window:
    """The window with one more step, whose own text had these `figures`, or None where there was none."""
    if own is None:
        return window
    steps = (*window.steps, (int(own["rows"]), round(own["truncated"] * own["rows"])))
    while sum(each for each, _ in steps[1:]) >= WINDOW:
        steps = steps[1:]
    moved = Window(steps, window.least)
    return Window(steps, min(window.least, moved.truncated)) if moved.answers >= WINDOW else moved


def collapsed(window: Window) -> bool:
    """Whether nearly all answers are cut of a student that once ended nearly all: their lengths explode.

    One that never learnt to end answers does not count: that is how every untrained student begins.
    """
    return window.answers >= WINDOW and window.least < ENDED and window.truncated >= CUT


def figures(answers: Sequence[Row], written: Sequence[Row], stop_ids: frozenset[int]) -> dict[str, float]:
    """What a step's own text is like: answers and tokens (`rows`, `tokens`), mean `length` in tokens beside
    that of the answers which the same prompts have (`answer_length`), and two shares: of answers that were
    `truncated`, and of runs of `GRAM` tokens that are `repeated` from the same answer."""
    lengths = [len(row.ids) - row.start for row in written]
    own = [len(row.ids) - row.start for row in answers]
    grams = [np.lib.stride_tricks.sliding_window_view(row.ids[row.start :], GRAM)
             for row in written if len(row.ids) - row.start >= GRAM]  # fmt: skip
    distinct, runs = sum(len(np.unique(each, axis=0)) for each in grams), sum(len(each) for each in grams)
    return {
        "rows": len(written),
        "tokens": sum(lengths),
        "length": sum(lengths) / len(written),
        "answer_length": sum(own) / len(own),
        "truncated": sum(was_cut(row, stop_ids) for row in written) / len(written),
        "repeated": 1.0 - distinct / runs if runs else 0.0,
    }


def was_cut(row: Row, stop_ids: frozenset[int]) -> bool:
    return int(row.ids[-1]) not in stop_ids


def mean(steps: Iterable[Mapping[str, float]]) -> dict[str, float] | None:
    """The figures of several steps as one, each share and mean over what it is of; None where none wrote."""
    steps = list(steps)
    if not steps:
        return None
    rows, tokens = (sum(step[name] for step in steps) for name in ("rows", "tokens"))
    by_rows = {name: sum(step[name] * step["rows"] for step in steps) / rows for name in OF_ROWS}
    by_tokens = {name: sum(step[name] * step["tokens"] for step in steps) / tokens for name in OF_TOKENS}
    return {"rows": rows, "tokens": tokens, **by_rows, **by_tokens}


def notices(own: Mapping[str, float] | None) -> list[str]:
    """What of the last epoch's figures deserves a word."""
    if own is None:
        return []
    said = []
    if own["length"] > LONG * own["answer_length"]:
        said.append(
            f"the student's own answers had {own['length']:.0f} tokens in the last epoch, "
            f"where those that it learnt have {own['answer_length']:.0f}"
        )
    if own["truncated"] > OFTEN:
        said.append(
            f"{own['truncated']:.0%} of the student's own answers were cut at the longest length in the last "
            "epoch: it does not end them"
        )
    return said


def agreement(states_ND: Tensor, head: Head | None, targets: Targets, vocabulary: int) -> Tensor:
    """Sums (6,) over some positions, evenly spread: how many these are; the entropy of the student and of the
    teacher in nats; the share of the `LIKELIEST` ids that both have in common; the mass that the student puts
    on the teacher's likeliest, and the teacher on the student's.

    `states_ND` are the student's last hidden states, or its logits where `head` is None. Of a teacher that
    names some ids only, the others have no mass, and its entropy is that of what it names.
    """
    step = -(-len(states_ND) // EXAMINED)
    states_ED, some = states_ND[::step], targets[::step]
    with torch.no_grad():
        raw_EV = states_ED[:, :vocabulary] if head is None else head.cut(vocabulary).logits(states_ED)
        logp_EV = torch.log_softmax(exact(raw_EV), -1)
        logt_EV = _teacher(some, vocabulary, logp_EV)
        of_student, of_teacher = (
            each.topk(min(LIKELIEST, vocabulary), -1).indices for each in (logp_EV, logt_EV)
        )
        common_EK = (of_student[:, :, None] == of_teacher[:, None, :]).any(-1)
        sums = [
            torch.tensor(float(len(logp_EV)), device=logp_EV.device),
            torch.special.entr(logp_EV.exp()).sum(),
            torch.special.entr(logt_EV.exp()).sum(),
            common_EK.float().mean(-1).sum(),
            logp_EV.exp().gather(-1, of_teacher).sum(),
            logt_EV.exp().gather(-1, of_student).sum(),
        ]
        return torch.stack([each.float() for each in sums])


def _teacher(targets: Targets, vocabulary: int, like_EV: Tensor) -> Tensor:
    """The teacher's log-probabilities (E, V) at temperature 1."""
    if isinstance(targets, SparseTargets):
        named = targets.log_weights_NK.to(like_EV.dtype)
        return torch.full_like(like_EV, -torch.inf).scatter(-1, targets.ids_NK, named)
    assert isinstance(targets, Tensor | TeacherStates)
    scores_EV = teacher_scores(targets, teacher_products(targets, slice(None), vocabulary), 1.0)
    return torch.log_softmax(scores_EV.to(like_EV.dtype), -1)


def agreed(sums: Tensor) -> dict[str, float]:
    """The means of `agreement`."""
    count, *others = sums.tolist()
    names = ("entropy", "teacher_entropy", "overlap", "student_mass", "teacher_mass")
    return {name: value / count for name, value in zip(names, others, strict=True)}
