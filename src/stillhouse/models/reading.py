"""How a model reads: from messages to token ids, and from an answer to the row that a student learns it by.

Needs a tokenizer and no weights, so that whoever prepares rows makes the same ids as whoever trains on them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.errors import ModelError, UsageError
from stillhouse.models import source_folder
from stillhouse.models.vocabulary import Vocabulary, read_vocabulary
from stillhouse.recipe import Student
from stillhouse.records import Message


@dataclass(frozen=True, slots=True)
class Reader:
    """A tokenizer of transformers, and the ids at which its model stops."""

    tokenizer: Any
    stop_ids: frozenset[int]

    @property
    def template(self) -> str:
        """SHA-256 (hex) of the chat template; "" where there is none."""
        template = getattr(self.tokenizer, "chat_template", None)
        return hashlib.sha256(str(template).encode()).hexdigest() if template else ""

    def vocabulary(self) -> Vocabulary:
        """Raises ModelError for a tokenizer whose tokens have no bytes of their own."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ModelError(
                "the tokens of this tokenizer cannot be read",
                f"{type(self.tokenizer).__name__} keeps no tokenizer.json",
                "save it as a fast tokenizer of transformers",
            )
        return read_vocabulary(backend.to_str())


def student_reader(student: Student, teacher: str | None) -> Reader:
    """How the student of a recipe will read, before it is made; `teacher` is the folder or hub id of a
    teacher whose files are here.

    Raises ModelError for a tokenizer that cannot be loaded, UsageError when there is none.
    """
    if student.init == "config":
        tokenizer = config_tokenizer(student, teacher)
        end = (student.config or {}).get("eos_token_id", tokenizer.eos_token_id)
        return Reader(tokenizer, stop_ids([tokenizer.eos_token_id, end]))
    if student.init == "from_teacher":
        if teacher is None:
            raise without_teacher()
        return _reader(teacher, generating=False)
    return _reader(student.init, generating=True)


def teacher_reader(source: str) -> Reader:
    """How a teacher reads whose files are here. Raises ModelError."""
    return _reader(source, generating=True)


def teacher_vocabulary(source: str) -> Vocabulary | None:
    """What the tokens of a teacher spell whose files are here; None where they have no bytes of their own."""
    tokenizer = load_part("tokenizer", source, source_folder(source))
    try:
        return Reader(tokenizer, frozenset()).vocabulary()
    except ModelError:
        return None


def config_tokenizer(student: Student, teacher: str | None) -> Any:
    """The tokenizer of a student that is made of a configuration: its own, else the teacher's."""
    source = student.tokenizer or teacher
    if source is None:
        raise UsageError(
            "the student has no tokenizer",
            "the teacher's files are not here, and `student.tokenizer` is not set",
            "name a tokenizer folder or a hub id in `student.tokenizer`",
        )
    return load_tokenizer(source, "student.tokenizer")


def load_tokenizer(source: str, setting: str) -> Any:
    """The tokenizer in a folder or of a hub id, which may hold no model; `setting` is where it was named.

    Raises ModelError.
    """
    from transformers import AutoTokenizer

    folder = source_folder(source)
    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # transformers raises OSError, ValueError, json errors and its own
        raise ModelError(
            f"could not load a tokenizer from {source}",
            first_line(error),
            f"name a folder with tokenizer files in `{setting}`",
        ) from error


def without_teacher() -> UsageError:
    return UsageError(
        'the student cannot be made with `init = "from_teacher"`',
        "the teacher's weights are not here",
        "name a local teacher, or start the student from a folder or a hub id",
    )


def _reader(source: str, generating: bool) -> Reader:
    """`generating` says that the ends in the file generation_config.json count as well."""
    from transformers import GenerationConfig

    folder = source_folder(source)
    config, tokenizer = load_part("configuration", source, folder), load_part("tokenizer", source, folder)
    found = [getattr(config, "eos_token_id", None), tokenizer.eos_token_id]
    if generating:
        with suppress(OSError):  # where there is no such file, the configuration says it all
            found.append(GenerationConfig.from_pretrained(folder).eos_token_id)
    return Reader(tokenizer, stop_ids(found))


def stop_ids(ends: Iterable[int | Sequence[int] | None]) -> frozenset[int]:
    found: set[int] = set()
    for ids in ends:
        found.update([ids] if isinstance(ids, int) else ids or ())
    return frozenset(found)


def load_part(part: str, source: str, folder: str) -> Any:
    """The `configuration` or the `tokenizer` of a model. Raises ModelError."""
    from transformers import AutoConfig, AutoTokenizer

    root = Path(folder)
    looks_local = root.exists() or folder.startswith((".", "/")) or folder.count("/") > 1
    if looks_local and not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise ModelError(
            f"no model at {source}", f"{folder} {what}", "name a folder that transformers can load"
        )
    if looks_local and not (root / "config.json").is_file():
        raise ModelError(f"{source} is not a model", "it holds no config.json", "name the model's own folder")
    loader = AutoConfig if part == "configuration" else AutoTokenizer
    try:
        return loader.from_pretrained(folder)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, json errors and its own
        mend = (
            f"check its {part} files, or save the model again with `save_pretrained`"
            if looks_local
            else "check the id and the connection, or download the model and name its folder"
        )
        raise ModelError(f"could not load the {part} of {source}", first_line(error), mend) from error


def first_line(error: Exception) -> str:
    text = str(error).strip()
    return (text.splitlines()[0][:300] if text else "") or type(error).__name__


def prompt_ids(reader: Reader, messages: Sequence[Message]) -> list[int]:
    """Token ids that ask the model for the next assistant message.

    A model without a chat template reads the messages' contents, joined by newlines, as text to continue.
    Raises UsageError when the model's template refuses these messages.
    """
    if not getattr(reader.tokenizer, "chat_template", None):
        return text_ids(reader, "\n".join(m.content for m in messages))
    turns = [{"role": m.role, "content": m.content} for m in messages]
    try:
        ids = reader.tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=True, return_dict=False
        )
    except Exception as error:  # the template is a program of the model's author and raises what it likes
        raise UsageError(
            "the model's chat template refused the messages",
            first_line(error),
            "check the order of the roles (system first, then user and assistant in turn)",
        ) from error
    return [int(i) for i in ids]


def text_ids(reader: Reader, text: str) -> list[int]:
    """Token ids of a text to be continued: with the tokenizer's opening token, without its closing one."""
    ids = [int(i) for i in reader.tokenizer(text)["input_ids"]]
    while len(ids) > 1 and ids[-1] in reader.stop_ids:
        ids.pop()
    return ids


def end_id(reader: Reader) -> int:
    """The token that every completion ends with: the tokenizer's, else the first at which the model stops.

    Raises UsageError when there is neither: a student that never saw an end would never come to one.
    """
    own = reader.tokenizer.eos_token_id
    ends = sorted(reader.stop_ids) if own is None else [own]
    if not ends:
        raise UsageError(
            "the student has no token that ends an answer",
            "its tokenizer has no `eos_token` and its configuration no `eos_token_id`",
            "set `eos_token_id` in the model's config.json, or start from another student or tokenizer",
        )
    return int(ends[0])


def row_ids(
    reader: Reader, messages: Sequence[Message], completion: str, end: int
) -> tuple[NDArray[np.int32], int] | str:
    """The token ids of a training row and where in them the trained ones begin, or why there is no row.

    Only the completion is trained, however many turns come before it. Prompt and completion are tokenised
    apart and joined, so that the border between them is exact.
    """
    answer = reader.tokenizer(completion, add_special_tokens=False)["input_ids"]
    if not answer:
        return "no completion tokens"
    try:
        prompt = prompt_ids(reader, messages)
    except UsageError:
        return "refused by the chat template"
    start = max(1, len(prompt))  # nothing comes before the first token, so nothing can predict it
    return np.array([*prompt, *answer, end], dtype=np.int32), start
