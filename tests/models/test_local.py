import shutil
from pathlib import Path

import pytest
import torch
from small_models import make_folder
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, DynamicCache, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from stillhouse.errors import ModelError, UsageError
from stillhouse.models import source_folder, weights_digest
from stillhouse.models.flops import flops_per_answer
from stillhouse.models.local import (
    Decoder,
    Request,
    generate,
    ids_text,
    load_model,
    parameters,
    prompt_ids,
    score,
    text_ids,
    vocabulary,
)
from stillhouse.models.local.decode import sample
from stillhouse.records import Message

STORIES = Path(__file__).parents[3] / "shared/data/models/stories260K"
TEXTS = [
    "",
    "a",
    "Hello there",
    "What is the total of order 17?",
    "Grüße, 世界",
    "x" * 40,
    "one two three four",
]


REFUSING = "{{ raise_exception('roles must alternate') }}"


def user(text):
    return [Message("user", text)]


def requests(model, **settings):
    return [
        Request(prompt_ids(model, user(t)), 12 + 3 * at, **({"seed": at} | settings))
        for at, t in enumerate(TEXTS * 3)
    ]


# ---------------------------------------------------------------- loading


def test_prompt_goes_through_the_chat_template(tiny):
    ids = prompt_ids(tiny, [Message("system", "be brief"), Message("user", "hi")])
    text = tiny.tokenizer.decode(ids)
    assert text == "<|system|>be brief<|end|><|user|>hi<|end|><|assistant|>"


def test_without_a_template_contents_are_joined_by_newlines(tmp_path):
    model = load_model(str(make_folder(tmp_path / "m", template=None)))
    assert not model.has_chat_template
    assert ids_text(model, prompt_ids(model, [Message("system", "a"), Message("user", "b")])) == "a\nb"


def test_a_template_that_refuses_is_the_users_error(tmp_path):
    model = load_model(
        str(make_folder(tmp_path / "m", template="{{ raise_exception('roles must alternate') }}"))
    )
    with pytest.raises(UsageError) as caught:
        prompt_ids(model, user("hi"))
    assert "roles must alternate" in caught.value.why


def test_what_is_known_of_a_model(tiny):
    assert tiny.context == 160
    assert tiny.stop_ids == {0}
    assert parameters(tiny) == sum(p.numel() for p in LlamaForCausalLM(tiny.model.config).parameters())


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (shutil.rmtree, "does not exist"),
        (lambda f: (f / "config.json").unlink(), "config.json"),
        (lambda f: (f / "config.json").write_text("{broken"), ""),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\0" * 100), ""),
        (lambda f: [p.unlink() for p in f.glob("token*")], ""),
    ],
    ids=["absent", "no config", "broken config", "no weights", "corrupt weights", "no tokenizer"],
)
def test_a_folder_that_is_no_model_says_why(tiny_folder, tmp_path, damage, word):
    folder = shutil.copytree(tiny_folder, tmp_path / "copy")
    damage(folder)
    with pytest.raises(ModelError) as caught:
        load_model(str(folder))
    assert str(folder) in caught.value.what
    assert word in caught.value.why
    assert caught.value.why
    assert caught.value.mend


def test_cut_weights_are_not_filled_with_random_ones(tiny_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_folder, tmp_path / "copy")
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError) as caught:
        load_model(str(folder))
    assert "model.layers.1.mlp.up_proj.weight" in caught.value.why


def test_an_unknown_shipped_model_is_named_with_the_known_ones():
    with pytest.raises(ModelError) as caught:
        source_folder("embedded:dsek")
    assert "shipped models" in caught.value.why
    assert source_folder("org/name") == "org/name"


def test_the_digest_changes_with_weights_config_and_template_only(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "copy")
    first = weights_digest(folder)
    (folder / "README.md").write_text("a note")
    assert weights_digest(folder) == first == weights_digest(tiny_folder)
    for name in ("config.json", "model.safetensors", "chat_template.jinja"):
        (folder / name).write_bytes((folder / name).read_bytes() + b" ")
        assert weights_digest(folder) != first
        shutil.copy(tiny_folder / name, folder / name)
    with pytest.raises(ModelError):
        weights_digest(tmp_path)


# ---------------------------------------------------------------- decoding


def test_greedy_is_what_transformers_generates(tiny):
    for request in requests(tiny)[:7]:
        ids = torch.tensor([list(request.prompt_ids)])
        made = tiny.model.generate(ids, max_new_tokens=request.max_tokens, do_sample=False, pad_token_id=0)
        expected = [i for i in made[0, ids.shape[1] :].tolist() if i != 0]
        assert list(generate(tiny, [request])[0].token_ids) == expected


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.9, "top_p": 0.8}, {"logprobs": 3}])
def test_answers_do_not_depend_on_batch_mates(tiny, settings):
    asked = requests(tiny, **settings)
    alone = [generate(tiny, [request])[0] for request in asked]
    for batch in (3, 8, 64):
        together = generate(tiny, asked, batch=batch)
        assert [a.token_ids for a in together] == [a.token_ids for a in alone]
        assert [a.text for a in together] == [a.text for a in alone]
    assert len({a.token_ids for a in alone}) > 5


def test_a_model_with_learned_positions_goes_the_general_way(tiny_folder, tmp_path):
    torch.manual_seed(3)
    config = GPT2Config(vocab_size=260, n_positions=96, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3)
    config.eos_token_id, config.bos_token_id = 0, None
    folder = shutil.copytree(tiny_folder, tmp_path / "gpt2")
    GPT2LMHeadModel(config).save_pretrained(folder)
    model = load_model(str(folder))
    asked = requests(model)[:7]
    alone = [generate(model, [request])[0].token_ids for request in asked]
    assert [a.token_ids for a in generate(model, asked, batch=4)] == alone
    for request, mine in zip(asked, alone, strict=True):
        ids = torch.tensor([list(request.prompt_ids)])
        made = model.model.generate(ids, max_new_tokens=request.max_tokens, do_sample=False, pad_token_id=0)
        assert list(mine) == [i for i in made[0, ids.shape[1] :].tolist() if i != 0]


def test_streamed_text_adds_up_and_never_shows_half_a_character(tiny):
    asked = requests(tiny, temperature=1.3)
    seen = [""] * len(asked)

    def on_token(at, text):
        seen[at] += text

    answers = generate(tiny, asked, batch=5, on_token=on_token)
    assert seen == [a.text for a in answers] == [a.text for a in generate(tiny, asked)]


def test_a_stop_string_ends_the_text_before_it(tiny):
    request = Request(prompt_ids(tiny, user("Hello there")), 60, temperature=1.0, seed=5)
    whole = generate(tiny, [request])[0].text
    stop = whole[7:10]
    at = whole.index(stop)
    cut = Request(request.prompt_ids, 60, temperature=1.0, seed=5, stop=(stop, "never written"))
    seen = []
    answer = generate(tiny, [cut], on_token=lambda _, text: seen.append(text))[0]
    assert answer.text == "".join(seen) == whole[:at]
    assert answer.finish_reason == "stop"
    assert answer.completion_tokens < 60


def test_lengths_limits_and_prompts_without_room(tiny):
    ids = text_ids(tiny, "y" * 150)
    answer, none = generate(tiny, [Request(ids, 50), Request(ids + ids, 50)])
    assert answer.prompt_tokens + len(answer.token_ids) <= 160
    assert (none.text, none.finish_reason, none.completion_tokens) == ("", "length", 0)


def test_logprobs_are_those_of_the_model(tiny):
    request = Request(prompt_ids(tiny, user("What?")), 20, temperature=1.0, seed=2, logprobs=4)
    answer = generate(tiny, [request])[0]
    assert [t.token_id for t in answer.logprobs] == list(answer.token_ids)
    whole = torch.tensor([[*request.prompt_ids, *answer.token_ids]])
    expected = torch.log_softmax(tiny.model(whole).logits[0].double(), -1)
    for at, token in enumerate(answer.logprobs, len(request.prompt_ids) - 1):
        assert token.logprob == pytest.approx(float(expected[at, token.token_id]), abs=1e-4)
        values = [value for _, value in token.top]
        assert values == pytest.approx(expected[at].topk(4).values.tolist(), abs=1e-4)


def test_scores_equal_log_softmax_in_any_batch(tiny):
    texts = [text_ids(tiny, t) for t in ("a", "Hello there", "x" * 33, "17 + 4")]
    for tokens, scored in zip(texts, score(tiny, texts, top=2, batch_tokens=40), strict=True):
        expected = torch.log_softmax(tiny.model(torch.tensor([tokens])).logits[0].double(), -1)
        assert scored[0] is None
        assert [s.logprob for s in scored[1:]] == pytest.approx(
            [float(expected[at, i]) for at, i in enumerate(tokens[1:])], abs=1e-4
        )
    with pytest.raises(UsageError):
        score(tiny, [[5] * 161])


def test_cancelled_rows_leave_the_others_alone(tiny):
    asked = requests(tiny)[:6]
    expected = [generate(tiny, [r])[0].token_ids for r in asked]
    decoder = Decoder(tiny)
    decoder.add(list(enumerate(asked)))
    decoder.step()
    decoder.cancel(2)
    decoder.cancel("nobody")
    found = {}
    while len(decoder):
        found |= {e.key: e.done.token_ids for e in decoder.step() if e.done}
    assert all(found[at] == expected[at] for at in found)
    assert 2 not in found


def test_weights_that_are_not_numbers_are_an_error(tmp_path):
    model = load_model(str(make_folder(tmp_path / "m")))
    model.model.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(ModelError) as caught:
        generate(model, [Request(text_ids(model, "hi"), 3)])
    assert "NaN" in caught.value.why


def test_the_nucleus_holds_the_likeliest_and_inversion_follows_probability():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(1000, 1)
    draws = (torch.arange(1000) + 0.5) / 1000
    drawn = sample(logits, torch.full((1000,), 1.0), draws)
    assert [drawn.count(i) for i in range(4)] == pytest.approx([500, 300, 150, 50], abs=1)
    drawn = sample(logits, torch.full((1000,), 0.75), draws)
    assert [drawn.count(i) for i in range(4)] == pytest.approx([625, 375, 0, 0], abs=1)
    assert set(sample(logits, torch.zeros(1000), draws)) == {0}


def test_token_bytes_add_up_to_the_text(tiny):
    tokens = vocabulary(tiny)
    ids = text_ids(tiny, "Grüße, 世界\n")
    assert b"".join(tokens[i].raw for i in ids).decode() == "Grüße, 世界\n"
    assert tokens[0].special
    assert tokens[text_ids(tiny, "ü")[0]].name == "bytes:\\xc3"


@pytest.mark.skipif(not STORIES.is_dir(), reason="the shared stories260K model is not here")
def test_a_real_model_tells_a_story_as_transformers_does():
    model = load_model(str(STORIES))
    request = Request(text_ids(model, "Once upon a time"), 40, continues=True)
    answer = generate(model, [request])[0]
    made = model.model.generate(torch.tensor([request.prompt_ids]), max_new_tokens=40, do_sample=False)
    assert model.tokenizer.decode(made[0], skip_special_tokens=True) == "Once upon a time" + answer.text
    tokens = vocabulary(model)
    assert b"".join(tokens[i].raw for i in answer.token_ids).decode() == answer.text


# ---------------------------------------------------------------- operations


@pytest.mark.parametrize("groups", [4, 2])
def test_flops_are_what_torch_counts(tmp_path, groups):
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=groups,
        vocab_size=300,
    )
    config._attn_implementation = "eager"
    model = LlamaForCausalLM(config).eval()
    config.save_pretrained(tmp_path)
    cache = DynamicCache(config=config)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        for place in range(30 + 10 - 1):  # one token at a time, so that each sees only what lies before it
            model.model(torch.tensor([[5]]), past_key_values=cache, use_cache=True)
            if place >= 29:
                model.lm_head(torch.zeros(1, 1, 64))
    counted = counter.get_total_flops()
    assert flops_per_answer(AutoConfig.from_pretrained(tmp_path), 30, 10) == pytest.approx(counted, rel=0.02)
