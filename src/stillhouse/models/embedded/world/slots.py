"""Slot values of the support-desk world, each belonging to exactly one split.

A value is composed of small parts (syllables, a letter and digits, two numbers), so a model that copies
and calculates reaches the values it never saw; the split of a value is a hash of its text, so the three
splits share none, and no list has to be kept.
"""

from __future__ import annotations

import zlib
from random import Random
from typing import Literal

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")

FIRST_STARTS = [c + v for c in "MLTRSKNBFGHJV" for v in "aeiou"]
FIRST_ENDS = "ra len mon ta vin na dra lia rek sha bel ri no mar tin ya".split()
LAST_STARTS = (
    "Tol Bar Hen Cor Wal Lin Mar Ber Gar Nor Sel Dan Ken Pol Rad Vis"
    " Ald Bran Cal Dor Eld Fal Gren Hol Jor Kel Lam Mel Nel Os Pal Ros Sal Tam Ul Ver Wen Yor Zim Ost"
).split()
LAST_ENDS = "ek man sen ley ford er ov by son wick ard in".split()
CITY_STARTS = "Ash Brook Clay Elm Fair Glen High Mill North Oak Stone West".split()
CITY_ENDS = "ford ton ham burg mouth stead dale field bridge port".split()
KINDS = "blue red green black white small large round folding steel wooden glass".split()
THINGS = (
    "lamp chair table kettle clock mirror toaster heater fan radio speaker camera keyboard monitor printer"
    " router tent ladder cooler blender"
).split()
LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"
MONTHS = (
    ("January", 31),
    ("February", 28),
    ("March", 31),
    ("April", 30),
    ("May", 31),
    ("June", 30),
    ("July", 31),
    ("August", 31),
    ("September", 30),
    ("October", 31),
    ("November", 30),
    ("December", 31),
)


def split_of(value: str) -> Split:
    """The split that `value` belongs to: about 70 % train, 10 % dev, 20 % test."""
    bucket = zlib.crc32(value.encode()) * 2654435761 % (1 << 32) * 10 >> 32
    return "dev" if bucket == 0 else "test" if bucket <= 2 else "train"


def person(rng: Random, split: Split) -> str:
    """A first and a last name, both of the split."""
    return f"{_compose(rng, split, FIRST_STARTS, FIRST_ENDS)} {_compose(rng, split, LAST_STARTS, LAST_ENDS)}"


def city(rng: Random, split: Split) -> str:
    return _compose(rng, split, CITY_STARTS, CITY_ENDS)


def item(rng: Random, split: Split) -> str:
    """A product in the singular, such as `folding chair`; its plural takes an s."""
    return _compose(rng, split, KINDS, THINGS, " ")


def order_id(rng: Random, split: Split) -> str:
    """A letter and three digits."""
    while True:
        value = f"{rng.choice(LETTERS)}{rng.randrange(100, 1000)}"
        if split_of(value) == split:
            return value


def two_lines(rng: Random, split: Split) -> tuple[tuple[int, int], tuple[int, int]]:
    """Two lines of an order: pieces (2 to 5) and the price of one (11 to 29), each line below 100.

    What is held out is the order, not the line: a split by line would take whole facts of the
    multiplication table (5 x 9 only occurs in 5 x 19) away from training.
    """
    while True:
        quantities = rng.randint(2, 5), rng.randint(2, 5)
        first, second = ((quantity, rng.randint(11, min(29, 99 // quantity))) for quantity in quantities)
        if split_of(f"{first}+{second}") == split:
            return first, second


def day_month_offset(rng: Random, split: Split) -> tuple[int, int, int]:
    """Day, month (0 to 11, a year without a leap day) and days to add; at most one month end is passed.

    Half the dates pass it: a uniform draw would make the harder half of the calculation rare.
    """
    crosses = rng.random() < 0.5
    while True:
        month = rng.randrange(12)
        day, offset = rng.randint(1, MONTHS[month][1]), rng.randint(3, 21)
        if (day + offset > MONTHS[month][1]) == crosses and split_of(f"{day}.{month}+{offset}") == split:
            return day, month, offset


def limits_and_days(rng: Random, split: Split) -> tuple[int, int, int]:
    """Two limits in days, the first the smaller, and the days that passed: equally often in each part."""
    part = rng.randrange(3)
    while True:
        first = rng.randint(5, 25)
        second = first + rng.randint(5, 30)
        days = rng.randint(*((1, first), (first + 1, second), (second + 1, second + 25))[part])
        if split_of(f"{first}/{second}/{days}") == split:
            return first, second, days


def _compose(rng: Random, split: Split, starts: list[str], ends: list[str], joint: str = "") -> str:
    while True:
        value = rng.choice(starts) + joint + rng.choice(ends)
        if split_of(value) == split:
            return value
