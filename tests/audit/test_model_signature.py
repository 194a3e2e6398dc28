"""model.sig: what `model_signing` says of a release, and what `audit verify` says of the same signature."""

import base64
import json
import random
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.audit import verify
from stillhouse.errors import LedgerError
from stillhouse.ledger import oms
from stillhouse.ledger.keys import pre_authentication
from stillhouse.ledger.leaves import canonical
from stillhouse.ledger.manifest import digests
from stillhouse.workspace import pems

P256 = ec.generate_private_key(ec.SECP256R1())


@pytest.fixture
def bundle(made, tmp_path):
    return Path(shutil.copytree(made.release, tmp_path / "there" / "release"))


@pytest.fixture
def public(made, tmp_path):
    """The maker's key, as somebody had it before and from elsewhere."""
    return Path(shutil.copy(made.workspace.model_verifying_key, tmp_path / "theirs.pub"))


def by_model_signing(what, bundle, *more):
    """What the program of the OpenSSF says, run in a folder where nothing but the release lies."""
    if find_spec("model_signing") is None:
        pytest.skip("model-signing is not installed (requirements-oms.lock)")
    command = [sys.executable, "-m", "model_signing", what, "key", bundle.name, "--signature"]
    done = subprocess.run(
        [*command, f"{bundle.name}/{oms.NAME}", *map(str, more)],
        cwd=bundle.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def said(done, name):
    return next((check.ok, check.detail) for check in done.checks if check.name == name)


def flip(path, place=-1):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_both_accept_the_release(made, bundle, public):
    code, text = by_model_signing("verify", bundle, "--public_key", public)
    assert (code, "Verification succeeded" in text) == (0, True), text
    done = verify(bundle, made.key, made.kept)
    assert done.ok
    count = len(digests(bundle)) - 1
    assert said(done, "model.sig") == (True, f"{count} files, signed by the P-256 key in model-signing.pub")


@pytest.mark.parametrize("file", ["model.safetensors", "MANIFEST", "provenance/rows.parquet", "README.md"])
def test_both_notice_one_flipped_bit(bundle, public, file):
    flip(bundle / file)
    code, text = by_model_signing("verify", bundle, "--public_key", public)
    assert code == 1
    assert "Hash mismatch for" in text
    assert file in text
    done = verify(bundle)
    assert not done.ok
    if file != "MANIFEST":  # without one nothing says whose key this is
        assert said(done, "model.sig") == (False, f"{file} is not as model.sig says")


def test_both_notice_files_that_are_added_or_removed(bundle, public):
    (bundle / "modeling.py").write_text("import os")
    (bundle / "NOTICE.txt").write_text("x")
    (bundle / "LICENSE").unlink()
    code, text = by_model_signing("verify", bundle, "--public_key", public)
    assert code == 1
    assert "NOTICE.txt, modeling.py" in text
    ok, why = said(verify(bundle), "model.sig")
    assert not ok
    assert all(name in why for name in ("modeling.py", "NOTICE.txt", "LICENSE"))


def test_both_refuse_another_key(made, bundle, tmp_path):
    other = tmp_path / "other.pub"
    other.write_bytes(pems(P256)[1])
    code, text = by_model_signing("verify", bundle, "--public_key", other)
    assert code == 1
    assert "Key mismatch" in text
    # Whoever puts a key of their own into the release would have to change the manifest and the log too.
    (bundle / oms.PUBLIC).write_bytes(pems(P256)[1])
    assert said(verify(bundle), "model.sig")[0] is False
    files = {name: digest for name, digest in digests(bundle).items() if name != oms.NAME}
    oms.sign_model(bundle, "release", files, P256)
    done = verify(bundle)
    assert said(done, "model.sig")[0]
    assert said(done, "files") == (False, "model-signing.pub was changed")
    assert said(done, "release") == (False, "model-signing.pub is not what was logged")


def test_what_model_signing_signs_with_the_workspaces_key_is_accepted(made, bundle):
    (bundle / oms.NAME).unlink()
    code, text = by_model_signing("sign", bundle, "--private_key", made.workspace.model_signing_key)
    assert code == 0, text
    assert verify(bundle, made.key).ok


def test_what_a_repository_adds_is_signed_by_neither(made, bundle, public):
    """A model hub puts such files beside the model. No check takes them for a part of it."""
    (bundle / ".gitattributes").write_text("*.safetensors filter=lfs")
    code, text = by_model_signing("verify", bundle, "--public_key", public)
    assert code == 0, text
    (bundle / ".cache" / "huggingface").mkdir(parents=True)
    (bundle / ".cache" / "huggingface" / "CACHEDIR.TAG").write_text("x")
    without = ["--ignore-paths", f"{bundle.name}/.cache"]
    code, text = by_model_signing("verify", bundle, "--public_key", public, *without)
    assert code == 0, text
    done = verify(bundle)
    assert done.ok
    count = len(digests(bundle)) - 3
    assert said(done, "model.sig") == (True, f"{count} files, signed by the P-256 key in model-signing.pub")
    assert "not part of the release" in said(done, "files")[1]


def test_a_release_of_before_has_none_and_one_of_now_cannot_lose_it(bundle):
    (bundle / oms.NAME).unlink()
    done = verify(bundle)
    assert not done.ok
    assert said(done, "model.sig") == (False, "model.sig is missing, and model-signing.pub is there")
    (bundle / oms.PUBLIC).unlink()
    assert said(verify(bundle), "model.sig") == (True, "not present")


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"[]", b"{}", b"null", b'{"dsseEnvelope": {"payload": 3}}']
)
def test_a_signature_that_is_nonsense_is_a_failure_and_not_a_crash(bundle, content):
    (bundle / oms.NAME).write_bytes(content)
    ok, why = said(verify(bundle), "model.sig")
    assert not ok
    assert "not in the form of OMS" in why


def test_any_bit_of_the_signature_counts(bundle):
    signed, pem = (bundle / oms.NAME).read_bytes(), (bundle / oms.PUBLIC).read_bytes()
    assert oms.signed_files(signed, pem)
    draw = random.Random(11)
    for _ in range(500):
        data = bytearray(signed)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        with pytest.raises(LedgerError):
            oms.signed_files(bytes(data), pem)


def changed(statement, *place, to):
    for key in place[:-1]:
        statement = statement[key]
    statement[place[-1]] = to


@pytest.mark.parametrize(
    ("place", "to"),
    [
        (("_type",), "https://in-toto.io/Statement/v0.1"),
        (("predicateType",), "https://slsa.dev/provenance/v1"),
        (("subject", 0, "digest", "sha256"), "00" * 32),
        (("predicate", "serialization", "method"), "shards"),
        (("predicate", "serialization", "allow_symlinks"), True),
        (("predicate", "serialization", "ignore_paths"), ["model.sig", "model.safetensors"]),
        (("predicate", "resources", 0, "algorithm"), "blake3"),
        (("predicate", "resources", 0, "digest"), "not hex"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_statement_that_says_something_else_is_refused_though_it_is_signed(bundle, place, to):
    """With the maker's own key: a signature over fewer files, or by other rules, is none over the release."""
    held = json.loads((bundle / oms.NAME).read_bytes())["dsseEnvelope"]
    statement = json.loads(base64.b64decode(held["payload"]))
    changed(statement, *place, to=to)
    payload = canonical(statement)
    message = pre_authentication("application/vnd.in-toto+json", payload)
    signature = P256.sign(message, ec.ECDSA(hashes.SHA256()))
    forged = canonical(oms._bundle(payload, signature, pems(P256)[1]))
    with pytest.raises(LedgerError) as caught:
        oms.signed_files(forged, pems(P256)[1])
    assert "OMS" in caught.value.why


@pytest.mark.parametrize("key", [b"", b"no key", pems(ec.generate_private_key(ec.SECP384R1()))[1]])
def test_a_key_of_another_kind_is_named(bundle, key):
    with pytest.raises(LedgerError) as caught:
        oms.signed_files((bundle / oms.NAME).read_bytes(), key)
    assert "model-signing.pub is no" in caught.value.why or "not a P-256 key" in caught.value.why


names = st.lists(
    st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/"), min_size=1).filter(
        lambda part: part not in (".", "..", oms.NAME) and not part.startswith(".git")
    ),
    min_size=1,
    max_size=3,
).map("/".join)


@given(files=st.dictionaries(names, st.binary(min_size=32, max_size=32).map(bytes.hex), max_size=8))
def test_what_is_signed_is_read_back_in_the_order_that_the_standard_asks_for(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("signed")
    oms.sign_model(folder, "release", files, P256)
    signed = (folder / oms.NAME).read_bytes()
    assert oms.signed_files(signed, pems(P256)[1]) == files
    statement = json.loads(base64.b64decode(json.loads(signed)["dsseEnvelope"]["payload"]))
    listed = [each["name"] for each in statement["predicate"]["resources"]]
    assert listed == sorted(files)
