"""guard.toml as its writer meets it: errors that name the line, and what `check` finds."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.cli.guarding import STARTER
from stillhouse.errors import UsageError
from stillhouse.guard.config import Guard
from stillhouse.guard.reading import (
    check,
    checked_tier,
    forbidden_address,
    read_config,
    unknown_tiers,
    url_fault,
    weakness,
)

SECRET = "Zk3vT9qLw8RxY2nB5mHc7PdJ4sGf6EaU"
GOOD = """\
[server]
port = 8700

[[models]]
name = "small-1"

[[models.upstreams]]
url = "http://127.0.0.1:8000/v1"

[prices.standard]
steps = [
  { input = 0.1, output = 0.4 },
]

[tiers.default]
models = ["*"]
"""
ENVIRON = {"STILLHOUSE_ADMIN_SECRET": SECRET}


@pytest.fixture
def write(tmp_path):
    def to(text):
        path = tmp_path / "guard.toml"
        path.write_text(text)
        return path

    return to


def config(**tables):
    return Guard.model_validate({**tomllib.loads(GOOD), "prices": {}, **tables})


def found(settings, environ=ENVIRON, level="error"):
    return [one for one in check(settings, environ) if one.level == level]


def test_relative_paths_are_taken_from_the_file(write, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    terms = '[terms]\nversion = "1"\ndocument = "terms.txt"\ntraining = "forbidden"\n'
    read = read_config(write(GOOD + terms))
    assert read.store.folder == str(tmp_path / ".stillhouse" / "guard")
    assert read.terms.document == str(tmp_path / "terms.txt")
    absolute = read_config(write(GOOD + '[store]\nfolder = "/var/lib/guard"\n'))
    assert absolute.store.folder == "/var/lib/guard"


@pytest.mark.parametrize(
    ("wrong", "right", "line", "tip"),
    [
        ("prot = 8700", "port = 8700", 2, "`port`"),
        ("nam = 'x'", "", 6, "`name`"),
        ("url_ = 1", "", 9, "`url`"),
        ("outputs = 1", 'models = ["*"]', 16, "models"),
        ("[tier.default]", "[tiers.default]", 15, "`tiers`"),
    ],
)
def test_an_unknown_key_is_named_with_its_line_and_the_nearest(write, wrong, right, line, tip):
    lines = GOOD.splitlines()
    if right:
        lines[line - 1] = wrong
    else:
        lines.insert(line - 1, wrong)
    path = write("\n".join(lines))
    with pytest.raises(UsageError, match="unknown key") as caught:
        read_config(path)
    assert f"guard.toml:{line}:" in caught.value.what
    assert tip in caught.value.mend


def test_a_key_in_a_table_that_its_writer_named_is_found_too(write):
    path = write(GOOD.replace("{ input = 0.1,", "{ inputs = 0.1,"))
    with pytest.raises(UsageError) as caught:
        read_config(path)
    assert caught.value.mend == "did you mean `input`?"
    assert "guard.toml:12:" in caught.value.what


@pytest.mark.parametrize(
    "line",
    [
        '[store]\nredis = "hunter2"',
        '[store]\ndatabase = "mysql://me:hunter2@h/d"',
        '[store]\npepper_env = "hunter2!"',
        '[record]\ntraces = "hunter2"',
        '[[models]]\nname = "b"\nupstreams = [{ url = "ftp://hunter2" }]',
        '[[models]]\nname = "b"\nupstreams = [{ url = "http://x/v1", key_env = "sk-hunter2" }]',
    ],
)
def test_what_may_be_a_secret_is_never_shown(write, line):
    with pytest.raises(UsageError) as caught:
        read_config(write(f"{GOOD}\n{line}\n"))
    assert "hunter2" not in f"{caught.value.what}{caught.value.why}{caught.value.mend}"


@given(st.text(max_size=60))
def test_no_text_whatever_crashes_the_reader(text):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "guard.toml"
        path.write_text(GOOD + text, encoding="utf-8", errors="replace")
        try:
            read_config(path)
        except UsageError as error:
            shown = (error.what, error.mend)
            assert all(shown)


def test_the_starter_is_fit_to_start_with(write):
    settings = read_config(write(STARTER))
    assert check(settings, ENVIRON) == []
    assert [one.where for one in check(settings, {})] == ["server.admin_secret_env"]


@pytest.mark.parametrize(
    ("secret", "why"),
    [
        ("short", "5 characters"),
        ("a" * 40, "1 distinct"),
        ("abababababababababababababab", "2 distinct"),
        ("passwordpasswordadmin12345678", "well-known words"),
        ("changeme-admin-secret-default", "well-known words"),
        ("abcdefghijklmnopqrstuvwxyz", "in order"),
        ("zyxwvutsrqponmlkjihgfedcba", "in order"),
        ("k7Qz2mWx9Tk7Qz2mWx9Tk7Qz2mWx9T", "repeats the same 10"),
    ],
)
def test_a_weak_admin_secret_keeps_the_gateway_from_starting(secret, why):
    assert why in weakness(secret)
    (one,) = found(config(), {"STILLHOUSE_ADMIN_SECRET": secret})
    assert why in one.what
    assert secret not in one.what + one.mend


@given(st.binary(min_size=32, max_size=32))
def test_what_openssl_rand_makes_is_strong(random):
    import base64

    secret = base64.b64encode(random).decode()
    if len(set(random)) > 20:
        assert weakness(secret) == ""
        assert weakness(random.hex()) == "" or len(set(random.hex())) < 10


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8000/v1",
        "http://localhost:11434/v1",
        "http://[::1]:8000/v1",
        "http://10.1.2.3/v1",
        "http://192.168.0.7/v1",
        "http://[fd12:3456::7]/v1",
        "http://vllm.internal:8000/v1",
        "https://api.example.com/v1",
        "https://8.8.8.8/v1",
    ],
)
def test_own_servers_and_public_ones_are_fine(url):
    assert url_fault(url) == ""


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data",
        "http://169.254.170.2/v1",
        "http://2852039166/v1",
        "http://0xa9fea9fe/v1",
        "http://0251.0376.0251.0376/v1",
        "http://169.254.43518/v1",
        "http://[::ffff:169.254.169.254]/v1",
        "http://[::ffff:a9fe:a9fe]/v1",
        "http://[64:ff9b::a9fe:a9fe]/v1",
        "http://[fd00:ec2::254]/v1",
        "http://[fe80::1%25eth0]/v1",
        "http://metadata.google.internal/v1",
        "http://METADATA.google.internal./v1",
        "http://100.100.100.200/v1",
        "http://168.63.129.16/v1",
        "http://0.0.0.0:8000/v1",
        "http://[::]/v1",
        "http://me:pw@host/v1",
        "http://me@host/v1",
        "https://host/v1?key=abc",
        "https://host/v1#x",
        "http:///v1",
        "http://host:port/v1",
        "http://host:99999/v1",
        "http://ho st/v1",
        "file:///etc/passwd",
        "gopher://host/v1",
    ],
)
def test_urls_that_reach_where_nobody_may_are_refused(url):
    assert url_fault(url)
    if url.startswith("http"):
        model = {"name": "m", "upstreams": [{"url": url}]}
        assert [one.where for one in found(config(models=[model]))] == ["models.0.upstreams.0.url"]


@given(st.text(max_size=40))
def test_no_host_whatever_crashes_the_check(host):
    assert isinstance(url_fault(f"http://{host}/v1"), str)
    assert isinstance(forbidden_address(host), str)


def test_the_check_names_what_will_fail(tmp_path):
    upstreams = [{"url": "https://api.example.com/v1", "key_env": "THERE_IS_NONE"}]
    (one,) = found(config(models=[{"name": "m", "upstreams": upstreams}]))
    assert "THERE_IS_NONE" in one.what
    (one,) = found(config(store={"pepper_env": "PEPPER"}))
    assert "PEPPER is not set" in one.what
    assert found(config(store={"pepper_env": "PEPPER"}), ENVIRON | {"PEPPER": SECRET}) == []
    (one,) = found(config(store={"pepper_env": "PEPPER"}), ENVIRON | {"PEPPER": "pepper"})
    assert "weak" in one.what
    (one,) = found(config(store={"database": "postgresql://host/db"}))
    assert "each would hash keys" in one.what
    with_password = {"database": "postgresql://me:hunter2@host/db", "pepper_env": "PEPPER"}
    (one,) = found(config(store=with_password), ENVIRON | {"PEPPER": SECRET})
    assert "PGPASSWORD" in one.mend
    assert "hunter2" not in one.what + one.mend
    terms = {"version": "1", "document": str(tmp_path / "none.txt"), "training": "forbidden"}
    (one,) = found(config(terms=terms))
    assert "none.txt" in one.what
    (one,) = found(config(record={"traces": "http://169.254.169.254/v1/traces"}))
    assert one.where == "record.traces"


@pytest.mark.parametrize(
    ("price", "fine"), [(0.001, True), (0.15, True), (99_999.999, True), (0.0005, False)]
)
def test_a_price_that_would_be_rounded_is_refused(price, fine):
    schedule = {"steps": [{"input": price, "output": 1}]}
    model = {"name": "m", "upstreams": [{"url": "http://127.0.0.1/v1"}], "price": "p"}
    errors = found(config(models=[model], prices={"p": schedule}))
    assert [one.where for one in errors] == ([] if fine else ["prices.p.steps.0.input"])


def test_replicas_share_more_than_their_counts():
    errors = [one.where for one in found(config(store={"redis": "redis://host"}))]
    assert errors == ["store.database"]


def test_what_may_be_meant_otherwise_is_a_warning():
    def warned(environ=ENVIRON, **tables):
        return [one.where for one in found(config(**tables), environ, "warning")]

    assert warned() == []
    assert warned(server={"host": "0.0.0.0"}) == ["server.host"]
    assert warned(server={"host": "localhost"}) == []
    assert warned(prices={"p": {"steps": [{"input": 1, "output": 1}]}}) == ["prices.p"]
    assert warned(tiers={"default": {"models": ["large-*"]}}) == ["tiers.default.models"]
    assert warned(tiers={"default": {"prepaid": True}}) == ["tiers.default"]
    keyed = {"url": "http://api.example.com/v1", "key_env": "KEY"}
    model = {"name": "small-1", "upstreams": [keyed]}
    assert warned(ENVIRON | {"KEY": "k"}, models=[model]) == ["models.0.upstreams.0.url"]


def test_a_tier_that_is_not_there_is_told():
    assert checked_tier(config(), "default") == "default"
    with pytest.raises(UsageError) as caught:
        checked_tier(config(), "defualt")
    assert "default" in caught.value.mend
    assert [one.level for one in unknown_tiers(config(), {"default", "gold"})] == ["error"]
