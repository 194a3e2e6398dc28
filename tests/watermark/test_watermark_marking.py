"""What real models write under a key, through the server, through transformers, and what it costs them."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import openai
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    SynthIDTextWatermarkLogitsProcessor,
    WatermarkDetector,
    WatermarkingConfig,
)

from stillhouse.models.local import Request, generate, load_model, text_ids
from stillhouse.models.serve import background
from stillhouse.watermark import Gumbel, Kgw, Tournament, decoy_keys, evidence, write_key
from stillhouse.watermark.detect import judged
from stillhouse.watermark.keys import Key
from stillhouse.watermark.marking import Mark, Marking, _won, marked

STORIES = Path(__file__).resolve().parents[3] / "shared" / "data" / "models" / "stories260K"
NOW = datetime(2026, 3, 1, tzinfo=UTC)
SCHEMES = [Kgw(), Kgw(self_hash=True, bias=4.0), Gumbel(), Tournament()]

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not STORIES.exists(), reason="shared/data is not there"),
]


def key(scheme, number=1):
    return Key(scheme, number.to_bytes(32, "big"), NOW)


@pytest.fixture(scope="module")
def stories():
    return load_model(str(STORIES))


def tell(stories, mark, count=4, **settings):
    prompt = text_ids(stories, "Once upon a time")
    how = {"max_tokens": 120, "temperature": 1.0, "continues": True} | settings
    return generate(stories, [Request(prompt, seed=at, mark=mark, **how) for at in range(count)])


def heard(mark, answers):
    return evidence(mark.scheme, mark.sip, [np.array(answer.token_ids) for answer in answers])


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
def test_a_marked_model_is_heard_with_its_key_alone(stories, scheme):
    mine = key(scheme)
    answers = tell(stories, mine)
    assert heard(mine, answers).p < 1e-9
    assert min(heard(one, answers).p for one in decoy_keys(mine, 20)) > 1e-3
    assert heard(mine, tell(stories, None)).p > 1e-3


def test_the_mark_survives_being_read_back_as_text(stories):
    mine = key(Gumbel())
    texts = [answer.text for answer in tell(stories, mine)]
    ids = [np.array(stories.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    assert evidence(mine.scheme, mine.sip, ids).p < 1e-9


def test_only_a_bias_marks_greedy_answers(stories):
    biased = key(Kgw(bias=4.0))
    assert heard(biased, tell(stories, biased, count=1, temperature=0.0)).p < 1e-3
    plain = [answer.text for answer in tell(stories, None, count=1, temperature=0.0)]
    for scheme in (Gumbel(), Tournament()):
        assert [one.text for one in tell(stories, key(scheme), count=1, temperature=0.0)] == plain


def test_rows_of_a_batch_do_not_change_each_others_marks(stories):
    """A marked answer is the same whoever shares the batch, marked with another key or not at all."""
    prompt = text_ids(stories, "Once upon a time")
    wanted = Request(prompt, 60, temperature=1.0, seed=3, mark=key(Gumbel()))
    alone = generate(stories, [wanted])[0]
    others = [
        replace(wanted, mark=None),
        replace(wanted, mark=key(Kgw())),
        replace(wanted, mark=key(Gumbel(), 2)),
    ]
    together = generate(stories, [*others, wanted])
    assert together[3].token_ids == alone.token_ids
    assert len({answer.token_ids for answer in together}) == 4


def test_what_the_nucleus_leaves_out_stays_out(stories):
    likely = tell(stories, key(Kgw(bias=30.0)), count=2, top_p=1e-6)
    assert {answer.token_ids for answer in likely} == {tell(stories, None, 1, temperature=0.0)[0].token_ids}


@pytest.mark.parametrize("scheme", [Gumbel(), Tournament()], ids=repr)
def test_over_keys_the_next_token_has_the_models_own_distribution(scheme):
    torch.manual_seed(1)
    logits = torch.log_softmax(2 * torch.randn(1, 6), dim=-1)
    drawn = torch.zeros(6, dtype=torch.float64)
    keys = decoy_keys(key(scheme), 1200)
    for one in keys:
        drawn += torch.softmax(marked(logits, [Mark(one)], [[1, 2, 3, 4]])[0].double(), dim=-1)
    share, expected = drawn / len(keys), logits[0].exp().double()
    assert torch.all((share - expected).abs() <= 4 * (expected * (1 - expected) / len(keys)).sqrt())


def test_a_round_that_every_token_wins_changes_nothing():
    """Where rounding makes the chance of the bit more than one, no probability falls below nought."""
    logits = torch.log_softmax(torch.randn(200, 50), dim=-1)
    values = torch.full((200, 50), -1)
    assert torch.allclose(_won(logits, values, 30), logits, atol=1e-4)
    values[:, 0] = 0
    assert not torch.isnan(_won(logits - 30 * (torch.arange(50) == 0), values, 30)).any()


def test_a_context_is_used_once_in_an_answer():
    logits = torch.zeros(1, 50)
    mark = Mark(key(Gumbel()))
    first = marked(logits, [mark], [[1, 2, 3, 4]])
    again = marked(logits, [mark], [[9, 1, 2, 3, 4]])
    assert torch.isinf(first).sum() == 49
    assert torch.equal(again, logits)
    assert torch.equal(marked(logits, [Mark(key(Gumbel()))], [[1, 2, 3]]), logits)


def test_the_tournament_is_that_of_transformers():
    torch.manual_seed(2)
    logits = torch.randn(3, 40)
    bits = torch.randint(0, 2, (3, 40, 12))
    values = sum(bits[:, :, place].long() << (63 - place) for place in range(12))
    theirs = SynthIDTextWatermarkLogitsProcessor(
        ngram_len=5,
        keys=[1] * 12,
        sampling_table_size=8,
        sampling_table_seed=0,
        context_history_size=8,
        device="cpu",
    ).update_scores(logits, bits)
    assert torch.allclose(_won(logits, values, 12), theirs, atol=1e-5)


def test_counts_and_z_are_those_of_transformers_detector(stories):
    """Text that transformers marked, its own green lists: the same counts, and the exact p beside its z."""
    model = AutoModelForCausalLM.from_pretrained(STORIES)
    config = WatermarkingConfig(greenlist_ratio=0.25, bias=3.0, context_width=1)
    torch.manual_seed(3)
    prompt = torch.tensor([text_ids(stories, "Once upon a time")])
    out = model.generate(
        prompt, do_sample=True, max_new_tokens=180, watermarking_config=config, pad_token_id=0
    )[:, prompt.shape[1] :]
    detector = WatermarkDetector(model.config, "cpu", config, ignore_repeated_ngrams=True)
    theirs = detector(out, return_dict=True)

    class Theirs(Kgw):
        def scores(self, bits):
            green = [
                int(bit) % 1000 in detector.processor._get_greenlist_ids(torch.tensor([int(bit) // 1000]))
                for bit in bits
            ]
            return np.array(green, dtype=float)

    ids = out[0].numpy()
    ours = judged(Theirs(width=1), (ids[:-1] * 1000 + ids[1:]).astype(np.uint64), len(ids))
    assert ours.scored == theirs.num_tokens_scored[0]
    assert ours.mean == pytest.approx(theirs.green_fraction[0])
    z = (ours.mean - 0.25) * np.sqrt(ours.scored / (0.25 * 0.75))
    assert z == pytest.approx(theirs.z_score[0])
    assert ours.p < 1e-4


def test_transformers_marks_with_a_key_of_ours(stories):
    mine = key(Gumbel())
    model = AutoModelForCausalLM.from_pretrained(STORIES)
    torch.manual_seed(4)
    prompt = torch.tensor([text_ids(stories, "Once upon a time")] * 3)
    out = model.generate(
        prompt,
        do_sample=True,
        max_new_tokens=150,
        watermarking_config=Marking(mine),
        pad_token_id=0,
        temperature=0.9,
        top_p=0.95,
    )
    texts = [row.numpy() for row in out[:, prompt.shape[1] :]]
    assert evidence(mine.scheme, mine.sip, texts).p < 1e-6


def test_the_server_marks_and_says_by_which_key(tmp_path):
    mine = key(Gumbel())
    write_key(mine, tmp_path / "key.json")
    with (
        background(str(STORIES), None, "--watermark", str(tmp_path / "key.json")) as url,
        openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client,
    ):
        told = client.completions.with_raw_response.create(
            model="stories260K", prompt="Once upon a time", max_tokens=200, n=3, temperature=1.0, seed=5
        )
        parts = client.completions.with_raw_response.create(
            model="stories260K", prompt="Once", max_tokens=5, stream=True
        )
        assert told.headers["x-stillhouse-watermark"] == mine.id
        assert parts.headers["x-stillhouse-watermark"] == mine.id
        for unmarked in ({"temperature": 0.0, "max_tokens": 40}, {"max_tokens": 4}):
            for stream in (False, True):
                said = client.completions.with_raw_response.create(
                    model="stories260K", prompt="Once upon", stream=stream, **unmarked
                )
                assert "x-stillhouse-watermark" not in said.headers
    tokenizer = load_model(str(STORIES)).tokenizer
    texts = [tokenizer(one.text, add_special_tokens=False)["input_ids"] for one in told.parse().choices]
    assert evidence(mine.scheme, mine.sip, [np.array(ids) for ids in texts]).p < 1e-6


def test_a_server_marks_greedy_answers_with_kgw_and_says_so(tmp_path):
    mine = key(Kgw(bias=4.0))
    write_key(mine, tmp_path / "key.json")
    with (
        background(str(STORIES), None, "--watermark", str(tmp_path / "key.json")) as url,
        openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client,
    ):
        told = client.chat.completions.with_raw_response.create(
            model="stories260K",
            messages=[{"role": "user", "content": "Once upon a time"}],
            max_tokens=200,
            temperature=0.0,
        )
        assert told.headers["x-stillhouse-watermark"] == mine.id
    text = told.parse().choices[0].message.content
    ids = load_model(str(STORIES)).tokenizer(text, add_special_tokens=False)["input_ids"]
    assert evidence(mine.scheme, mine.sip, [np.array(ids)]).p < 1e-3
