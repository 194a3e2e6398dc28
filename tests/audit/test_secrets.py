"""Ten thousand secrets where they may stand by mistake, and a search of every byte that stays."""

import gzip
import json
import random
import re
import string

import pyarrow.parquet as pq
import pytest
from aiohttp import web
from provider import answer, providers
from tiny import tiny_model

from stillhouse import pipeline
from stillhouse.errors import StillhouseError
from stillhouse.ledger import Ledger
from stillhouse.recipe import parse_recipe
from stillhouse.report import write_report
from stillhouse.workspace import init_workspace

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = ("sk-{}", "sk-proj-{}", "sk-ant-api03-{}", "hf_{}", "ghp_{}", "AKIA{}", "xoxb-{}", "gsk_{}", "{}")
MARK = "zq7Xw"  # stands in every one, so that one search finds them all


class Secrets:
    """Makes them, and knows how many it made."""

    def __init__(self, seed):
        self.draw, self.made = random.Random(seed), 0

    def one(self):
        self.made += 1
        letters = "".join(self.draw.choices(string.ascii_letters + string.digits, k=24))
        return self.draw.choice(SHAPES).format(letters[:12] + MARK + letters[12:])

    def header(self):
        return self.draw.choice(("Bearer {}", "Basic {}", "{}", "key={}; Path=/")).format(self.one())


def everything(workspace):
    """(where, bytes) of all that lies in a workspace, unpacked where it is packed."""
    for path in sorted(workspace.root.rglob("*")):
        if not path.is_file():
            continue
        data = path.read_bytes()
        yield path.name, data
        if path.suffix == ".gz":
            yield path.name, gzip.decompress(data)
        if path.suffix == ".parquet":
            yield path.name, json.dumps(pq.read_table(path).to_pylist(), default=str).encode()
    with Ledger.open(workspace) as ledger:
        for leaf in ledger.leaves():
            yield f"leaf {leaf.index}", leaf.data
            for name, content in ledger.contents(leaf.index).items():
                yield f"{name} of leaf {leaf.index}", content or b""


def test_no_secret_stays_anywhere(tmp_path, monkeypatch, capfd):
    secrets = Secrets(11)
    key = secrets.one()
    monkeypatch.setenv("TEACHER_KEY", key)
    rows = [
        {"prompt": f"say {i % 7} {i}", "id": f"p{i}", "reference": str(i % 7), "scorer": "exact"}
        | {name: secrets.header() for name in ("api_key", "authorization", "cookie", "notes", "meta")}
        for i in range(80)
    ]
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "terms.txt").write_text("you may train on the answers")

    def headers():
        known = {"Set-Cookie": secrets.header(), "x-request-id": secrets.one()}
        return known | {f"x-{n}": secrets.header() for n in range(20)}

    async def leaky(body, number):
        """Every third request fails with an error that repeats keys; answers repeat our own."""
        if number % 3 == 0:
            said = " ".join(["wrong key", key, *(secrets.header() for _ in range(60))])
            error = {"error": {"message": said, "type": "server_error", "code": "overloaded"}}
            return web.json_response(error, status=503, headers={**headers(), "Retry-After": "0"})
        given = answer(body["messages"][-1]["content"].split()[1])
        echoed = json.loads(given.body) | {"debug": {"authorization": f"Bearer {key}"}}
        return web.json_response(echoed, headers=headers())

    workspace = init_workspace(tmp_path)
    with providers() as provider:
        tree = {
            "run": {"name": "s", "seed": 3},
            "teacher": {
                "model": "m",
                "endpoint": provider(leaky).url,
                "provider": "somewhere",
                "key_env": "TEACHER_KEY",
                "terms": {
                    "document": str(tmp_path / "terms.txt"),
                    "read_on": "2026-01-02",
                    "declared_by": "a test",
                },
            },
            "prompts": {"source": str(tmp_path / "prompts.jsonl")},
            "collect": {"concurrency": 4, "max_tokens": 8, "retries": 8},
            "student": {"init": str(tiny_model(tmp_path / "student"))},
            "train": {"epochs": 1, "batch_tokens": 512, "dtype": "float32"},
            "evaluate": {"held_out": 0.2, "resamples": 50},
        }
        done = pipeline.run(parse_recipe(tree), workspace)
    write_report(done.run)
    while secrets.made < 10_000:
        misplaced(tree, secrets)
    shown = capfd.readouterr()
    everywhere = [*everything(workspace), ("output", (shown.out + shown.err).encode())]
    assert not [place for place, data in everywhere if MARK.encode() in data]
    assert secrets.made >= 10_000


def misplaced(tree, secrets):
    """A secret where the recipe has no place for one: refused, and not repeated."""
    place = secrets.draw.choice(
        ["key_env", "user", "query", "fragment", "unknown", "judge", "nested", "value"]
    )
    teacher = dict(tree["teacher"])
    secret = secrets.one()
    changed = {**tree, "teacher": teacher}
    if place == "key_env":
        teacher["key_env"] = secret.replace("_", "-") + "-"
    elif place == "user":
        teacher["endpoint"] = f"https://{secret}:x@host/v1"
    elif place == "query":
        teacher["endpoint"] = f"https://host/v1?key={secret}"
    elif place == "fragment":
        teacher["endpoint"] = f"https://host/v1#{secret}"
    elif place == "unknown":
        teacher["api_key"] = secret
    elif place == "judge":
        changed["evaluate"] = {"judge": {**teacher, "key_env": secret + "!"}}
    elif place == "nested":
        teacher["key_env"] = {"value": secret}
    else:
        teacher["endpoint"] = secret
    with pytest.raises(StillhouseError) as caught:
        parse_recipe(changed, json.dumps(changed))
    said = " ".join((caught.value.what, caught.value.why, caught.value.mend))
    assert MARK not in said, (place, said)
    assert not re.search(MARK, str(caught.value)), place
