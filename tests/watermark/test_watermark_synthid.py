import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import AutoModelForCausalLM, SynthIDTextWatermarkingConfig

from stillhouse.stats.tails import log_binomial_tail, log_repeated_tail
from stillhouse.watermark.synthid import SynthId, heard

STORIES = Path(__file__).resolve().parents[3] / "shared" / "data" / "models" / "stories260K"
KEYS = tuple(int(key) for key in np.random.default_rng(1).integers(0, 1 << 40, size=20))


def test_the_ones_are_those_that_transformers_finds():
    text = torch.randint(0, 50_000, (1, 300), generator=torch.Generator().manual_seed(2))
    for seed in (0, 5):
        config = SynthIDTextWatermarkingConfig(keys=list(KEYS), ngram_len=5, sampling_table_seed=seed)
        theirs = config.construct_processor(50_000, "cpu").compute_g_values(text)
        ours = heard(SynthId(KEYS, sampling_table_seed=seed), [text[0].numpy()])
        assert ours.scored == theirs.shape[1]
        assert ours.mean == pytest.approx(float(theirs.double().mean()))


@pytest.mark.parametrize("words", [400, 12])
def test_p_values_are_right_over_keys_for_any_text(words):
    """Also for a text that says the same again and again, and one long enough to use places twice."""
    rng = np.random.default_rng(3)
    text = [rng.integers(0, words, size=2500), np.tile(rng.integers(0, words, size=30), 20)]
    drawn = rng.integers(0, 1 << 16, size=(200, 8))
    p = [heard(SynthId(tuple(map(int, keys))), text).p for keys in drawn]
    assert stats.kstest(p, "uniform").pvalue > 1e-3


@pytest.mark.skipif(not STORIES.exists(), reason="shared/data is not there")
def test_what_transformers_marks_is_heard(one_thread):
    model = AutoModelForCausalLM.from_pretrained(STORIES)
    config = SynthIDTextWatermarkingConfig(keys=list(KEYS), ngram_len=5)
    torch.manual_seed(4)
    start = torch.tensor([[1]] * 3)
    out = model.generate(
        start, do_sample=True, top_k=0, max_new_tokens=100, watermarking_config=config, pad_token_id=0
    )
    texts = [row.numpy() for row in out[:, 1:]]
    assert heard(SynthId(KEYS), texts).p < 1e-6
    assert heard(SynthId(tuple(key + 1 for key in KEYS)), texts).p > 1e-3


def test_a_text_too_short_says_nothing():
    assert heard(SynthId(KEYS), [np.arange(4)]).p == 1.0
    with pytest.raises(ValueError, match="power of two"):
        heard(SynthId(KEYS, sampling_table_size=1000), [np.arange(10)])


def test_the_sum_of_draws_is_the_binomial_where_they_are_coins():
    for total in (0, 3, 200, 260, 390, 400):
        expected = float(log_binomial_tail(total, 400, 0.3))
        assert log_repeated_tail(total, np.array([0.7, 0.3]), 400) == pytest.approx(expected, rel=1e-8)
    assert log_repeated_tail(401, np.array([0.7, 0.3]), 400) == -math.inf
    assert log_repeated_tail(7, np.array([0, 0, 0.5, 0, 0.5]), 3) == pytest.approx(math.log(7 / 8))
