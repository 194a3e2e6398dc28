"""Whether a student can learn from a teacher's probabilities, by what their tokenizers and templates do.

Names and sizes prove nothing: two tokenizers of one size may share no id, and one family's models differ in
padding alone. It needs both tokenizers and no weights, so it is asked before anything is paid for.
"""

from __future__ import annotations

from itertools import zip_longest

from stillhouse.errors import ModelError, UsageError
from stillhouse.models.chunks import shared_ends
from stillhouse.models.reading import Reader, end_id, prompt_ids, text_ids
from stillhouse.models.vocabulary import Vocabulary
from stillhouse.records import Message

SHOWN = 3  # differences that are told one by one
PROBES = (
    "once upon a time",
    "It's 3,141.59 to 27: WHO pays?",
    " two  blanks, a\ttab\nand a line ",
    "caf\u00e9, cafe\u0301, \ufb01ne, \u00c5, na\u00efve",
    "\u4f60\u597d \u041f\u0440\u0438\u0432\u0435\u0442 \u0645\u0631\u062d\u0628\u0627 \U0001f600",
    "def f(x):\n    return x**2  # <s></s>",
)
_TOKEN_BY_TOKEN = "the student cannot learn this teacher's probabilities token by token"
_CHUNKS = (
    'set train.distil.unit = "chunk", for which any tokenizer and template will do, or train.objective = '
    '"sequence"'
)


def check(student: Reader, teacher: Reader) -> str:
    """That both read and write the same ids, in words.

    Raises UsageError, which names the first differences: of what ids spell, of merges, of templates, of the
    ids that a text becomes, and of the tokens that end an answer. Raises ModelError for a tokenizer whose
    tokens have no bytes of their own.
    """
    mine, its = student.vocabulary(), teacher.vocabulary()
    if mine.digest != its.digest:
        raise UsageError(_TOKEN_BY_TOKEN, f"their tokenizers differ: {_apart(mine, its)}", _CHUNKS)
    if teacher.template != student.template:
        raise UsageError(
            _TOKEN_BY_TOKEN,
            "their chat templates differ, so the teacher would read a prompt as it was never meant",
            "give the student the teacher's chat template, start it from the teacher's family, or " + _CHUNKS,
        )
    for probe in PROBES:
        if said := _read_apart(probe, student, teacher):
            raise UsageError(_TOKEN_BY_TOKEN, f"they cut texts into other tokens: {said}", _CHUNKS)
    if teacher.stop_ids and (end := end_id(teacher)) not in student.stop_ids:
        raise UsageError(
            "the student would learn to end its answers where it does not stop",
            f"the teacher ends them with {_shown(its, end)}, and the student stops at "
            + " and ".join(_shown(mine, at) for at in sorted(student.stop_ids)),
            f"add {end} to `eos_token_id` in the student's configuration, or " + _CHUNKS,
        )
    return f"student and teacher have the same {sum(map(bool, mine.raw)):,} tokens and template"


def check_chunks(student: Reader, teacher: Reader) -> str:
    """That the answers of the two can be matched by their bytes, in words.

    Raises UsageError where no text is one text to both, or one knows no end, and ModelError for a tokenizer
    whose tokens have no bytes of their own.
    """
    mine, its = student.vocabulary(), teacher.vocabulary()
    for reader in (student, teacher):
        end_id(reader)
    alike = [
        probe for probe in PROBES if shared_ends(_spelt(probe, student, mine), _spelt(probe, teacher, its))
    ]
    if not alike:
        raise UsageError(
            "the student and the teacher cannot be compared by the bytes of an answer",
            f"their tokenizers make different texts of each of {len(PROBES)} probes, as of {PROBES[0]!r}",
            'take a student whose tokenizer keeps texts as they are, or set train.objective = "sequence"',
        )
    same = "the same tokenizer" if mine.digest == its.digest else "different tokenizers"
    return f"student and teacher have {same}; {len(alike)} of {len(PROBES)} probes are one text to both"


def check_outputs(tokens: int, student: int, teacher: int) -> None:
    """That both heads have as many rows for the `tokens` of their one vocabulary. Rows beyond these are
    padding, of which either may have any number: it is left out of every distribution. Raises ModelError."""
    if min(student, tokens) != min(teacher, tokens):
        raise ModelError(
            "student and teacher do not predict the same tokens",
            f"of {tokens:,} tokens the student has outputs for {min(student, tokens):,}, and the teacher for "
            f"{min(teacher, tokens):,}",
            "resize the embeddings of the smaller one to its tokenizer, or take models of one family",
        )


def _apart(mine: Vocabulary, its: Vocabulary) -> str:
    """What ids spell, and which of them are special, where that differs."""
    specials, others = set(mine.specials.values()), set(its.specials.values())
    apart = [
        at
        for at, (own, other) in enumerate(zip_longest(mine.raw, its.raw))
        if own != other or (at in specials) != (at in others)
    ]
    if not apart:
        return "their tokens are the same, but other pairs are merged"
    first = ", ".join(f"{at} is {_shown(mine, at)} and {_shown(its, at)}" for at in apart[:SHOWN])
    more = ", ..." if len(apart) > SHOWN else ""
    return f"ids that differ: {len(apart):,} (the student's and the teacher's: {first}{more})"


def _shown(vocabulary: Vocabulary, at: int) -> str:
    raw = vocabulary.raw[at] if at < len(vocabulary.raw) else b""
    kind = "special " if at in vocabulary.specials.values() else ""
    return f"{kind}{raw.decode('utf-8', 'backslashreplace')!r}" if raw else "no token"


def _read_apart(probe: str, student: Reader, teacher: Reader) -> str:
    """Where a prompt, or an answer, becomes other ids for the two; empty where it does not."""
    vocabulary = student.vocabulary()
    for what, read in (("as a prompt", _prompt), ("as an answer", _answer)):
        pairs = enumerate(zip_longest(read(probe, student), read(probe, teacher)), 1)
        for place, (own, other) in ((place, pair) for place, pair in pairs if pair[0] != pair[1]):
            mine, its = ("nothing" if at is None else f"{at} {_shown(vocabulary, at)}" for at in (own, other))
            return f"token {place} of {probe!r} {what} is {mine} for the student and {its} for the teacher"
    return ""


def _prompt(probe: str, reader: Reader) -> list[int]:
    try:
        return prompt_ids(reader, [Message("user", probe)])
    except UsageError:  # a template that asks for more than a question
        return text_ids(reader, probe)


def _answer(probe: str, reader: Reader) -> list[int]:
    return [int(at) for at in reader.tokenizer(probe, add_special_tokens=False)["input_ids"]]


def _spelt(probe: str, reader: Reader, vocabulary: Vocabulary) -> list[bytes]:
    return [vocabulary.raw[at] for at in _answer(probe, reader)]
