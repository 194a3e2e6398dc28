"""`stillhouse guard price` over a curve, usage and settings that lie in files."""

import csv
import json
import tomllib

import pytest
import typer
from typer.testing import CliRunner

from stillhouse.cli.guard_price import register
from stillhouse.errors import UsageError
from stillhouse.guard.config import Guard
from stillhouse.guard.invoices import as_csv

SETTINGS = """
[prices.standard]
steps = [{ input = 2.5, output = 10.0 }]
[prices.rising]
steps = [{ input = 1.0, output = 1.0 }, { over = 10, input = 2.0, output = 2.0 }]
[[models]]
name = "m"
price = "standard"
[[models.upstreams]]
url = "http://127.0.0.1:1/v1"
"""
SIZE = ("--input-tokens", "200", "--output-tokens", "600")


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "guard.toml").write_text(SETTINGS)
    curve = [(750, 0.467), (1500, 0.812), (3000, 0.947)]
    (tmp_path / "curve.csv").write_text(
        "exchanges,kept\n" + "".join(f"{number},{kept}\n" for number, kept in curve)
    )
    rows = [
        {"date": f"2026-11-{day:02}", "organisation": "", "account": f"acc_{at}", "key": "k", "model": model,
         "requests": 1, "refused": 0, "bound": 0, "input_tokens": int(900 * 1.04**at),
         "output_tokens": int(300 * 1.04**at), "cost": "0.01"}
        for at in range(150) for day in (1, 2) for model in ("m", "other")
    ]  # fmt: skip
    (tmp_path / "usage.csv").write_text(as_csv(rows), newline="")
    app = typer.Typer()
    app.callback()(lambda: None)
    register(app)

    def words(*given):
        done = CliRunner().invoke(app, ["price", *given], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    return words


def test_what_it_prints_can_be_pasted_into_the_settings(run, tmp_path):
    said = json.loads(run("curve.csv", "usage.csv", *SIZE, "--price", "standard", "--json"))
    assert said["account_months"] == 150
    assert said["rows_of_other_models"] == 300
    assert said["price"] == {"name": "standard", "input": 2.5, "output": 10.0}
    assert said["best"]["over"] <= 0.01
    assert said["best"]["copy"] > 1.05
    pasted = SETTINGS.partition("[prices.rising]")
    tree = tomllib.loads(said["settings"] + "\n[prices.rising]" + pasted[2])
    steps = Guard.model_validate(tree).prices["standard"].steps
    assert [step.model_dump() for step in steps] == said["best"]["steps"]
    text = run("curve.csv", "usage.csv", *SIZE, "--price", "standard")
    assert said["settings"] in text
    assert text.partition("assumed:\n- ")[2].splitlines()[0] == said["assumptions"][0]
    for row in said["tradeoff"]:
        assert f"{row['copy']:.2f}x" in text


def test_it_says_where_prices_can_do_nothing(run, tmp_path):
    small = ("--input-tokens", "2", "--output-tokens", "2")
    said = json.loads(run("curve.csv", "usage.csv", *small, "--price", "standard", "--json"))
    assert said["nothing_to_be_done_by_prices"]
    assert "no rising price" in run("curve.csv", "usage.csv", *small, "--price", "standard")


def test_tables_may_be_json(run, tmp_path):
    with (tmp_path / "usage.csv").open(newline="") as file:
        (tmp_path / "usage.json").write_text(json.dumps(list(csv.DictReader(file))))
    (tmp_path / "curve.json").write_text(
        json.dumps({"rows": [{"what": f"text: share kept with {n:,} exchanges", "value": kept}
                             for n, kept in ((750, 0.467), (1500, 0.812), (3000, 0.947))]})
    )  # fmt: skip
    given = ("--price", "standard", *SIZE)
    assert run("curve.json", "usage.json", *given) == run("curve.csv", "usage.csv", *given)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("curve.csv", "usage.csv", *SIZE), "today's price is not told"),
        (("curve.csv", "usage.csv", *SIZE, "--price", "rising"), "rises already"),
        (("curve.csv", "usage.csv", *SIZE, "--price", "cheap"), "no price 'cheap'"),
        (("curve.csv", "usage.csv", *SIZE, "--price", "standard", "--kept", "0.99"), "does not tell"),
        (("nothing.csv", "usage.csv", *SIZE, "--price", "standard"), "no file nothing.csv"),
        (("curve.csv", "broken.json", *SIZE, "--price", "standard"), "cannot be read"),
        (("usage.csv", "usage.csv", *SIZE, "--price", "standard"), "row 1 of the learning curve"),
        (("curve.csv", "curve.csv", *SIZE, "--price", "standard"), "row 1 of the traffic"),
    ],
)
def test_what_is_wrong_is_said(run, tmp_path, words, what):
    (tmp_path / "broken.json").write_text("[")
    with pytest.raises(UsageError, match=what):
        run(*words)
