"""How the desk's questions are worded: every phrase belongs to one family and one split.

A template is a head, a form and a tail. The training split crosses its lists freely (hundreds of
templates a family), so that a model must find the slots by what is around them; the dev and the test
split pair theirs by position, which gives few, named templates for intervals clustered by template.
"""

from __future__ import annotations

from typing import NamedTuple

from stillhouse.models.embedded.world.slots import Split


class Wording(NamedTuple):
    """Phrases of one family in one split; `{...}` marks the slots that the family fills."""

    heads: tuple[str, ...]
    forms: tuple[str, ...]
    tails: tuple[str, ...]

    def count(self, split: Split) -> int:
        if split == "train":
            return len(self.heads) * len(self.forms) * len(self.tails)
        return len(self.heads)

    def template(self, split: Split, index: int) -> str:
        """The template with this number; an empty head or tail leaves no stray blank."""
        if split == "train":
            index, tail = divmod(index, len(self.tails))
            head, form = divmod(index, len(self.forms))
        else:
            head = form = tail = index
        parts = (
            self.heads[head],
            self.forms[form % len(self.forms)],
            self.tails[tail % len(self.tails)],
        )
        return " ".join(part for part in parts if part)
