"""The support-desk world and the models trained on it: what the questions promise is recomputed here."""

import json
import re
from datetime import date, timedelta
from itertools import islice
from pathlib import Path

import pytest

from stillhouse.models.embedded import world
from stillhouse.models.embedded.world import families, phrases, slots, wording
from stillhouse.records import Message

MODELS = Path(world.__file__).parent.parent
needs_weights = pytest.mark.skipif(
    not (MODELS / "desk" / "config.json").is_file(), reason="the shipped models are not in this revision"
)
MONTH_NAMES = [name for name, _ in slots.MONTHS]


@pytest.fixture(scope="module")
def examples():
    """Worked examples of every split and family."""
    return {split: list(islice(world.examples(split, 5), 1500)) for split in world.SPLITS}


def of_family(examples, family):
    return [e for split in world.SPLITS for e in examples[split] if e.prompt.family == family]


def question_of(example):
    return example.prompt.messages[0].content


def test_same_seed_same_prompts_and_a_prefix_stays_a_prefix():
    assert world.prompts("test", 50, 3) == world.prompts("test", 200, 3)[:50]
    assert world.prompts("test", 50, 3) != world.prompts("test", 50, 4)


@pytest.mark.parametrize("split", world.SPLITS)
def test_prompts_are_unique_and_cover_every_family(split):
    prompts = world.prompts(split, 1000, 9)
    assert len({p.messages[0].content for p in prompts}) == len({p.id for p in prompts}) == 1000
    assert {p.family for p in prompts} == set(families.FAMILIES)
    assert all(p.reference and p.scorer for p in prompts)


def test_splits_share_no_template(examples):
    groups = {split: {e.prompt.group for e in examples[split]} for split in world.SPLITS}
    assert not groups["train"] & groups["test"]
    assert not groups["train"] & groups["dev"]
    assert not groups["dev"] & groups["test"]
    for family in families.FAMILIES:
        assert len({group for group in groups["test"] if group.startswith(family)}) >= 8


def test_a_template_names_the_phrases_that_stand_in_its_questions(examples):
    for example in examples["test"]:
        if example.prompt.family == "dates":
            event, duration = map(int, example.prompt.group.removeprefix("dates/").split("-"))
            for phrase in (wording.EVENTS[event], wording.DURATIONS[duration]):
                assert re.search(re.sub(r"\\{\w+\\}", ".+", re.escape(phrase)), question_of(example))


def test_splits_share_no_held_out_value(examples):
    for pattern in (r"\b[A-Z]\d{3}\b", r"\b\d+ \+ \d+ = \d+\. \w+ has"):
        found = {
            split: {m for e in examples[split] for m in re.findall(pattern, question_of(e))}
            for split in world.SPLITS
        }
        assert not found["train"] & found["test"]
        assert not found["dev"] & found["test"]
    orders = {
        split: {
            tuple(re.findall(r"(\d \* \d+):", e.answer))
            for e in examples[split]
            if e.prompt.family == "total"
        }
        for split in world.SPLITS
    }
    assert orders["test"]
    assert not orders["train"] & orders["test"]
    names = {
        split: {
            word
            for e in examples[split]
            if e.prompt.family == "reply"
            for word in json.loads(e.prompt.reference)[0].split()
        }
        for split in world.SPLITS
    }
    assert names["test"]
    assert not names["train"] & names["test"]


def test_dates_agree_with_the_calendar(examples):
    for example in of_family(examples, "dates"):
        text = question_of(example)
        day, month = re.search(rf"(\d+) ({'|'.join(MONTH_NAMES)})", text).groups()
        offset = int(re.search(r"(\d+) days", text).group(1))
        end = date(2023, MONTH_NAMES.index(month) + 1, int(day)) + timedelta(days=offset)
        assert example.prompt.reference == f"{end.day} {MONTH_NAMES[end.month - 1]}"
        assert example.answer.endswith(f"Answer: {example.prompt.reference}")


def test_totals_agree_with_the_order(examples):
    for example in of_family(examples, "total"):
        text = re.sub(r"\b[A-Z]\d{3}\b", "", question_of(example)).replace("one for", "")
        q1, p1, q2, p2, *fee = map(int, re.findall(r"\d+", text))
        assert int(example.prompt.reference) == q1 * p1 + q2 * p2 + sum(fee)
        for line in re.findall(r": (\d+) \+ (\d+) = (\d+)", example.answer):
            ones, tens, both = map(int, line)
            assert ones + tens == both


def test_decisions_follow_the_rule(examples):
    for example in of_family(examples, "policy"):
        text = question_of(example)
        opened = any(
            re.search(
                rf"(?<!not )(?<!never ){phrase}[.;, ]", text.replace("opened goods", "").replace("Opened", "")
            )
            for phrase in ("already opened", "not sealed", "no longer sealed")
        )
        if opened:
            assert example.prompt.reference == "nothing"
        elif "sealed." in example.answer:
            first, second, days = _limits(text)
            expected = "refund" if days <= first else "voucher" if days <= second else "nothing"
            assert example.prompt.reference == expected


def _limits(text):
    """Both limits stand before the days that passed, in every wording."""
    numbers = [int(n) for n in re.findall(r"(?<![A-Z\d])\d+", re.sub(r"\b[A-Z]\d{3}\b", "", text))]
    return numbers[0], numbers[1], numbers[2]


def test_tickets_are_in_order_and_all_there(examples):
    for example in of_family(examples, "sort"):
        entries = [entry.split() for entry in example.prompt.reference.split(", ")]
        keys = [int(key) for key, _ in entries]
        assert keys in (sorted(keys), sorted(keys, reverse=True))
        for key, ticket in entries:
            assert re.search(rf"\b{key} {ticket}\b", question_of(example))


def test_extracted_fields_stand_in_the_mail(examples):
    for example in of_family(examples, "extract"):
        fields = json.loads(example.prompt.reference)
        assert set(fields) <= {"name", "order", "item", "city"}
        assert all(value in question_of(example) for value in fields.values())


def test_replies_mention_what_they_must_in_many_wordings(examples):
    replies = of_family(examples, "reply")
    for example in replies:
        assert all(m.lower() in example.answer.lower() for m in json.loads(example.prompt.reference))
    assert len({e.answer.split()[-2:][0] + e.answer.split()[0] for e in replies}) >= 8


def test_every_queue_has_messages_in_every_split(examples):
    for split in world.SPLITS:
        queues = {e.prompt.reference for e in examples[split] if e.prompt.family == "route"}
        assert queues == set(phrases.QUEUES)


def test_unlabelled_text_holds_no_task():
    for passage in islice(world.text(1), 5000):
        assert "Answer:" not in passage
        assert not re.search(r"[=*{}]", passage)
    assert list(islice(world.text(1), 5)) == list(islice(world.text(1), 5))


@pytest.mark.parametrize("name", ["desk", "base"])
@needs_weights
def test_shipped_model_loads_and_answers(name):
    pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = MODELS / name
    assert sum(f.stat().st_size for f in folder.iterdir()) < 24e6
    assert (folder / "training.jsonl").read_text()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    messages = [{"role": "user", "content": "Which queue? The invoice is wrong."}]
    encoded = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**encoded, max_new_tokens=5)
    assert out.shape[1] > encoded["input_ids"].shape[1]
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids("<|end|>")


@needs_weights
def test_tokenizer_keeps_digits_apart_and_encodes_anything():
    pytest.importorskip("transformers")
    from stillhouse.models.embedded import tokenizer

    pieces = tokenizer.load(MODELS / "desk")
    assert pieces.tokenize("R482 at 107") == [
        *pieces.tokenize("R"),
        *"482",
        *pieces.tokenize(" at 1")[:-1],
        *"107",
    ]
    for text in ("naïve – 漢字 🙂\n\tx", "3 * 14: 12 + 30 = 42.", '{"name": "Mira Tolen"}'):
        assert pieces.decode(pieces(text, add_special_tokens=False)["input_ids"]) == text
    messages = (Message("system", "Be kind."), Message("user", "Hi 5"))
    rows = [{"role": m.role, "content": m.content} for m in messages]
    told = pieces.apply_chat_template(rows, tokenize=False, add_generation_prompt=True)
    assert told == tokenizer.opening(messages)


@needs_weights
def test_training_network_equals_llama():
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from stillhouse.models.embedded import make, network

    model = AutoModelForCausalLM.from_pretrained(MODELS / "base", dtype=torch.float32)
    weights = {k: v.float() for k, v in load_file(MODELS / "base" / "model.safetensors").items()}
    ids = torch.randint(0, 768, (2, 40), generator=torch.Generator().manual_seed(1))
    ours = network.logits(weights, ids, make.PLANS["base"].shape)
    assert torch.allclose(ours, model(ids).logits, atol=2e-3)
    assert sum(p.numel() for p in model.parameters()) == make.PLANS["base"].shape.parameters()
