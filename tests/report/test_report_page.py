"""The report of a whole run, of a partial one and of one that tries to harm its reader."""

from __future__ import annotations

import json
import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report.report_sample import MESSAGES, recipe, write_rows, write_sample_run

from stillhouse.ask import Tally
from stillhouse.errors import UsageError
from stillhouse.evaluate.costs import cost_figures
from stillhouse.money import FREE
from stillhouse.pipeline.work import counts
from stillhouse.recipe import parse_recipe, recipe_digest
from stillhouse.report import LARGEST, write_report
from stillhouse.report.cost import served_here
from stillhouse.report.page import render
from stillhouse.report.provenance import toml
from stillhouse.report.read import read_facts
from stillhouse.workspace import RunFolder, write_json

VOID = {"meta", "br", "hr"}
ALLOWED = set(
    "html head meta title style body a main header footer nav section h1 h2 h3 h4 p span b i small strong"
    " code dl dt dd div ul li table caption thead tbody tr th td figure figcaption details summary del ins"
    " svg desc g rect circle path line text".split()
)


class Page(HTMLParser):
    """Checks that elements nest, and keeps what a reader or a browser would act on."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.names: set[str] = set()
        self.attributes: list[tuple[str, str, str | None]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words)).replace("\u00a0", " ")

    def values(self, name: str) -> list[str]:
        return [value or "" for _, attribute, value in self.attributes if attribute == name]


def read(run: RunFolder) -> tuple[str, Page]:
    text = write_report(run).read_bytes().decode("utf-8")
    return text, Page(text)


def check_safe(text: str, page: Page) -> None:
    """Nothing on the page runs, loads or leaves it, whatever the run holds."""
    assert page.names <= ALLOWED
    assert not [name for _, name, _ in page.attributes if name.startswith("on") or name in ("src", "srcset")]
    assert all(re.fullmatch(r"#[\w-]+|[\w-]+\.(parquet|jsonl)", link) for link in page.values("href"))
    policy = next(value for value in page.values("content") if value.startswith("default-src"))
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    assert text.count("<style>") == text.count("</style>") == 1
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in page.values("href") if link.startswith("#")} <= set(ids)
    assert len(text.encode()) <= LARGEST
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]", text)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return write_sample_run(tmp_path)


def test_whole_run_says_what_the_files_say(run):
    text, page = read(run)
    check_safe(text, page)
    evaluation = json.loads(run.evaluation.read_text())
    kept = evaluation["retention"]
    assert f"The student keeps {100 * kept['value']:.1f}% of the teacher’s score" in re.sub(
        r"\s+", " ", page.text
    )
    assert f"{100 * kept['low']:.1f} to {100 * kept['high']:.1f}%" in page.text
    assert "9.7% of its FLOPs per answer" in page.text
    assert f"n = {kept['n']} test prompts in {kept['groups']} groups" in page.text
    assert "2,998 in; 2,805 kept + 193 dropped." in page.text
    assert "✓ Balances" in page.text
    assert "3,842 sent, 0 reused, 2 failed" in page.text
    assert "8,997 leaves" in page.text
    assert "unanchored: internally consistent only" in page.text
    assert "✓ computed anew, agrees with the run’s name" in page.text
    assert "synthetic support-desk world" in page.text
    assert "The student that is released has one seed (17)" in page.text
    copied = evaluation["agreement"]["teacher_wrong"]
    assert f"Where the teacher was wrong (n = {copied['n']})" in page.text
    assert f"same wrong answer in {100 * copied['value']:.1f}%" in page.text
    assert "prompts taken as independent: p" in page.text
    assert "policy (8)" in page.text  # a family of few groups is named
    for note in evaluation["notes"]:
        assert note.casefold() in page.text.casefold()


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        ({"ruling": "non-inferior", "more": 0}, "Verdict: non-inferior, at a one-sided level of 2.5%."),
        (
            {"ruling": "not decided", "more": 1200},
            "Verdict: not decided, about 1,200 more prompts needed, at a",
        ),
        ({"ruling": "not decided", "more": None}, "Verdict: not decided, at a one-sided level of 2.5%."),
        ({"ruling": None, "reason": "the teacher scored nothing"}, "No verdict: the teacher scored nothing."),
        ({"ruling": "<b>fine</b>"}, "No verdict: unknown."),
    ],
)
def test_the_verdict_on_a_declared_margin(run, verdict, said):
    evaluation = json.loads(run.evaluation.read_text())
    assert "Declared margin" not in read(run)[1].text, "none was declared"
    evaluation["verdict"] = {"margin": 0.05, "earlier": [0.1], **verdict}
    run.evaluation.write_text(json.dumps(evaluation))
    text, page = read(run)
    check_safe(text, page)
    shown = " ".join(page.text.split())
    assert f"Declared margin: 5.0% of the teacher’s score. {said}" in shown
    assert "another when this run was scored before" in shown


def test_the_worst_family_is_named_with_its_adjusted_p(run):
    evaluation = json.loads(run.evaluation.read_text())
    worst = evaluation["worst_family"]
    kept = min(of["retention"]["value"] for of in evaluation["families"].values())
    assert worst["value"] == kept
    shown = " ".join(read(run)[1].text.split())
    assert f"The worst family is {worst['name']}: it keeps {100 * kept:.1f}%" in shown
    assert "after Holm" in shown


def test_same_run_gives_the_same_bytes(run):
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_families_stand_worst_first(run):
    families = json.loads(run.evaluation.read_text())["families"]
    worst = sorted(families, key=lambda name: families[name]["retention"]["value"])
    text, _ = read(run)
    table = text[text.index('id="families"') : text.index('id="loss"')]
    places = [table.index(f">{name}<") for name in worst]
    assert places == sorted(places)


def test_figures_have_words_and_numbers(run):
    text, page = read(run)
    assert page.values("role").count("img") == 8  # four figures, each wide and narrow
    assert text.count("<desc") == 8
    assert "61.0% with 500; 79.0% with 1,000; 92.1% with 2,805" in text
    assert re.search(r"teacher 9\d\.\d% at 421 MFLOP per answer", text)
    assert text.count("The numbers") == 4


def test_regressions_come_before_ties_and_wins(run):
    text, _ = read(run)
    kinds = re.findall(r'<details class="pair (\w+)"', text)
    assert len(kinds) == 20
    assert kinds == sorted(kinds, key=["worse", "same", "better", "unscored"].index)
    assert {"worse", "same", "better"} <= set(kinds)


def test_recipe_on_the_page_makes_the_same_run(run):
    _, page = read(run)
    printed = next(words for words in page.words if words.startswith("[run]"))
    again = parse_recipe(tomllib.loads(printed))
    assert recipe_digest(again) == recipe_digest(recipe())


@given(
    st.recursive(
        st.dictionaries(
            st.text("ab-_.é\"'\\\n\x7f😀", min_size=1, max_size=6),
            st.text(max_size=8)
            | st.booleans()
            | st.integers(-(2**53), 2**53)
            | st.lists(st.text(max_size=4))
            | st.lists(st.dictionaries(st.text("ab", min_size=1, max_size=2), st.booleans()), max_size=3),
            max_size=4,
        ),
        lambda inner: st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, max_size=3),
        max_leaves=6,
    )
)
@settings(max_examples=60, deadline=None)
def test_toml_reads_back(tree):
    assert tomllib.loads(toml(tree)) == tree


@pytest.mark.parametrize("stages", range(6))
def test_partial_run_names_what_is_missing(run, stages):
    """The run as it lies after so many stages: the rest is said to be missing, nothing is made up."""
    made = {
        1: [run.prompts, run.exchanges, run.marker("collect")],
        2: [run.samples, run.dropped, run.marker("curate")],
        3: [run.losses, run.marker("train")],
        4: [run.predictions, run.evaluation, run.marker("evaluate")],
        5: [run.marker("release")],
    }
    for stage, paths in made.items():
        if stage > stages:
            for path in paths:
                path.unlink(missing_ok=True)
    text, page = read(run)
    check_safe(text, page)
    if stages < 5:
        assert "The run is not whole" in page.text
    if stages < 4:
        assert "No verdict yet: this run has not been evaluated" in page.text
        assert "keeps" not in page.text.split("Quality against cost")[0]
        assert "No scores." in page.text
    if stages < 3:
        assert "No loss curve." in page.text
    if stages < 1:
        assert "Nothing spent yet." in page.text


def test_empty_folder_is_a_page_too(tmp_path):
    text, page = read(RunFolder(tmp_path))
    check_safe(text, page)
    assert "No verdict yet" in page.text
    assert "No command to reproduce." in page.text


def test_no_folder_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="no run folder"):
        write_report(RunFolder(tmp_path / "gone"))


def test_damaged_files_are_named(run):
    run.evaluation.write_text('{"retention": {"value": 0.9')
    run.predictions.write_bytes(b"PAR1 no parquet PAR1")
    run.marker("train").write_text('["not", "an", "object"]')
    with run.losses.open("a") as file:
        file.write('{"step": 901, "loss": NaN}\n{"step": 902, "lo')
    text, page = read(run)
    check_safe(text, page)
    assert "evaluation.json could not be read" in page.text
    assert "predictions.parquet could not be read" in page.text
    assert "losses.jsonl: 1 of 902 lines could not be read" in page.text
    assert not re.search(r"\b(nan|inf|None)\b", text[text.index("<body") :])


def change(path: Path, *place: str, **values: object) -> None:
    """Overwrite keys of the dict at `place` in a JSON file."""
    tree = json.loads(path.read_text())
    at = tree
    for step in place:
        at = at[step]
    at.update(values)
    write_json(path, tree)


def test_losses_of_pairs_are_told_and_not_drawn_among_those_of_tokens(run):
    before, _ = read(run)
    with run.losses.open("a") as file:
        file.write(
            json.dumps({"step": 901, "loss": 77.5, "lr": 1e-5, "preference": {"accuracy": 0.5}}) + "\n"
        )
    change(run.marker("train"), "result", preference={"pairs": 321, "accuracy": 0.875})
    text, page = read(run)
    check_safe(text, page)
    assert "321 pairs of answers after that, 87.5% in the right order in the end" in page.text
    drawn = re.findall(r"<path[^>]*>", before)
    assert drawn
    assert re.findall(r"<path[^>]*>", text) == drawn


def test_unknown_is_never_nothing(run):
    change(run.evaluation, flops_ratio=None, flops=None, parameters=None, tokens_per_second=None)
    change(run.recipe, "teacher", endpoint="http://models.example/v1")
    for stage in ("collect", "evaluate"):
        change(run.marker(stage), "result", cost={"low": None, "expected": None, "high": None})
    change(run.evaluation, "exchanges", unknown=3)
    text, page = read(run)
    check_safe(text, page)
    assert "at a cost that is unknown" in page.text
    assert "The teacher’s bill is unknown; it is not zero." in page.text
    assert "US$ 0" not in page.text
    assert "3 requests with an unknown outcome" in page.text
    assert "▲ does not agree with the run’s name" in page.text  # for the recipe was changed


def test_bill_of_a_priced_teacher(run):
    change(
        run.recipe,
        "teacher",
        endpoint="http://models.example/v1",
        price={"input": 2.5, "output": 10.0},
        terms={
            "document": "terms.txt",
            "read_on": "2026-11-01",
            "declared_by": "A. Mill",
            "scope": ["train_target"],
        },
    )
    change(run.marker("collect"), "result", cost={"low": 1.25, "expected": None, "high": 1.25})
    change(run.marker("evaluate"), "result", cost={"low": 0.25, "expected": None, "high": 1.5})
    _, page = read(run)
    assert "billed US$ 1.50 cap" in page.text
    assert "US$ 2.5 in, 10.0 out, per million tokens" in page.text
    assert "declared by A. Mill, read on 2026-11-01, for train_target; terms.txt" in page.text
    assert "bill is unknown" not in page.text
    change(run.marker("evaluate"), "result", cost={"low": 0.25, "expected": None, "high": 3.0})
    assert "US$ 1.50 to US$ 3.00" in read(run)[1].text


def test_a_paid_teacher_beside_a_local_one_sends_a_bill(run):
    told = json.loads(run.recipe.read_text())
    paid = {"model": "big", "endpoint": "https://api.example/v1", "price": {"input": 1.0, "output": 4.0}}
    told["teacher"] |= {"endpoint": None, "price": None}
    for others, here in (([], True), ([paid], False)):
        run.recipe.write_text(json.dumps(told | {"teachers": others}))
        facts = read_facts(run)
        assert served_here(facts) == here


def test_each_teacher_has_its_price_with_who_told_it_and_when(run):
    told = json.loads(run.recipe.read_text())
    told["teacher"] |= {"model": "a", "endpoint": "https://a.example/v1", "price": None}
    others = [
        {"model": "b", "endpoint": "https://b.example/v1", "price": {"input": 3.0, "output": 5.0}},
        {"model": "c", "endpoint": "https://c.example/v1", "price": None},
        {"model": "d", "endpoint": None, "price": None},
    ]
    run.recipe.write_text(json.dumps(told | {"teachers": others}))
    page = {"input": 0.4, "output": 1.6, "source": "https://a.example/prices", "read_on": "2026-09-13"}
    prices = (page, page | {"input": 9.0}, None, {"input": 0.0, "output": 0.0, "source": "nobody"})
    known = [{"model": model, "price": price} for model, price in zip("abcd", prices, strict=True)]
    change(run.marker("collect"), "result", teachers=known, price=page)
    text = read(run)[1].text
    assert (
        "a: US$ 0.4 in, 1.6 out, per million tokens, read on 2026-09-13 at https://a.example/prices" in text
    )
    assert "b: US$ 3.0 in, 5.0 out, per million tokens, by the recipe" in text
    assert "c: none known" in text
    assert "d: none applies: the run serves it itself" in text


def test_an_imported_teacher_is_not_served_here_and_its_bill_is_unknown(run):
    change(run.recipe, "teacher", model="them", imported=True)
    change(run.marker("collect"), "result", teacher="them", endpoint="import")
    _, page = read(run)
    assert page.text.count("imported; collected elsewhere") == 3
    assert "The teacher’s bill is unknown; it is not zero." in page.text
    assert "serves" not in page.text
    assert "served by the run" not in page.text
    assert "US$" not in page.text


def test_the_sample_has_the_shapes_that_the_stages_write(run):
    """What only the pipeline knows is compared with its code; the rest the stages' own code made."""
    made = SimpleNamespace(
        ledger=SimpleNamespace(attempts=lambda _: SimpleNamespace(answered=1, failed=0, unknown=0)),
        folder=run,
        teachers=[SimpleNamespace(price=FREE)],
    )
    written = counts(made, Tally())
    for stage in ("collect", "evaluate"):
        found = json.loads(run.marker(stage).read_text())["result"]
        assert written.keys() <= found.keys()
        assert {key: found[key].keys() for key in ("attempts", "cost")} == {
            key: written[key].keys() for key in ("attempts", "cost")
        }
    evaluation = json.loads(run.evaluation.read_text())
    assert cost_figures([], {}).keys() <= evaluation.keys()


def test_families_link_only_to_answers_on_the_page(run):
    facts = read_facts(run)
    for shown in (20, 3, 0):
        page = Page(render(facts, shown))
        links = {link for link in page.values("href") if link.startswith("#answer-")}
        assert links <= {f"#answer-{n}" for n in range(shown)}
        assert bool(links) == bool(shown)


def test_teacher_served_by_the_run_sends_no_bill(run):
    _, page = read(run)
    assert "nothing; its computing is not priced" in page.text
    assert "US$" not in page.text


def test_a_balance_that_fails_is_shown(run):
    change(run.marker("curate"), "result", kept=2800)
    _, page = read(run)
    assert "▲ Does not balance: 2,998 in; 2,800 kept + 193 dropped = 2,993." in page.text


HOSTILE = (
    "<script>alert(1)</script></style></title><img src=x onerror=alert(1)>"
    "\x00\x00\x00 \u202etxt.exe\u202c \u2066a\u2069 zero\u200bwidth \ufeff \x1b[31m"
    " \U000e0041 ]]>&amp;&#0;<!--"
)


def test_hostile_text_is_only_text(run):
    questions = [
        {
            "id": f"q{index}<b>",
            "messages": [{"role": "user</h4>", "content": HOSTILE}, {"role": "user", "content": HOSTILE}],
            "family": "<svg onload=alert(1)>",
            "group": "g",
            "reference": HOSTILE,
            "scorer": "</code>",
            "split": "test",
        }
        for index in range(30)
    ]
    write_rows(run.prompts, questions)
    long = {"teacher": "x" * 1_000_000, "student": ("\x00\u202e" * 500_000)}
    rows = [
        {
            "prompt_id": q["id"],
            "family": q["family"],
            "group": "g",
            "system": system,
            "answer": long[system] if index % 2 else HOSTILE + system,
            "score": float(system == "teacher"),
            "reason": HOSTILE,
            "finish_reason": "length",
        }
        for index, q in enumerate(questions)
        for system in ("teacher", "student")
    ]
    write_rows(run.predictions, rows)
    dropped = [{"messages": None, "completion": HOSTILE, "reason": HOSTILE}] * 5
    write_rows(run.dropped, dropped, {"messages": MESSAGES})
    marker = json.loads(run.marker("collect").read_text())
    marker["result"] |= {"failures": {HOSTILE: 2}, "teacher": HOSTILE}
    marker["finished"] = HOSTILE
    write_json(run.marker("collect"), marker)
    text, page = read(run)
    check_safe(text, page)
    assert "<script>alert(1)</script>" in page.text
    assert "U+202E" in page.text
    assert "U+0000 ×3" in page.text
    assert "998,000 further characters" in page.text


def test_half_a_character_is_shown_not_raised(run):
    """JSON can hold a lone surrogate, which no UTF-8 file can."""
    evaluation = json.loads(run.evaluation.read_text())
    evaluation["notes"] = ["half \ud83d of a pair"]
    run.evaluation.write_text(json.dumps(evaluation))
    _, page = read(run)
    assert "Half [U+D83D] of a pair." in page.text


def test_page_stays_under_its_bound(run):
    """Text in which every character must be spelt out is the dearest; answers are left out until it fits."""
    odd = "".join(chr(0x202A + n % 5) for n in range(3000))
    questions = [
        {
            "id": f"q{n}",
            "messages": [{"role": "user", "content": odd}],
            "family": f"f{n}",
            "group": "",
            "reference": odd,
            "scorer": "exact",
            "split": "test",
        }
        for n in range(40)
    ]
    write_rows(run.prompts, questions)
    rows = [
        {"prompt_id": q["id"], "family": q["family"], "system": s, "answer": odd, "score": 1.0}
        for q in questions
        for s in ("teacher", "student")
    ]
    write_rows(run.predictions, rows)
    evaluation = json.loads(run.evaluation.read_text())
    family = evaluation["families"]["sort"]
    evaluation["families"] = {f"f{n}{odd}": family for n in range(2000)}
    evaluation["notes"] = [odd] * 1000
    write_json(run.evaluation, evaluation)
    text, page = read(run)
    check_safe(text, page)
    assert "1,940 further families" in page.text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def changed(draw, tree):
    """The tree with a few of its values, at any depth, replaced by any JSON."""
    tree = json.loads(json.dumps(tree))
    for _ in range(draw(st.integers(1, 6))):
        at = tree
        while True:
            key = draw(st.sampled_from(sorted(at)))
            if not isinstance(at[key], dict) or not at[key] or draw(st.booleans()):
                at[key] = draw(JSON)
                break
            at = at[key]
    return tree


@pytest.mark.parametrize("name", ["evaluation", "recipe", "collect", "curate", "train", "release"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_value_breaks_the_page(small_run, name, data):
    path = getattr(small_run, name, None) if name in ("evaluation", "recipe") else small_run.marker(name)
    before = path.read_bytes()
    try:
        tree = data.draw(changed(json.loads(before)))
        path.write_text(json.dumps(tree))
        text, page = read(small_run)
        check_safe(text, page)
    finally:
        path.write_bytes(before)


@pytest.fixture(scope="module")
def small_run(tmp_path_factory) -> RunFolder:
    """A run without rows: only the JSON files, quick to read again."""
    run = write_sample_run(tmp_path_factory.mktemp("small"))
    for path in (run.prompts, run.samples, run.dropped, run.predictions, run.losses):
        path.unlink()
    return run
