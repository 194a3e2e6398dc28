"""The student for other servers: a check for vLLM, a GGUF file for llama.cpp, a Modelfile for Ollama.

GGUF is written for Llama models alone, and only with a tokenizer that llama.cpp cuts text by in the same way:
any other would answer, and answer something else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.errors import ModelError, UsageError, storage
from stillhouse.workspace import write_atomic

if TYPE_CHECKING:
    from gguf import GGUFWriter

_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6  # llama.cpp's kinds of tokens
_SPACE = "\u2581"
_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
Render = Callable[[Sequence[Mapping[str, str]], bool], str]


def lacking(folder: Path) -> tuple[str, ...]:
    """What vLLM would miss in a transformers folder; nothing when it can serve chats from it."""
    config = _json(folder / "config.json")
    tokenizer = _json(folder / "tokenizer_config.json")
    template = (folder / "chat_template.jinja").is_file() or "chat_template" in tokenizer
    found = {
        "config.json with the architecture's name": bool(config.get("architectures")),
        "weights as .safetensors": any(folder.glob("*.safetensors")),
        "tokenizer.json": (folder / "tokenizer.json").is_file(),
        "a chat template": template,
    }
    return tuple(what for what, there in found.items() if not there)


def export(folder: Path, path: Path, ollama: bool) -> list[Path]:
    """Write the student of a release as a GGUF file, with a Modelfile beside it for Ollama; returns what was
    written. Where the student cannot be carried over, nothing is.

    Raises UsageError for a folder without a model, for files that are there already or would lie in the
    release, whose signatures are over what it has now, and for a model that would have the Modelfile's name;
    ModelError as `write_gguf` and `modelfile` do.
    """
    if not (folder / "config.json").is_file():
        raise UsageError(f"no model in {folder}", "it has no config.json", "give the folder of a release")
    if ollama and path.name.casefold() == "modelfile":  # some file systems hold the two for one
        raise UsageError(
            f"{path} is the Modelfile's own name",
            "it is written beside the model",
            f"give the model another name, such as {path.with_name('student.gguf')}",
        )
    written = [path, path.with_name("Modelfile")] if ollama else [path]
    for file in written:
        if file.exists():
            raise UsageError(f"{file} is there already", "an export replaces no file", "give a new name")
    if path.resolve().is_relative_to(folder.resolve()):
        raise UsageError(
            f"{path} would lie in the release",
            "its signatures are over the files that it has now",
            "give a file in another folder",
        )
    described = modelfile(folder, path.name) if ollama else ""
    write_gguf(folder, path, path.stem)
    if ollama:
        write_atomic(written[1], described.encode())
    return written


def write_gguf(folder: Path, path: Path, name: str) -> None:
    """Write the model of a transformers folder as one GGUF file, every weight in its own precision.

    Raises ModelError for an architecture, a setting or a tokenizer that the file could not carry.
    """
    import gguf

    config = _json(folder / "config.json")
    _check(folder, config)
    tokens = _tokens(folder, int(config["vocab_size"]))
    fresh = path.with_name(f".{path.name}")
    writer = gguf.GGUFWriter(fresh, "llama")
    writer.add_name(name)
    _sizes(writer, config)
    _vocabulary(writer, folder, config, tokens)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for tensor, values in _tensors(folder, config):
        mapped = names.get_name(tensor, try_suffixes=(".weight",))
        if mapped is None:
            raise _refused(folder, f"it has weights that no Llama has: {tensor}")
        kind = gguf.GGMLQuantizationType.BF16 if values.dtype == "uint8" else None
        writer.add_tensor(mapped, values, raw_dtype=kind)
    with storage("write", path):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        fresh.replace(path)


def modelfile(folder: Path, gguf: str) -> str:
    """Ollama's description of a GGUF file that lies beside it, with the chat template in Go's words.

    Raises ModelError for a template that is more than a frame around each message.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    if not tokenizer.chat_template:
        raise _refused(folder, "it has no chat template")

    def render(messages: Sequence[Mapping[str, str]], answer: bool) -> str:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer))

    lines = [f"FROM ./{gguf}", f'TEMPLATE """{go_template(render)}"""', "PARAMETER temperature 0"]
    if tokenizer.eos_token:
        lines.append(f"PARAMETER stop {json.dumps(tokenizer.eos_token, ensure_ascii=False)}")
    return "\n".join(lines) + "\n"


def go_template(render: Render) -> str:
    """The template of a chat in Go's words, where it puts a fixed text before and after each message.

    It is found by rendering marked messages, and held against chats of several; ModelError where it does
    more, such as a default system prompt, numbering, or trimming.
    """
    frames = {}
    for role in ("system", "user", "assistant"):
        before, mark, after = _rendered(render, [{"role": role, "content": " \x00mark\x00 "}]).partition(
            " \x00mark\x00 "
        )
        if mark:
            frames[role] = before, after
    if "user" not in frames:
        raise _template("it drops or changes what a user says")
    chats = [[role for role in roles if role in frames] for roles in _CHATS]
    begins = _rendered(render, [{"role": "user", "content": "x"}], True)
    framed = "".join([frames["user"][0], "x", frames["user"][1]])
    if not begins.startswith(framed):
        raise _template("it changes what came before when an answer is asked for")
    answer = begins[len(framed) :]
    for roles in chats:
        chat = [{"role": role, "content": f"words {n}"} for n, role in enumerate(roles)]
        wanted = "".join(f"{frames[m['role']][0]}{m['content']}{frames[m['role']][1]}" for m in chat)
        if _rendered(render, chat, True) != wanted + answer:
            raise _template(f"a chat of {', '.join(roles)} is more than its messages one after another")
    cases = "".join(
        f'{{{{ {"else " if n else ""}if eq .Role "{role}" }}}}{_go(before)}{{{{ .Content }}}}{_go(after)}'
        for n, (role, (before, after)) in enumerate(frames.items())
    )
    return f"{{{{ range .Messages }}}}{cases}{{{{ end }}}}{{{{ end }}}}{_go(answer)}"


_CHATS = (("user", "assistant", "user"), ("system", "user"), ("system", "user", "assistant", "user"))


def _rendered(render: Render, messages: Sequence[Mapping[str, str]], answer: bool = False) -> str:
    try:
        return render(messages, answer)
    except Exception as error:  # a template may raise anything, and says so of roles that it does not know
        if messages[0]["role"] == "user":
            raise _template(str(error)) from None
        return ""


def _go(text: str) -> str:
    """A literal that neither Go's templates nor the Modelfile read anything into."""
    if not text:
        return ""
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}"


def _check(folder: Path, config: Mapping[str, Any]) -> None:
    if config.get("architectures") != ["LlamaForCausalLM"]:
        raise _refused(
            folder, f"GGUF is written for LlamaForCausalLM alone, this is {config.get('architectures')}"
        )
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    said = {
        "its positions are scaled": rope.get("rope_type", rope.get("type", "default")) != "default",
        "its projections have biases": bool(config.get("attention_bias") or config.get("mlp_bias")),
        f"it computes with {config.get('hidden_act')}": config.get("hidden_act") != "silu",
    }
    for why, wrong in said.items():
        if wrong:
            raise _refused(folder, f"{why}, which this writer does not carry over")


def _sizes(writer: GGUFWriter, config: Mapping[str, Any]) -> None:
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or {}
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def _tensors(folder: Path, config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names as transformers has them; bfloat16 as bytes, vectors as float32, the rest as it is."""
    import torch
    from safetensors.torch import load_file

    heads = config["num_attention_heads"]
    groups = config.get("num_key_value_heads") or heads
    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in sorted(load_file(file).items()):
            if name == "lm_head.weight" and config.get("tie_word_embeddings"):
                continue
            values = tensor
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                values = _interleaved(values, heads if "q_proj" in name else groups)
            values = values.contiguous()
            if values.dim() == 1:
                values = values.float()
            if values.dtype == torch.bfloat16:
                yield name, values.view(torch.uint8).numpy()
            else:
                yield name, values.numpy()


def _interleaved(weights: Any, heads: int) -> Any:
    """transformers turns a head's first half against its second, llama.cpp each even place against the next:
    so the rows of each head are put in that order."""
    rows, columns = weights.shape
    return weights.reshape(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)


def _tokens(folder: Path, size: int) -> list[tuple[str, int]]:
    """Text and kind of each token, in the order of their ids, filled up to the rows of the embedding."""
    tree = _json(folder / "tokenizer.json")
    byte_fallback = bool(tree["model"].get("byte_fallback"))
    added = {each["id"]: each for each in tree.get("added_tokens") or ()}
    known = {number: text for text, number in tree["model"]["vocab"].items()}
    known |= {number: each["content"] for number, each in added.items()}
    if known and max(known) >= size:
        raise _refused(folder, "its tokenizer has more tokens than the model")
    found = []
    for number in range(size):
        text = known.get(number)
        if text is None:
            found.append((f"[unused {number}]", _UNUSED))
        elif text == tree["model"].get("unk_token"):
            found.append((text, _UNKNOWN))
        elif number in added:
            found.append((text, _CONTROL if added[number]["special"] else _USER))
        else:
            byte = byte_fallback and len(text) == 6 and text.startswith("<0x")
            found.append((text, _BYTE if byte else _NORMAL))
    return found


def _vocabulary(
    writer: GGUFWriter, folder: Path, config: Mapping[str, Any], tokens: Sequence[tuple[str, int]]
) -> None:
    tree, settings = _json(folder / "tokenizer.json"), _json(folder / "tokenizer_config.json")
    kind = _kind(folder, tree)
    writer.add_tokenizer_model("llama" if kind == "llama" else "gpt2")
    writer.add_tokenizer_pre("default" if kind == "llama" else kind)
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_types([kind for _, kind in tokens])
    merges = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in tree["model"]["merges"]]
    if kind == "llama":
        ranks: dict[str, int] = {}
        for rank, (left, right) in enumerate(merges):
            ranks.setdefault(left + right, rank)
        writer.add_token_scores([-float(ranks.get(text, len(merges))) for text, _ in tokens])
        writer.add_add_space_prefix(True)
    else:
        writer.add_token_merges([" ".join(pair) for pair in merges])
    ids = {text: number for number, (text, _) in enumerate(tokens)}
    for role, add in (
        ("bos", writer.add_bos_token_id),
        ("eos", writer.add_eos_token_id),
        ("unk", writer.add_unk_token_id),
        ("pad", writer.add_pad_token_id),
    ):
        said = settings.get(f"{role}_token")
        text = said.get("content") if isinstance(said, dict) else said
        if text in ids:
            add(ids[text])
    single = ((tree.get("post_processor") or {}).get("single")) or []
    first = single[0].get("SpecialToken", {}).get("id") if single else None
    writer.add_add_bos_token(first is not None and first == settings.get("bos_token"))
    writer.add_add_eos_token(False)
    jinja = folder / "chat_template.jinja"
    template = jinja.read_text(encoding="utf-8") if jinja.is_file() else settings.get("chat_template")
    if isinstance(template, str):
        writer.add_chat_template(template)


def _kind(folder: Path, tree: Mapping[str, Any]) -> str:
    """llama.cpp's name for the way in which this tokenizer cuts text. ModelError for any other."""
    model, normalizer, cut = tree["model"], tree.get("normalizer"), tree.get("pre_tokenizer")
    if model.get("type") != "BPE":
        raise _refused(folder, f"its tokenizer is {model.get('type')}, not BPE")
    parts = (normalizer or {}).get("normalizers", [normalizer] if normalizer else [])
    if model.get("byte_fallback") and cut is None and parts == _SENTENCEPIECE:
        return "llama"
    steps = (cut or {}).get("pretokenizers", [cut] if cut else [])
    if normalizer is None and not model.get("byte_fallback"):
        for name, wanted in _CUTS.items():
            if len(steps) == len(wanted) and all(
                step.items() >= each.items() for step, each in zip(steps, wanted, strict=True)
            ):
                return name
    raise _refused(folder, "llama.cpp has no tokenizer that cuts text as this one does")


_SENTENCEPIECE = [
    {"type": "Prepend", "prepend": _SPACE},
    {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
]
_BYTES: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False}
_CUTS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [_BYTES | {"use_regex": True}],
    "smollm": [{"type": "Digits", "individual_digits": True}, _BYTES | {"use_regex": True}],
    "llama-bpe": [
        {"type": "Split", "pattern": {"Regex": _LLAMA_3}, "behavior": "Isolated", "invert": False},
        _BYTES | {"use_regex": False},
    ],
}


def _json(path: Path) -> dict[str, Any]:
    """Its object; an empty one where there is no file."""
    try:
        with storage("read", path):
            return dict(json.loads(path.read_bytes())) if path.is_file() else {}
    except ValueError:
        raise ModelError(f"{path} is damaged", "it is no JSON object", "train the student again") from None


def _refused(folder: Path, why: str) -> ModelError:
    return ModelError(
        f"{folder.name} cannot be written for llama.cpp", why, "serve the folder with vLLM or transformers"
    )


def _template(why: str) -> ModelError:
    return ModelError(
        "the chat template has no form for Ollama", why, "write the TEMPLATE of the Modelfile by hand"
    )
