"""A server that answers every POST with the bytes it was given, and then closes the connection."""

from __future__ import annotations

import socket
import threading


class RawUpstream:
    """Set `answer`; with `wait` the connection stays open after it until the gateway leaves."""

    def __init__(self) -> None:
        self.answer = b""
        self.wait = False
        self.asked = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        threading.Thread(target=self._serve, daemon=True).start()

    def __enter__(self) -> RawUpstream:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._one, args=(client,), daemon=True).start()

    def _one(self, client: socket.socket) -> None:
        with client:
            data = b""
            while b"\r\n\r\n" not in data:
                if not (more := client.recv(1 << 16)):
                    return
                data += more
            head, _, body = data.partition(b"\r\n\r\n")
            if head.startswith(b"GET"):
                client.sendall(b"HTTP/1.1 500 X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                return
            lengths = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
            missing = int(lengths[0].split(b":")[1]) - len(body)
            while missing > 0:
                missing -= len(client.recv(1 << 16))
            self.asked += 1
            try:
                client.sendall(self.answer)
                if self.wait:
                    client.recv(1)
            except OSError:
                pass
