import json
import sys
import time


def say(event: str, **fields: object) -> None:
    print(json.dumps({"at": time.time(), "event": event, **fields}), file=sys.stderr, flush=True)
