"""Check a release with nothing but Python's standard library: python check_release.py RELEASE [KEY.pem]

Every file must be the one that was signed, every leaf shown must be in the log. KEY.pem is the maker's key as
you had it before; the one in the release, taken without it, shows only that nothing is broken. model.sig, and
what a hub adds to a download, are not looked at. By C2SP signed-note and tlog-tiles, RFC 6962, RFC 8032.
"""

import base64
import gzip
import hashlib
import json
import sys
from pathlib import Path

Point = tuple[int, int, int, int]
P, L = 2**255 - 19, 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P


def need(holds: bool, otherwise: str) -> None:
    if not holds:
        sys.exit(f"FAIL  {otherwise}")


def add(a: Point, b: Point) -> Point:
    e, f = (a[1] - a[0]) * (b[1] - b[0]) % P, (a[1] + a[0]) * (b[1] + b[0]) % P
    c, d = 2 * D * a[3] * b[3] % P, 2 * a[2] * b[2] % P
    e, f, g, h = f - e, d - c, d + c, f + e
    return e * f % P, g * h % P, f * g % P, e * h % P


def times(n: int, point: Point) -> Point:
    found = (0, 1, 1, 0)
    while n:
        found, point, n = add(found, point) if n & 1 else found, add(point, point), n >> 1
    return found


def point_of(raw: bytes) -> Point:
    y = int.from_bytes(raw, "little") % 2**255
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    x = x if (x * x - square) % P == 0 else x * pow(2, (P - 1) // 4, P) % P
    need(y < P and (x * x - square) % P == 0, "a key or signature is no point of the curve")
    x = x if x & 1 == raw[31] >> 7 else P - x
    return x, y, 1, x * y % P


def is_signed(public: bytes, signature: bytes, message: bytes) -> bool:
    s = int.from_bytes(signature[32:], "little")
    h = int.from_bytes(hashlib.sha512(signature[:32] + public + message).digest(), "little") % L
    a = times(s, point_of((4 * pow(5, -1, P) % P).to_bytes(32, "little")))
    b = add(point_of(signature[:32]), times(h, point_of(public)))
    return s < L and all((a[i] * b[2] - b[i] * a[2]) % P == 0 for i in (0, 1))


def read_note(path: Path, public: bytes) -> list[str]:
    text, _, tail = path.read_text().rpartition("\n\n")
    name = text.split("\n")[0]
    key = hashlib.sha256(name.encode() + b"\n\x01" + public).digest()[:4]
    signatures = [base64.b64decode(x.split(" ")[2]) for x in tail.split("\n") if x.startswith(f"— {name} ")]
    good = [s for s in signatures if s[:4] == key and is_signed(public, s[4:], f"{text}\n".encode())]
    need(bool(good), f"{path.name} is not signed by this key")
    return text.split("\n")


def root_of(hashes: list[bytes]) -> bytes:
    while len(hashes) > 1:
        pairs = zip(hashes[::2], hashes[1::2], strict=False)
        odd = hashes[len(hashes) // 2 * 2 :]
        hashes = [hashlib.sha256(b"\x01" + left + right).digest() for left, right in pairs] + odd
    return hashes[0]


def main(release: Path, key: Path | None = None) -> None:
    proofs = release / "provenance"
    pem = (key or proofs / "public-key.pem").read_text().strip().split("\n")
    public = base64.b64decode("".join(pem[1:-1]))[-32:]
    listed = {line[66:]: line[:64] for line in read_note(release / "MANIFEST", public)[2:]}
    there = {p.relative_to(release).as_posix(): p for p in release.rglob("*") if p.is_file()}
    more = {n for n in there if n == ".gitattributes" or n.startswith(".cache/huggingface/")} - listed.keys()
    need(listed.keys() == there.keys() - more - {"MANIFEST", "model.sig"}, "MANIFEST names other files")
    for name, digest in listed.items():
        need(hashlib.sha256(there[name].read_bytes()).hexdigest() == digest, f"{name} was changed")
    origin, size, root = read_note(proofs / "checkpoint", public)
    tiles = sorted((p.parent.suffix, str(p)) for p in (proofs / "tile" / "0").rglob("*") if p.is_file())
    whole = b"".join(Path(tile).read_bytes() for _, tile in tiles)
    hashes = [whole[at : at + 32] for at in range(0, len(whole), 32)]
    need(len(hashes) == int(size) and root_of(hashes) == base64.b64decode(root), "tiles and root differ")
    with gzip.open(proofs / "leaves.jsonl.gz") as file:
        lines = file.read().splitlines()
        for line in lines:
            leaf, index = line.partition(b',"leaf":')[2][:-1], json.loads(line)["index"]
            need(hashlib.sha256(b"\x00" + leaf).digest() == hashes[index], f"leaf {index} is not in the log")
    print(f"ok    {len(listed)} files; {len(lines)} of {size} leaves of {origin}; key {public.hex()[:8]}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
