"""What a server says of its own terms to machines is heard and obeyed before it is asked anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from stillhouse.guard.config import Record, Terms
from stillhouse.guard.offer import document
from stillhouse.ledger import Ledger
from stillhouse.workspace import init_workspace

APACHE = Path(__file__).parents[2] / "LICENSE"
WHERE = "/.well-known/ai-terms.json"
# Weights under a licence that allows it: then all depends on the server
KNOWN = f'model = "m"\ncheckpoint = "Qwen/Qwen2.5-7B-Instruct"\nlicence = "{APACHE}"\n'
PERMISSION = """
grantor = "R. Roe, who runs 127.0.0.1"
grantee = "us"
signatory = "R. Roe"
approver = "R. Ames"
document = "contract.txt"
valid_from = 2026-01-01
valid_to = 2099-12-31
[scope]
models = ["*"]
uses = ["train_target", "evaluation"]
competing = true
"""


@dataclass
class Server:
    """Answers questions, and GETs from `pages`: status, headers, body."""

    pages: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)
    asked: int = 0
    heard: list[dict[str, str]] = field(default_factory=list)
    origin: str = ""

    def says(self, said: Any) -> None:
        body = said if isinstance(said, bytes) else json.dumps(said).encode()
        self.pages[WHERE] = (200, {}, body)


@pytest.fixture
def servers() -> Iterator[Callable[[], Server]]:
    running = []

    def start() -> Server:
        made = Server()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                made.heard.append({**dict(self.headers), "path": self.path})
                status, headers, body = made.pages.get(self.path, (404, {}, b""))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                made.asked += 1
                self.rfile.read(int(self.headers["Content-Length"]))
                message = {"role": "assistant", "content": "an answer"}
                choice = {"index": 0, "message": message, "finish_reason": "stop"}
                usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
                body = json.dumps({"id": "x", "model": "m", "choices": [choice], "usage": usage}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        running.append((server, thread))
        made.origin = f"http://127.0.0.1:{server.server_port}"
        return made

    yield start
    for server, thread in running:
        server.shutdown()
        server.server_close()
        thread.join(10)


def said(training: str, competing: str = "forbidden", contact: str = "terms@guard.example") -> dict[str, Any]:
    terms = Terms.model_validate(
        {
            "version": "2026-11",
            "document": "terms.md",
            "training": training,
            "competing": competing,
            "contact": contact,
        }
    )
    return document(terms, Record(), "ab" * 32, "https://guard.example", {})


def stillhouse(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stillhouse.cli", *map(str, arguments)]
    env = {**os.environ, "SECRET_OF_THE_SERVER": "sk-secret"}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=env, check=False)


def house(folder: Path, server: Server, teacher: str = KNOWN, release: str = "competes = false") -> Path:
    init_workspace(folder)
    rows = [{"prompt": f"say {i}", "reference": str(i), "scorer": "exact"} for i in range(30)]
    (folder / "prompts.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (folder / "contract.txt").write_text("We permit it.\n")
    (folder / "permission.toml").write_text(PERMISSION)
    (folder / "recipe.toml").write_text(
        f'[run]\nname = "small"\n[teacher]\n{teacher}endpoint = "{server.origin}/v1"\n'
        'key_env = "SECRET_OF_THE_SERVER"\n[prompts]\nsource = "prompts.jsonl"\n'
        f'[student]\ninit = "embedded:base"\n[evaluate]\nheld_out = 0.3\n[release]\n{release}\n'
    )
    return folder


def snapshots(folder: Path) -> list[dict[str, Any]]:
    with Ledger.open(init_workspace(folder)) as ledger:
        return [dict(leaf.body) for leaf in ledger.leaves("terms_snapshot")]


@pytest.mark.parametrize("command", ["plan", "run", "collect"])
def test_a_server_that_forbids_it_is_asked_nothing(
    command: str, servers: Callable[[], Server], tmp_path: Path
) -> None:
    server = servers()
    server.says(said("forbidden"))
    done = stillhouse(command, "recipe.toml", cwd=house(tmp_path, server))
    assert done.returncode == 3
    for words in (
        "answers may train another model: forbidden",
        "version 2026-11",
        "read on 20",
        server.origin + WHERE,
        "names no way to ask",
    ):
        assert words in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert server.asked == 0
    kept = snapshots(tmp_path)
    assert [each["offer"]["training"] for each in kept] == ["forbidden"]


def test_who_is_asked_for_terms_sees_no_key(servers: Callable[[], Server], tmp_path: Path) -> None:
    server = servers()
    stillhouse("plan", "recipe.toml", cwd=house(tmp_path, server))
    heard = [each for each in server.heard if each["path"] == WHERE]
    assert len(heard) == 1
    assert heard[0]["User-Agent"].startswith("stillhouse/")
    assert "Authorization" not in heard[0]


def test_a_permission_that_names_the_server_lifts_what_it_may(
    servers: Callable[[], Server], tmp_path: Path
) -> None:
    server = servers()
    server.says(said("with_permission"))
    folder = house(tmp_path, server)
    before = stillhouse("plan", "recipe.toml", cwd=folder)
    assert before.returncode == 3
    assert "a permission of whoever runs 127.0.0.1, whose grantor or `servers` name it" in before.stderr
    assert "ask terms@guard.example" in before.stderr
    text = (folder / "permission.toml").read_text()
    (folder / "other.toml").write_text(text.replace("127.0.0.1", "elsewhere.example"))
    assert stillhouse("terms", "authorise", "other.toml", cwd=folder).returncode == 0
    assert stillhouse("plan", "recipe.toml", cwd=folder).returncode == 3
    assert stillhouse("terms", "authorise", "permission.toml", cwd=folder).returncode == 0
    after = stillhouse("plan", "recipe.toml", cwd=folder)
    assert after.returncode == 0, after.stderr
    assert "of R. Roe, who runs 127.0.0.1" in after.stdout


def test_no_permission_lifts_what_is_forbidden(servers: Callable[[], Server], tmp_path: Path) -> None:
    server = servers()
    server.says(said("forbidden"))
    folder = house(tmp_path, server)
    assert stillhouse("terms", "authorise", "permission.toml", cwd=folder).returncode == 0
    assert stillhouse("plan", "recipe.toml", cwd=folder).returncode == 3


def test_a_server_that_allows_it_speaks_for_itself_and_for_no_weights(
    servers: Callable[[], Server], tmp_path: Path
) -> None:
    server = servers()
    folder = house(tmp_path, server)
    silent = stillhouse("plan", "recipe.toml", cwd=folder)
    assert silent.returncode == 3
    assert f"the terms of {server.origin}/v1 are not known" in silent.stderr
    server.says(said("allowed"))
    done = stillhouse("plan", "recipe.toml", cwd=folder)
    assert done.returncode == 0, done.stderr
    # Weights of which nothing is known
    house(folder, server, 'model = "who-knows"\n')
    unknown = stillhouse("plan", "recipe.toml", cwd=folder)
    assert unknown.returncode == 3
    assert "whose weights it serves is not known" in unknown.stderr
    # A model that competes, of which the document says no
    house(folder, server, release="competes = true")
    competing = stillhouse("plan", "recipe.toml", cwd=folder)
    assert competing.returncode == 3
    assert "one that competes: forbidden" in competing.stderr
    assert server.asked == 0


def follow(refusal: str, folder: Path) -> None:
    """Do what a refusal says: read a text, keep it, and put the lines that it prints into the recipe."""
    lines = refusal[refusal.index("[teacher.terms]") :].split("\n")
    end = next(at for at, line in enumerate(lines) if line.strip().startswith("about"))
    said = "\n".join(line.strip() for line in lines[: end + 1]).replace("NAME, ROLE", "R. Ames, counsel")
    (folder / "terms.txt").write_text("You may train on what we answer.\n")
    (folder / "recipe.toml").write_text((folder / "recipe.toml").read_text() + said + "\n")


@pytest.mark.parametrize("word", ["allowed", "with_permission"])
def test_whoever_does_what_the_refusal_says_is_let_through(
    word: str, servers: Callable[[], Server], tmp_path: Path
) -> None:
    server = servers()
    server.says(said(word, word))
    folder = house(tmp_path, server, 'model = "who-knows"\n', release="competes = true")
    refused = stillhouse("plan", "recipe.toml", cwd=folder)
    assert refused.returncode == 3
    assert 'or read its terms and, if they allow this use, declare so, with about = ["who-knows"]' in (
        refused.stderr
    )
    follow(refused.stderr, folder)
    if word == "with_permission":
        assert stillhouse("plan", "recipe.toml", cwd=folder).returncode == 3
        assert stillhouse("terms", "authorise", "permission.toml", cwd=folder).returncode == 0
    done = stillhouse("plan", "recipe.toml", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert server.asked == 0


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (b"<html>", "it is no JSON"),
        (b"[]", "no JSON object"),
        (b'{"schema": "ai-terms/9"}', "`schema` is not ai-terms/1"),
        (json.dumps(said("allowed")).replace('"allowed"', '"perhaps"').encode(), "is none of forbidden"),
        (json.dumps(said("allowed", contact="a\u0007b")).encode(), "`contact` is no line"),
        (json.dumps(said("allowed")).encode() + b" " * 65_536, "longer than 64 KiB"),
    ],
)
def test_a_document_that_is_none_leaves_the_terms_unknown_and_says_so(
    body: bytes, fault: str, servers: Callable[[], Server], tmp_path: Path
) -> None:
    server = servers()
    server.says(body)
    done = stillhouse("plan", "recipe.toml", cwd=house(tmp_path, server))
    assert done.returncode == 3
    assert "are not known" in done.stderr
    assert fault in done.stderr
    assert snapshots(tmp_path)[0]["state"] == "malformed"


def test_a_document_elsewhere_is_not_this_servers_word(servers: Callable[[], Server], tmp_path: Path) -> None:
    server, other = servers(), servers()
    other.says(said("allowed"))
    server.pages[WHERE] = (302, {"Location": other.origin + WHERE}, b"")
    assert stillhouse("plan", "recipe.toml", cwd=house(tmp_path, server)).returncode == 3
    assert other.heard == []
    server.pages[WHERE] = (302, {"Location": "/terms.json"}, b"")
    server.pages["/terms.json"] = (200, {}, json.dumps(said("allowed")).encode())
    assert stillhouse("plan", "recipe.toml", cwd=tmp_path).returncode == 0


def test_the_newest_word_counts_and_a_server_that_is_away_changes_nothing(
    servers: Callable[[], Server], tmp_path: Path
) -> None:
    server = servers()
    server.says(said("allowed"))
    folder = house(tmp_path, server)
    assert stillhouse("plan", "recipe.toml", cwd=folder).returncode == 0
    server.pages[WHERE] = (503, {}, b"")
    assert stillhouse("plan", "recipe.toml", cwd=folder).returncode == 0
    server.says(said("forbidden"))
    assert stillhouse("plan", "recipe.toml", cwd=folder).returncode == 3
    # `check` asks nothing and goes by what was heard
    heard = len(server.heard)
    assert stillhouse("terms", "check", "recipe.toml", cwd=folder).returncode == 3
    assert len(server.heard) == heard
    del server.pages[WHERE]
    silent = stillhouse("plan", "recipe.toml", cwd=folder)
    assert silent.returncode == 3
    assert "are not known" in silent.stderr
    assert "what it forbade before stands" in silent.stderr
    assert [each["state"] for each in snapshots(folder)] == ["read", "read", "absent"]
    follow(silent.stderr, folder)
    heeded = stillhouse("plan", "recipe.toml", cwd=folder)
    assert heeded.returncode == 0, heeded.stderr


def test_a_decision_names_what_it_heard(servers: Callable[[], Server], tmp_path: Path) -> None:
    server = servers()
    server.says(said("allowed"))
    folder = house(tmp_path, server)
    assert stillhouse("plan", "recipe.toml", cwd=folder).returncode == 0
    with Ledger.open(init_workspace(folder)) as ledger:
        decision = next(iter(ledger.leaves("decision"))).body
        (leaf,) = decision["offered"]
        snapshot = ledger.leaf(leaf)
        assert json.loads(ledger.contents(snapshot.index)["document"]) == said("allowed")
    layer = next(each for each in decision["layers"] if each["row"].startswith("offered:"))
    assert (layer["version"], layer["source"]) == ("2026-11", server.origin + WHERE)
