"""Whether an answer declines what was asked: one measure for all who count refusals.

The patterns are for English. What they find and miss among real answers of 59 models is measured by
`benchmarks/refusals.py`.
"""

from __future__ import annotations

import re

_SORRY = (
    r"(?:(?:i'm|i am) (?:really |very |truly |so )?(?:sorry|afraid)|sorry|(?:my )?apologies|i apologi[sz]e"
    r"|unfortunately)"
)
_CANNOT = (
    r"(?:can(?:'t|not| not)|could(?:n't| not)(?! help but)|(?:am|'m|was) (?:unable|not able) to"
    r"|wo(?:n't|uld not be able to)|will not)"
)
_DOES = (
    r"(?:help|assist|provide|comply|answer|fulfil|fulfill|discuss|generate|create|write|do that|give|offer"
    r"|engage|access|predict|respond|complete|process|browse|execute|reproduce|pretend|advise|perform|definitively"
    r"|encourage|condone|promote|support)"
)
_LACKS = (
    r"(?:(?:do|did)(?: not|n't) (?:feel comfortable|fully understand|quite understand|understand)\b"
    r"|(?:do|did)(?: not|n't) (?:actually |currently )?have (?:direct |any |enough |sufficient |specific "
    r"|current |detailed |real-time |the )*(?:access|information|context|knowledge|details|data)\b"
    r"|(?:am|'m) not (?:familiar with|sure (?:what|if|i understand|which)|comfortable|capable of"
    r"|aware of any)|should not (?:mock|help|provide|write|make))"
)
# That an answer declines stands at its beginning, as a sentence of the assistant about itself: "I am sorry
# that your lamp broke" and what somebody says in a story are none.
_DECLINES = re.compile(
    rf"\A\W*{_SORRY}[^.!?\n]{{0,80}}?\bi ?{_CANNOT}\b(?! \w+ enough)"
    rf"|\A\W*(?:{_SORRY}[^.!?\n]{{0,60}}?\b|as an? [^.!?\n]{{0,60}}?, |the answer is: )?i ?{_LACKS}"
    rf"|(?:\A\W*|[.!?:,]\W+|\b(?:but|so|and|that) )i ?{_CANNOT} (?:\w+ ){{0,3}}?{_DOES}\b",
    re.IGNORECASE,
)
_PROMPT_DECLINES = re.compile(
    rf"\A\W*(?:as an ai\b|(?:{_SORRY}\b.{{0,20}}?)?\bi ?{_CANNOT} "
    r"(?:help|assist|comply|fulfil|provide|do that)\b)",
    re.IGNORECASE | re.DOTALL,
)
_OPENING = 250  # characters in which it stands
_GIVES = re.compile(
    r"\b(?:however|nevertheless|that said|here(?:'s| is| are)|for example"
    r"|i can (?:still )?(?:offer|provide|suggest|explain|give|share|describe|try|tell))\b"
    r"|\n\s*(?:1[.)]|[-*] )",
    re.IGNORECASE,
)
_BRIEF = 350  # characters; a longer answer may still give something, and one beyond _LONG does
_LONG = 1500


def declines(answer: str) -> bool:
    """Whether the answer says at its beginning that it gives none, and then gives none."""
    text = straight(answer[: _LONG + 1])
    found = _DECLINES.search(text[:_OPENING])
    if found is None or len(text) > _LONG:
        return False
    rest = text[found.end() :]
    return len(rest) < _BRIEF or _GIVES.search(rest) is None


def declines_as_prompt(text: str) -> bool:
    """Whether what a teacher wrote as a prompt declines to write one. "I'm sorry, I can't log in" is what
    somebody asks, so less counts than in an answer."""
    return _PROMPT_DECLINES.match(straight(text)) is not None


def straight(text: str) -> str:
    return text.replace("\u2019", "'")
