"""Marks that `transformers` makes, under its own detectors and under ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from rows import Row
from torch import Tensor
from transformers import (
    BayesianDetectorConfig,
    BayesianDetectorModel,
    SynthIDTextWatermarkingConfig,
    SynthIDTextWatermarkLogitsProcessor,
    WatermarkDetector,
    WatermarkingConfig,
)
from watermark_null import described
from watermark_power import LENGTHS, LEVELS, SEED, House, key_of, label, long_texts, p_of

from stillhouse.watermark import Key, Kgw, Tournament
from stillhouse.watermark.synthid import SynthId, heard

EPOCHS, BATCH, RATE, DECAY = 20, 50, 1e-2, 1e-3  # by which the Bayesian detector is trained
LEVEL = LEVELS[0]

Ways = dict[str, WatermarkingConfig | SynthIDTextWatermarkingConfig | None]


def theirs(house: House, like: Key, count: int) -> list[Row]:
    """Texts of one model and length: transformers' marks under its detectors beside ours under ours; then
    its SynthID texts under its detectors beside our exact test of these very texts."""
    depth = [int(n) for n in np.random.default_rng(SEED).integers(0, 1 << 16, size=30)]
    synthid = SynthIDTextWatermarkingConfig(ngram_len=5, keys=depth, context_history_size=1024)
    kgw = WatermarkingConfig(greenlist_ratio=0.25, bias=2.0, context_width=1)
    told = written(house, {"kgw": kgw, "synthid": synthid, "none": None}, count, SEED)
    processor = synthid.construct_processor(house.model.model.config.vocab_size, "cpu")
    scorers = synthid_scorers(processor, written(house, {"synthid": synthid, "none": None}, count, SEED + 1))
    detector = WatermarkDetector(described(house.model.model.config.vocab_size), "cpu", kgw, True, 100_000)
    ours = {
        scheme: long_texts(house.answers(key_of(scheme, like)), max(LENGTHS))
        for scheme in (Kgw(width=1), Tournament())
    }
    rows = []
    for length in LENGTHS:
        cut = {name: ids[:, :length].contiguous() for name, ids in told.items()}
        shares = {name: called(scorer, cut["synthid"], cut["none"]) for name, scorer in scorers.items()}
        found = float(np.mean(detector(cut["kgw"], return_dict=True).p_value <= LEVEL))
        for scheme, who, share in (
            (Kgw(width=1), "transformers' kgw and detector, on its own marks", found),
            (Tournament(), "transformers' SynthID and its mean score", shares["mean score"]),
        ):
            p = p_of(key_of(scheme, like), [ids[:length] for ids in ours[scheme]])
            rows.append(beside(f"{label(scheme)}, {length} tokens", p, who, share))
        exact = [heard(SynthId(tuple(depth)), [text.numpy()]).p for text in cut["synthid"]]
        for name, share in shares.items():
            what = f"transformers' SynthID text, exact test, {length} tokens"
            rows.append(beside(what, exact, f"{name} of this text", share))
    return rows


def written(house: House, ways: Ways, count: int, seed: int) -> dict[str, Tensor]:
    """So many texts of each way of marking: (count, the greatest length)."""
    prompt = torch.tensor([house.prompts[0]] * count)
    found = {}
    for name, way in ways.items():
        torch.manual_seed(seed)
        ids = house.model.model.generate(
            prompt, do_sample=True, top_k=0, max_new_tokens=max(LENGTHS), min_new_tokens=max(LENGTHS),
            watermarking_config=way, pad_token_id=0,
        )  # fmt: skip
        found[name] = ids[:, prompt.shape[1] :]
    return found


def synthid_scorers(
    processor: SynthIDTextWatermarkLogitsProcessor, known: dict[str, Tensor]
) -> dict[str, Callable[[Tensor], Tensor]]:
    """How marked each of some texts looks: (texts, tokens) -> (texts,). The mean of SynthID's values, the
    mean in which earlier rounds of the tournament weigh more, and the detector of transformers that has to
    be trained: here on `known`, texts of this model and these keys, marked and not."""
    depth = len(processor.keys)
    weights = torch.linspace(10, 1, depth)
    bayesian = trained(processor, known)

    def posterior(ids: Tensor) -> Tensor:
        with torch.inference_mode():
            return bayesian(*values_of(processor, ids))[0]

    return {
        "mean score": lambda ids: processor.compute_g_values(ids).float().mean(dim=(1, 2)),
        "weighted mean score": lambda ids: (processor.compute_g_values(ids) * weights).mean(dim=(1, 2)),
        "trained Bayesian detector": posterior,
    }


def values_of(processor: SynthIDTextWatermarkLogitsProcessor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """SynthID's values (texts, stretches, depth), and which stretches count (texts, stretches)."""
    return processor.compute_g_values(ids), processor.compute_context_repetition_mask(ids)


def trained(
    processor: SynthIDTextWatermarkLogitsProcessor, known: dict[str, Tensor]
) -> BayesianDetectorModel:
    """`transformers` has the model and its loss, and leaves the training to whoever uses it."""
    torch.manual_seed(SEED)
    found = BayesianDetectorModel(BayesianDetectorConfig(watermarking_depth=len(processor.keys)))
    values, counted = values_of(processor, torch.cat([known["synthid"], known["none"]]))
    marked = torch.tensor([1.0] * len(known["synthid"]) + [0.0] * len(known["none"]))
    optimiser = torch.optim.Adam(found.parameters(), RATE)
    for _ in range(EPOCHS):
        for some in torch.randperm(len(marked)).split(BATCH):
            optimiser.zero_grad()
            made = found(values[some], counted[some], marked[some], loss_batch_weight=DECAY, return_dict=True)
            made.loss.backward()
            optimiser.step()
    return found.eval()


def called(scorer: Callable[[Tensor], Tensor], marked: Tensor, unmarked: Tensor) -> float:
    """No score has a p-value: the line is where one in a hundred unmarked texts is called marked."""
    line = torch.quantile(scorer(unmarked).float(), 1 - LEVEL)
    return float((scorer(marked) > line).float().mean())


def beside(what: str, p: Sequence[float], who: str, value: float) -> Row:
    share, told = float(np.mean(np.array(p) <= LEVEL)), f"of {len(p)}"
    what = f"{what}: called marked at {LEVEL:g}"
    if not value:
        return Row(f"{what} ({who}: none)", share, told)
    return Row(what, share, told, peer=who, peer_value=value, ratio=share / value)
