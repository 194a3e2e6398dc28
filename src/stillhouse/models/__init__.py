"""Models: where their files lie, and what identifies them. No torch here."""

from __future__ import annotations

import hashlib
from pathlib import Path

from stillhouse.errors import ModelError, storage

_EMBEDDED = Path(__file__).parent / "embedded"
_SCHEME = "embedded:"
_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")
_OTHERS = (
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "chat_template*",
)


def source_folder(source: str) -> str:
    """Where `source` lies: the folder of a shipped model, a folder as given, or a hub id unchanged.

    Raises ModelError for an `embedded:` name that is not shipped.
    """
    if not source.startswith(_SCHEME):
        return str(Path(source).expanduser()) if source.startswith("~") else source
    name = source.removeprefix(_SCHEME)
    known = sorted(p.parent.name for p in _EMBEDDED.glob("*/config.json"))
    if name not in known:
        names = ", ".join(_SCHEME + each for each in known) or "none in this installation"
        raise ModelError(
            f"there is no shipped model {source!r}",
            f"shipped models: {names}",
            "use one of these, a folder that transformers can load, or a hub id",
        )
    return str(_EMBEDDED / name)


def weights_digest(folder: str | Path) -> str:
    """SHA-256 (hex) over the names and bytes of config, tokenizer and weight files, in order of name.

    The declared revision of a local model: whatever changes an answer changes it (weights, configuration,
    tokenizer, chat template). Each file enters as `name NUL length NUL bytes`, so no two sets of files
    collide by moving a border.

    Raises ModelError when the folder holds no weights.
    """
    root = Path(folder)
    weights = {p for pattern in _WEIGHTS for p in root.glob(pattern)}
    if not weights:
        raise ModelError(
            f"{root} holds no weights",
            "no .safetensors, .bin or .gguf file lies in it",
            "name the folder that `save_pretrained` wrote",
        )
    files = weights | {p for pattern in _OTHERS for p in root.glob(pattern) if p.is_file()}
    digest = hashlib.sha256()
    for path in sorted(files, key=lambda p: p.name):
        with storage("read", path), path.open("rb") as stream:
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
