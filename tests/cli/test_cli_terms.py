"""`stillhouse terms` as a person meets it."""

import json
import subprocess
import sys
from datetime import date

import pytest
from maker import row_toml

OLD = """Terms of Acme.

You may train models on what ours answers. You must say so.
"""
REWRAPPED = "Terms  of Acme. You may train\nmodels on what ours answers.\n\n\nYou must say so.\n"
NEW = OLD.replace("You may train", "You may not train")
ROW = row_toml(
    key="acme",
    vendor="Acme",
    models=["acme/*"],
    licence={"name": "Acme Terms"},
    read_on=date(2026, 10, 1),
)


def stillhouse(*arguments, cwd):
    command = [sys.executable, "-m", "stillhouse.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def refused(done, code, *words):
    assert done.returncode == code, done.stdout
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["error", "cause", "hint"]
    for word in words:
        assert word in done.stderr


@pytest.fixture
def workspace(tmp_path):
    assert stillhouse("init", cwd=tmp_path).returncode == 0
    return tmp_path


def keep(folder, text, day="2026-11-01", *more):
    (folder / "terms.txt").write_text(text)
    given = ["terms.txt", "--row", "cohere-api", "--read-on", day, "--read-by", "R. Ames", *more]
    return stillhouse("terms", "snapshot", *given, cwd=folder)


def test_the_list_holds_every_row_and_needs_no_workspace(tmp_path):
    done = stillhouse("terms", "list", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 73
    assert "compliant" not in done.stdout
    found = json.loads(stillhouse("terms", "list", "--vendor", "deepseek", "--json", cwd=tmp_path).stdout)
    assert {row["vendor"] for row in found["rows"]} == {"DeepSeek"}
    assert len(found["rows"]) == 5
    assert found["own"] == []


def test_a_model_is_shown_with_all_that_is_known_of_it(tmp_path):
    text = stillhouse("terms", "show", "allenai/Llama-3.1-Tulu-3-8B", cwd=tmp_path).stdout
    for words in ("tulu3: licence of the model", "llama3.1: terms that come through tulu3"):
        assert words in text
    for words in ('its name begins with "Llama"', "2025-07-15", "primary: the text itself was read", "1.b.i"):
        assert words in text
    text = stillhouse("terms", "show", "grok-4", "--access", "api", cwd=tmp_path).stdout
    assert "lifted by  an Order Form of xAI (SpaceXAI) that permits it" in text
    mistral = stillhouse("terms", "show", "mistral-large-latest", cwd=tmp_path).stdout
    assert "nothing but obligations found in Mistral Commercial Terms of Service" in mistral
    assert "read as it stood on 2026-08-07" in mistral
    text = stillhouse("terms", "show", "google/gemma-4-27b", cwd=tmp_path).stdout
    assert "no restriction found in Apache License 2.0, second-hand, known on 2026-11-20" in text
    text = stillhouse("terms", "show", "nobody/x", cwd=tmp_path).stdout
    assert "no row speaks about it, so it is refused" in text


def test_show_as_json(tmp_path):
    done = stillhouse(
        "terms", "show", "gpt-4o", "--endpoint", "https://x.openai.azure.com", "--json", cwd=tmp_path
    )
    found = json.loads(done.stdout)
    assert found["verdict"] == "refuse"
    assert [(row["layer"], row["key"]) for row in found["rows"]] == [
        ("host", "azure-openai"),
        ("vendor", "openai-api"),
    ]
    refused(stillhouse("terms", "show", "gpt-4o", "--access", "magic", cwd=tmp_path), 2, "magic", "weights")


def test_a_text_is_kept_and_only_a_change_of_words_is_one(workspace):
    first = keep(workspace, OLD)
    assert first.returncode == 0, first.stderr
    assert "text 1 of cohere-api" in first.stdout
    assert keep(workspace, OLD).stdout == first.stdout
    refused(stillhouse("terms", "diff", "cohere-api", cwd=workspace), 2, "cohere-api", "snapshot")
    again = json.loads(keep(workspace, REWRAPPED, "2026-11-02", "--json").stdout)
    assert (again["changed"], again["kept"]) == (False, 2)
    same = stillhouse("terms", "diff", "cohere-api", cwd=workspace)
    assert "nothing changed but white space" in same.stdout
    changed = keep(workspace, NEW, "2026-11-03")
    assert "it differs from leaf" in changed.stdout
    lines = stillhouse("terms", "diff", "cohere-api", cwd=workspace).stdout.splitlines()
    assert "-You may train models on what ours answers." in lines
    assert "+You may not train models on what ours answers." in lines
    assert not [line for line in lines if line[:1] in "+-" and "say so" in line]
    found = json.loads(stillhouse("terms", "diff", "cohere-api", "--json", cwd=workspace).stdout)
    assert found["changed"]
    assert found["to"] > found["from"] == again["leaf"]


def test_a_kept_text_is_in_the_ledger_and_can_be_erased(workspace):
    leaf = json.loads(keep(workspace, OLD, "2026-11-01", "--json").stdout)["leaf"]
    shown = json.loads(stillhouse("ledger", "show", leaf, "--json", cwd=workspace).stdout)
    assert shown["kind"] == "terms_snapshot"
    assert shown["body"]["row"] == "cohere-api"
    assert shown["body"]["read_by"] == "R. Ames"
    assert shown["contents"] == {"document": OLD}
    assert "train" not in json.dumps(shown["body"])


def test_what_cannot_be_kept_is_refused_in_three_lines(workspace):
    given = ["--row", "cohere-api", "--read-on", "2026-11-01", "--read-by", "R. Ames"]
    page = "https://cohere.com/terms-of-use"
    refused(stillhouse("terms", "snapshot", page, *given, cwd=workspace), 2, page, "save its text")
    refused(stillhouse("terms", "snapshot", "no.txt", *given, cwd=workspace), 2, "no.txt")
    refused(keep(workspace, "  \n"), 2, "terms.txt is empty")
    refused(keep(workspace, OLD, "2926-01-01"), 2, "future")
    refused(keep(workspace, OLD, "last week"), 2, "last week", "YYYY-MM-DD")
    given[1] = "cohere-aip"
    refused(
        stillhouse("terms", "snapshot", "terms.txt", *given, cwd=workspace), 2, "did you mean cohere-api?"
    )


def test_a_workspaces_own_rows_count_and_are_shown_as_such(workspace):
    assert "no rows of its own" in stillhouse("terms", "diff", cwd=workspace).stdout
    own = workspace / ".stillhouse" / "terms"
    own.mkdir()
    (own / "acme.toml").write_text(ROW + ROW.replace('"acme"', '"granite"'))
    text = stillhouse("terms", "diff", cwd=workspace).stdout
    assert "acme: added" in text
    assert "granite: stands for the package's row" in text
    assert '- "IBM"' in text
    assert '+ "Acme"' in text
    shown = stillhouse("terms", "show", "acme/large", cwd=workspace).stdout
    assert "from this workspace" in shown
    assert "no restriction found in Acme Terms, read as it stood on 2026-10-01" in shown
    (own / "acme.toml").write_text(ROW + "colour = 1")
    refused(stillhouse("terms", "list", cwd=workspace), 2, "acme.toml", "row 'acme'", "colour")
