import os
import random
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from small_models import make_byte_fallback, make_folder
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoConfig,
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from stillhouse.errors import ModelError, UsageError
from stillhouse.models import source_folder, weights_digest
from stillhouse.models.flops import flops_per_answer
from stillhouse.models.local import (
    Decoder,
    Request,
    generate,
    ids_text,
    load_model,
    make_differentiable,
    parameters,
    prompt_ids,
    score,
    text_ids,
    threads_for,
    vocabulary,
)
from stillhouse.models.local.decode import MAX_PLACES, _TextStream, sample
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


def test_scoring_never_holds_the_logits_of_a_whole_batch(tiny):
    shapes = []
    hook = tiny.model.lm_head.register_forward_hook(lambda _, given, out: shapes.append(out.shape))
    try:
        scored = score(tiny, [[9] * 150] * 10)
    finally:
        hook.remove()
    assert max(shape[:-1].numel() for shape in shapes) == 512
    assert [len(s) for s in scored] == [150] * 10


def test_a_model_that_divides_its_logits_is_scored_with_them_divided(tiny_folder, tmp_path):
    torch.manual_seed(2)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "vocab_size": 260, "initializer_range": 0.3, "eos_token_id": 0}
    folder = shutil.copytree(tiny_folder, tmp_path / "granite")
    GraniteForCausalLM(GraniteConfig(**sizes, logits_scaling=4.0)).save_pretrained(folder)
    model = load_model(str(folder))
    ids = text_ids(model, "Hello there")
    expected = torch.log_softmax(model.model(torch.tensor([ids])).logits[0].double(), -1)
    assert [s.logprob for s in score(model, [ids])[0][1:]] == pytest.approx(
        [float(expected[at, i]) for at, i in enumerate(ids[1:])], abs=1e-4
    )


def test_cancelled_rows_leave_the_others_alone(tiny):
    asked = requests(tiny)[:6]
    expected = [generate(tiny, [r])[0].token_ids for r in asked]
    decoder = Decoder(tiny)
    events = decoder.add(list(enumerate(asked))) + decoder.step()
    found = {e.key: e.done.token_ids for e in events if e.done}
    assert 2 not in found
    decoder.cancel(2)
    decoder.cancel("nobody")
    while len(decoder):
        found |= {e.key: e.done.token_ids for e in decoder.step() if e.done}
    assert found == {at: ids for at, ids in enumerate(expected) if at != 2}


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


def expected_sample(logits, top_p, draw):
    """By the definition, with Python's own sort."""
    shares = torch.softmax(logits.double(), -1).tolist()
    order = range(len(shares))
    if top_p < 1:
        order = sorted(order, key=lambda i: (-shares[i], i))
        total, nucleus = 0.0, []
        for i in order:
            nucleus.append(i)
            total += shares[i]
            if total >= top_p:
                break
        order = nucleus
    target, total = draw * sum(shares[i] for i in order), 0.0
    for i in order:
        total += shares[i]
        if total > target:
            return i
    return order[-1]


@pytest.mark.parametrize("spread", [0.3, 2.0, 6.0])
def test_sampling_from_a_large_vocabulary_is_by_the_definition(spread):
    """Spread 0.3: the nucleus is larger than what is ranked first; 6: a few tokens."""
    rng = random.Random(4)
    logits = torch.randn((40, 4000), generator=torch.Generator().manual_seed(8)) * spread
    top_p = [rng.choice((1.0, 0.95, 0.5, 0.1, 0.0)) for _ in range(40)]
    draws = [rng.random() for _ in range(40)]
    drawn = sample(logits, torch.tensor(top_p, dtype=torch.float64), torch.tensor(draws, dtype=torch.float64))
    assert drawn == [expected_sample(*row) for row in zip(logits, top_p, draws, strict=True)]


def test_equal_tokens_are_ranked_by_id_also_beyond_what_is_ranked_first():
    draws = torch.tensor([0.0, 0.9999999, 0.5], dtype=torch.float64)
    assert sample(torch.zeros(3, 4096), torch.full((3,), 0.125), draws) == [0, 511, 256]
    assert sample(torch.zeros(3, 4096), torch.full((3,), 0.5), draws) == [0, 2047, 1024]


def test_a_draw_next_to_one_never_takes_a_token_without_probability():
    logits = torch.tensor([[0.0, 1.0, -torch.inf]])
    for top_p in (1.0, 0.99):
        assert sample(logits, torch.tensor([top_p]), torch.tensor([1.0])) in ([0], [1])


# ---------------------------------------------------------------- memory


def kept(decoder):
    return [tuple(layer.keys.shape) if layer.keys is not None else None for layer in decoder._state.layers]


def test_memory_is_for_the_rows_present_and_given_back(tiny):
    decoder = Decoder(tiny)
    decoder.add([("long", Request(text_ids(tiny, "x" * 120), 9))])
    assert {shape[0] for shape in kept(decoder)} == {1}
    short = [(at, Request(text_ids(tiny, "y" * 10), 40)) for at in range(20)]
    decoder.add(short[:5])
    assert {shape[0] for shape in kept(decoder)} == {6}
    decoder.cancel("long")
    decoder.add(short[5:])
    rows, _, places, _ = kept(decoder)[0]
    assert rows == 20
    assert places < 100, "the long row has gone"
    expected = {key: generate(tiny, [request])[0].token_ids for key, request in short}
    found = {}
    while len(decoder):
        found |= {e.key: e.done.token_ids for e in decoder.step() if e.done}
    assert found == {key: expected[key] for key in found}
    assert len(found) > 10
    assert kept(decoder) == [None, None]


def test_long_prompts_share_the_places_that_there_are(tiny):
    decoder = Decoder(tiny)
    short, long = Request([5] * 60, 35), Request([5] * 8000, 35)
    assert decoder.admits([short] * 200, 128) == 128
    assert decoder.admits([long] * 64, 64) == MAX_PLACES // 8035
    assert decoder.admits([Request([5] * MAX_PLACES, 9)], 64) == 1
    decoder.add([(at, Request([5] * 60, 35)) for at in range(20)])
    n = len(decoder)
    assert decoder.admits([long], 64) == 0, "it waits until fewer are left"
    assert decoder.admits([short] * 64, 64) == 64 - n


def test_weights_and_memory_go_with_the_model(tmp_path):
    """By counting references alone: nothing waits for the cycle collector."""
    model = load_model(str(make_folder(tmp_path / "m")))
    decoder = Decoder(model)
    decoder.add([(0, Request(text_ids(model, "hello"), 9))])
    weights = [weakref.ref(p) for p in model.model.parameters()]
    cached = weakref.ref(decoder._state.layers[0].keys)
    del decoder
    assert cached() is None
    del model
    assert [w for w in weights if w() is not None] == []


def test_a_model_that_answered_can_be_trained(tmp_path):
    model = load_model(str(make_folder(tmp_path / "m")))
    ids = torch.tensor([text_ids(model, "hello")])
    before = model.model(ids).logits
    make_differentiable(model)
    assert {type(m) for m in model.model.modules() if isinstance(m, torch.nn.Linear)} == {torch.nn.Linear}
    model.model.requires_grad_(True)
    logits = model.model(ids).logits
    logits.sum().backward()
    assert torch.allclose(before, logits, atol=1e-5)
    assert model.model.lm_head.weight.grad is not None


def test_threads_are_those_that_the_process_may_have_and_are_given_back(tiny, monkeypatch):
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("this system does not tell")
    before = torch.get_num_threads()
    with threads_for(tiny):
        assert torch.get_num_threads() == 1
    monkeypatch.setattr("stillhouse.models.local.load._SMALL_MODEL", 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5})
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    with threads_for(tiny):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == before


# ---------------------------------------------------------------- text


@pytest.fixture(scope="module")
def fallback(tmp_path_factory):
    folder = make_folder(tmp_path_factory.mktemp("sp") / "m", template=None, vocab_size=292, eos_token_id=1)
    make_byte_fallback().save_pretrained(folder)
    return load_model(str(folder))


def test_bytes_that_are_no_characters_do_not_end_the_batch(fallback):
    ids = text_ids(fallback, "Hello")
    asked = [Request(ids, 60, temperature=1.5, seed=seed, stop=("never",)) for seed in range(12)]
    seen = [""] * len(asked)

    def on_token(at, text):
        seen[at] += text

    answers = generate(fallback, asked, on_token=on_token)
    assert [a.text for a in answers] == [ids_text(fallback, a.token_ids) for a in answers]
    assert all(seen)


def test_a_character_that_the_tokenizer_takes_back_is_not_an_error(fallback):
    """The bytes of an e with an accent, the first byte of another character, a letter."""
    stream = _TextStream(fallback, Request([], 9))
    told = [stream.push(i) for i in (3 + 0xC3, 3 + 0xA9, 3 + 0xE4, 264)]
    assert told == ["", "é", "", "\ufffd\ufffde"]
    assert ids_text(fallback, stream.ids) == "\ufffd\ufffd\ufffde"


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
