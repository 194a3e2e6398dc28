"""On which line of a TOML file a key stands: tomllib reads the values and keeps no places."""

from __future__ import annotations

import re
from collections.abc import Sequence

Place = tuple[str, ...]  # keys from the root down, an element of an array by its number

_TOKEN = re.compile(
    r'#[^\n]*|"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'|[\w-]+|\n|\S',
    re.DOTALL,
)


def line_of(text: str, place: Sequence[str]) -> int | None:
    """The line (from 1) of the key or table at `place`, or else of the nearest table around it; None where
    none is there. `text` is TOML that tomllib has read."""
    reader = _Reader(text)
    reader.read()
    around = (tuple(place[:depth]) for depth in range(len(place), 0, -1))
    return next((reader.lines[known] for known in around if known in reader.lines), None)


class _Reader:
    """Goes through the tokens once. `lines` is where each place is first named, `elements` how many each
    array of tables has so far."""

    def __init__(self, text: str) -> None:
        self.lines: dict[Place, int] = {}
        self.elements: dict[Place, int] = {}
        self.tokens: list[tuple[str, int]] = []
        self.at, line = 0, 1
        for found in _TOKEN.finditer(text):
            if found[0][0] != "#":
                self.tokens.append((found[0], line))
            line += found[0].count("\n")
        self.tokens.append(("", line))

    def read(self) -> None:
        table: Place = ()
        while self.token:
            if self.skipped("["):
                table = self.header()
            elif not self.skipped("\n"):
                self.setting(table)

    @property
    def token(self) -> str:
        return self.tokens[self.at][0]

    def skipped(self, token: str) -> bool:
        """Whether that was the next token; it is then behind."""
        there = self.token == token
        self.at += there
        return there

    def named(self, place: Place) -> Place:
        self.lines.setdefault(place, self.tokens[self.at][1])
        return place

    def header(self) -> Place:
        """`[table]`, or `[[array]]` for one more element; what is in an array belongs to its last element."""
        array = self.skipped("[")
        place: Place = ()
        while self.token not in ("]", ""):
            if place in self.elements:
                place = (*place, str(self.elements[place] - 1))
            place = self.key(place)
        if array:
            number = self.elements[place] = self.elements.get(place, 0) + 1
            place = self.named((*place, str(number - 1)))
        while self.token not in ("\n", ""):
            self.at += 1
        return place

    def setting(self, place: Place) -> None:
        """`key = value`; a dotted key names the tables on its way as well."""
        while self.token not in ("=", ""):
            place = self.key(place)
        self.skipped("=")
        self.value(place)

    def key(self, place: Place) -> Place:
        place = self.named((*place, self.token.strip("\"'")))
        self.at += 1
        self.skipped(".")
        return place

    def value(self, place: Place) -> None:
        if self.skipped("{"):
            while not self.skipped("}") and self.token:
                if not (self.skipped("\n") or self.skipped(",")):
                    self.setting(place)
        elif self.skipped("["):
            number = 0
            while not self.skipped("]") and self.token:
                if not (self.skipped("\n") or self.skipped(",")):
                    self.value(self.named((*place, str(number))))
                    number += 1
        elif self.token:
            self.at += 1
            while self.token not in (",", "]", "}", "\n", ""):
                self.at += 1
