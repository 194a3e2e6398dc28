"""What a recipe may call the licence of its prompts."""

import pytest

from stillhouse.errors import UsageError
from stillhouse.recipe import parse_recipe


def licence(name):
    prompts = {"source": "embedded:desk", "licence": name}
    tree = {
        "run": {"name": "t"},
        "teacher": {"model": "embedded:desk"},
        "prompts": prompts,
        "student": {"init": "embedded:base"},
    }
    return parse_recipe(tree).prompts.licence


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("cc-by-sa-4.0", "CC-BY-SA-4.0"),
        ("CC-BY-SA-3.0-DE", "CC-BY-SA-3.0-DE"),
        ("GPL-3.0", "GPL-3.0"),
        ("WTFPL", "WTFPL"),
        ("LicenseRef-House", "LicenseRef-House"),
        (None, None),
    ],
)
def test_an_id_is_taken(given, taken):
    assert licence(given) == taken


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("CC BY-SA 4.0", "CC-BY-SA-4.0"),
        ("CC-BY-SA", "CC-BY-SA-4.0"),
        ("apache 2.0", "Apache-2.0"),
        ("our own terms", "LicenseRef-"),
    ],
)
def test_what_is_no_id_is_refused_with_the_nearest(given, meant):
    with pytest.raises(UsageError) as caught:
        licence(given)
    assert meant in str(caught.value) + caught.value.why + caught.value.mend
