"""`stillhouse guard usage` and `invoice` over a store that was written by the record."""

import csv
import io
import json
from pathlib import Path

import pytest
import typer
from recorded import event, record
from typer.testing import CliRunner

from stillhouse.cli.guard_usage import invoice, register
from stillhouse.errors import UsageError
from stillhouse.guard import config


@pytest.fixture
def store(tmp_path):
    made = config.Store(folder=str(tmp_path / "guard"))
    kept = record(made)
    for n in range(100):
        kept.put(event(n))
    kept.put(event(100, at=event(0).at - 30 * 86_400, account="a0"))
    kept.close()
    return made


@pytest.fixture
def run(store):
    app = typer.Typer()
    register(app)
    settings = Path(store.folder).with_name("guard.toml")
    settings.write_text(
        f'[store]\nfolder = "{store.folder}"\n[[models]]\nname = "m"\n'
        '[[models.upstreams]]\nurl = "http://127.0.0.1:1/v1"\n'
    )

    def words(*given):
        given = [*given, "--config", str(settings)]
        done = CliRunner().invoke(app, given, catch_exceptions=False)
        assert done.exit_code == 0
        return done.output

    return words


def test_usage_of_days_by_account(run):
    rows = json.loads(run("usage", "--from", "2026-11-01", "--to", "2026-11-30", "--json"))
    assert sum(row["requests"] for row in rows) == 100
    assert rows[0] == {
        "date": "2026-11-22", "organisation": "o0", "account": "a0", "key": "k0", "model": "m",
        "requests": 2, "refused": 0, "bound": 0, "input_tokens": 20, "output_tokens": 10, "cost": "0.00004",
    }  # fmt: skip
    mine = json.loads(run("usage", "--account", "a0", "--from", "2026-10-01", "--to", "2026-11-30", "--json"))
    assert sum(row["requests"] for row in mine) == 11
    table = run("usage", "--from", "2026-11-01", "--to", "2026-11-30").splitlines()
    assert len(table) == len(rows) + 1
    assert table[0].split()[:3] == ["date", "organisation", "account"]
    assert run("usage", "--from", "2020-01-01", "--to", "2020-01-02") == "nothing was used\n"


def test_an_invoice_as_text_csv_and_json(run, store):
    said = json.loads(run("invoice", "a0", "2026-11", "--json"))
    assert (said["total"], said["dollars"]) == (10 * 20_000, "0.0002")
    (line,) = said["lines"]
    assert (
        line["input_tokens"] * line["input_price"] + line["output_tokens"] * line["output_price"] == 200_000
    )
    rows = list(csv.DictReader(io.StringIO(run("invoice", "a0", "2026-11", "--csv"))))
    assert [row["amount"] for row in rows] == ["0.0002", "0.0002"]
    assert rows[0]["input_price"] == "1.00"
    assert run("invoice", "a0", "2026-11").splitlines()[-1].split()[0] == "total"
    assert invoice(store, "a0", "2026-10").total == 20_000
    assert invoice(store, "nobody", "2026-11").total == 0


def test_what_is_no_day_or_month_is_said(run):
    with pytest.raises(UsageError, match="not a day"):
        run("usage", "--from", "yesterday")
    with pytest.raises(UsageError, match="not a month"):
        run("invoice", "a0", "2026-00")
