"""What a release rests on: whose answers, by whose leave, and whether they were there before the training."""

import pytest
from tiny import tiny_model

from stillhouse import pipeline
from stillhouse.audit import verify

pytestmark = pytest.mark.usefixtures("one_thread")


def failures(done):
    return {check.name: check.detail for check in done.checks if not check.ok}


def test_a_student_of_a_folder_verifies_and_tells_the_folders_name_alone(recipe_of, workspace, tmp_path):
    """Leaves name such a teacher by its folder, older ones by the whole path."""
    teacher = tiny_model(tmp_path / "secret" / "taught")
    recipe = recipe_of(tmp_path, {"model": str(teacher)}, 30, collect={"concurrency": 4, "max_tokens": 4})
    done = verify(pipeline.run(recipe, workspace).run.release)
    assert not failures(done)
    lines = {check.name: check.detail for check in done.checks}
    assert lines["teachers"] == "taught 100.0% of the rows"
