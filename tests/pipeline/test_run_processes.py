"""`train` by a launcher of two processes, from a run that one process collected and curated."""

import json
import subprocess
import sys

from safetensors.torch import load_file
from tiny import TEMPLATE, tiny_model

from stillhouse import pipeline
from stillhouse.recipe import load_recipe
from stillhouse.workspace import find_workspace, read_marker

RECIPE = """
[run]
name = "t"
seed = 3

[teacher]
model = "{model}"
terms = {{ document = "terms.txt", read_on = 2026-01-02, declared_by = "a test" }}

[prompts]
source = "prompts.jsonl"

[collect]
max_tokens = 12
temperature = 1.0

[curate]
truncated = false
repetitive = false
near_duplicates = 0.0

[student]
init = "config"
config = {{ hidden_size = 16, intermediate_size = 32, num_hidden_layers = 1, num_attention_heads = 2 }}

[train]
objective = "distil"
epochs = 2
dtype = "float32"

[evaluate]
held_out = 0.2
"""


def test_two_processes_train_a_run_once_and_one_of_them_speaks(tmp_path, workspace):
    model = tiny_model(tmp_path / "model", template=TEMPLATE, max_position_embeddings=128)
    lines = (json.dumps({"prompt": f"say {n}", "id": f"p{n}"}) for n in range(12))
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    (tmp_path / "terms.txt").write_text("you may train on the answers")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.format(model=model))
    done = pipeline.run(load_recipe(recipe), workspace, stages=["collect", "curate"])
    assert find_workspace(tmp_path) == workspace

    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "stillhouse.cli", "train", str(recipe), "--json"]
    for unchanged in ([], ["train"]):
        said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
        assert said.returncode == 0, said.stderr
        assert json.loads(said.stdout)["unchanged"] == unchanged, "one object: the other process is silent"
    marker = read_marker(done.run, "train")
    assert marker is not None
    assert marker["result"]["processes"] == 2
    assert len(marker["result"]["shards"]) == 1
    assert load_file(done.run.student / "model.safetensors")
