import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.errors import UsageError
from stillhouse.recipe import Recipe, load_recipe, parse_recipe, recipe_digest, recipe_schema, run_digest
from stillhouse.recipe.places import line_of

GOOD = """\
[run]
name = "a"

[teacher]
model = "embedded:desk"

[prompts]
source = "embedded:desk"

[student]
init = "embedded:base"

[train]
epochs = 2
"""


def parse(text: str) -> Recipe:
    return parse_recipe(tomllib.loads(text), text, "a.toml")


def test_a_typo_names_its_line_and_the_nearest_key():
    with pytest.raises(UsageError) as caught:
        parse(GOOD.replace("epochs", "epoch"))
    assert caught.value.what == "a.toml:14: unknown key `train.epoch`"
    assert caught.value.mend == "did you mean `epochs`?"
    assert caught.value.exit_code == 2


def test_a_mistyped_table_names_the_nearest_table():
    with pytest.raises(UsageError) as caught:
        parse(GOOD.replace("[train]", "[trian]"))
    assert caught.value.mend == "did you mean `train`?"
    assert ":13:" in caught.value.what


def test_a_typo_in_a_nested_table_is_found():
    text = GOOD + "[student.lora]\nrnak = 8\n"
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert "student.lora.rnak" in caught.value.what
    assert caught.value.mend == "did you mean `rank`?"
    assert f":{text.splitlines().index('rnak = 8') + 1}:" in caught.value.what


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("epochs = 2", "epochs = 0", "train.epochs"),
        ("epochs = 2", 'epochs = "two"', "train.epochs"),
        ('name = "a"', 'name = "../a"', "run.name"),
        ('model = "embedded:desk"', 'model = "m"\nendpoint = "ftp://x"', "teacher.endpoint"),
    ],
)
def test_a_bad_value_is_named(old, new, named):
    with pytest.raises(UsageError, match=named):
        parse(GOOD.replace(old, new))


SEVERAL = """
[[teachers]]  # [[teachers]]
model = "one"
terms = { document = '''a
[[teachers]]
weight = 0''', read_on = 2026-01-02, declared_by = "x" }
endpoint = "http://one/v1"

[[teachers]]
model = "two"
families = [
    "a", # weight = "b"
    "b",
]
endpoint = "http://two/v1"

[teachers.price]
input = 1
output = 2
"""


@pytest.mark.parametrize(
    ("old", "new", "named", "line"),
    [
        ('"one"', '"one"\nwieght = 2', "teachers.0.wieght", "wieght"),
        ('"two"', '"two"\nwieght = 2', "teachers.1.wieght", "wieght"),
        ('"two"', '"two"\nweight = -1', "teachers.1.weight", "weight = -1"),
        ('[[teachers]]\nmodel = "two"', "[[teachers]]  # here", "teachers.1.model", "# here"),
        ("output = 2", "output = -2", "teachers.1.price.output", "output = -2"),
        ("output = 2\n", "", "teachers.1.price.output", "[teachers.price]"),
        ('"b",', "3,", "teachers.1.families.1", "    3,"),
        (', declared_by = "x"', "", "teachers.0.terms.declared_by", "terms"),
        ('"http://two/v1"', '"ftp://two"', "teachers.1.endpoint", "ftp"),
    ],
)
def test_an_error_in_one_of_several_teachers_names_its_own_line(old: str, new: str, named: str, line: str):
    text = GOOD + SEVERAL.replace(old, new)
    wanted = next(n for n, there in enumerate(text.splitlines(), 1) if line in there)
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert caught.value.what.startswith(f"a.toml:{wanted}: ")
    assert f"`{named}`" in caught.value.what


def test_the_same_teacher_twice_is_said_and_not_a_crash():
    with pytest.raises(UsageError, match="the recipe is not usable") as caught:
        parse(GOOD + '[[teachers]]\nmodel = "embedded:desk"\n')
    assert "embedded:desk stands there twice" in caught.value.why


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ('[train.distil]\ntargets = "answers"\n', "set collect.top_logprobs"),
        ("", "in train.distil.tokenizer"),
        ("[train.distil]\nonline = true\n", "needs the weights of [teacher]"),
        ('[train.distil]\nkeep = "vectors"\n', "never the vectors that they are made of"),
        (
            '[train.distil]\ntargets = "answers"\n[collect]\ntop_logprobs = 5\n'
            '[curate]\nrationale = "<(.*)>"\n',
            "takes text out of answers",
        ),
    ],
)
def test_what_distilling_needs_is_said_before_anything_is_paid_for(more: str, why: str):
    remote = GOOD.replace('model = "embedded:desk"', 'model = "m"\nendpoint = "http://x/v1"', 1)
    with pytest.raises(UsageError) as caught:
        parse(remote.replace("[train]\n", '[train]\nobjective = "distil"\n') + more)
    assert why in caught.value.why


ANSWERS = 'objective = "distil"\n[collect]\ntop_logprobs = 5\n[train.distil]\ntargets = "answers"\n'
DISTIL = 'objective = "distil"\n[train.distil]\n'


@pytest.mark.parametrize(
    ("train", "named", "why"),
    [
        ("[train.distil]\nhead = 4\n", "train.distil.head", "learns text alone"),
        ("[train.on_policy]\nshare = 0.3\n", "train.on_policy.share", "no student writes"),
        (DISTIL + "[train.on_policy]\nafter = 0.5\n", "train.on_policy.after", "no student writes"),
        (ANSWERS + 'keep = "all"\n', "train.distil.keep", "collect.top_logprobs"),
        (ANSWERS + "head = 4\n", "train.distil.head", "collect.top_logprobs"),
        (ANSWERS + "draws = 0\n", "train.distil.draws", "collect.top_logprobs"),
        (ANSWERS + 'tokenizer = "x"\n', "train.distil.tokenizer", "`endpoint`"),
        (DISTIL + "online = true\nhead = 4\n", "train.distil.head", "`online` keeps no"),
        (DISTIL + 'unit = "chunk"\ndraws = 4\n', "train.distil.draws", "one for each chunk"),
        (DISTIL + 'keep = "all"\nhead = 4\n', "train.distil.head", "tells of every token"),
        (DISTIL + 'keep = "vectors"\ndraws = 4\n', "train.distil.draws", "tells of every token"),
        (DISTIL + "beta = 0.2\n", "train.distil.beta", "`forward_kl` has no beta"),
        ('objective = "on_policy"\n[train.on_policy]\nskew = 0.2\n', "train.on_policy.skew", "no skew"),
    ],
)
def test_a_setting_that_nothing_would_read_is_refused_by_name(train: str, named: str, why: str):
    with pytest.raises(UsageError) as caught:
        parse(GOOD + train)
    assert f"`{named}` would change nothing" in caught.value.why
    assert why in caught.value.why


@pytest.mark.parametrize("train", ["", ANSWERS, DISTIL + "online = true\n"])
def test_a_resolved_recipe_which_states_all_settings_is_a_recipe(train: str):
    recipe = parse(GOOD + train)
    assert parse_recipe(recipe.model_dump(mode="json")) == recipe


def test_own_text_that_an_endpoint_reads_needs_settings_that_answers_do_not():
    """The rows are learned by answers, what the student writes by what the endpoint tells."""
    remote = GOOD.replace('model = "embedded:desk"', 'model = "m"\nendpoint = "http://x/v1"', 1)
    told = ANSWERS.replace('"distil"', '"on_policy"') + 'tokenizer = "x"\nhead = 20\ndraws = 0\n'
    assert parse(remote + told).train.distil.kept == (20, 0)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ('vectors = "bfloat16"', 'only read with `keep = "vectors"`'),
        ('keep = "vectors"\ntargets = "answers"', "answers come without vectors"),
        ('keep = "vectors"\nunit = "chunk"', "leave out `keep`"),
        ('keep = "vectors"\nvectors = "float16"', "bfloat16"),
    ],
)
def test_vectors_go_with_a_teacher_that_reads_the_students_tokens(more: str, why: str):
    with pytest.raises(UsageError) as caught:
        parse(GOOD.replace("[train]\n", '[train]\nobjective = "distil"\n') + f"[train.distil]\n{more}\n")
    assert why in caught.value.why


def test_vectors_serve_every_measure_and_temperature():
    more = '[train.distil]\nkeep = "vectors"\ndivergence = "reverse_kl"\ntemperature = 3.0\n'
    parsed = parse(GOOD.replace("[train]\n", '[train]\nobjective = "distil"\n') + more)
    assert parsed.train.distil.kept == (0, 0)


KEYS = st.sampled_from(["a", "b", "model", "weight"])
VALUES = st.recursive(
    st.sampled_from(["1", "-2.5", '"a = [1]"', "'}'", '"""x\n[a]\nb = 1"""', "2026-01-02 10:00:00", "true"]),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda of: "[" + ",\n ".join(of) + "]"),
        st.dictionaries(KEYS, inner, max_size=2).map(
            lambda of: "{" + ", ".join(f"{key} = {value}" for key, value in of.items()) + "}"
        ),
    ),
    max_leaves=6,
)


@given(st.lists(st.tuples(st.booleans(), st.dictionaries(KEYS, VALUES, max_size=3)), max_size=4))
def test_each_key_of_each_table_is_found_on_its_line(tables: list[tuple[bool, dict[str, str]]]):
    text, wanted, elements = "first = 0\n", {("first",): 1}, 0
    for number, (in_array, settings) in enumerate(tables):
        place = ("many", str(elements)) if in_array else ("one", str(number))
        elements += in_array
        wanted[place] = text.count("\n") + 1
        text += "[[many]]\n" if in_array else f'[ one . "{number}" ]  # a = 1\n'
        for key, value in settings.items():
            wanted[*place, key] = text.count("\n") + 1
            text += f"{key} = {value}\n"
    tomllib.loads(text)
    assert {place: line_of(text, place) for place in wanted} == wanted


def test_a_missing_table_is_named():
    with pytest.raises(UsageError, match="`student` is missing"):
        parse(GOOD.replace('[student]\ninit = "embedded:base"\n', ""))


def test_broken_toml_and_missing_file(tmp_path: Path):
    path = tmp_path / "r.toml"
    path.write_text("[run\n")
    with pytest.raises(UsageError, match="not valid TOML"):
        load_recipe(path)
    with pytest.raises(UsageError, match="no recipe"):
        load_recipe(tmp_path / "none.toml")


def test_relative_paths_are_taken_from_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "p.jsonl").write_text("{}")
    path = tmp_path / "sub" / "r.toml"
    path.write_text(GOOD.replace('source = "embedded:desk"', 'source = "p.jsonl"'))
    monkeypatch.chdir(tmp_path)
    assert load_recipe(path).prompts.source == str(tmp_path / "sub" / "p.jsonl")


def test_the_digest_does_not_depend_on_order_or_spelled_out_defaults():
    reordered = "\n\n".join(reversed(GOOD.strip().split("\n\n")))
    spelled = GOOD + "weight_decay = 0.1\n"
    assert recipe_digest(parse(GOOD)) == recipe_digest(parse(reordered)) == recipe_digest(parse(spelled))
    assert recipe_digest(parse(GOOD)) != recipe_digest(parse(GOOD.replace("epochs = 2", "epochs = 3")))


def test_the_schema_forbids_unknown_keys_and_describes_the_tables():
    schema = recipe_schema()
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) == {"run", "teacher", "prompts", "student"}


@given(st.text(max_size=30), st.text(max_size=30))
def test_no_key_whatever_crashes_the_reader(table, key):
    tree = tomllib.loads(GOOD)
    tree.setdefault(table, {})
    if isinstance(tree[table], dict):
        tree[table][key] = 1
    try:
        parse_recipe(tree, GOOD)
    except UsageError as error:
        shown = (error.what, error.mend)
        assert all(shown)


REMOTE = GOOD.replace('model = "embedded:desk"', 'model = "m"\nendpoint = "https://api.example.com/v1"')
HIDDEN = "s3cr3t-hunter2"


@pytest.mark.parametrize(
    "line",
    [
        f'endpoint = "https://me:{HIDDEN}@api.example.com/v1"',
        f'endpoint = "https://api.example.com/v1?key={HIDDEN}"',
        f'endpoint = "https://api.example.com/v1#{HIDDEN}"',
        f'endpoint = "https://me:{HIDDEN}"',
        f'endpoint = "https://[{HIDDEN}]/v1"',
        f'endpoint = "{HIDDEN}"',
        f'endpoint = ["{HIDDEN}"]',
        'endpoint = "https:///v1"',
        f'key_env = "{HIDDEN}"',
        f'key_env = "${{{HIDDEN}}}"',
        f'key_env = {{ name = "{HIDDEN}" }}',
        'key_env = ""',
    ],
)
def test_a_secret_in_the_wrong_place_is_refused_and_not_repeated(line):
    text = GOOD.replace('model = "embedded:desk"', f'model = "m"\n{line}')
    with pytest.raises(UsageError) as caught:
        parse(text)
    error = caught.value
    assert f"a.toml:6: `teacher.{line.split(' ')[0]}`" in error.what
    assert HIDDEN not in f"{error} {error.what} {error.why} {error.mend}"
    if line.startswith("key_env = ") and "{ name" not in line:
        assert "NAME" in error.why


def test_a_plain_endpoint_and_the_name_of_a_variable_are_taken():
    made = parse(REMOTE.replace("/v1", ":8443/a/v1").replace("[prompts]", 'key_env = "_Key2"\n[prompts]'))
    assert made.teacher.endpoint == "https://api.example.com:8443/a/v1"
    assert made.teacher.key_env == "_Key2"


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ('model = "m"\nendpoint = "http://h/v1"', "endpoint"),
        ('model = "embedded:desk"', "embedded:desk"),
        ('model = "m"\nsystem = "Be brief."', "system"),
        ('model = "m"\nrevision = "2"', "revision"),
    ],
)
def test_imported_answers_go_with_nothing_that_asks(more, named):
    with pytest.raises(UsageError, match="`teacher` is not usable") as caught:
        parse(GOOD.replace('model = "embedded:desk"', f"{more}\nimported = true"))
    assert named in caught.value.why
    assert parse(GOOD.replace('"embedded:desk"\n\n[p', '"m"\nimported = true\n\n[p')).teacher.imported


@pytest.mark.parametrize("word", ["config", "from_teacher"])
def test_words_for_the_student_are_never_folders(tmp_path: Path, word):
    (tmp_path / word).mkdir()
    path = tmp_path / "r.toml"
    path.write_text(GOOD.replace("embedded:base", word))
    assert load_recipe(path).student.init == word


def changed(text: str, table: str, line: str) -> Recipe:
    if f"[{table}]\n" in text:
        return parse(text.replace(f"[{table}]\n", f"[{table}]\n{line}\n"))
    return parse(f"{text}\n[{table}]\n{line}\n")


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ("teacher", 'key_env = "K"'),
        ("teacher", "price = { input = 1, output = 2 }"),
        ("teacher", 'terms = { document = "t", read_on = 2026-11-01, declared_by = "R" }'),
        ("collect", "concurrency = 2"),
        ("collect", "timeout = 9"),
        ("collect", "retries = 1"),
        ("collect", "max_cost = 1"),
        ("collect", "max_failures = 0.5"),
        ("train", "checkpoint_seconds = 5"),
        ("evaluate", "resamples = 100"),
        ("evaluate", "baseline = false"),
        ("evaluate", "max_tokens = 9"),
        ("release", 'name = "other"'),
        ("release", 'licence = "MIT"'),
        ("release", 'mode = "internal"'),
        ("release", "competes = false"),
        ("student", 'task = "classifier"'),
        ("teacher", 'access = "weights"'),
        ("teacher", 'checkpoint = "maker/model"'),
        ("teacher", 'licence = "LICENSE"'),
        ("teacher", 'features = ["web_search"]'),
        ("teacher", "paid = true"),
        ("teacher", "prompt_logging = false"),
        ("teacher", "multimodal = true"),
    ],
)
def test_what_changes_no_row_keeps_the_run(table, line):
    assert run_digest(changed(REMOTE, table, line)) == run_digest(parse(REMOTE))
    assert recipe_digest(changed(REMOTE, table, line)) != recipe_digest(parse(REMOTE))


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ("teacher", 'system = "Be brief."'),
        ("teacher", 'revision = "2"'),
        ("teacher", 'provider = "example"'),
        ("teacher", 'access = "router"\nupstream = "host"'),
        ("collect", "samples = 2"),
        ("collect", "max_tokens = 9"),
        ("prompts", "count = 9"),
        ("curate", "refusals = false"),
        ("student", "lora = { rank = 4 }"),
        ("train", "clip = 2"),
        ("evaluate", "held_out = 0.2"),
        ("evaluate", 'source = "other.jsonl"'),
        ("evaluate", "count = 9"),
        ("run", "seed = 18"),
    ],
)
def test_what_changes_rows_makes_another_run(table, line):
    assert run_digest(changed(REMOTE, table, line)) != run_digest(parse(REMOTE))


def test_the_run_depends_on_the_provider_or_else_on_the_host():
    moved = parse(REMOTE.replace("https://api.example.com/v1", "http://API.example.com:8080/v2"))
    other = parse(REMOTE.replace("api.example.com", "other.example.com"))
    assert run_digest(parse(REMOTE)) == run_digest(moved) != run_digest(other)
    line = 'provider = "example"'
    assert run_digest(changed(REMOTE, "teacher", line)) == run_digest(
        changed(REMOTE.replace("api.example.com", "other.example.com"), "teacher", line)
    )
    assert run_digest(parse(REMOTE)) != run_digest(parse(GOOD.replace("embedded:desk", "m", 1)))
