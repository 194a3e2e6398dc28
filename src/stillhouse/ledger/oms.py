"""model.sig: a release's files signed once more, for those who check models with OpenSSF Model Signing (OMS).

A Sigstore bundle that holds a DSSE envelope around an in-toto statement, which lists the SHA-256 of every
file but itself, signed with the workspace's P-256 key:

{"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
 "verificationMaterial": {"publicKey": {"hint": SHA-256 of the key's PEM}, "tlogEntries": []},
 "dsseEnvelope": {"payload": BASE64, "payloadType": ..., "signatures": [{"sig": BASE64, "keyid": ""}]}}

https://github.com/ossf/model-signing-spec/blob/main/spec/v1.0.md
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from stillhouse.errors import LedgerError
from stillhouse.ledger.keys import pre_authentication
from stillhouse.ledger.leaves import canonical
from stillhouse.workspace import write_atomic

NAME = "model.sig"
PUBLIC = "model-signing.pub"  # in the release, so that its log and its manifest say whose key this is
_BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"
_IGNORED = (".git", ".gitattributes", ".github", ".gitignore", NAME)  # what OMS leaves out everywhere
_ECDSA = ec.ECDSA(hashes.SHA256())


def sign_model(folder: Path, name: str, files: Mapping[str, str], key: ec.EllipticCurvePrivateKey) -> None:
    """Write `model.sig`, the last file of a release. `files` are the SHA-256 (hex) of all others by path,
    `name` is the folder's where it will lie."""
    payload = canonical(_statement(name, covered(files)))
    signature = key.sign(pre_authentication(_PAYLOAD, payload), _ECDSA)
    write_atomic(folder / NAME, canonical(_bundle(payload, signature, model_public_pem(key.public_key()))))


def signed_files(signed: bytes, pem: bytes) -> dict[str, str]:
    """The SHA-256 (hex) by path that a `model.sig` was made for.

    Raises LedgerError when this P-256 key (PEM) did not sign it, and for a form that `sign_model` and
    `model_signing sign key` do not write: shards, other hashes, other fields.
    """
    public = _public(pem)
    try:
        bundle = json.loads(signed)
        payload, signature = (
            base64.b64decode(text, validate=True)
            for text in (bundle["dsseEnvelope"]["payload"], bundle["dsseEnvelope"]["signatures"][0]["sig"])
        )
        public.verify(signature, pre_authentication(_PAYLOAD, payload), _ECDSA)
        statement = json.loads(payload)
        predicate = statement["predicate"]
        files = {each["name"]: each["digest"] for each in predicate["resources"]}
        wanted = _statement(statement["subject"][0]["name"], files)
        ignored = sorted(predicate["serialization"].pop("ignore_paths"))
        del wanted["predicate"]["serialization"]["ignore_paths"]
    except InvalidSignature:
        raise _unsigned("the key in model-signing.pub did not sign it, or it was changed after") from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _unsigned(f"it is not in the form of OMS ({type(error).__name__}: {error})") from None
    # Held against what would be written, so that nothing that is not looked at can stand in it.
    if bundle != _bundle(payload, signature, model_public_pem(public)):
        raise _unsigned("what stands around its signature is not of this key")
    if statement != wanted or ignored != sorted(_IGNORED):
        raise _unsigned("its statement is not one of OMS 1.0 about whole files")
    return files


def covered(files: Mapping[str, str]) -> dict[str, str]:
    """Those of the files that OMS signs."""
    return {name: digest for name, digest in files.items() if name.split("/", 1)[0] not in _IGNORED}


def model_public_pem(public: ec.EllipticCurvePublicKey) -> bytes:
    return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _statement(name: str, files: Mapping[str, str]) -> dict[str, Any]:
    """The subject's digest is the SHA-256 over the files' digests, in the order of the paths' characters."""
    listed = sorted(files.items())
    whole = sha256(b"".join(bytes.fromhex(digest) for _, digest in listed)).hexdigest()
    return {
        "_type": _STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": whole}}],
        "predicateType": _PREDICATE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": list(_IGNORED),
            },
            "resources": [{"name": path, "algorithm": "sha256", "digest": digest} for path, digest in listed],
        },
    }


def _bundle(payload: bytes, signature: bytes, pem: bytes) -> dict[str, Any]:
    return {
        "mediaType": _BUNDLE,
        "verificationMaterial": {"publicKey": {"hint": sha256(pem).hexdigest()}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": _PAYLOAD,
            "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
        },
    }


def _public(pem: bytes) -> ec.EllipticCurvePublicKey:
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _unsigned(f"{PUBLIC} is no public key ({error})") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise _unsigned(f"{PUBLIC} is not a P-256 key")
    return key


def _unsigned(why: str) -> LedgerError:
    return LedgerError(f"{NAME} does not hold", why, "take the release from its maker again")
