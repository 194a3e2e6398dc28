"""Markers: of two ways to write the same thing the one that a key draws. Pure.

A site is a place where a text has one of two variants that mean the same: a wording, a typographic habit, the
sign of a list or the colon of a heading. Which variant is written there follows from the account's key, the
kind of site and the word before it, so that an account's answers have habits of their own which a student may
pick up. Nothing is touched in code, quotations, addresses and formulas, or in an answer that is data.

For a key drawn at random each (kind, word before) prefers either variant with chance 1/2, whatever the text:
the count of those that a text writes as the key prefers is binomial, and the p-value exact.
"""

from __future__ import annotations

import hmac
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from stillhouse.stats.tails import log_binomial_tail
from stillhouse.watermark import Evidence, Key

_START = r"(?:(?<![^\n])|(?<=[.!?] ))"  # of a line or a sentence
_OBJECT = (
    r"(?= (?!(?:I|you|we|they|he|she|it|the|this|that|these|those|an?|my|your|our|their|only|just)\b)[a-z])"
)
_CLAUSE = r"(?= (?:the|an?|it|they|this|these|those|some|he|she|we|you|I|there|most|many)\b)"
_NOT = "do does did is are was were has have had would could should".split()

# Kind: variants, what stands before, what after. Where a sentence may begin with it, its case is kept.
_WORDINGS: dict[str, tuple[str, str, str, str]] = {
    "abbreviated example": ("e.g.,", "for example,", r"(?<=\()", r"(?= )"),
    "abbreviated that is": ("i.e.,", "that is,", r"(?<=\()", r"(?= )"),
    "example": ("for example", "for instance", r"(?<!\()\b", r"(?=,)"),
    "although": ("although", "though", rf"(?:{_START}|(?<=, ))", _CLAUSE),
    "toward": ("toward", "towards", r"\b", r"(?= )"),
    "afterward": ("afterward", "afterwards", r"\b", r"\b"),
    "therefore": ("therefore", "thus", _START, r"(?=,)"),
    "addition": ("in addition", "additionally", _START, r"(?=,)"),
    "first": ("first", "firstly", _START, r"(?=,)"),
    "second": ("second", "secondly", _START, r"(?=,)"),
    "third": ("third", "thirdly", _START, r"(?=,)"),
    "each other": ("each other", "one another", r"\b", r"\b"),
    "everyone": ("everyone", "everybody", r"\b", r"\b"),
    "someone": ("someone", "somebody", r"\b", r"\b"),
    "anyone": ("anyone", "anybody", r"\b", r"\b"),
    "perhaps": ("perhaps", "maybe", r"(?<!\ba )\b", r"\b"),
    "cannot": ("cannot", "can't", r"(?<=[a-z] )", _OBJECT),
    "will not": ("will not", "won't", r"(?<=[a-z] )", _OBJECT),
    **{f"{verb} not": (f"{verb} not", f"{verb}n't", r"(?<=[a-z] )", _OBJECT) for verb in _NOT},
    "dash": ("\u2013", "\u2014", r"(?<=[A-Za-z,)] )", r"(?= [A-Za-z(])"),
    "ellipsis": ("...", "\u2026", r"(?<=[A-Za-z])", r"(?=\s|\Z)"),
}
_KINDS = tuple(_WORDINGS)


def _either(kind: str, name: str) -> str:
    """The pattern of a wording's site; its first letter may be large unless a word goes before it."""
    first, second, before, after = _WORDINGS[kind]
    forms = [re.escape(each) for each in (first, second)]
    if first[0].isalpha() and "[a-z]" not in before:
        forms += [re.escape(each[0].upper() + each[1:]) for each in (first, second)]
    return f"{before}(?P<{name}>{'|'.join(sorted(forms, key=len, reverse=True))}){after}"


_WORDING = re.compile("|".join(_either(kind, f"k{at}") for at, kind in enumerate(_WORDINGS)))
_BOLD = re.compile(
    r"(?<![\w*])(?P<a>\*\*|__)(?=[^\s*_])(?=[^*_\n]*[ :])[^*_\n`\"]+(?<=[^\s*_])(?P<b>(?P=a))(?![\w*])"
)
_HEADING = re.compile(r"^#{2,6} [^\n]*[A-Za-z)](?P<colon>:?)$", re.MULTILINE)
_LISTS = (  # kind, sign, what an item begins with that is one for certain, the two signs
    ("list", re.compile(r"^(?P<sign>[-*])(?= )", re.MULTILINE), re.compile(r" [A-Za-z*_\[]"), "-", "*"),
    (
        "numbered",
        re.compile(r"^\d{1,2}(?P<sign>[.)])(?= )", re.MULTILINE),
        re.compile(r" [A-Za-z*_\[]"),
        ".",
        ")",
    ),
)
_INDENTED = re.compile(r"^[ \t]+\S", re.MULTILINE)  # perhaps a list in a list
# What is never touched; an opening sign without its end protects all that follows it, or its paragraph.
_KEPT = re.compile(
    r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]*`|^(?: {4}|\t|>|\|)[^\n]*|\"(?:[^\"\n]|\n(?!\n))*\"?"
    r"|\u201c[^\u201d]*\u201d?|\u00ab[^\u00bb]*\u00bb?|(?:https?://|www\.)\S+|\$\$.*?(?:\$\$|\Z)|\$[^$\n]+\$"
    r"|\\\(.*?(?:\\\)|\Z)|\\\[.*?(?:\\\]|\Z)|<[^<>\n]+>|(?<!\w)'(?:[^'\n]|(?<=\w)'(?=\w))*'(?!\w)|^---\n.*?^---$",
    re.MULTILINE | re.DOTALL,
)
_DATA = re.compile(r"\s*[\[{<]")
_WORD = re.compile(r"\w+")
_LOOK_BACK = 60  # characters in which the word before is looked for


class Site(NamedTuple):
    """Where a text has one of two variants: `spans` of it (a list has many), as (start, end, variant 0,
    variant 1)."""

    kind: str
    variant: int
    spans: tuple[tuple[int, int, str, str], ...]


def marked(key: Key, text: str) -> tuple[str, int]:
    """The text as the key prefers it, and at how many sites. The text itself, and 0, where what was written
    would not read back as it was meant."""
    sites = _sites(text)
    places = _contexts(text, sites)
    wanted = [_bit(key, *place) for place in places]
    changed, _ = _rewritten(text, sites, wanted)
    again = _sites(changed)
    same = [site.variant for site in again] == wanted and _contexts(changed, again) == places
    return (changed, len(sites)) if same else (text, 0)


class Seen(NamedTuple):
    """What texts show before any key is tried: their sites, and the variant at each kind and word before."""

    sites: int
    variants: dict[tuple[str, str], int]


def seen(texts: Sequence[str]) -> Seen:
    """Of sites that are alike in kind and word before the variant counts that most have; none where as many
    have either."""
    votes: Counter[tuple[str, str]] = Counter()
    count = 0
    for text in texts:
        sites = _sites(text)
        count += len(sites)
        for site, place in zip(sites, _contexts(text, sites), strict=True):
            votes[place] += 2 * site.variant - 1
    return Seen(count, {place: int(vote > 0) for place, vote in votes.items() if vote})


def heard(key: Key, found: Seen) -> Evidence:
    """What that says of one key: `tokens` counts sites, `scored` those that differ in kind or word before."""
    fits = sum(_bit(key, *place) == variant for place, variant in found.variants.items())
    scored = len(found.variants)
    log_p = float(log_binomial_tail(fits, scored, 0.5)) if scored else 0.0
    return Evidence(found.sites, scored, fits / scored if scored else None, 0.5, log_p)


def _bit(key: Key, kind: str, before: str) -> int:
    return hmac.digest(key.secret, f"stillhouse marker\0{kind}\0{before}".encode(), "sha256")[0] & 1


def _sites(text: str) -> list[Site]:
    """In order of the text; none of two overlap."""
    if _DATA.match(text):
        return []
    kept = [found.span() for found in _KEPT.finditer(text)]
    found = [*_wordings(text), *_bold(text), *_headings(text), *_lists(text)]
    ends = [end for _, end in kept]

    def within(start: int, end: int) -> bool:
        at = bisect_right(ends, start)
        return at < len(kept) and kept[at][0] < end

    free = [site for site in found if not any(within(start, end) for start, end, _, _ in site.spans)]
    return sorted(free, key=lambda site: site.spans[0])


def _wordings(text: str) -> list[Site]:
    found = []
    for match in _WORDING.finditer(text):
        kind = _KINDS[int((match.lastgroup or "")[1:])]
        said = match[0]
        first, second = _WORDINGS[kind][:2]
        variant = int(said.lower() == second)
        if said[0].isupper():
            first, second = first[0].upper() + first[1:], second[0].upper() + second[1:]
        found.append(Site(kind, variant, ((*match.span(), first, second),)))
    return found


def _bold(text: str) -> list[Site]:
    return [
        Site(
            "bold",
            int(match["a"] == "__"),
            ((*match.span("a"), "**", "__"), (*match.span("b"), "**", "__")),
        )
        for match in _BOLD.finditer(text)
    ]


def _headings(text: str) -> list[Site]:
    return [
        Site("heading", int(match["colon"] == ":"), ((*match.span("colon"), "", ":"),))
        for match in _HEADING.finditer(text)
    ]


def _lists(text: str) -> list[Site]:
    """All lists of a text are one site: they have one sign, or Markdown would take them for more lists than
    they are. In a text with indented lines none is touched."""
    found: list[Site] = []
    if _INDENTED.search(text):
        return found
    for kind, sign, item, first, second in _LISTS:
        signs = list(sign.finditer(text))
        sure = all(item.match(text, one.end()) for one in signs)
        if signs and sure and len({one["sign"] for one in signs}) == 1:
            spans = tuple((*one.span("sign"), first, second) for one in signs)
            found.append(Site(kind, int(signs[0]["sign"] == second), spans))
    return found


def _contexts(text: str, sites: Sequence[Site]) -> list[tuple[str, str]]:
    """Each site's kind, and the word before it where every site has its first variant: so that it is the same
    whatever they have."""
    plain, starts = _rewritten(text, sites, [0] * len(sites))
    found = []
    for site, start in zip(sites, starts, strict=True):
        words = _WORD.findall(plain, max(0, start - _LOOK_BACK), start)
        found.append((site.kind, words[-1].lower() if words else ""))
    return found


def _rewritten(text: str, sites: Sequence[Site], variants: Sequence[int]) -> tuple[str, list[int]]:
    """The text with these variants, and where each site begins in it."""
    spans = sorted(
        (start, end, forms[variant], at)
        for at, (site, variant) in enumerate(zip(sites, variants, strict=True))
        for start, end, *forms in site.spans
    )
    parts: list[str] = []
    starts = [-1] * len(sites)
    left = length = 0
    for start, end, form, at in spans:
        parts += (text[left:start], form)
        length += start - left
        starts[at] = length if starts[at] < 0 else starts[at]
        length += len(form)
        left = end
    return "".join((*parts, text[left:])), starts
