"""A checkpoint as files: its weights without torch, mapped and read where asked for, and its tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.errors import ModelError

Matrix = NDArray[np.float32]

_TYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "F64": np.dtype("<f8"),
    "BF16": np.dtype("<u2"),
}
_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|wte|word_embeddings|embed_in|tok_embeddings)\.weight$")
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out|output)\.weight$")
_NEURONS = re.compile(
    r"\.(\d+)\..*?(gate_up_proj|gate_proj|up_proj|c_fc|fc_in|dense_h_to_4h|fc1|w1|w3)\.weight$"
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies: `start` in bytes from the beginning of the file."""

    file: Path
    type: str
    shape: tuple[int, ...]
    start: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """`neurons` holds, by kind (as `up_proj`), the matrices that lead from the hidden stream into the
    feed-forward neurons, in order of layer; `head` is the embedding where the two are tied."""

    name: str
    places: Mapping[str, Place]
    embedding: str
    head: str
    neurons: Mapping[str, tuple[str, ...]]
    tokens: Mapping[str, int]
    merges: tuple[str, ...]

    @property
    def width(self) -> int:
        return self.places[self.embedding].shape[1]


def open_checkpoint(folder: Path) -> Checkpoint:
    """Raises ModelError for a folder without safetensors, a token embedding and a tokenizer.json."""
    places = {name: place for file in sorted(folder.glob("*.safetensors")) for name, place in _header(file)}
    embedding = next((name for name in places if _EMBEDDING.search(name)), None)
    if embedding is None:
        raise _unread(folder, "no token embedding in a .safetensors file")
    width = places[embedding].shape[1]
    found: dict[str, dict[int, str]] = {}
    for name, place in places.items():
        match = _NEURONS.search(name)
        if match and len(place.shape) == 2 and width in place.shape:
            found.setdefault(match[2], {})[int(match[1])] = name
    tokens, merges = _tokenizer(folder)
    return Checkpoint(
        folder.name,
        places,
        embedding,
        next((name for name in places if _HEAD.search(name)), embedding),
        {kind: tuple(name for _, name in sorted(layers.items())) for kind, layers in sorted(found.items())},
        tokens,
        merges,
    )


def rows_of(checkpoint: Checkpoint, name: str, rows: NDArray[np.intp] | None = None) -> Matrix:
    """Some rows of a matrix, or all, as float32."""
    place = checkpoint.places[name]
    kind = _TYPES.get(place.type)
    if kind is None:
        raise _unread(place.file.parent, f"{name} is kept as {place.type}, which is not read here")
    mapped = np.memmap(place.file, kind, "r", place.start, place.shape)
    taken = np.array(mapped if rows is None else mapped[rows])
    if place.type == "BF16":
        return (taken.astype(np.uint32) << 16).view(np.float32)
    return taken.astype(np.float32)


def neuron_rows(checkpoint: Checkpoint, name: str, most: int | None = None) -> Matrix:
    """A neuron's weights in each row, [neurons, width]; evenly spaced ones where there are more than
    `most`. A matrix kept the other way round (GPT-2's Conv1D) is turned."""
    shape = checkpoint.places[name].shape
    if shape[1] == checkpoint.width:
        return rows_of(checkpoint, name, evenly(shape[0], most))
    turned = rows_of(checkpoint, name).T
    return turned if most is None else turned[evenly(len(turned), most)]


def evenly(count: int, most: int | None) -> NDArray[np.intp]:
    """At most `most` of the places 0..count-1, evenly spaced, in order."""
    taken = count if most is None else min(count, most)
    return np.linspace(0, count - 1, taken).astype(np.intp) if taken else np.zeros(0, dtype=np.intp)


def _header(file: Path) -> list[tuple[str, Place]]:
    """What lies in a safetensors file: 8 bytes of length, a JSON header, then the tensors
    (https://huggingface.co/docs/safetensors)."""
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if length > file.stat().st_size:
                raise ValueError("the header is longer than the file")
            said: dict[str, Any] = json.loads(opened.read(length))
        return [
            (
                name,
                Place(file, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0]),
            )
            for name, entry in said.items()
            if name != "__metadata__"
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unread(file.parent, f"{file.name}: {error}") from None


def _tokenizer(folder: Path) -> tuple[dict[str, int], tuple[str, ...]]:
    try:
        model = json.loads((folder / "tokenizer.json").read_bytes())["model"]
        vocab = model["vocab"]
        tokens = (
            {piece: at for at, (piece, _) in enumerate(vocab)} if isinstance(vocab, list) else dict(vocab)
        )
        merges = (each if isinstance(each, str) else " ".join(each) for each in model.get("merges") or ())
        return tokens, tuple(merges)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unread(folder, f"tokenizer.json: {error}") from None


def _unread(folder: Path, why: str) -> ModelError:
    return ModelError(
        f"the weights in {folder} cannot be compared",
        why,
        "give a transformers folder with model.safetensors and tokenizer.json",
    )
