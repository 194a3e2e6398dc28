"""Secrets of keys, who stands how, what may be asked, and which changes need a reason."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.guard.accounts import (
    SECRET,
    STANDINGS,
    Account,
    Caller,
    Key,
    Organisation,
    digest_of,
    harms,
    may_ask,
    mint,
    standing,
    well_formed,
)
from stillhouse.guard.config import Tier

PEPPER = b"p" * 32
RANDOM = st.binary(min_size=32, max_size=32)


def caller(key=None, account=None, organisation=None):
    return Caller(
        None if organisation is None else Organisation("o", "the house", **organisation),
        Account("a", None, "ann", "default", **(account or {})),
        Key("k", "a", b"d" * 32, "sk-still-abcdef", **(key or {})),
    )


@given(RANDOM, RANDOM)
def test_a_secret_is_found_by_its_digest_alone(one, other):
    secret, digest, prefix = mint(PEPPER, one)
    assert well_formed(secret)
    assert re.fullmatch(SECRET, secret)
    assert digest_of(PEPPER, secret) == digest
    assert secret.startswith(prefix)
    assert len(prefix) == 15
    again, further, _ = mint(PEPPER, other)
    assert (secret == again) == (digest == further) == (one == other)
    assert digest_of(b"q" * 32, secret) != digest
    assert secret.encode() not in digest


@given(RANDOM, st.data())
def test_one_wrong_letter_and_two_swapped_ones_are_told(random, data):
    secret, _, _ = mint(PEPPER, random)
    place = data.draw(st.integers(0, len(secret) - 1))
    letter = data.draw(st.sampled_from("0aZ-_ \n\u00e9"))
    wrong = secret[:place] + letter + secret[place + 1 :]
    assert well_formed(wrong) == (wrong == secret)
    swapped = secret[:place] + secret[place : place + 2][::-1] + secret[place + 2 :]
    assert well_formed(swapped) == (swapped == secret)


@given(st.text(max_size=80) | st.from_regex(r"sk-still-[0-9A-Za-z]{49}", fullmatch=True))
def test_what_is_no_secret_has_no_digest(text):
    if not well_formed(text):
        assert digest_of(PEPPER, text) is None


def test_a_known_secret_stays_as_it_was():
    """Keys that were given out must be found for ever."""
    secret, digest, prefix = mint(bytes(32), bytes(range(32)))
    assert secret == "sk-still-003aUlTJC7tjlCTQj2uNU3MFagCXG9LRKRcwGkBIDlf1Yo7hP"
    assert prefix == "sk-still-003aUl"
    assert digest.hex() == "81c3b25eff25b56566e2229ce8097cfd3941f13299c69e65705c1a2f46690399"


def test_a_secret_is_made_of_so_many_bytes():
    with pytest.raises(ValueError, match="32 bytes"):
        mint(PEPPER, b"short")


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({}, ""),
        ({"organisation": {}}, ""),
        ({"key": {"expires": 100.5}}, ""),
        ({"key": {"expires": 100.0}}, "key_expired"),
        ({"key": {"revoked": 5.0}}, "key_revoked"),
        ({"key": {"state": "blocked"}}, "key_blocked"),
        ({"account": {"state": "blocked"}}, "account_blocked"),
        ({"account": {"state": "closed"}}, "account_closed"),
        ({"organisation": {"state": "blocked"}}, "organisation_blocked"),
        ({"organisation": {"state": "closed"}}, "organisation_closed"),
        ({"account": {"accepted": "1"}}, ""),
    ],
)
def test_who_is_refused_is_told_why(parts, reason):
    assert standing(caller(**parts), 100.0, "2", must_accept=False) == reason
    assert reason == "" or STANDINGS[reason].endswith(".")
    expected = reason or "terms_not_accepted"
    assert standing(caller(**parts), 100.0, "2", must_accept=True) == expected
    assert standing(caller(**parts), 100.0, None, must_accept=True) == reason


def test_terms_that_were_accepted_in_this_version_let_pass():
    assert standing(caller(account={"accepted": "2"}), 100.0, "2", must_accept=True) == ""


@pytest.mark.parametrize(
    ("tier", "key", "asked", "may"),
    [
        (["*"], (), "anything", True),
        (["small-*"], (), "small-1", True),
        (["small-*"], (), "large-1", False),
        (["small-*"], (), "Small-1", False),
        (["*"], ("small-*",), "large-1", False),
        (["*"], ("small-1", "large-?"), "large-1", True),
        (["small-*"], ("*",), "large-1", False),
        ([], (), "small-1", False),
    ],
)
def test_a_model_is_asked_within_tier_and_key(tier, key, asked, may):
    assert may_ask(caller(key={"models": key}), Tier(models=tier), asked) is may


@pytest.mark.parametrize(
    ("before", "after", "harm"),
    [
        ({"state": "active"}, {"state": "blocked"}, True),
        ({"state": "blocked"}, {"state": "active"}, False),
        ({"state": "blocked"}, {"state": "closed"}, True),
        ({"revoked": None}, {"revoked": 1.0}, True),
        ({"name": "a"}, {"name": "b"}, False),
        ({"tier": "a"}, {"tier": "b"}, True),
        ({"tier": "a"}, {"tier": "a"}, False),
        ({"budget": None}, {"budget": 5.0}, True),
        ({"budget": 5.0}, {"budget": 4.0}, True),
        ({"budget": 5.0}, {"budget": 6.0}, False),
        ({"limits": {}}, {"limits": {"concurrent": 1}}, True),
        ({"limits": {"concurrent": 2}}, {"limits": {"concurrent": 1}}, True),
        ({"limits": {"concurrent": 2}}, {"limits": {"concurrent": 3}}, False),
        ({"limits": {"concurrent": 2}}, {"limits": {}}, True),
        ({"models": ()}, {"models": ("a",)}, True),
        ({"models": ("a", "b")}, {"models": ("a",)}, True),
        ({"models": ("a",)}, {"models": ("a", "b")}, False),
        ({"models": ("a",)}, {"models": ()}, False),
        ({"expires": None}, {"expires": 5.0}, True),
        ({"expires": 5.0}, {"expires": None}, False),
        ({"consent": True}, {"consent": False}, False),
        ({"accepted": None}, {"accepted": "1"}, False),
    ],
)
def test_what_takes_something_away_needs_a_reason(before, after, harm):
    assert harms(before, after) is harm
