"""A student that stands before a teacher, in a gateway that is a process of its own."""

import json
import math
from contextlib import contextmanager

from behind import USAGE, WORDS, Behind, chunk
from gate import ASKED, gate

from stillhouse.cascade.calibration import Calibration, written
from stillhouse.cascade.risk import Guarantee
from stillhouse.cascade.scores import SIGNALS, Scale, sketch_of

STUDENT = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
ANSWER = "the student"
TEACHER = "word " * WORDS
STREAMED = "".join(f"w{n} " for n in range(WORDS))


class Student(Behind):
    """`sure` and `unsure` answer with probabilities; `silent` tells none; others as the name says. What
    stands after a space is told as the fingerprint."""

    async def _answer(self, model, path, body, writer):
        model, _, fingerprint = model.partition(" ")
        if model not in ("sure", "unsure", "silent"):
            return await super()._answer(model, path, body, writer)
        chance = math.log(0.99 if model == "sure" else 0.3)
        token = {"token": "x", "logprob": chance, "top_logprobs": [{"token": "x", "logprob": chance}]}
        choice = {"index": 0, "message": {"role": "assistant", "content": ANSWER}, "finish_reason": "stop"}
        if model != "silent":
            choice["logprobs"] = {"content": [token] * 2}
        told = {
            "id": "s1",
            "object": "chat.completion",
            "model": model,
            "choices": [choice],
            "usage": STUDENT,
            "system_fingerprint": fingerprint or None,
        }
        await self._say(writer, 200, json.dumps(told).encode())
        return True


class Teacher(Behind):
    """`stops` and `length` end their answers for that reason; of a prompt "say X ..." they say X."""

    async def _answer(self, model, path, body, writer):
        if model not in ("stops", "length"):
            return await super()._answer(model, path, body, writer)
        reason, text = model.removesuffix("s"), body["messages"][-1]["content"].split()[1]
        if body.get("stream"):
            writer.write(
                b"HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            )
            for delta, end in ({"content": text}, None), ({}, reason):
                choice = {"index": 0, "delta": delta, "finish_reason": end}
                await self._part(writer, chunk({"id": "c1", "choices": [choice]}))
            await self._part(writer, b"data: [DONE]\n\n")
            writer.write(b"0\r\n\r\n")
            await writer.drain()
            return True
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": reason}
        told = {"id": "c1", "object": "chat.completion", "choices": [choice], "usage": USAGE}
        await self._say(writer, 200, json.dumps(told).encode())
        return True


def calibration(threshold=0.5, student="student"):
    """The risk is 1/2 where the mean probability of a token is 1/2."""
    weight = [0.0] * len(SIGNALS)
    weight[SIGNALS.index("mean surprise")] = 4.0
    scale = Scale((math.log(math.log(2)),) + (0.0,) * (len(SIGNALS) - 1), tuple(weight), 0.0)
    promise = Guarantee(threshold, 0.3, 0.0, 0.01, 1000)
    return Calibration(
        student, scale, None, sketch_of([ASKED]), promise, {}, 0.01, 0.05, False, 0.4, 0.02, 0.02
    )


@contextmanager
def cascade(tmp_path, student, teacher, models, threshold=0.5, settings=None, **more):
    """`models` by name: what the student and the teacher do; `settings` are of the gateway, `more` of the
    cascade."""
    file = tmp_path / "cascade.json"
    file.write_text(json.dumps(written(calibration(threshold))))
    served = [
        {
            "name": name,
            "upstreams": [
                {"url": teacher.url, "model": behind, "first_byte_seconds": 2.0, "silent_seconds": 2.0}
            ],
            "cascade": {
                "upstreams": [{"url": student.url, "model": first, "first_byte_seconds": 2.0}],
                "calibration": str(file),
                "audit": 0.0,
                **more,
            },
            "max_output_tokens": 100,
        }
        for name, (first, behind) in models.items()
    ]
    tree = {"server": {"port": 0, "drain_seconds": 5}, "store": {"folder": str(tmp_path / "store")}}
    tree |= {"models": served, "tiers": {"default": {"limits": {"output_tokens_per_minute": 10**6}}}}
    tree |= settings or {}
    with gate(tmp_path, tree) as made:
        yield made
