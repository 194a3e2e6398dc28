"""Numbers in every form: all reference solutions of GSM8K, wrong copies of them, and made-up ones."""

import json
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from random import Random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from stillhouse.records import Score
from stillhouse.scoring import score
from stillhouse.scoring.numbers import stated_number

GSM8K = Path(__file__).parents[2].parent / "shared" / "data" / "math"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1,234.5", "1234.5"),
        ("£2,000,000", "2000000"),
        ("12,34,567 rupees", "1234567"),
        ("Rs500", "500"),
        ("EUR-5", "-5"),
        ("1'234'567.5", "1234567.5"),
        ("1\u202f234", "1234"),
        ("1{,}234 or $1\\,234$", "1234"),
        ("1.234,5", "1234.5"),
        ("1.234.567", "1234567"),
        ("1.234", "1.234"),
        ("\\$5 and \\$6.50", "6.5"),
        ("5\\%", "5"),
        ("3/4", "3/4"),
        ("1 3/4 cups", "7/4"),
        ("-1 3/4", "-7/4"),
        ("12 16/4", "4"),
        ("1½", "3/2"),
        ("¾ of it", "3/4"),
        ("3⁄4", "3/4"),
        ("$-\\frac{1}{2}$", "-1/2"),
        ("\\dfrac{1,000}{3}", "1000/3"),
        ("\\boxed{3\\frac{1}{2}}", "7/2"),
        ("-3 \\tfrac{1}{2}", "-7/2"),
        ("\\frac12 and \\frac{1}3", "1/3"),
        ("\\frac34", "3/4"),
        ("5×10³ or 5 × 10⁻²", "1/20"),
        ("1/2/2024", "2024"),
        ("3 × 10^8 m/s", "300000000"),
        ("3.0 x 10^{-2}", "0.03"),
        ("6.02 \\times 10^{3}", "6020"),
        ("1.5E-4", "0.00015"),
        ("1.5e\u22124", "0.00015"),
        ("\u20135 degrees", "-5"),
        ("25 m^2", "25"),
        ("25 m2 or 25 m²", "25"),
        ("60 km/h", "60"),
        ("9.8 m s^{-2}", "9.8"),
        ("5kg of CO2", "5"),
        ("**42**", "42"),
        ("_42_", "42"),
        ("x=5", "5"),
        ("(5)", "5"),
        ("１２ and ٣٤", "34"),
        ("so \\boxed{42}, which took 3 steps", "42"),
        ("\\boxed{1} no: \\boxed{\\frac{7}{2}}", "7/2"),
        ("4 + 5 = 9\n#### 9 (in 2 steps of 1)", "9"),
        ("#### Step 1\nIt is 7.\n#### Checking\nYes, 8.", "8"),
        ("#### 9\nThat took 2 steps", "9"),
        ("order D12345 has 3", "3"),
    ],
)
def test_forms_that_can_be_read(text, number):
    assert stated_number(text) == Fraction(number)


@pytest.mark.parametrize(
    "text",
    [
        *"1,5|12,34|v1.2.3|3/0|2^10|2**10|10³|3:30|D12345|x5|CO2|1.2345,6|#### none|√2|5π|".split("|"),
        *("\\boxed{2\\sqrt{3}}", "\\sqrt[3]{8}", "\\boxed{5\\pi}", "9" * 5000, "9" * 5000 + " 1/2"),
    ],
)
def test_what_could_mean_two_numbers_or_none_is_unreadable(text):
    assert stated_number(text) is None
    assert score("numeric", text, "5") == Score(0.0)
    assert "reference" in score("numeric", "5", text).reason


sizes = st.decimals(0, 10**9, places=3, allow_nan=False, allow_infinity=False)
around = st.text("abcdé \n.!?", max_size=12).map(lambda text: text + " ")
FORMS = {
    "plain": "{sign}{size}",
    "grouped": "{sign}{size:,}",
    "dollars": "{sign}${size:,}",
    "escaped": "{sign}\\${size}",
    "percent": "{sign}{size} %",
    "bold": "**{sign}{size}**",
    "unit": "{sign}{size}km",
    "power of a unit": "{sign}{size} m^2",
    "thousandths": "{sign}{thousandths}/1000",
    "latex": "{sign}\\frac{{{thousandths}}}{{1000}}",
    "scientific": "{sign}{size}e0",
    "times ten": "{sign}{thousandths} × 10^-3",
    "boxed": "\\boxed{{{sign}{size}}} 77",
    "marker": "7 #### {sign}{size}",
}


@given(sizes, st.sampled_from(["", "-", "\u2212"]), st.sampled_from(sorted(FORMS)), around, around)
def test_a_number_is_right_in_every_form_and_every_other_number_is_wrong(size, sign, form, before, after):
    written = FORMS[form].format(sign=sign, size=size, thousandths=int(size * 1000))
    reference = f"{'-' if sign else ''}{size}"
    assert score("numeric", f"{before}{written}{after}", reference) == Score(1.0), written
    for other in (size + 1, size + Decimal("0.001"), size * 10 + 1):
        wrong = FORMS[form].format(sign=sign, size=other, thousandths=int(other * 1000))
        assert score("numeric", f"{before}{wrong}{after}", reference) == Score(0.0), wrong
    flipped = FORMS[form].format(sign="" if sign else "-", size=size, thousandths=int(size * 1000))
    assert score("numeric", f"{before}{flipped}{after}", reference) == Score(float(size == 0))


@given(st.integers(0, 500), st.integers(1, 60), st.integers(2, 61))
def test_mixed_fractions(whole, top, bottom):
    assume(top < bottom)
    value = str(whole + Fraction(top, bottom))
    assert score("numeric", f"It is {whole} {top}/{bottom} cups.", value) == Score(1.0)
    assert score("numeric", f"It is {whole + 1} {top}/{bottom} cups.", value) == Score(0.0)
    assert score("numeric", f"-{whole} {top}/{bottom}", f"-{value}") == Score(1.0)


@given(st.text("0123456789.,/^x* e-+$%{}\\:", max_size=40))
def test_no_mixture_of_marks_raises(text):
    found = stated_number(text)
    assert found is None or isinstance(found, Fraction)


def solutions(name: str) -> list[tuple[str, str]]:
    path = GSM8K / f"gsm8k_{name}.jsonl"
    if not path.exists():
        pytest.skip("GSM8K is absent (data sets are not part of the project)")
    answers = [json.loads(line)["answer"] for line in path.read_text().splitlines()]
    return [(answer, answer.split("####")[1].strip()) for answer in answers]


@pytest.mark.parametrize(("name", "count"), [("train", 7473), ("test", 1319)])
def test_every_reference_solution_of_gsm8k_is_right_and_every_wrong_copy_of_it_wrong(name, count):
    rows, rng = solutions(name), Random(3)
    assert len(rows) == count
    for solution, reference in rows:
        work, value = solution.split("####")[0], Decimal(reference.replace(",", ""))
        right = [
            solution,
            f"{work}The answer is {reference}.",
            f"{work}So it is ${value:,}.00 in all.",
            f"{work}\\boxed{{{value}}} after 3 checks",
            f"{work}= {2 * value}/2",
            f"{work}#### {value} apples",
        ]
        wrong = [value + 1, value - 1, value * 10, value * 100, value + Decimal("0.5"), Decimal(f"{value}1")]
        wrong += [-value] if value else []
        digits = list(str(abs(value)))
        place = rng.randrange(len(digits))
        digits[place] = str((int(digits[place]) + rng.randrange(1, 10)) % 10)
        wrong.append(Decimal("".join(digits)).copy_sign(value))
        for answer in right:
            assert score("numeric", answer, solution) == Score(1.0), answer
        for index, other in enumerate(wrong):
            if other == value:
                continue
            forms = (
                f"{work}#### {other}",
                f"{work}The answer is ${other:,}.",
                f"It would be {value} if 2 were 1, but it is {other} apples",
            )
            answer = forms[index % 3]
            assert score("numeric", answer, reference) == Score(0.0), (answer, reference)
