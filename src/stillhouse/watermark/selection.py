"""A mark without logits: of several answers to one prompt, the one whose own words score highest is given.

Over keys each of the answers is as likely to be the one, so that what is given is distributed as any of them
(Bahri and Wieting, arXiv:2410.02099). It needs whole answers: nothing can be streamed before all are there.
"""

from __future__ import annotations

from collections.abc import Sequence

from stillhouse.watermark.detect import evidence, word_ids
from stillhouse.watermark.keys import Key


def select(key: Key, answers: Sequence[str]) -> int:
    """Which of the answers to give: the one with the smallest p-value under the key, which does not favour
    long ones. Answers without anything to score come last, and among equals the first wins.

    Raises ValueError without answers.
    """
    if not answers:
        raise ValueError("there is no answer to choose from")
    said = [evidence(key.scheme, key.sip, [word_ids(answer)]) for answer in answers]
    return min(range(len(answers)), key=lambda at: (said[at].log_p, not said[at].scored))
