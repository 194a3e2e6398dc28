"""What the generated pages and the Makefile say."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from pydantic import BaseModel

from stillhouse.recipe import Recipe

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("generate_docs", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_recipe_page_is_up_to_date(generate):
    assert (ROOT / "docs" / "recipe.md").read_text() == generate.recipe_page(), "run `make docs`"


def test_the_table_of_terms_is_up_to_date(generate):
    assert (ROOT / "docs" / "terms.md").read_text() == generate.terms_page(), "run `make docs`"


def test_every_default_on_the_recipe_page_is_the_programs(generate):
    tables = dict(re.findall(r"^## `\[(\w+)\]`\n(.*?)(?=^## |\Z)", generate.recipe_page(), re.M | re.S))
    checked = 0
    for table, field in Recipe.model_fields.items():
        if table == "teachers":  # a list of what [teacher] is
            continue
        shown = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|", tables[table], re.M))
        model = field.annotation
        assert shown.keys() == model.model_fields.keys()
        for key, one in model.model_fields.items():
            default = one.default
            words = (
                {None: "none", True: "true", False: "false"} if not isinstance(default, float | int) else {}
            )
            if isinstance(default, bool):
                words = {True: "true", False: "false"}
            plain = default if isinstance(default, list) else words.get(default, default)
            wanted = "required" if one.is_required() else f"`{plain}`"
            if isinstance(default, BaseModel):  # it has a table of its own
                wanted = "its defaults"
            assert shown[key] == (wanted if wanted != "``" else '`""`'), f"{table}.{key}"
            checked += 1
    assert checked > 40
    page = generate.recipe_page()
    for line in (
        "| `temperature` | number | `0.0` |",
        "| `top_p` | number | `1.0` |",
        "| `clip` | number | `1.0` |",
    ):
        assert line in page


def test_the_plot_of_the_controller_is_what_it_does_now():
    done = subprocess.run(
        [sys.executable, "docs/controller.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_plot_is_a_picture_without_script_or_outside_source():
    root = ElementTree.parse(ROOT / "docs" / "controller.svg").getroot()
    names = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert names <= {"svg", "title", "desc", "style", "rect", "path", "line", "text"}
    assert not [key for element in root.iter() for key in element.attrib if "href" in key]
    assert "prefers-color-scheme:dark" in "".join(root.itertext())
    assert "(controller.svg)" in (ROOT / "docs" / "collecting.md").read_text()


def test_every_link_between_the_pages_leads_somewhere():
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_make_clean_leaves_the_ledger_and_its_keys():
    done = subprocess.run(["make", "-n", "clean"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ".stillhouse" not in done.stdout
    assert "rm -rf" in done.stdout


def test_make_test_checks_the_pages():
    done = subprocess.run(
        ["make", "-n", "-o", "setup", "test"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "docs/generate.py --check" in done.stdout
    assert "docs/controller.py --check" in done.stdout


def test_the_licence_is_there():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert 'license-files = ["LICENSE"]' in (ROOT / "pyproject.toml").read_text()
