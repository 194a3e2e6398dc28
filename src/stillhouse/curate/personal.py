"""Personal data and secrets in prompts and answers: a fast tier that checks what has check digits.

Found are e-mail addresses, telephone numbers, payment cards (ISO/IEC 7812 with Luhn's check digit), IBANs
(ISO 13616, remainder 97), IP addresses, keys of well-known services and private key blocks. Names and places
are not: they need a model, see `named`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from stillhouse.curate.funnel import KEEP, Edit, Filter, Row
from stillhouse.errors import UsageError
from stillhouse.records import Verdict

Finder = Callable[[str], Iterator["Found"]]


@dataclass(frozen=True, slots=True)
class Found:
    """Characters [start, end) of a text are of this kind."""

    kind: str
    start: int
    end: int


def luhn(digits: str) -> bool:
    """Whether the last digit is right by ISO/IEC 7812-1, annex B."""
    doubled = [2 * int(d) for d in digits[-2::-2]]
    return (sum(map(int, digits[-1::-2])) + sum(d - 9 if d > 9 else d for d in doubled)) % 10 == 0


def iban(text: str) -> bool:
    """Whether the check digits are right by ISO 13616: the remainder of 97 is 1."""
    whole = text.replace(" ", "").upper()
    turned = whole[4:] + whole[:4]
    return 15 <= len(whole) <= 34 and int("".join(str(int(c, 36)) for c in turned)) % 97 == 1


def _card(text: str) -> bool:
    digits = re.sub(r"\D", "", text)
    return 13 <= len(digits) <= 19 and len(set(digits)) > 1 and luhn(digits)


def _telephone(text: str) -> bool:
    """The number of digits of one (ITU-T E.164)."""
    return 8 <= len(re.sub(r"\D", "", text)) <= 15


def _address(text: str) -> bool:
    """An address that may be somebody's: not of a private network, of documentation or the like."""
    try:
        return ip_address(text).is_global
    except ValueError:
        return False


def _mail(text: str) -> bool:
    """Domains set apart for examples (RFC 2606) are nobody's."""
    return re.search(r"(?:^|[@.])example\.(?:com|org|net)$|\.(?:example|test|invalid)$", text.lower()) is None


_PRIVATE = r"(?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----"
_PRIVATE_KEY = rf"-----BEGIN {_PRIVATE}(?:(?!-----BEGIN).)*?(?:-----END {_PRIVATE}|\Z)"
_KEY = (
    r"\b(?:sk-(?:proj-|ant-|or-)?[A-Za-z0-9_-]{20,}|(?:AKIA|ASIA)[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{36,}"
    r"|github_pat_[A-Za-z0-9_]{40,}|glpat-[A-Za-z0-9_-]{20,}|xox[abprs]-[A-Za-z0-9-]{10,}"
    r"|AIza[A-Za-z0-9_-]{35}|hf_[A-Za-z0-9]{30,}|(?:sk|rk)_(?:live|test)_[A-Za-z0-9]{16,}"
    r"|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,}"
    r"|(?<!-)eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,})"
)
_EMAIL = (
    r"(?<![\w.+-])[A-Za-z0-9][\w.+-]{0,63}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+"
    r"[A-Za-z]{2,24}\b"
)
_IBAN = r"\b[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"
_CARD = (
    r"(?<![\w.])(?:[2-6][0-9]{3}(?:[ -]?[0-9]{4}){2}[ -]?[0-9]{1,7}|3[47][0-9]{2}[ -]?[0-9]{6}[ -]?[0-9]{5})"
    r"(?![\w.]?[0-9])"
)
_IP = r"(?<![\w.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![\w.]?[0-9])"
# With a country's code, with an area's code in brackets, or in groups as telephone numbers are written.
_PHONE = (
    r"(?<![\w.+/=-])(?:\+[1-9][0-9]{0,2}[ .-]?(?:\(0?[0-9]{1,4}\)[ .-]?)?[0-9]{1,4}(?:[ .-]?[0-9]{2,4}){1,4}"
    r"|\([0-9]{2,5}\)[ -]?[0-9]{3,4}[ -]?[0-9]{3,4}|[0-9]{3}[.-][0-9]{3}[.-][0-9]{4}"
    r"|0[0-9]{2,4} [0-9]{3,4} [0-9]{3,4})(?![\w-]?[0-9])"
)
_KINDS: tuple[tuple[str, str, Callable[[str], bool]], ...] = (
    ("private key", _PRIVATE_KEY, bool),
    ("key", _KEY, bool),
    ("email", _EMAIL, _mail),
    ("iban", _IBAN, iban),
    ("card", _CARD, _card),
    ("ip address", _IP, _address),
    ("phone", _PHONE, _telephone),
)
_ANY = re.compile("|".join(f"(?P<k{i}>{pattern})" for i, (_, pattern, _) in enumerate(_KINDS)), re.DOTALL)
# Without one of these there is nothing to look for; most texts are done with that.
_WORTH = re.compile(
    r"@|\d[\d().\s-]{6,}\d|\d\.\d+\.\d|-----BEGIN|[A-Z]{2}\d{2} ?[A-Z0-9]{4}|sk[-_]|_[A-Za-z0-9]{16}|A[KS]IA"
    r"|glpat-|xox|AIza|hf_|eyJ|pypi-"
)


def find(text: str) -> Iterator[Found]:
    """What the fast tier finds, in order; no two overlap."""
    if _WORTH.search(text) is None:
        return
    at = 0
    while (match := _ANY.search(text, at)) is not None:
        kind, _, right = _KINDS[int((match.lastgroup or "k0")[1:])]
        if right(match.group()):
            yield Found(kind, match.start(), match.end())
        at = match.end()


_SAID = ("answer", "reasoning")  # columns with what the teacher said


def without_personal(finders: tuple[Finder, ...] = (find,)) -> Filter:
    """Drops a row that holds any; the reason names the first kind."""

    def clean(row: Row) -> Verdict:
        kinds = _kinds(row, finders)
        return Verdict("drop", f"personal data: {kinds[0]}") if kinds else KEEP

    return clean


def counting(finders: tuple[Finder, ...] = (find,)) -> Edit:
    """Leaves the row as it is and says which kinds it holds."""
    return lambda row: (row, _kinds(row, finders))


def redacting(finders: tuple[Finder, ...] = (find,)) -> Edit:
    """Puts `[kind]` in the place of each, and says which kinds there were."""

    def redact(row: Row) -> tuple[Row, Sequence[str]]:
        kinds = _kinds(row, finders)
        if not kinds:
            return row, ()
        messages = [{**m, "content": _redacted(m["content"], finders)} for m in row["messages"]]
        said = {name: _redacted(row[name], finders) for name in _SAID if row.get(name)}
        return {**row, "messages": messages, **said}, kinds

    return redact


def _kinds(row: Row, finders: tuple[Finder, ...]) -> list[str]:
    texts = [*(message["content"] for message in row["messages"]), *(row.get(name) or "" for name in _SAID)]
    return sorted({found.kind for text in texts for finder in finders for found in finder(text)})


def _redacted(text: str, finders: tuple[Finder, ...]) -> str:
    for finder in finders:
        parts, at = [], 0
        for found in sorted(finder(text), key=lambda f: f.start):
            if found.start >= at:
                parts += [text[at : found.start], f"[{found.kind}]"]
                at = found.end
        text = "".join([*parts, text[at:]])
    return text


_LANGUAGE_MODEL = "en_core_web_lg"


def named(entities: tuple[str, ...] = ("PERSON", "LOCATION")) -> Finder:
    """Names and places by Presidio's analyser for English, with its usual language model.

    Some milliseconds a text. Raises UsageError where presidio-analyzer or its language model is not there.
    """
    try:
        from presidio_analyzer import AnalyzerEngine
        from spacy.util import is_package
    except ImportError:
        raise UsageError(
            "presidio-analyzer is not installed",
            "`curate.names` needs it",
            "pip install 'stillhouse[presidio]'",
        ) from None
    if not is_package(_LANGUAGE_MODEL):  # Presidio would fetch it unasked
        raise UsageError(
            "Presidio has no language model",
            f"{_LANGUAGE_MODEL} is not installed",
            f"python -m spacy download {_LANGUAGE_MODEL}",
        )
    engine: Any = AnalyzerEngine()

    def finder(text: str) -> Iterator[Found]:
        for result in engine.analyze(text=text, language="en", entities=list(entities)):
            yield Found(result.entity_type.lower(), result.start, result.end)

    return finder
