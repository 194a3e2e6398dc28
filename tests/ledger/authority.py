"""A time stamping authority over HTTP, in a process of its own: `openssl ts` behind a small server.

python authority.py FOLDER     prints its address, then serves until it is killed
"""

import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

CONFIG = """
[req]
distinguished_name = dn
[dn]
[ca]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign
[tsa]
basicConstraints = CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = critical,timeStamping
[tsa_config]
serial = {folder}/serial
signer_cert = {folder}/tsa.pem
certs = {folder}/ca.pem
signer_key = {folder}/tsa.key
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256
accuracy = secs:1
ess_cert_id_chain = no
ess_cert_id_alg = sha256
"""


def openssl(*words):
    return subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


def make(folder, name="Clock of the test"):
    """A root and an authority under it: ca.pem, tsa.pem, tsa.key, openssl.cnf, serial."""
    folder.mkdir(parents=True)
    config = folder / "openssl.cnf"
    config.write_text(CONFIG.format(folder=folder))
    (folder / "serial").write_text("01\n")
    new = ["req", "-new", "-newkey", "rsa:2048", "-nodes", "-config", config]
    openssl(
        *new, "-x509", "-days", 30, "-extensions", "ca", "-subj", "/CN=Root of the test",
        "-keyout", folder / "ca.key", "-out", folder / "ca.pem",
    )  # fmt: skip
    openssl(*new, "-subj", f"/CN={name}", "-keyout", folder / "tsa.key", "-out", folder / "tsa.csr")
    openssl(
        "x509", "-req", "-in", folder / "tsa.csr", "-CA", folder / "ca.pem", "-CAkey", folder / "ca.key",
        "-set_serial", 7, "-days", 30, "-extfile", config, "-extensions", "tsa", "-out", folder / "tsa.pem",
    )  # fmt: skip


class Stamps(BaseHTTPRequestHandler):
    folder = Path()

    def do_POST(self):
        query, reply = self.folder / "asked.tsq", self.folder / "said.tsr"
        query.write_bytes(self.rfile.read(int(self.headers["Content-Length"])))
        openssl(
            "ts", "-reply", "-config", self.folder / "openssl.cnf", "-section", "tsa_config",
            "-queryfile", query, "-out", reply,
        )  # fmt: skip
        said = (self.folder / "replay.tsr" if self.path == "/replay" else reply).read_bytes()
        self.send_response(200)
        self.send_header("Content-Type", "application/timestamp-reply")
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    Stamps.folder = Path(sys.argv[1])
    server = HTTPServer(("127.0.0.1", 0), Stamps)
    print(f"http://127.0.0.1:{server.server_port}/", flush=True)
    server.serve_forever()
