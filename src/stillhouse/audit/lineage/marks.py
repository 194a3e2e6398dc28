"""Was a model taught with marked answers? From its own answers, by the key, with the provider's log.

A student of marked text prefers what the key prefers, a little (Sander et al. 2024, arXiv:2402.14904). The
test is `watermark.radioactivity.answers`: its p-value is over keys, and holds whoever wrote the answers. With
a log, only what follows contexts that were served is looked at: what a student can have learnt. That holds
where the mark of a token hangs on its own context alone. A whole answer that was *selected* is in the log
because of what follows its contexts, and any model that says the same there would seem to bear the mark; so
with a key of that scheme the log serves to show that the key marked it, and everything is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from stillhouse.audit.lineage.evidence import NOT_DECIDED, SUPPORTED, Finding, Test
from stillhouse.audit.lineage.materials import Said, read_answers, read_rows
from stillhouse.errors import UsageError
from stillhouse.stats import Interval
from stillhouse.watermark import Evidence, Key, contexts, decoy_keys, evidence, word_ids
from stillhouse.watermark.hashing import Ids
from stillhouse.watermark.radioactivity import answers

Encode = Callable[[str], Ids]

DECOYS = 19
LIMITS = (
    "Bearing the mark says that the suspect learnt from marked answers or repeats them: not that it was "
    "allowed or forbidden to, nor from whom it had them. A marked answer may have been published.",
    "Whoever has the key could have marked the text that the suspect was trained on. Who held it since when "
    "is no matter of statistics.",
    "If several keys or accounts were tried, multiply the p-value by their number.",
    "Not decided is not a finding that the suspect never saw marked answers: paraphrase, few of them among "
    "much other text, or answers without much choice leave no trace.",
)


def compare_marks(
    suspect: tuple[str, Sequence[Said]],
    key: Key,
    encode: Encode,
    served: Sequence[str],
    controls: Sequence[tuple[str, Sequence[Said]]],
    level: float,
    left_out: int = 0,
) -> Finding:
    """`encode` gives the ids that the key's scheme goes by; `served` are answers that the key marked.

    A control that bears the mark, a decoy key that fits as well, or a log that does not bear the mark take
    the verdict back. Nothing in it is random. Raises UsageError without an answer of the suspect.
    """
    name, said = suspect
    if not said:
        raise UsageError(
            "the suspect gave no answer", "no row has a prompt and an answer", "ask it something"
        )
    filters = bool(served) and key.scheme.name != "selection"
    log = [encode(text) for text in served]
    of_suspect, of_controls = _read(said, encode), [_read(rows, encode) for _, rows in controls]

    def heard(one: Key, read: tuple[list[Ids], list[Ids]]) -> Evidence:
        known = contexts(one.scheme, one.sip, log) if filters else None
        return answers(one.scheme, one.sip, *read, known)

    found = heard(key, of_suspect)
    decoys = [heard(one, of_suspect) for one in decoy_keys(key, DECOYS)]
    own = evidence(key.scheme, key.sip, log) if log else None
    others = [heard(key, read) for read in of_controls]
    fooled = [other for (other, _), one in zip(controls, others, strict=True) if one.p <= level]
    supported = found.p <= level
    why = f"its answers fit the key as one key in {1 / max(found.p, 1e-300):,.0f} would by chance"
    if not supported:
        why = "its answers fit the key no better than chance, or they are too few to tell"
    elif own is not None and own.p > level:
        supported, why = (
            False,
            "the log does not bear the mark of this key, so nothing can have been learnt from it",
        )
    elif fooled:
        supported, why = False, f"{', '.join(fooled)}: a control fits the key as well"
    elif min(one.log_p for one in decoys) <= found.log_p:
        supported, why = False, "a key that marked nothing fits as well"
    tests = [_test("suspect", found, found.p)]
    tests += [] if own is None else [_test("the log itself", own, None)]
    tests += [_test(f"control {other}", one, None) for (other, _), one in zip(controls, others, strict=True)]
    return Finding(
        "marks",
        f"Was {name} taught with answers that the key {key.id} marked?",
        SUPPORTED if supported else NOT_DECIDED,
        why,
        tuple(tests),
        f"one test, level {level:g}; log, controls and {DECOYS} decoy keys can only take its verdict back",
        tuple(other for other, _ in controls),
        {
            "key": key.id,
            "scheme": key.scheme.name,
            "account": key.account or "none: the provider's own key",
            "answers": len(said),
            "rows_left_out": left_out,
            "looked_at": "what follows contexts of the log" if filters else "everything that was answered",
            "smallest_p_of_decoys": min(one.p for one in decoys),
        },
        LIMITS,
    )


def read_served(path: Path, key: str) -> list[str]:
    """The answers of a log: rows with `answer` (or `output`, `completion`); of rows that tell in `marked`
    which keys marked them those of this one. Raises UsageError where there is none."""
    rows, _ = read_rows(path)
    names = ("answer", "output", "completion")
    said = [
        (row, next((row[name] for name in names if isinstance(row.get(name), str)), None)) for row in rows
    ]
    found = [text for row, text in said if text is not None and key in row.get("marked", [key])]
    if not found:
        others = sorted({str(each) for row in rows for each in row.get("marked", ())})
        why = f"it has answers of the keys {', '.join(others)}" if others else "no row has an `answer`"
        raise UsageError(f"no answer of the key {key} in {path}", why, "give what `guard answers` wrote")
    return found


def read_suspect(path: Path) -> tuple[list[Said], int]:
    if path.is_dir():
        raise UsageError(
            f"{path} is a folder",
            "the mark is looked for in answers",
            "ask the model, and give its answers (JSONL)",
        )
    return read_answers(path)


def encoder(key: Key, tokenizer: Path | None) -> Encode:
    """Words for the scheme `selection`, else the tokens of the model that was marked. Raises UsageError where
    its tokenizer is needed and missing."""
    if key.scheme.name == "selection":
        return word_ids
    if tokenizer is None:
        raise UsageError(
            f"the key {key.id} marks tokens",
            "which they are its model's tokenizer says",
            "give --model MODEL",
        )
    import numpy as np
    from tokenizers import Tokenizer

    read = Tokenizer.from_file(str(tokenizer))
    return lambda text: np.array(read.encode(text, add_special_tokens=False).ids, dtype=np.int64)


def _read(said: Sequence[Said], encode: Encode) -> tuple[list[Ids], list[Ids]]:
    return [encode(row.answer) for row in said], [encode(row.prompt) for row in said]


def _test(name: str, said: Evidence, adjusted: float | None) -> Test:
    above = None if said.mean is None else said.mean - said.expected
    return Test(name, said.p, adjusted, Interval(above, None, None), "mean score above chance", said.scored)
