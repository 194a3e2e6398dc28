"""White-box lineage: a copy is found however it was cut or noised, and what was trained alone is not."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from stillhouse.audit.lineage import checkpoints, weights
from stillhouse.errors import ModelError

numpy_files = pytest.importorskip("safetensors.numpy")
scipy_stats = pytest.importorskip("scipy.stats")

DATA = Path(__file__).parents[2].parent / "shared/data/models"
STORIES, LLAMA = DATA / "stories260K", DATA / "babyllama361"
real = pytest.mark.skipif(not STORIES.is_dir(), reason="data sets are not part of the project")


def tensors_of(folder):
    return dict(numpy_files.load_file(folder / "model.safetensors"))


def write(folder, tensors, tokens, merges=()):
    folder.mkdir()
    numpy_files.save_file(
        {name: np.ascontiguousarray(each) for name, each in tensors.items()}, folder / "model.safetensors"
    )
    vocab = {f"t{n}": n for n in range(tokens)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab, "merges": list(merges)}}))
    return folder


def like(folder, tensors, of=STORIES):
    """A checkpoint with these weights and the tokenizer of another."""
    folder.mkdir()
    numpy_files.save_file(
        {name: np.ascontiguousarray(each) for name, each in tensors.items()}, folder / "model.safetensors"
    )
    shutil.copy(of / "tokenizer.json", folder / "tokenizer.json")
    return folder


def random_model(seed, width=32, neurons=48, layers=2, tokens=200):
    draw = np.random.default_rng(seed).standard_normal
    made = {"model.embed_tokens.weight": draw((tokens, width)).astype(np.float32)}
    for layer in range(layers):
        for kind in ("gate_proj", "up_proj"):
            name = f"model.layers.{layer}.mlp.{kind}.weight"
            made[name] = draw((neurons, width)).astype(np.float32)
    return made


def compared(suspect, teacher, *controls, level=0.01):
    opened = [checkpoints.open_checkpoint(each) for each in (suspect, teacher, *controls)]
    return weights.compare_weights(opened[0], opened[1], opened[2:], level, seed=0)


def test_models_of_unrelated_seeds_share_no_order_and_no_copies(tmp_path):
    teacher = write(tmp_path / "t", random_model(0), 200)
    p = []
    for seed in range(1, 9):
        found = compared(write(tmp_path / f"s{seed}", random_model(seed), 200), teacher)
        p.append([test.p for test in found.tests])
        assert found.verdict == "not decided"
    assert np.array(p).min() > 0.002
    assert np.median(p) > 0.2


def test_a_noised_copy_is_found_by_every_test(tmp_path):
    made = random_model(0)
    rng = np.random.default_rng(1)
    noised = {name: each + rng.normal(0, 0.5, each.shape).astype(np.float32) for name, each in made.items()}
    found = compared(write(tmp_path / "s", noised, 200), write(tmp_path / "t", made, 200))
    assert found.verdict == "supported"
    assert all(test.adjusted <= 0.01 for test in found.tests)


def test_a_student_cut_from_its_teacher_in_width_and_depth_is_found(tmp_path):
    made = random_model(0, layers=4)
    rng = np.random.default_rng(1)
    stream, neurons = np.sort(rng.permutation(32)[:20]), np.sort(rng.permutation(48)[:30])
    cut = {"model.embed_tokens.weight": made["model.embed_tokens.weight"][:, stream]}
    for place, layer in enumerate((0, 3)):
        for kind in ("gate_proj", "up_proj"):
            whole = made[f"model.layers.{layer}.mlp.{kind}.weight"]
            cut[f"model.layers.{place}.mlp.{kind}.weight"] = whole[neurons][:, stream]
    found = compared(write(tmp_path / "s", cut, 200), write(tmp_path / "t", made, 200))
    assert found.verdict == "supported"
    by_name = {test.name: test for test in found.tests}
    assert by_name["order of channels"].p <= 0.001
    assert by_name["order of neurons"].p <= 0.001
    assert by_name["copies of neurons"].p is None
    assert "cannot be laid side by side" in by_name["copies of neurons"].note
    pairs = {(each["suspect"], each["teacher"]) for each in found.facts["layers"]}
    assert ("model.layers.1.mlp.up_proj.weight", "model.layers.3.mlp.up_proj.weight") in pairs


def test_renumbered_neurons_hide_their_order_and_not_that_they_are_copies(tmp_path):
    made = random_model(0)
    turned = dict(made)
    rng = np.random.default_rng(1)
    for layer in range(2):
        order = rng.permutation(48)
        for kind in ("gate_proj", "up_proj"):
            name = f"model.layers.{layer}.mlp.{kind}.weight"
            turned[name] = made[name][order] * rng.uniform(0.5, 2, (48, 1)).astype(np.float32)
    turned["model.embed_tokens.weight"] = (
        np.random.default_rng(9).standard_normal((200, 32)).astype(np.float32)
    )
    found = compared(write(tmp_path / "s", turned, 200), write(tmp_path / "t", made, 200))
    by_name = {test.name: test for test in found.tests}
    assert by_name["order of neurons"].p > 0.01
    assert by_name["copies of neurons"].adjusted <= 0.01
    assert found.verdict == "supported"


def test_the_order_test_is_scipys_rank_correlation_and_uniform_under_chance():
    rng = np.random.default_rng(0)
    partners = rng.integers(0, 40, 30)
    value, p = weights.order_test([partners], np.random.default_rng(1))
    assert value == pytest.approx(scipy_stats.spearmanr(np.arange(30), partners).statistic)
    exact = scipy_stats.permutation_test(
        (partners,),
        lambda theirs: scipy_stats.spearmanr(np.arange(30), theirs).statistic,
        permutation_type="pairings",
        alternative="greater",
        n_resamples=500,
        rng=np.random.default_rng(2),
    )
    assert p == pytest.approx(exact.pvalue, abs=0.06)
    drawn = [
        weights.order_test([rng.permutation(25), rng.permutation(25)], np.random.default_rng(n))[1]
        for n in range(40)
    ]
    assert scipy_stats.kstest(drawn, "uniform").pvalue > 0.01


def test_weights_of_half_precision_are_read_as_they_are(tmp_path):
    import struct

    folder = tmp_path / "m"
    folder.mkdir()
    values = np.array([[1.0, -2.5], [0.15625, 3e38]], dtype=np.float32)
    raw = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    head = {"embed_tokens.weight": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, len(raw)]}}
    header = json.dumps(head).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + raw)
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": [["a", 0.0], ["b", 0.0]]}}))
    opened = checkpoints.open_checkpoint(folder)
    read = checkpoints.rows_of(opened, opened.embedding)
    np.testing.assert_allclose(read, values, rtol=0.01)
    assert opened.tokens == {"a": 0, "b": 1}


@pytest.mark.parametrize("data", [b"", b"\xff" * 9, b"\x10\0\0\0\0\0\0\0{}", b"\x02\0\0\0\0\0\0\0[]"])
def test_a_folder_that_is_no_checkpoint_is_refused_with_its_reason(tmp_path, data):
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(ModelError, match="cannot be compared"):
        checkpoints.open_checkpoint(tmp_path)


@real
def test_two_real_models_that_were_trained_apart_are_not_decided():
    found = compared(STORIES, LLAMA)
    assert found.verdict == "not decided"
    assert min(test.p for test in found.tests if test.p is not None) > 0.005


@real
def test_a_real_model_that_was_cut_and_noised_is_found_beside_a_control(tmp_path):
    made = tensors_of(STORIES)
    rng = np.random.default_rng(0)
    width = made["model.embed_tokens.weight"].shape[1]
    stream = np.sort(rng.permutation(width)[: width // 2])
    cut = {}
    for name, each in made.items():
        if name.endswith(("gate_proj.weight", "up_proj.weight", "embed_tokens.weight", "lm_head.weight")):
            kept = each[:, stream] if each.shape[1] == width else each
            cut[name] = kept + rng.normal(0, 0.3 * kept.std(), kept.shape).astype(np.float32)
    found = compared(like(tmp_path / "s", cut), STORIES, LLAMA)
    assert found.verdict == "supported"
    teacher, control = found.facts["beside"]
    assert teacher["tokens"] == teacher["merges"] == 1
    assert control["merges"] < 0.5
    assert teacher["channels"] > 0.9 > abs(control["channels"] or 0)
    assert teacher["logits"] > teacher["logits_by_chance"]


@real
@pytest.mark.usefixtures("one_thread")
def test_a_student_that_stillhouse_cut_from_a_teacher_is_found(tmp_path):
    """By importance in width, as `student.keep_width` does, on rows that the student is about to learn."""
    pytest.importorskip("torch")
    from stillhouse.models.local import load_model, text_ids
    from stillhouse.recipe import Student
    from stillhouse.train.pruning import prune
    from stillhouse.train.rows import Row

    teacher = load_model(str(STORIES), "float32")
    told = ["Once upon a time there was a little girl.", "The dog ran to the park to play."] * 4
    rows = [Row(np.array(text_ids(teacher, text), dtype=np.int32), 1, str(n)) for n, text in enumerate(told)]
    settings = {"init": "from_teacher", "keep_width": {"hidden": 0.5, "mlp": 0.5, "heads": 0.5}}
    prune(teacher.model, Student.model_validate(settings), rows, 512, seed=0)
    teacher.model.save_pretrained(tmp_path / "student")
    shutil.copy(STORIES / "tokenizer.json", tmp_path / "student" / "tokenizer.json")
    found = compared(tmp_path / "student", STORIES, LLAMA)
    assert found.verdict == "supported"
    assert all(test.adjusted <= 0.01 for test in found.tests if test.p is not None)
