"""Mathematical answers, compared by math-verify in a process that can be killed.

Parsing and simplifying somebody's expression may take for ever or all memory, and neither signals nor threads
can stop that for sure. So a process of its own does it, one comparison after the other, and is killed
and started again when one takes too long.
"""

from __future__ import annotations

import atexit
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from typing import Any

from stillhouse.scoring.builtin import BadReference, Unscored

SECONDS = 5.0  # for one comparison
START_SECONDS = 120.0  # for a process to import sympy, on a machine that is busy


class Verifier:
    """A process of `math_worker`, started when it is needed; one comparison at a time, from any thread."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.owner = 0

    def same(self, answer: str, reference: str) -> float:
        """1.0 or 0.0. Raises BadReference, and Unscored where no verdict came: too slow, or it broke."""
        with self.lock:
            process = self._running()
            line = json.dumps([answer, reference]).encode() + b"\n"
            reply = self._exchange(process, line, self.seconds)
            if reply is None:
                # What is left of the process is of no use: it may still be at it, or half through a reply.
                slow = process.poll() is None
                self.close()
                raise Unscored(
                    f"math-verify took longer than {self.seconds:g} s"
                    if slow
                    else "math-verify's process died"
                )
        if reply.get("bad_reference"):
            raise BadReference("the reference holds no mathematics that can be read")
        if "error" in reply:
            raise Unscored(f"math-verify failed: {reply['error']}")
        return float(reply["same"])

    def close(self) -> None:
        if self.process is not None and self.owner == os.getpid():
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    pipe.close()
        self.process = None

    def _running(self) -> subprocess.Popen[bytes]:
        # After a fork the pipes belong to the parent as well: two would read each other's replies.
        if self.process is not None and self.owner == os.getpid() and self.process.poll() is None:
            return self.process
        self.close()
        self.owner = os.getpid()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "stillhouse.scoring.math_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
        if self._exchange(self.process, b"", START_SECONDS) is None:
            self.close()
            raise Unscored("math-verify could not be started: pip install 'stillhouse[math]'")
        return self.process

    def _exchange(
        self, process: subprocess.Popen[bytes], line: bytes, seconds: float
    ) -> dict[str, Any] | None:
        """One line there, one line back; None where none came in time or the process is gone."""
        assert process.stdin is not None
        assert process.stdout is not None
        deadline, got, left = time.monotonic() + seconds, b"", line
        os.set_blocking(process.stdin.fileno(), False)
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            if left:
                selector.register(process.stdin, selectors.EVENT_WRITE)
            while not got.endswith(b"\n"):
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                if not ready:
                    return None
                for key, _ in ready:
                    try:
                        if key.fileobj is process.stdin:
                            left = left[os.write(key.fd, left) :]
                            if not left:
                                selector.unregister(process.stdin)
                        elif not (part := os.read(key.fd, 65536)):
                            process.wait()
                            return None
                        else:
                            got += part
                    except BrokenPipeError:
                        process.wait()
                        return None
        reply: dict[str, Any] = json.loads(got)
        return reply


_verifier = Verifier()
atexit.register(_verifier.close)


def mathematics(answer: str, reference: str) -> float:
    """The mathematics in the answer equals the reference's, as `math-verify` judges it: numbers, fractions,
    expressions, sets, intervals and matrices, in LaTeX or plain. Raises Unscored after 5 seconds."""
    return _verifier.same(answer, reference)
