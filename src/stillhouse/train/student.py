"""The student before its first step, and as it is written down after the last."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stillhouse.errors import ModelError, UsageError
from stillhouse.models.local import LocalModel, best_device, load_model, make_differentiable
from stillhouse.models.reading import config_tokenizer, without_teacher
from stillhouse.recipe import Recipe, Student
from stillhouse.train.checkpoint import writing
from stillhouse.train.pruning import keep_layers
from stillhouse.workspace import write_atomic


def initial_student(recipe: Recipe, teacher_folder: str | None, device: str | None = None) -> LocalModel:
    """The untrained student in float32 on `device`, left out the best there is, its random parts (if any)
    drawn by the run's seed. What is cut by importance (see `pruning`) is still whole: that takes the rows
    which it will learn.

    Raises ModelError for a folder that is not a usable model, UsageError for settings that do not fit.
    """
    torch.manual_seed(recipe.run.seed)
    student = recipe.student
    teacher = teacher_folder or (
        None if recipe.teacher.endpoint or recipe.teacher.imported else recipe.teacher.model
    )
    if student.init == "config":
        return _from_config(student, teacher, device)
    if student.init == "from_teacher":
        return _from_teacher(student, teacher, device)
    return _differentiable(load_model(student.init, "float32", device))


def _differentiable(local: LocalModel) -> LocalModel:
    """Layers of a model loaded to answer may run kernels without a backward pass; give back their own."""
    make_differentiable(local)
    return local


def _from_config(student: Student, teacher: str | None, device: str | None) -> LocalModel:
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = config_tokenizer(student, teacher)
    settings = student.config or {}
    valid = sorted(LlamaConfig().to_dict())
    for key in settings:
        if key not in valid:
            near = difflib.get_close_matches(key, valid, n=1, cutoff=0.4)
            raise UsageError(
                f"unknown key `student.config.{key}`",
                "a Llama configuration has no such value",
                f"did you mean `{near[0]}`?" if near else "see LlamaConfig of transformers",
            )
    derived = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    try:
        config = LlamaConfig(**{**derived, **settings})
        if config.vocab_size < len(tokenizer):
            raise ValueError(f"vocab_size {config.vocab_size}, but the tokenizer has {len(tokenizer)} tokens")
        model = LlamaForCausalLM(config)
    except Exception as error:  # transformers and torch check values each in their own way
        raise UsageError(
            "`student.config` does not make a model", str(error)[:300], "mend the values"
        ) from error
    return _as_local("config", "", model.float().to(device or best_device()), tokenizer)


def _from_teacher(student: Student, teacher: str | None, device: str | None) -> LocalModel:
    if teacher is None:
        raise without_teacher()
    local = _differentiable(load_model(teacher, "float32", device))
    model = local.model
    layers = getattr(model.base_model, "layers", None)
    if not isinstance(layers, torch.nn.ModuleList):
        raise ModelError(
            f"cannot drop layers of {teacher}",
            f"{type(model).__name__} does not keep its decoder layers in `model.layers`",
            "start the student from a folder, a hub id or a config",
        )
    keep = student.keep_layers
    if keep is None and student.keep_width is None:
        keep = list(range(0, len(layers), 2))
    if isinstance(keep, list):
        if not keep or sorted(set(keep)) != keep or keep[0] < 0 or keep[-1] >= len(layers):
            raise UsageError(
                f"`student.keep_layers` = {keep} does not fit the teacher",
                f"the teacher has layers 0 to {len(layers) - 1}",
                "give some of these, in rising order, each once",
            )
        keep_layers(model, keep)
    return _as_local("from_teacher", local.folder, model, local.tokenizer)


def _as_local(source: str, folder: str, model: Any, tokenizer: Any) -> LocalModel:
    found = (tokenizer.eos_token_id, getattr(model.config, "eos_token_id", None))
    ends = {end for each in found for end in (each if isinstance(each, list) else [each]) if end is not None}
    context = getattr(model.config, "max_position_embeddings", None)
    template = bool(getattr(tokenizer, "chat_template", None))
    return LocalModel(source, folder, model, tokenizer, frozenset(ends), template, context)


def with_adapter(student: Student, model: Any, seed: int) -> Any:
    """The model with its LoRA adapter (DoRA: Liu et al. 2024, arXiv:2402.09353), or the model itself when
    the recipe asks for none."""
    model.requires_grad_(True)
    if student.lora is None:
        return model
    from peft import LoraConfig, TaskType, get_peft_model

    torch.manual_seed(seed)
    targets = student.lora.targets or "all-linear"
    try:
        return get_peft_model(
            model,
            LoraConfig(
                r=student.lora.rank,
                lora_alpha=student.lora.alpha,
                target_modules=targets,
                use_dora=student.lora.dora,
                task_type=TaskType.CAUSAL_LM,
            ),
        )
    except ValueError as error:
        raise UsageError(
            "the LoRA adapter does not fit the student",
            str(error)[:300],
            "name modules of the student in `student.lora.targets`, or leave it out",
        ) from error


def save_before(student: LocalModel, path: Path) -> None:
    """Write where the untrained student lies: a pointer (one line of text) to a folder that exists anyway,
    a folder of its own for a student that was just made."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if student.source in ("config", "from_teacher"):
        save_model(student.model, student.tokenizer, path)
    else:
        where = Path(student.folder)
        write_atomic(path, f"{where.resolve() if where.is_dir() else student.folder}\n".encode())


def save_student(
    student: LocalModel, trained: Any, path: Path, weights: dict[str, Tensor] | None = None
) -> None:
    """Write the trained student (float32) to `path`; of a LoRA student the merged weights, with the
    adapter beside them in `adapter/`. `weights` are whole ones where the model's own are in parts."""
    adapter = path.with_name(f".{path.name}.adapter")
    shutil.rmtree(adapter, ignore_errors=True)
    if trained is not student.model:
        with writing("write", adapter):
            trained.save_pretrained(adapter)
        trained = trained.merge_and_unload()
    save_model(trained, student.tokenizer, path, adapter if adapter.is_dir() else None, weights)


def save_model(
    model: Any,
    tokenizer: Any,
    path: Path,
    adapter: Path | None = None,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """A folder that transformers loads, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    implementation = model.config._attn_implementation
    with writing("write", path), _no_progress_bar():
        model.config._attn_implementation = (
            "sdpa" if implementation.startswith("stillhouse") else implementation
        )
        model.save_pretrained(partial, state_dict=weights)
        model.config._attn_implementation = implementation
        tokenizer.save_pretrained(partial)
        if adapter is not None:
            adapter.rename(partial / "adapter")
        shutil.rmtree(path, ignore_errors=True)
        os.replace(partial, path)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def weights_of(model: Any) -> str:
    """SHA-256 (hex) over the names and values of the model's weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 (hex) over what the tokenizer does: vocabulary, special tokens, merges where it shows them,
    chat template. Not its name and not its size, which different tokenizers share."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = {
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "special": sorted((k, str(v)) for k, v in tokenizer.special_tokens_map.items()),
        "template": str(getattr(tokenizer, "chat_template", None) or ""),
        "model": json.loads(backend.to_str())["model"].get("merges") if backend is not None else None,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
