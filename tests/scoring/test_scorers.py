"""What each scorer calls right, and that nothing is scored that cannot be."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.errors import UsageError
from stillhouse.records import Score
from stillhouse.scoring import BUILTIN, Unscored, check, score

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
).filter(lambda value: isinstance(value, dict | list))


@pytest.mark.parametrize(
    ("scorer", "answer", "reference", "value"),
    [
        ("exact", "  Hello\n World ", "hello world", 1.0),
        ("exact", "hello world.", "hello world", 0.0),
        ("exact", "ＦＵＬＬ", "full", 1.0),
        ("json", '{"b": 2, "a": 1}', '{"a": 1.0, "b": 2}', 1.0),
        ("json", 'Here it is:\n```json\n{"a": [1, 2]}\n```\nDone.', '{"a": [1, 2]}', 1.0),
        ("json", 'see [note] then {"a": 1}', '{"a": 1}', 1.0),
        ("json", 'first [1], then {"a": 1}', '{"a": 1}', 0.0),
        ("json", '{"a": true}', '{"a": 1}', 0.0),
        ("json", '{"a": "X"}', '{"a": "x"}', 0.0),
        ("json", '{"a": 1, "b": null}', '{"a": 1}', 0.0),
        ("json", "[2, 1]", "[1, 2]", 0.0),
        ("json", '{"a": NaN}', '{"a": 1}', 0.0),
        ("json", '{"a": 1', '{"a": 1}', 0.0),
        ("json", "", '{"a": 1}', 0.0),
        ("json", "[" * 5000, '{"a": 1}', 0.0),
        ("json", '{"a":' * 5000, '{"a": 1}', 0.0),
        ("json_fields", 'Sure: {"b": 2, "a": 1, "more": []}', '{"a": 1.0}', 1.0),
        ("json_fields", 'in [1] then {"a": 1, "b": 3}', '{"a": 1, "b": 2}', 0.0),
        ("json_fields", '{"a": {"x": 1, "y": 2}}', '{"a": {"x": 1}}', 0.0),
        ("json_fields", "none", '{"a": 1}', 0.0),
        ("json_fields_share", '{"a": 1, "b": 3}', '{"a": 1, "b": 2}', 0.5),
        (
            "json_fields_share",
            '{"a": true, "b": 2, "c": null}',
            '{"a": 1, "b": 2, "c": null, "d": null}',
            0.5,
        ),
        ("json_fields_share", '[{"a": 1}]', '{"a": 1}', 0.0),
        ("numeric", "2 + 2 = 4, so the answer is 4 apples.", "4", 1.0),
        ("numeric", "The total is $1,234.50", "1234.5", 1.0),
        ("numeric", "It is 12%", "12", 1.0),
        ("numeric", "It is 12 %.", "#### 12", 1.0),
        ("numeric", "x = -5", "-5", 1.0),
        ("numeric", "a loss of -$5.00", "-5", 1.0),
        ("numeric", "a loss of $-5", "-5", 1.0),
        ("numeric", "a loss of \u22125", "-5", 1.0),
        ("numeric", "5", "-5", 0.0),
        ("numeric", "10-3", "3", 1.0),
        ("numeric", "on 2026-05-01", "1", 1.0),
        ("numeric", "- 5 apples", "5", 1.0),
        ("numeric", "It costs 1,5", "1.5", 0.0),
        ("numeric", "It costs 1,5", "5", 0.0),
        ("numeric", "1,234,567", "1234567", 1.0),
        ("numeric", "12,34", "1234", 0.0),
        ("numeric", "version 1.2.3", "3", 0.0),
        ("numeric", "about .5", "0.5", 1.0),
        ("numeric", "1e3.", "1000", 1.0),
        ("numeric", "0.1000000000000000000000000000000000001", "0.1", 0.0),
        ("numeric", "no idea", "4", 0.0),
        ("numeric", "", "4", 0.0),
        ("choice", "Billing.", "billing", 1.0),
        ("choice", "I think so.\nAnswer: B", "b", 1.0),
        ("choice", "Answer: A\nNo. ANSWER : B!", "B", 1.0),
        ("choice", "**Answer:** B", "B", 1.0),
        ("choice", "It is billing", "billing", 0.0),
        ("choice", "Answer: B because", "B", 0.0),
        ("choice", "", "B", 0.0),
        ("choice", "Answer: B\nFor it says so.", "B", 1.0),
        ("choice", "**Answer:**\n\n**B**\nbecause", "B", 1.0),
        ("last_line", "2 * 3 = 6\n\nAnswer: 6.", "6", 1.0),
        ("last_line", "work\n  Six  \n\n", "six", 1.0),
        ("last_line", "Answer: 5\nno\nAnswer: 6", "6", 1.0),
        ("last_line", "6\nAnswer:", "6", 0.0),
        ("last_line", "6\nthat is all", "6", 0.0),
        ("last_line", "", "6", 0.0),
        ("last_line", "Answer: 6\n\nI am sure.", "6", 1.0),
        ("last_line", "Answer: 5\n6", "6", 0.0),
        ("mentions", "Dear Ana, order  #12 ships.", '["order #12", "ANA"]', 1.0),
        ("mentions", "Dear Ana", '["order #12", "ANA"]', 0.0),
        ("mentions", "", '["Ana"]', 0.0),
        ("mentions", "order D12345 ships", '["D1234"]', 0.0),
        ("mentions", "order AD1234 ships", '["D1234"]', 0.0),
        ("mentions", "order D12345, that is (D1234).", '["D1234"]', 1.0),
        ("mentions", "order#12 is a C++ book", '["#12", "c++"]', 1.0),
        ("mentions", "Mariana", '["Ana"]', 0.0),
        ("mentions", "我在北京住。USBは", '["北京", "usb"]', 1.0),
    ],
)
def test_right_and_wrong(scorer, answer, reference, value):
    assert score(scorer, answer, reference) == Score(value)


@pytest.mark.parametrize(
    ("scorer", "reference"),
    [
        ("json", "three"),
        ("json", "3"),
        ("json", 'text {"a": 1}'),
        ("json_fields", "[1]"),
        ("json_fields_share", "{}"),
        ("numeric", "none"),
        ("numeric", "1,5"),
        ("choice", " . "),
        ("last_line", ""),
        ("mentions", "Ana"),
        ("mentions", "[]"),
        ("mentions", '["Ana", 3]'),
        ("mentions", '[" "]'),
    ],
)
def test_a_bad_reference_leaves_the_row_unscored_with_the_reason(scorer, reference):
    found = score(scorer, '{"a": 1} 3', reference)
    assert found.value is None
    assert "reference" in found.reason


def test_nothing_to_score_with_says_so():
    assert score(None, "a", "a") == Score(None, "no scorer")
    assert score("exact", "a", None) == Score(None, "no reference")
    assert "nosuch" in score("nosuch", "a", "a").reason


def test_a_scorer_that_fails_or_returns_nonsense_leaves_the_row_unscored():
    def broken(answer, reference):
        raise KeyError("colour")

    def unsure(answer, reference):
        raise Unscored("the answer is in another language")

    own = {
        "broken": broken,
        "two": lambda a, r: 2.0,
        "nan": lambda a, r: float("nan"),
        "half": lambda a, r: 0.5,
        "none": lambda a, r: None,
        "words": lambda a, r: "right",
        "unsure": unsure,
    }
    assert score("none", "a", "b", own).reason == "scorer 'none' returned a NoneType, which is no number"
    assert score("words", "a", "b", own).value is None
    assert score("unsure", "a", "b", own) == Score(None, "the answer is in another language")
    assert score("broken", "a", "b", own) == Score(None, "scorer 'broken' raised KeyError: 'colour'")
    assert "between 0 and 1" in score("two", "a", "b", own).reason
    assert score("nan", "a", "b", own).value is None
    assert score("half", "a", "b", own) == Score(0.5)


def test_an_unknown_scorer_is_named_before_anything_is_asked():
    check([None, "exact", "json"])
    with pytest.raises(UsageError) as caught:
        check(["numerc"])
    assert "numerc" in caught.value.what
    assert "numeric" in caught.value.mend
    check(["mine"], {"mine": lambda a, r: 1.0})


@given(st.sampled_from(sorted(BUILTIN.keys() - {"math"})), st.text(), st.text())
def test_any_text_is_scored_or_unscored_and_never_raises(scorer, answer, reference):
    found = score(scorer, answer, reference)
    assert found.value is None or 0.0 <= found.value <= 1.0
    assert (found.value is None) == bool(found.reason)
    assert "raised" not in found.reason


@given(values, st.sampled_from([None, 1, 4]), st.text("abc \n.", max_size=20))
def test_json_written_in_any_way_equals_itself(value, indent, around):
    answer = f"{around}\n```\n{json.dumps(value, indent=indent, ensure_ascii=bool(indent))}\n```\n{around}"
    assert score("json", answer, json.dumps(value)) == Score(1.0)


@given(st.integers(-(10**12), 10**12), st.integers(0, 99), st.text("abc $%\n", max_size=10))
def test_a_number_is_read_however_it_is_written(whole, cents, before):
    sign = "-" if whole < 0 else ""
    plain, grouped = f"{whole}.{cents:02d}", f"{sign}${abs(whole):,}.{cents:02d}"
    assert score("numeric", f"{before} {grouped} in all.", plain) == Score(1.0)
    assert score("numeric", f"{before} {whole}.{cents:02d}1", plain) == Score(0.0)


@given(st.text("abcXYZ 019", min_size=1).filter(str.strip), st.text(max_size=40))
def test_the_label_after_the_marker_counts_whatever_stood_before(label, before):
    for scorer in ("choice", "last_line"):
        assert score(scorer, f"{before}\nAnswer: {label}.", label) == Score(1.0)


@pytest.mark.parametrize("opening", ["[", "{", '{"a":', "[1,", '{"'])
def test_brackets_that_open_nothing_take_no_time(opening: str):
    started = time.process_time()
    assert score("json", opening * 50_000, "[1]") == Score(0.0)
    assert score("json", "".join((opening * 10, "so: [1]")), "[1]").value is not None
    assert time.process_time() - started < 2
