"""Real texts of licences are told, and none of which a word was changed."""

import random
import re
from hashlib import sha256
from importlib.metadata import distributions
from pathlib import Path

import pytest

from stillhouse.terms.licences import digest, normalised, read_licence, recognise

COMMON = Path("/usr/share/common-licenses")  # on Debian and its kin


def installed(package, name):
    """A licence's text in an installed package's metadata."""
    for found in distributions():
        if (found.metadata["Name"] or "").lower() == package:
            for file in found.files or ():
                told = ".dist-info/" in str(file) or name.startswith("cc-")
                if told and file.name.lower().startswith(name.lower()):
                    return Path(str(found.locate_file(file))).read_text(encoding="utf-8", errors="replace")
    pytest.skip(f"{package} is not installed, or without its {name}")


TEXTS = [
    ("aiohttp", "LICENSE", "Apache-2.0"),
    ("requests", "LICENSE", "Apache-2.0"),
    ("rfc8785", "LICENSE", "Apache-2.0"),
    ("hf-xet", "LICENSE", "Apache-2.0"),
    ("cryptography", "LICENSE.APACHE", "Apache-2.0"),
    ("cryptography", "LICENSE.BSD", "BSD-3-Clause"),
    ("typer", "LICENSE", "MIT"),
    ("rich", "LICENSE", "MIT"),
    ("urllib3", "LICENSE", "MIT"),
    ("jsonschema", "COPYING", "MIT"),
    ("setuptools", "LICENSE", "MIT"),
    ("jinja2", "LICENSE", "BSD-3-Clause"),
    ("idna", "LICENSE", "BSD-3-Clause"),
    ("starlette", "LICENSE", "BSD-3-Clause"),
    ("zstandard", "LICENSE", "BSD-3-Clause"),
    ("pygments", "LICENSE", "BSD-2-Clause"),
    ("packaging", "LICENSE.BSD", "BSD-2-Clause"),
]


@pytest.mark.parametrize(("package", "name", "spdx"), TEXTS, ids=[f"{p}-{n}" for p, n, _ in TEXTS])
def test_the_licence_of_an_installed_package_is_told(package, name, spdx):
    text = installed(package, name)
    assert recognise(text) == spdx
    assert digest(text) == digest(text.replace("\n", "\r\n")) == digest("\ufeff" + text.replace(" ", "  "))


@pytest.mark.parametrize(("package", "name", "spdx"), TEXTS[:2] + TEXTS[5:7] + TEXTS[-2:])
def test_with_any_word_of_it_changed_it_is_not(package, name, spdx):
    text = installed(package, name)
    kept = "\n".join(line for line in text.splitlines() if "opyright" not in line or len(line.split()) > 12)
    places = [found.span() for found in re.finditer(r"\b[a-zA-Z]{4,}\b", kept)]
    # Titles and holders' names differ from copy to copy; the grant and what limits it do not.
    body = [(start, end) for start, end in places if len(kept) * 0.2 < start < len(kept) * 0.9]
    rest = kept.lower()
    inside = [
        (start, end)
        for start, end in body
        if not re.search(r"(neither the name|provided by|in no event shall)[^.]{0,150}$", rest[:end])
        and "copyright" not in rest[rest.rfind("\n", 0, start) + 1 : end + 40]
    ]
    assert len(inside) > 20
    for start, end in random.Random(7).sample(inside, 20):
        assert recognise(kept[:start] + "notwithstanding" + kept[end:]) == "", kept[start:end]


def test_a_grant_that_is_narrowed_is_not_the_licence():
    mit = installed("rich", "LICENSE")
    assert recognise(mit) == "MIT"
    for word, other in (("free of charge", "for a charge"), ("sublicense, and/or sell", "sublicense")):
        assert word in mit
        assert recognise(mit.replace(word, other)) == ""
    assert recognise(mit + "\nOutputs may not be used to train other models.\n") == ""
    assert recognise("Copyright 2026 X. Outputs may not be used to train.\n" + mit) == ""
    assert recognise("Copyright 2026 X, not for commercial use\n" + mit) == ""
    assert recognise(mit.replace("Copyright (c)", "Copyright © 2019, 2020")) == "MIT"
    assert recognise("") == recognise("MIT") == recognise("Apache-2.0") == ""


@pytest.mark.skipif(not (COMMON / "Apache-2.0").is_file(), reason="no texts of licences on this machine")
def test_the_texts_that_the_system_has():
    assert recognise((COMMON / "Apache-2.0").read_text()) == "Apache-2.0"
    assert recognise((COMMON / "CC0-1.0").read_text()) == "CC0-1.0"
    assert recognise((COMMON / "GPL-3").read_text()) == ""


def test_creative_commons_by_its_whole_text():
    text = installed("license-expression", "cc-by-4.0")
    assert recognise(text) == "CC-BY-4.0"
    assert recognise(text.replace("irrevocable", "revocable")) == ""


def test_words_alone_count_in_any_script():
    assert (
        normalised("  The “Works”,\n\n and 通义千问\tLicence_No. 1 ") == "the works and 通义千问 licence no 1"
    )
    assert normalised("Copyright (c) 2024 Will May\nPermission") == "permission"
    assert normalised("copyright owner or entity") == "copyright owner or entity"


def test_the_licence_in_a_models_folder(tmp_path):
    assert read_licence(tmp_path) is None
    assert read_licence(tmp_path / "nowhere") is None
    (tmp_path / "README.md").write_text("license: mit")
    (tmp_path / "config.json").write_text("{}")
    assert read_licence(tmp_path) is None
    mit = installed("rich", "LICENSE")
    (tmp_path / "license.txt").write_text(mit)
    assert read_licence(tmp_path) == (sha256(normalised(mit).encode()).hexdigest(), "MIT", "license.txt")
    (tmp_path / "LICENSE").write_text(mit.replace("\n", "\n\n"))
    assert read_licence(tmp_path) == (digest(mit), "MIT", "LICENSE")
    (tmp_path / "LICENSE").write_text("All rights are mine.")
    assert read_licence(tmp_path) == (digest("All rights are mine."), "", "LICENSE")


def test_where_two_licences_differ_that_of_the_model_counts(tmp_path):
    (tmp_path / "LICENSE-CODE").write_text(installed("rich", "LICENSE"))
    assert read_licence(tmp_path)[1:] == ("MIT", "LICENSE-CODE")
    (tmp_path / "LICENSE-MODEL").write_text("Model licence: research alone.")
    assert read_licence(tmp_path) == (digest("Model licence: research alone."), "", "LICENSE-MODEL")
    (tmp_path / "LICENSE-MODEL").unlink()
    (tmp_path / "COPYING").write_text("Model licence: research alone.")
    assert read_licence(tmp_path)[1] == ""


def test_what_is_no_text_is_no_licence(tmp_path):
    (tmp_path / "LICENSE").write_bytes(b"")
    assert read_licence(tmp_path) is None
    (tmp_path / "LICENSE").write_bytes(b"x" * (2**20 + 1))
    assert read_licence(tmp_path) is None
    (tmp_path / "LICENSE").write_bytes(bytes(range(256)))
    assert read_licence(tmp_path)[1] == ""
