"""The student in other servers: transformers and llama.cpp read the GGUF file, and answer as the folder."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from urllib.request import Request, urlopen

import gguf
import pytest
import torch
from byte_llamas import CUTS, byte_level
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import make_folder
from tiny import TEMPLATE, tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from stillhouse.errors import ModelError
from stillhouse.models import source_folder
from stillhouse.release.exports import go_template, lacking, modelfile, write_gguf

STORIES = Path(__file__).parents[3] / "shared" / "data" / "models" / "stories260K"
PROMPTS = ("Once upon a time", "The dog, 12 cats and Zoë   (3.5)\n\nit's 蒸留", " a  b")


def read_dtype(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text())
    return config.get("dtype") or config["torch_dtype"]


@pytest.fixture(scope="module", params=["stories", *CUTS, "bfloat16"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "stories":
        if not STORIES.is_dir():
            pytest.skip("stories260K is not in ../shared/data")
        return STORIES
    made = tmp_path_factory.mktemp("student")
    if request.param == "bfloat16":
        return byte_level(made, "gpt-2", torch.bfloat16)
    return byte_level(made, request.param)


@pytest.fixture(scope="module")
def written(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "student.gguf"
    write_gguf(folder, path, "student")
    return path


def test_transformers_reads_the_same_model_back(folder: Path, written: Path):
    before = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    after = AutoModelForCausalLM.from_pretrained(written.parent, gguf_file=written.name, dtype=torch.float32)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(before(ids).logits, after(ids).logits)


def test_the_file_holds_every_weight_in_its_own_precision(folder: Path, written: Path):
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(written).tensors}
    model = AutoModelForCausalLM.from_pretrained(folder)
    parameters = sum(p.numel() for p in model.parameters())
    assert sum(int(tensor.n_elements) for tensor in found.values()) == parameters
    wanted = "BF16" if model.dtype == torch.bfloat16 else "F32"
    assert found["blk.0.attn_q.weight"].tensor_type.name == wanted
    assert found["blk.0.attn_norm.weight"].tensor_type.name == "F32"


def test_llama_cpp_reads_and_writes_the_same_tokens(folder: Path, written: Path):
    xllamacpp = pytest.importorskip("xllamacpp", reason="xllamacpp is not installed (requirements-gguf.lock)")
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.n_parallel = str(written), 256, 1
    settings.cpuparams.n_threads = 1
    # As transformers does: by default llama.cpp keeps half precision there.
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(settings)

    def ask(route: str, **body: object) -> list[int]:
        url, data = f"{server.listening_address}/{route}", json.dumps(body).encode()
        with urlopen(Request(url, data, {"Content-Type": "application/json"}), timeout=30) as reply:
            return json.load(reply)["tokens"]

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        assert ask("tokenize", content=prompt, add_special=True) == ids[0].tolist()
        if read_dtype(folder) == "bfloat16":
            continue  # llama.cpp rounds what flows between such weights too, so it may choose otherwise
        wrote = ask("completion", prompt=prompt, n_predict=24, temperature=0, return_tokens=True)
        read = torch.cat([ids, torch.tensor([wrote])], dim=1)
        with torch.no_grad():
            likely = model(read).logits[0, ids.shape[1] - 1 : -1].log_softmax(-1)
        chosen = likely.gather(1, torch.tensor(wrote)[:, None])[:, 0]
        # Of tokens that random weights make all but equally likely either may come out as the best.
        assert (likely.max(-1).values - chosen).max() < (1e-6 if folder == STORIES else 0.01)


# What is refused


def changed(folder: Path, **config: object) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return folder


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"architectures": ["Qwen3ForCausalLM"]}, "LlamaForCausalLM alone"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "positions are scaled"),
        ({"attention_bias": True}, "biases"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"vocab_size": 20}, "more tokens than the model"),
    ],
)
def test_what_the_file_cannot_carry_is_refused(config: dict, why: str, tmp_path: Path):
    folder = changed(byte_level(tmp_path / "m", "gpt-2"), **config)
    with pytest.raises(ModelError, match="cannot be written") as caught:
        write_gguf(folder, tmp_path / "m.gguf", "m")
    assert why in caught.value.why
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize("model", ["shipped", "letters"])
def test_a_tokenizer_that_llama_cpp_does_not_have_is_refused(model: str, tmp_path: Path):
    folder = Path(source_folder("embedded:base")) if model == "shipped" else tiny_model(tmp_path / "m")
    with pytest.raises(ModelError, match="cannot be written") as caught:
        write_gguf(folder, tmp_path / "m.gguf", "m")
    assert "tokenizer" in caught.value.why


def test_a_folder_that_vllm_cannot_serve_chats_from_says_what_it_lacks(tmp_path: Path):
    folder = make_folder(tmp_path / "whole")
    assert lacking(folder) == ()
    assert lacking(Path(source_folder("embedded:base"))) == ()
    assert lacking(make_folder(tmp_path / "bare", template=None)) == ("a chat template",)
    shutil.rmtree(folder)
    assert len(lacking(folder)) == 4


# Chat templates


def spoken(template: str, messages: list[dict[str, str]]) -> str:
    """What Go makes of such a template: the few words of it that are written here."""
    whole = re.fullmatch(r"\{\{ range \.Messages \}\}(.*)\{\{ end \}\}\{\{ end \}\}(.*)", template, re.DOTALL)
    cases = re.split(r"\{\{ (?:else )?if eq \.Role (\"\w+\") \}\}", whole[1])
    frames = {json.loads(role): body for role, body in zip(cases[1::2], cases[2::2], strict=True)}

    def filled(body: str, content: str) -> str:
        parts = re.findall(r"\{\{ (\.Content|\"(?:[^\"\\]|\\.)*\") \}\}", body)
        assert "".join(f"{{{{ {part} }}}}" for part in parts) == body
        return "".join(content if part == ".Content" else json.loads(part) for part in parts)

    said = [filled(frames[m["role"]], m["content"]) if m["role"] in frames else "" for m in messages]
    return "".join(said) + filled(whole[2], "")


CHAT = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": 'say "{{ hi }}"'},
    {"role": "assistant", "content": "hi"},
    {"role": "user", "content": "again"},
]


def test_ollama_gets_the_template_that_the_student_was_trained_with(tmp_path: Path):
    folder = tiny_model(tmp_path / "m", template=TEMPLATE)
    made = modelfile(folder, "m.gguf")
    template = re.search(r'TEMPLATE """(.*)"""\n', made, re.DOTALL)[1]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    wanted = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert spoken(template, CHAT) == wanted
    assert made.startswith("FROM ./m.gguf\n")
    assert 'PARAMETER stop "</s>"' in made


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=8), min_size=7, max_size=7))
def test_any_frame_around_messages_is_carried_over(parts: list[str]):
    *frame, answer = parts
    frames = dict(
        zip(("system", "user", "assistant"), zip(frame[::2], frame[1::2], strict=True), strict=True)
    )

    def render(messages, asked):
        said = [f"{frames[m['role']][0]}{m['content']}{frames[m['role']][1]}" for m in messages]
        return "".join(said) + (answer if asked else "")

    template = go_template(render)
    assert '"""' not in template
    assert spoken(template, CHAT) == render(CHAT, True)


def test_a_template_that_does_more_than_frame_is_refused():
    def numbered(messages, asked):
        return "".join(f"{n} {m['role']} {m['content']}\n" for n, m in enumerate(messages))

    def trimmed(messages, asked):
        return "".join(m["content"].strip() for m in messages)

    def strict(messages, asked):
        raise ValueError("no")

    for render in (numbered, trimmed, strict):
        with pytest.raises(ModelError, match="no form for Ollama"):
            go_template(render)


def test_a_role_that_the_template_refuses_is_left_out():
    def render(messages, asked):
        if messages[0]["role"] == "system":
            raise ValueError("system messages are not supported")
        return "".join(f"[{m['role']}]{m['content']}" for m in messages) + ("[assistant]" if asked else "")

    chat = CHAT[1:]
    assert spoken(go_template(render), chat) == render(chat, True)
