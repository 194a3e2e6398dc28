"""The table of terms as a whole: strict reading, a workspace's own rows, the digest, what start-up costs."""

import json
import subprocess
import sys
import tomllib
from dataclasses import asdict
from datetime import date
from fnmatch import fnmatch
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from maker import row_toml

from stillhouse.errors import UsageError
from stillhouse.terms.facts import STRICTEST, Asked, Case, Licence, Need, Operator, Scale, Student
from stillhouse.terms.reading import read_rows
from stillhouse.terms.registry import load, record, shipped

ROOT = Path(__file__).parents[2]
ROW = row_toml(
    key="acme",
    vendor="Acme",
    covers="Everything",
    access="weights",
    models=["acme/*"],
    licence={"name": "Acme Licence"},
    trains_competing="no",
    verdict="review",
    clause="One may train.",
    clause_ref="1",
    version="2026",
    source="https://acme.example/licence",
    read_via="the page",
    read_on=date(2026, 10, 1),
)


def broken(tmp_path, text, *words):
    (tmp_path / "acme.toml").write_text(text)
    with pytest.raises(UsageError) as raised:
        load(tmp_path)
    for word in ("acme.toml", *words):
        assert word in f"{raised.value.what} {raised.value.why}"


def test_a_row_is_read_as_it_is_written():
    (row,) = read_rows(
        "acme.toml",
        ROW
        + """
[[row.case]]
verdict = "allow"
why = "so it says"
tasks = ["classifier"]
[[row.scale]]
figure = "monthly_users"
above = 100_000_000
why = "large products show it"
owed = { kind = "credit", texts = ["Made with Acme"] }
[[row.need]]
need = "non_commercial"
verdict = "refuse"
why = "for research"
""",
    )
    assert row.licence == Licence("Acme Licence")
    assert row.read_on == date(2026, 10, 1)
    assert row.cases == (Case("allow", "so it says", tasks=("classifier",)),)
    scale, need = row.conditions
    assert isinstance(scale, Scale)
    assert scale.owed is not None
    assert scale.owed.texts == ("Made with Acme",)
    assert need == Need("non_commercial", "refuse", "for research")
    assert row.priority == 50


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("[[row]]", "[[row]]\ncolour = 'red'"), ["acme", "unknown key 'colour'"]),
        (("[[row]]", "[[rows]]"), ["unknown key 'rows'"]),
        (("[[row]]", "[row]"), ["[[row]]"]),
        (('access = "weights"', 'access = "telepathy"'), ["'acme'", "access", "telepathy", "none of"]),
        (('verdict = "review"\n', ""), ["'acme'", "verdict is missing"]),
        (('verdict = "review"', 'verdict = "fine"'), ["'acme'", "verdict", "fine"]),
        (("read_on = 2026-10-01", 'read_on = "last week"'), ["'acme'", "read_on", "last week"]),
        (("read_on = 2026-10-01", "read_on = 2026-13-01"), ["TOML"]),
        (("read_on = 2026-10-01", "read_on = 2026-10-01T08:00:00"), ["'acme'", "read_on", "time"]),
        (('models = ["acme/*"]', "models = []"), ["'acme'", "never match"]),
        (('models = ["acme/*"]', 'models = "acme/*"'), ["'acme'", "models", "no list"]),
        (('models = ["acme/*"]', "models = [3]"), ["'acme'", "models", "3"]),
        (('models = ["acme/*"]', 'models = ["acme/*"]\nexcluding = ["ACME/*"]'), ["'acme'", "never matches"]),
        (('models = ["acme/*"]', 'models = ["acme/x-*"]\nexcluding = ["acme/*"]'), ["never matches"]),
        (('models = ["acme/*"]', 'models = ["acme/*"]\npriority = true'), ["'acme'", "priority"]),
        (('models = ["acme/*"]', 'models = ["acme/*"]\nupstream = ["nowhere"]'), ["'acme'", "'nowhere'"]),
        (('name = "Acme Licence"', "spdx = 'MIT'"), ["'acme'", "licence", "name is missing"]),
        (('clause = "One may train."', 'clause = " "'), ["'acme'", "clause is empty"]),
        (("liftable = true", "liftable = 1"), ["'acme'", "liftable"]),
    ],
)
def test_a_slip_in_a_row_is_an_error_that_names_file_and_row(tmp_path, change, words):
    assert change[0] in ROW
    broken(tmp_path, ROW.replace(*change), *words)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ('[[row.wish]]\nwhy = "?"', ["'acme'", "unknown key 'wish'"]),
        ('[[row.need]]\nneed = "luck"\nverdict = "refuse"\nwhy = "?"', ["'acme'", "need 1", "luck"]),
        ('[[row.need]]\nneed = "paid_tier"\nverdict = "refuse"', ["'acme'", "need 1", "why is missing"]),
        ('[[row.scale]]\nfigure = "monthly_users"\nabove = 5\nwhy = "?"', ["'acme'", "nothing follows"]),
        ('[[row.obligation]]\nkind = "name_prefix"', ["'acme'", "name_prefix has no texts"]),
        ('[row.case]\nverdict = "allow"\nwhy = "?"', ["'acme'", "[[row.case]]"]),
        (ROW, ["'acme'", "has a row of that key as well"]),
    ],
)
def test_a_slip_in_a_part_of_a_row_is_one_too(tmp_path, more, words):
    broken(tmp_path, ROW + more, *words)


@given(st.text(min_size=1), st.one_of(st.integers(), st.text(), st.lists(st.integers())))
def test_no_key_that_is_not_known_is_let_through(key, value):
    if key in asdict(shipped().rows()[0]):
        return
    with pytest.raises(UsageError):
        read_rows("acme.toml", f"{ROW}\n{json.dumps(key)} = {json.dumps(value)}")


def test_a_workspace_adds_rows_and_replaces_rows_by_key(tmp_path):
    assert load(tmp_path) is load(None) is shipped()
    assert load(tmp_path / "nowhere").own == ()
    (tmp_path / "acme.toml").write_text(ROW)
    (tmp_path / "granite.toml").write_text(
        ROW.replace('"acme"', '"granite"').replace("acme/*", "ibm-granite/*")
    )
    registry = load(tmp_path)
    assert registry.own == ("acme", "granite")
    assert len(registry.rows()) == len(shipped().rows()) + 1
    assert [m.row.key for m in registry.matches("Acme/One", "weights")] == ["acme"]
    assert shipped().matches("acme/one", "weights") == ()
    (match,) = registry.matches("ibm-granite/granite-4", "weights")
    assert match.row.verdict == "review"
    assert shipped().matches("ibm-granite/granite-4", "weights")[0].row.verdict == "allow"
    assert registry.digest != shipped().digest


def test_the_digest_is_that_of_every_fact(tmp_path):
    digests = {shipped().digest}
    for text in (
        ROW,
        ROW.replace("One may train.", "One may train!"),
        ROW.replace("2026-10-01", "2026-10-02"),
        ROW + '[[row.need]]\nneed = "paid_tier"\nverdict = "refuse"\nwhy = "?"',
    ):
        (tmp_path / "acme.toml").write_text(text)
        digests.add(load(tmp_path).digest)
        assert load(tmp_path).digest in digests
    assert len(digests) == 5
    assert all(len(digest) == 64 for digest in digests)


def test_rows_that_lead_to_each_other_are_told_once(tmp_path):
    (tmp_path / "a.toml").write_text(
        ROW.replace('"weights"', '"weights"\nupstream = ["other", "acme"]')
        + ROW.replace('"acme"', '"other"').replace('["acme/*"]', '["other/*"]\nupstream = ["acme"]')
    )
    registry = load(tmp_path)
    assert [m.row.key for m in registry.matches("acme/x", "weights")] == ["acme", "other"]
    assert [m.row.key for m in registry.matches("other/x", "weights")] == ["other", "acme"]


def test_of_equal_rows_all_hold_and_a_higher_or_closer_one_alone(tmp_path):
    def other(pattern, more=""):
        return ROW.replace('"acme"', '"other"').replace('["acme/*"]', f'["{pattern}"]{more}')

    for text, wanted in (
        (other("acme/*"), ["acme", "other"]),
        (other("acme/b*"), ["other"]),
        (other("a*", "\npriority = 51"), ["other"]),
        (other("acme/big-*", "\npriority = 49"), ["acme"]),
    ):
        (tmp_path / "a.toml").write_text(ROW + text)
        assert [m.row.key for m in load(tmp_path).matches("acme/big-1", "weights")] == wanted


names = st.sampled_from(
    ["deepseek-chat", "deepseek/r1", "mistral-large-latest", "codestral-latest", "gpt-4o"]
)
hosts = st.from_regex(r"[a-z]{1,12}(-[a-z]{1,8})?\.(example|internal|test)", fullmatch=True)


@given(names, hosts, st.sampled_from(["api", "router"]))
def test_a_name_at_a_strange_server_forbids_but_never_allows(model, host, access):
    for match in shipped().matches(model, access, f"https://{host}/v1"):
        assert STRICTEST.index(match.row.verdict) >= STRICTEST.index("review")


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://api.deepseek.com@evil.example/v1",
        "https://evil.example/api.deepseek.com",
        "https://evil.example#api.deepseek.com",
        "https://api.deepseek.com.evil.example",
        "https://xapi.deepseek.com",
        "https://api.deepseek.com\uff0eevil.example",
        "https://[bad",
        "unix:///run/socket",
    ],
)
def test_an_address_that_only_looks_like_a_vendors_is_a_strangers(endpoint):
    assert shipped().matches("deepseek-chat", "api", endpoint) == ()
    for endpoint in ("https://api.deepseek.com", "https://u:p@API.deepseek.com:443/v1", "api.deepseek.com"):
        (match,) = shipped().matches("deepseek-chat", "api", endpoint)
        assert (match.layer, match.row.key) == ("host", "deepseek-api")


@given(st.text(), st.sampled_from(["shipped", "weights", "api", "router", "import"]), st.text())
def test_any_name_and_any_address_has_an_answer(model, access, endpoint):
    matches = shipped().matches(model, access, endpoint)
    assert len({match.row.key for match in matches}) == len(matches)


def test_asking_gives_the_rows_of_the_matches():
    asked = Asked(
        model="anthropic/claude-4",
        revision="",
        access="router",
        endpoint="https://openrouter.ai/api/v1",
        use="train_target",
        student=Student("s", "embedded:base"),
        operator=Operator(),
    )
    assert [row.key for row in shipped().matching(asked)] == ["openrouter", "anthropic-api"]


def test_a_row_as_json_is_its_toml_again():
    row = shipped().row("deepseek-api")
    found = json.loads(json.dumps(record(row)))
    assert found["read_on"] == "2026-04-21"
    assert [one["kind"] for one in found["obligations"]] == ["label_ai", "no_mark", "check_output"]
    assert [one["kind"] for one in record(shipped().row("hunyuan"))["conditions"]] == ["territory"]


def test_the_row_in_the_documentation_can_be_read():
    page = (ROOT / "docs" / "terms.md").read_text()
    (row,) = read_rows("docs/terms.md", page.partition("```toml\n")[2].partition("```")[0])
    assert (row.key, row.read_on) == ("acme-api", date(2026, 11, 2))


def test_the_wheel_holds_every_file_of_rows():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    package = ROOT / "src" / "stillhouse"
    files = [path.relative_to(package).as_posix() for path in (package / "terms").rglob("*.toml")]
    assert len(files) > 20
    for file in files:
        assert any(fnmatch(file, pattern) for pattern in patterns["stillhouse"]), file


def test_the_command_line_reads_no_row_before_it_is_asked():
    code = (
        "import sys, stillhouse.cli.commands\n"
        "assert 'stillhouse.terms.registry' not in sys.modules, 'imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
