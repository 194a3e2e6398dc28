"""Anchors: what somebody else said of a checkpoint, kept in a folder each, so that others can check it too.

    anchors/tsa-1270-1f2e3d4c/checkpoint        the signed note that was stamped
    anchors/tsa-1270-1f2e3d4c/stamp.tsr         the answer of the time stamping authority (RFC 3161)
    anchors/tsa-1270-1f2e3d4c/ca.pem            the roots that it was checked against
    anchors/witness-1270-5b6a7988/checkpoint    the note with the witness's line (C2SP tlog-cosignature)
    anchors/witness-1270-5b6a7988/witness.vkey  the witness's key, as a verifier key of C2SP signed-note

An anchor shows that the log at that size existed then; of leaves after it, and of what was never logged, it
says nothing.
"""

from __future__ import annotations

import base64
import binascii
import secrets
import shutil
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from stillhouse.errors import EndpointError, LedgerError, UsageError, storage
from stillhouse.ledger.checkpoint import Checkpoint, note_parts, read_checkpoint
from stillhouse.ledger.keys import signed_by
from stillhouse.workspace import Workspace, sync_folder, write_atomic

if TYPE_CHECKING:
    from rfc3161_client import TimeStampResponse

_COSIGNATURE = b"\x04"  # the signature type of Ed25519 cosignature/v1
_CERTIFICATES = 0xA0  # their tag among the parts of CMS signed data
_SECONDS = 30.0
_LONGEST = 1 << 20  # bytes of a stamp


@dataclass(frozen=True, slots=True)
class Anchor:
    """A checkpoint, and who said when that it was there."""

    checkpoint: Checkpoint
    who: str
    when: datetime


class NotInstalled(UsageError):
    pass


def stamp(
    workspace: Workspace, checkpoint: Checkpoint, url: str, roots: Sequence[x509.Certificate]
) -> Anchor:
    """Have a time stamping authority stamp the checkpoint's note, check what it says, and keep that.

    `roots` are the certificates that the authority's own must lead to. Raises EndpointError where it does not
    answer with a stamp, and LedgerError where the stamp does not hold.
    """
    client = _client()
    request = client.TimestampRequestBuilder(
        data=checkpoint.note, hash_algorithm=client.HashAlgorithm.SHA256
    ).build()
    answer = _post(url, request.as_bytes())
    anchor = _stamped(checkpoint, answer, roots, request.nonce)
    pem = b"".join(root.public_bytes(Encoding.PEM) for root in _leading(answer, roots))
    name = f"tsa-{checkpoint.size}-{sha256(answer).hexdigest()[:8]}"
    _keep(workspace, name, {"checkpoint": checkpoint.note, "stamp.tsr": answer, "ca.pem": pem})
    return anchor


def cosigned(workspace: Workspace, note: bytes, verifier: str) -> Anchor:
    """Keep a checkpoint that a witness has cosigned. `verifier` is its key, NAME+KEYID+BASE64. Raises
    LedgerError where the cosignature does not hold, UsageError for what is no key."""
    anchor = _witnessed(note, verifier)
    name = f"witness-{anchor.checkpoint.size}-{sha256(note).hexdigest()[:8]}"
    _keep(workspace, name, {"checkpoint": note, "witness.vkey": verifier.encode() + b"\n"})
    return anchor


def stored_anchors(workspace: Workspace) -> tuple[list[Anchor], list[str], list[str]]:
    """The anchors that hold, by size; what is wrong with others; and which could not be checked here."""
    found, faults, unchecked = [], [], []
    for folder in sorted(workspace.anchors.glob("*-*-*")):
        try:
            found.append(_read(folder))
        except NotInstalled as error:
            unchecked.append(f"{folder.name}: {error.what}")
        except (LedgerError, UsageError) as error:
            faults.append(f"{folder.name}: {error.why}")
        except (OSError, ValueError) as error:
            faults.append(f"{folder.name}: {error}")
    return sorted(found, key=lambda anchor: anchor.checkpoint.size), faults, unchecked


def read_certificates(path: Path) -> list[x509.Certificate]:
    """Raises UsageError for a file that holds none."""
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"no certificates in {path}", str(error), "give a PEM file with the roots of the authority"
        ) from None


def system_roots() -> list[x509.Certificate]:
    """The roots that this machine trusts."""
    context = ssl.create_default_context()
    return [x509.load_der_x509_certificate(der) for der in context.get_ca_certs(binary_form=True)]


def _read(folder: Path) -> Anchor:
    note = (folder / "checkpoint").read_bytes()
    if folder.name.startswith("witness-"):
        return _witnessed(note, (folder / "witness.vkey").read_text().strip())
    roots = read_certificates(folder / "ca.pem")
    return _stamped(read_checkpoint(note), (folder / "stamp.tsr").read_bytes(), roots, None)


def _keep(workspace: Workspace, name: str, files: dict[str, bytes]) -> None:
    """The whole folder or none of it."""
    fresh, final = workspace.anchors / f".{name}.{secrets.token_hex(4)}", workspace.anchors / name
    with storage("write", final):
        fresh.mkdir(parents=True)
        for file, data in files.items():
            write_atomic(fresh / file, data)
        if final.exists():
            shutil.rmtree(fresh)
        else:
            fresh.rename(final)
        sync_folder(workspace.anchors)


def _stamped(
    checkpoint: Checkpoint, answer: bytes, roots: Sequence[x509.Certificate], nonce: int | None
) -> Anchor:
    client = _client()
    try:
        response = client.decode_timestamp_response(_in_order(answer))
    except ValueError as error:
        raise _no_stamp(f"it cannot be read: {error}") from None
    if client.PKIStatus(response.status) != client.PKIStatus.GRANTED:
        said = "; ".join(response.status_string) or f"status {response.status}"
        raise EndpointError("the authority refused to stamp", said, "see what it asks for, or take another")
    try:
        verifier = client.VerifierBuilder(roots=list(roots), nonce=nonce).build()
        verifier.verify_message(response, checkpoint.note)
    except (client.VerificationError, ValueError) as error:
        raise _no_stamp(str(error)) from None
    return Anchor(checkpoint, _authority(response), response.tst_info.gen_time)


def _leading(answer: bytes, roots: Sequence[x509.Certificate]) -> list[x509.Certificate]:
    """Of many roots those that the stamp's certificates name as issuers; the rest need not be kept."""
    response = _client().decode_timestamp_response(_in_order(answer))
    within = [x509.load_der_x509_certificate(der) for der in response.signed_data.certificates]
    issuers = {one.issuer for one in within}
    return [root for root in roots if root.subject in issuers] or list(roots)


def _in_order(answer: bytes) -> bytes:
    """The stamp with its certificates in the order that DER asks of a set: `openssl ts`, and so many an
    authority, writes them in another. They are not signed, and no length changes."""
    try:
        (response,) = _parts(answer, 0, len(answer))
        token = _within(answer, _within(answer, response)[1])
        (signed,) = _within(answer, token[1])
        for start, body, end in _within(answer, signed):
            if answer[start] == _CERTIFICATES:
                inner = [answer[at:stop] for at, _, stop in _parts(answer, body, end)]
                return answer[:body] + b"".join(sorted(inner)) + answer[end:]
    except (IndexError, ValueError):
        pass  # whoever reads it says what is wrong
    return answer


def _within(der: bytes, part: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    return list(_parts(der, part[1], part[2]))


def _parts(der: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Where each value between two places begins, where its body does, and where it ends."""
    while at < end:
        size, body = der[at + 1], at + 2
        if size & 0x80:
            body += size & 0x7F
            size = int.from_bytes(der[at + 2 : body], "big")
        yield at, body, body + size
        at = body + size


def _authority(response: TimeStampResponse) -> str:
    """The name in the certificate that signed the stamp."""
    (signer,) = response.signed_data.signer_infos
    for der in response.signed_data.certificates:
        one = x509.load_der_x509_certificate(der)
        if (one.issuer, one.serial_number) == (signer.issuer, signer.serial_number):
            names = one.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
            return str(names[0].value) if names else one.subject.rfc4514_string()
    return "an authority that does not name itself"


def _witnessed(note: bytes, verifier: str) -> Anchor:
    """The witness's line is over `cosignature/v1`, the time, and the note's text (C2SP tlog-cosignature)."""
    name, public = _verifier_key(verifier)
    checkpoint = read_checkpoint(note)
    text, signatures = note_parts(note)
    for who, blob in signatures:
        if who != name or len(blob) != 76 or blob[:4] != _key_id(name, public):
            continue
        seconds = int.from_bytes(blob[4:12], "big")
        if signed_by(public, blob[12:], f"cosignature/v1\ntime {seconds}\n{text}".encode()):
            return Anchor(checkpoint, name, datetime.fromtimestamp(seconds, UTC))
    raise LedgerError(
        "the witness's cosignature does not hold",
        f"no line of this note is a cosignature of its text by {name}",
        "give the note as the witness returned it, and the key that the witness publishes",
    )


def _verifier_key(verifier: str) -> tuple[str, bytes]:
    """Name and Ed25519 public key of a C2SP verifier key."""
    name, _, rest = verifier.strip().partition("+")
    digits, _, packed = rest.partition("+")
    try:
        raw = base64.b64decode(packed, validate=True)
        public = raw[1:]
        if not name or raw[:1] != _COSIGNATURE or len(public) != 32:
            raise ValueError("it is not of type 4, Ed25519 cosignature/v1")
        if bytes.fromhex(digits) != _key_id(name, public):
            raise ValueError("its key id is not that of its name and key")
    except (ValueError, binascii.Error) as error:
        raise UsageError(
            "this is not the key of a witness", str(error), "give it as the witness publishes it: NAME+ID+KEY"
        ) from None
    return name, public


def _key_id(name: str, public: bytes) -> bytes:
    return sha256(name.encode() + b"\n" + _COSIGNATURE + public).digest()[:4]


def _post(url: str, request: bytes) -> bytes:
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"{url!r} is no address", "a time stamp is asked for by HTTP", "give http(s)://...")
    asked = urllib.request.Request(url, request, {"Content-Type": "application/timestamp-query"})
    try:
        with urllib.request.urlopen(asked, timeout=_SECONDS) as reply:
            return bytes(reply.read(_LONGEST))
    except (urllib.error.URLError, OSError) as error:
        raise EndpointError(
            f"no time stamp from {url}",
            str(error),
            "see that the address is right, or take another authority",
        ) from None


def _no_stamp(why: str) -> LedgerError:
    return LedgerError(
        "the time stamp does not hold",
        why,
        "give the roots of this authority with --ca; if they are right, do not rely on it",
    )


def _client() -> ModuleType:
    try:
        import rfc3161_client
    except ImportError:
        raise NotInstalled(
            "rfc3161-client is not installed", "time stamps need it", "pip install 'stillhouse[anchor]'"
        ) from None
    return rfc3161_client
