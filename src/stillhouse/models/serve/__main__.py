"""`python -m stillhouse.models.serve SOURCE`: the child process of `background`."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from pathlib import Path

from stillhouse.errors import StillhouseError
from stillhouse.models.serve import serve, stop_with_stdin
from stillhouse.models.wire import MAX_TOP_LOGPROBS
from stillhouse.watermark.keys import read_key


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m stillhouse.models.serve")
    parser.add_argument("source")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--name")
    parser.add_argument("--max-logprobs", type=int, default=MAX_TOP_LOGPROBS)
    parser.add_argument("--watermark", type=Path, metavar="KEY")
    parser.add_argument("--until-stdin-ends", action="store_true")
    wanted = parser.parse_args()
    if wanted.until_stdin_ends:
        threading.Thread(target=stop_with_stdin, daemon=True).start()
    try:
        serve(
            wanted.source,
            wanted.host,
            wanted.port,
            wanted.name,
            lambda url: _tell(1, url),
            wanted.max_logprobs,
            None if wanted.watermark is None else read_key(wanted.watermark),
        )
    except StillhouseError as error:
        for line in (f"error: {error.what}", f"cause: {error.why}", f"hint:  {error.mend}"):
            _tell(2, line)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _tell(stream: int, line: str) -> None:
    os.write(stream, f"{line}\n".encode())


if __name__ == "__main__":
    sys.exit(main())
