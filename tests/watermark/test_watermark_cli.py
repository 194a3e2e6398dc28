"""`stillhouse watermark`, as it is called."""

import json
import os
import stat
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from stillhouse.models import source_folder
from stillhouse.watermark import Gumbel, account_key, read_key, workspace_keys, write_key
from stillhouse.watermark.keys import Key
from stillhouse.workspace import open_workspace


def call(folder, *arguments, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "stillhouse.cli", "watermark", *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if "--json" in arguments else done.stdout + done.stderr


@pytest.fixture(scope="module")
def desk():
    return Tokenizer.from_file(f"{source_folder('embedded:desk')}/tokenizer.json")


def marked(desk, key, count=250):
    """A text of whole words whose tokens the key prefers, so that reading it back gives the same tokens."""
    rng = np.random.default_rng(1)
    words = [token for token in desk.get_vocab() if token.startswith("Ġ") and token[1:].isalpha()]
    ids = [desk.token_to_id(word) for word in sorted(words)]
    text = rng.choice(ids, size=4).tolist()
    while len(text) < count:
        tries = rng.choice(ids, size=4)
        bits = [key.scheme.bits(key.sip, np.array([*text[-4:], one]), np.array([one])) for one in tries]
        text.append(int(tries[int(np.argmax([key.scheme.scores(one)[0] for one in bits]))]))
    return desk.decode(text)


def kept(workspace):
    """The same key in every run: what chance lets its decoys find is then always the same."""
    key = Key(Gumbel(), (1).to_bytes(32, "big"), datetime(2026, 3, 1, tzinfo=UTC))
    write_key(key, workspace.watermark_key(key.id))
    return key


def test_a_key_is_made_kept_private_and_the_newest_is_in_force(workspace):
    folder = workspace.root.parent
    assert "next       stillhouse watermark rotate" in call(folder, "keys")
    first = call(folder, "rotate", "--json")
    call(folder, "rotate", "--scheme", "kgw")
    listed = call(folder, "keys", "--json")["keys"]
    assert [row["scheme"]["name"] for row in listed] in (["kgw", "gumbel"], ["gumbel", "kgw"])
    assert len(workspace_keys(open_workspace(folder))) == 2
    assert stat.S_IMODE(os.stat(first["file"]).st_mode) == 0o600
    secret = read_key(workspace.watermark_key(first["id"])).secret.hex()
    assert secret not in call(folder, "keys") + json.dumps(listed)


def test_a_marked_text_is_told_from_another(workspace, desk):
    folder = workspace.root.parent
    key = kept(workspace)
    (folder / "marked.txt").write_text(marked(desk, key))
    (folder / "plain.txt").write_text("The kettle is on, and the order will be sent on Monday. " * 30)
    said = call(folder, "detect", "marked.txt")
    assert f"marked with {key.id}" in said
    found = call(folder, "detect", "marked.txt", "--json", "--window", 100)
    assert found["keys"][0]["adjusted_p"] < 1e-6
    assert found["decoys"]["smallest_p"] > 1e-4
    assert found["alone"][0]["from"] == 0
    assert found["alone"][0]["adjusted_p"] < 1e-3
    assert "where      characters 0 to" in call(folder, "detect", "marked.txt", "--window", 100)
    plain = call(folder, "detect", "plain.txt")
    assert "no evidence of a mark; that is no evidence that there was none" in plain


def test_an_account_is_found_among_the_keys_that_were_tried(workspace, desk):
    folder = workspace.root.parent
    text = marked(desk, account_key(kept(workspace), "ann"))
    plain = {"answer": "The kettle is on, and the order will be sent on Monday."}
    rows = [{"answer": text[: len(text) // 2]}, {"other": 1}, {"answer": text[len(text) // 2 :]}, plain]
    (folder / "rows.jsonl").write_text("\n".join([*map(json.dumps, rows), "{torn"]))
    arguments = ("rows.jsonl", "--column", "answer", "--account", "bob", "--account", "ann")
    found = call(folder, "detect", *arguments, "--json")
    assert (found["texts"], found["broken_rows"]) == (3, 2)
    assert [row["line"] for row in found["alone"] if row["adjusted_p"] < 1e-3] == [1, 3]
    assert found["keys"][0]["account"] == "ann"
    assert found["keys"][0]["adjusted_p"] < 1e-6 < 1e-2 < found["keys"][1]["adjusted_p"]
    said = call(folder, "detect", *arguments)
    assert "2 rows could not be read" in said
    assert "alone      2 of 3 parts are marked each by itself\nwhere      line 1: p =" in said
    assert "several texts" in call(folder, "detect", *arguments, "--window", 50, code=2)


def test_mistakes_are_told_in_three_lines(workspace, tmp_path):
    folder = workspace.root.parent
    (folder / "text.txt").write_text("a text")
    assert "no watermark key" in call(folder, "detect", "text.txt", code=2)
    assert "schemes: kgw, gumbel" in call(folder, "rotate", "--scheme", "gumble", code=2)
    (folder / "key.json").write_text("{}")
    assert "cannot use the watermark key" in call(folder, "detect", "text.txt", "--key", "key.json", code=2)
    made = call(folder, "rotate", "--json")
    assert "cannot read" in call(folder, "detect", "missing.txt", code=2)
    assert "no tokenizer" in call(folder, "detect", "text.txt", "--model", str(tmp_path), code=2)
    row = json.loads(Path(made["file"]).read_text())
    (folder / "key.json").write_text(json.dumps(row | {"secret": "00" * 32}))
    assert "does not belong" in call(folder, "detect", "text.txt", "--key", "key.json", code=2)
    assert isinstance(read_key(workspace.watermark_key(made["id"])).scheme, Gumbel)
