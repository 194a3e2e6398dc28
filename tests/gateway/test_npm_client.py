"""The official npm client makes its ordinary calls against a gateway that runs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from behind import WORDS, Behind
from gate import gate, tree_of

PACKAGES = Path(sys.prefix) / "npm" / "node_modules"  # where `make test-all` installs it


def test_the_npm_client_makes_its_ordinary_calls(tmp_path):
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    if not (PACKAGES / "openai").is_dir():
        pytest.skip(f"the npm package openai is not in {PACKAGES}: `make test-all` installs it")
    script = tmp_path / "client.mjs"  # a module looks for packages beside itself
    script.write_bytes(Path(__file__).with_name("client.mjs").read_bytes())
    (tmp_path / "node_modules").symlink_to(PACKAGES)
    models = "whole", "slowly", "cut", "status-429"
    with Behind() as behind, gate(tmp_path, tree_of(tmp_path, behind.url, *models)) as served:
        environ = {**os.environ, "OPENAI_BASE_URL": served.url, "OPENAI_API_KEY": served.key}
        done = subprocess.run(
            ["node", script], env=environ, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert behind.left["slowly"] == 1
    told = json.loads(done.stdout)
    words = [f"w{number}" for number in range(WORDS)]
    assert told["models"] == list(models)
    assert told["chat"].split() == ["word"] * WORDS
    assert told["request"].startswith("req_")
    assert told["stream"].split() == words
    assert told["usage"]["completion_tokens"] == WORDS
    assert told["completion"]
    assert told["embedding"] == [0.5, 0.25]
    assert told["errors"] == {
        "unknown": ["NotFoundError", 404, "model_not_found"],
        "theirs": ["RateLimitError", 429, "odd"],
        "cut": ["APIError", None, "upstream_cut"],
        "key": ["AuthenticationError", 401, "invalid_api_key"],
    }
