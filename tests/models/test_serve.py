import asyncio
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import openai
import orjson
import pytest
import torch

from stillhouse.errors import ModelError, UsageError
from stillhouse.models import wire
from stillhouse.models.endpoint import Endpoint, Reply
from stillhouse.models.local import Request, generate, prompt_ids, text_ids, vocabulary
from stillhouse.models.serve import app, background, serve
from stillhouse.models.serve.worker import Cancel, Job, Worker
from stillhouse.records import Message

PROMPTS = [f"What is {n} plus {n * 7}? {'Please. ' * (n % 4)}" for n in range(32)]


@pytest.fixture(scope="module")
def url(tiny_folder, tmp_path_factory):
    with background(str(tiny_folder), tmp_path_factory.mktemp("log") / "server.log") as base_url:
        yield base_url


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as made:
        yield made


def user(text):
    return [{"role": "user", "content": text}]


def chat(client, text="Hello there", **settings):
    return client.chat.completions.create(
        model="tiny", messages=user(text), **({"max_tokens": 20} | settings)
    )


def answer(model, text, **settings):
    ids = prompt_ids(model, [Message("user", text)])
    return generate(model, [Request(ids, **({"max_tokens": 20} | settings))])[0]


# ---------------------------------------------------------------- the official client


def test_the_model_is_listed(client):
    assert [m.id for m in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"


def test_a_greedy_answer_is_the_models_own(client, tiny):
    made = chat(client, temperature=0)
    expected = answer(tiny, "Hello there")
    assert made.choices[0].message.content == expected.text
    assert made.choices[0].finish_reason == expected.finish_reason
    assert made.usage.completion_tokens == expected.completion_tokens
    assert made.usage.prompt_tokens == expected.prompt_tokens
    assert made.system_fingerprint.startswith("fp_")


def test_a_stream_adds_up_to_the_whole_answer(client):
    settings = {"temperature": 1.2, "seed": 3, "n": 2, "logprobs": True, "top_logprobs": 2, "max_tokens": 30}
    whole = chat(client, **settings)
    texts, reasons, tokens = ["", ""], [None, None], [[], []]
    *parts, last = chat(client, stream=True, stream_options={"include_usage": True}, **settings)
    for part in parts:
        choice = part.choices[0]
        texts[choice.index] += choice.delta.content or ""
        reasons[choice.index] = choice.finish_reason or reasons[choice.index]
        tokens[choice.index] += choice.logprobs.content if choice.logprobs else []
    assert texts == [c.message.content for c in whole.choices]
    assert reasons == [c.finish_reason for c in whole.choices]
    for at in (0, 1):
        assert [t.token for t in tokens[at]] == [t.token for t in whole.choices[at].logprobs.content]
    assert last.choices == []
    assert last.usage.completion_tokens == whole.usage.completion_tokens


def test_seeds_repeat_and_choices_differ(client):
    first, again = (chat(client, temperature=1.3, seed=9, n=3) for _ in range(2))
    texts = [c.message.content for c in first.choices]
    assert texts == [c.message.content for c in again.choices]
    assert len(set(texts)) == 3


def test_stop_strings(client):
    whole = chat(client, temperature=0).choices[0].message.content
    stop = whole[5:7]
    cut = chat(client, temperature=0, stop=[stop, "zzz"]).choices[0]
    assert cut.message.content == whole[: whole.index(stop)]
    assert cut.finish_reason == "stop"


def test_chat_logprobs_name_tokens_and_bytes(client, tiny):
    made = chat(client, temperature=0, logprobs=True, top_logprobs=3).choices[0]
    expected = answer(tiny, "Hello there", logprobs=3)
    names = vocabulary(tiny)
    assert [t.token for t in made.logprobs.content] == [names[t.token_id].name for t in expected.logprobs]
    for shown, token in zip(made.logprobs.content, expected.logprobs, strict=True):
        assert shown.logprob == pytest.approx(token.logprob, abs=1e-4)
        assert [t.logprob for t in shown.top_logprobs] == pytest.approx([v for _, v in token.top], abs=1e-4)
        assert len(shown.top_logprobs) == 3
    joined = b"".join(bytes(t.bytes) for t in made.logprobs.content)
    assert joined.decode("utf-8", "replace") == made.message.content


def test_echo_scores_a_text(client, tiny):
    text = "Order 17, Zürich"
    made = client.completions.create(model="tiny", prompt=text, max_tokens=0, echo=True, logprobs=2).choices[
        0
    ]
    ids = text_ids(tiny, text)
    expected = torch.log_softmax(tiny.model(torch.tensor([ids])).logits[0].double(), -1)
    assert made.text == text
    assert made.logprobs.token_logprobs[0] is None
    assert made.logprobs.top_logprobs[0] is None
    assert made.logprobs.token_logprobs[1:] == pytest.approx(
        [float(expected[at, i]) for at, i in enumerate(ids[1:])], abs=1e-4
    )
    plain = [o for o, t in zip(made.logprobs.text_offset, made.logprobs.tokens, strict=True) if len(t) == 1]
    assert [text[o] for o in plain] == [t for t in made.logprobs.tokens if len(t) == 1]


def test_token_ids_are_scored_as_they_were_sent(client, tiny):
    """As vLLM tells it, and also of ids that no text would be split into."""
    ids = [*text_ids(tiny, "Order"), *text_ids(tiny, " 17")[::-1]]
    (made,) = client.completions.create(
        model="tiny", prompt=ids, max_tokens=0, extra_body={"prompt_logprobs": 3}
    ).choices
    expected = torch.log_softmax(tiny.model(torch.tensor([ids])).logits[0].double(), -1)
    first, *others = made.prompt_logprobs
    assert first is None
    assert made.text == ""
    for at, told in enumerate(others):
        assert told[str(ids[at + 1])]["logprob"] == pytest.approx(float(expected[at, ids[at + 1]]), abs=1e-4)
        likeliest = {str(i): rank for rank, i in enumerate(expected[at].topk(3).indices.tolist(), 1)}
        assert {i: one["rank"] for i, one in told.items() if one["rank"]} == likeliest
        assert len(told) in (3, 4)
    with pytest.raises(openai.BadRequestError, match="stream"):
        client.completions.create(model="tiny", prompt=ids, stream=True, extra_body={"prompt_logprobs": 0})


@pytest.mark.parametrize(("most", "allowed", "refused"), [(20, 20, 21), (64, 64, -1), (-1, -1, -2)])
def test_a_server_may_be_told_to_tell_more_of_a_prompt(most, allowed, refused):
    body = {"model": "m", "prompt": [1, 2], "max_tokens": 1}
    assert wire.completion_request({**body, "prompt_logprobs": allowed}, most).prompt_logprobs == allowed
    with pytest.raises(wire.WireError, match="prompt_logprobs"):
        wire.completion_request({**body, "prompt_logprobs": refused}, most)


def test_plain_completions_of_texts_and_token_ids(client, tiny):
    ids = text_ids(tiny, "ab")
    for prompt in ("ab", ids):
        made = client.completions.create(model="tiny", prompt=prompt, temperature=0, max_tokens=9)
        assert made.choices[0].text == generate(tiny, [Request(ids, 9, continues=True)])[0].text
    made = client.completions.create(
        model="tiny", prompt=["ab", "c"], n=2, temperature=0, max_tokens=4, echo=True
    )
    assert [c.text[:1] for c in made.choices] == ["a", "a", "c", "c"]
    parts = client.completions.create(model="tiny", prompt="ab", temperature=0, max_tokens=9, stream=True)
    assert "".join(p.choices[0].text for p in parts) == generate(tiny, [Request(ids, 9)])[0].text


def test_offsets_go_on_from_part_to_part_of_a_stream(client):
    settings = {"model": "tiny", "prompt": ["ab", "c"], "temperature": 1.1, "seed": 1, "logprobs": 0}
    whole = client.completions.create(**settings, max_tokens=12)
    offsets = [[], []]
    for part in client.completions.create(**settings, max_tokens=12, stream=True):
        choice = part.choices[0]
        offsets[choice.index] += choice.logprobs.text_offset if choice.logprobs else []
    assert offsets == [c.logprobs.text_offset for c in whole.choices]
    assert offsets[0][-1] > 0


def scores(*raws):
    return [wire.TokenScore(raw.decode("utf-8", "replace"), raw, -1.0, (), raw == b"<s>") for raw in raws]


def offsets(tokens, text):
    return wire.text_logprobs(tokens, wire.Offsets(wire.unwritten(tokens, text)))["text_offset"]


def test_offsets_count_characters_and_leave_out_what_sentencepiece_adds():
    tokens = scores(b"<s>", b" Gr", b"\xc3", b"\xbc", b"n", b" tea")
    assert offsets(tokens, "Grün tea") == [0, 0, 2, 2, 3, 4]
    assert offsets(tokens, " Grün tea") == [0, 0, 3, 3, 4, 5]
    assert offsets(scores(b"a", b"\xe4", b"b"), "a\ufffdb") == [0, 1, 1]


@pytest.mark.parametrize(
    ("settings", "status", "param", "code"),
    [
        ({"model": "nobody"}, 404, "model", "model_not_found"),
        ({"temperature": 3}, 400, "temperature", "invalid_value"),
        ({"max_tokens": 0}, 400, "max_tokens", "invalid_value"),
        ({"n": 1.5}, 400, "n", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs", "invalid_value"),
        ({"top_logprobs": 2}, 400, "top_logprobs", None),
        ({"messages": []}, 400, "messages", None),
        ({"messages": [{"role": "wizard", "content": "x"}]}, 400, "messages[0].role", "invalid_value"),
        ({"messages": user("x" * 400)}, 400, "messages", "context_length_exceeded"),
        ({"tools": [{"type": "function"}]}, 400, "tools", "unsupported_parameter"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format", "unsupported_parameter"),
    ],
)
def test_what_cannot_be_answered_is_refused_by_name(client, settings, status, param, code):
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(**({"model": "tiny", "messages": user("hi")} | settings))
    assert caught.value.status_code == status
    assert (caught.value.param, caught.value.code) == (param, code)
    assert caught.value.body["message"]


def test_unknown_and_empty_fields_change_nothing(client):
    made = chat(client, temperature=0, extra_body={"min_p": 0.1, "tools": [], "stop": None})
    assert made.choices[0].message.content == chat(client, temperature=0).choices[0].message.content


# ---------------------------------------------------------------- the wire


def curl(url, *options):
    made = subprocess.run(
        ["curl", "-sS", "-m", "20", "-w", "\n%{http_code}", *options, url], capture_output=True, check=True
    )
    body, _, status = made.stdout.rpartition(b"\n")
    return int(status), body


def test_curl(url):
    body = orjson.dumps({"model": "tiny", "messages": user("hi"), "max_tokens": 4, "temperature": 0}).decode()
    status, raw = curl(f"{url}/chat/completions", "-d", body)
    assert status == 200
    assert orjson.loads(raw)["object"] == "chat.completion"
    assert curl(url.removesuffix("/v1") + "/health")[0] == 200
    for path, options, expected in (
        ("/chat/completions", ("-d", "{broken"), 400),
        ("/chat/completions", ("-d", "[]"), 400),
        ("/chat/completions", (), 405),
        ("/embeddings", ("-d", "{}"), 404),
    ):
        status, raw = curl(url + path, *options)
        assert status == expected
        assert orjson.loads(raw)["error"]["message"]


def test_a_body_without_end_is_refused(url, tmp_path):
    big = tmp_path / "big.json"
    big.write_bytes(b" " * (17 << 20))
    status, raw = curl(f"{url}/chat/completions", "-H", "Expect:", "--data-binary", f"@{big}")
    assert status == 413
    assert orjson.loads(raw)["error"]["code"] == "request_too_large"


def test_thirty_two_clients_get_the_answers_that_each_would_get_alone(client, tiny):
    alone = [answer(tiny, text, max_tokens=16).text for text in PROMPTS]
    with ThreadPoolExecutor(32) as pool:
        made = list(pool.map(lambda text: chat(client, text, temperature=0, max_tokens=16), PROMPTS))
    assert [m.choices[0].message.content for m in made] == alone


def test_our_own_client_reads_our_own_server(url, tiny):
    async def run():
        body = orjson.dumps(
            {"model": "tiny", "messages": user("hi"), "temperature": 0, "max_tokens": 8, "logprobs": True}
        )
        async with Endpoint(url) as server:
            return await server.models(), await asyncio.gather(*(server.chat(body, 30) for _ in range(8)))

    names, replies = asyncio.run(run())
    assert names == ["tiny"]
    expected = answer(tiny, "hi", max_tokens=8)
    for reply in replies:
        assert isinstance(reply, Reply)
        assert reply.completions[0].text == expected.text
        assert reply.completions[0].usage.completion_tokens == expected.completion_tokens
        assert len(orjson.loads(reply.raw)["choices"][0]["logprobs"]["content"]) == len(expected.token_ids)


# ---------------------------------------------------------------- cancelling, starting, stopping


def scope_of(path, method="POST"):
    scope = {"type": "http", "method": method, "path": path, "headers": [], "query_string": b""}
    return scope | {"http_version": "1.1", "root_path": "", "asgi": {"spec_version": "2.3"}}


async def asked(served, path, body=None):
    """Status and body of one request to the application in this process."""
    sent = []
    inbox = [{"type": "http.request", "body": orjson.dumps(body)}]

    async def receive():
        if not inbox:
            await asyncio.Event().wait()
        return inbox.pop()

    async def send(message):
        sent.append(message)

    # Starlette answers an unexpected exception with 500 and raises it on.
    with suppress(RuntimeError):
        await app.application(served)(scope_of(path, "GET" if body is None else "POST"), receive, send)
    return sent[0]["status"], orjson.loads(sent[1]["body"])


def test_health_tells_that_the_models_thread_has_ended(tiny):
    async def run():
        served = app.Served(tiny, "tiny")
        idle = await asked(served, "/health")
        worker = served.start()
        busy = await asked(served, "/health")
        worker.put(None)
        await asyncio.to_thread(worker.join, 30)
        return idle, busy, await asked(served, "/health")

    (idle, _), (busy, _), (dead, told) = asyncio.run(run())
    assert (idle, busy, dead) == (200, 200, 503)
    assert "ended" in told["status"]


def test_a_second_worker_starts_when_the_first_is_busy_and_answers_the_same(tiny):
    async def run(workers):
        served = app.Served(tiny, "tiny", workers)
        bodies = [{"model": "tiny", "messages": user(f"word {n}")} for n in range(24)]
        bodies = [body | {"max_tokens": 40, "temperature": 0} for body in bodies]
        answers = await asyncio.gather(*(asked(served, "/v1/chat/completions", body) for body in bodies))
        for worker in served.workers:
            worker.put(None)
        return len(served.workers), [told["choices"][0]["message"]["content"] for _, told in answers]

    (one, alone), (two, shared) = asyncio.run(run(1)), asyncio.run(run(2))
    assert (one, two) == (1, 2)
    assert alone == shared


def test_a_failing_score_leaves_nothing_running(tiny, monkeypatch):
    async def broken(*_):
        raise RuntimeError("no memory")

    async def run():
        served = app.Served(tiny, "tiny")
        body = {"model": "tiny", "prompt": "ab", "max_tokens": 50, "echo": True, "logprobs": 1}
        status, told = await asked(served, "/v1/completions", body)
        return status, told, served.workers, len(asyncio.all_tasks())

    monkeypatch.setattr(app, "_scored", broken)
    status, told, workers, tasks = asyncio.run(run())
    assert status == 500
    assert "no memory" in told["error"]["message"]
    assert not workers
    assert tasks == 1


def test_the_models_thread_outlives_what_goes_wrong_in_it(tiny, monkeypatch):
    async def run():
        worker = Worker(tiny, asyncio.get_running_loop())
        inbox = asyncio.Queue()
        monkeypatch.setattr(worker, "_cancel", lambda _: 1 / 0)
        worker.put(Cancel(["nobody"]))
        worker.put(Job("a", Request(text_ids(tiny, "hi"), 4), False, inbox.put_nowait))
        worker.start()
        lost = await asyncio.wait_for(inbox.get(), 30) if worker.is_alive() else None
        worker.put(Job("b", Request(text_ids(tiny, "hi"), 4), False, inbox.put_nowait))
        answered = await asyncio.wait_for(inbox.get(), 30)
        worker.put(None)
        return lost, answered

    lost, answered = asyncio.run(run())
    assert lost.done is not None
    assert answered.done is not None


def test_a_client_that_goes_away_frees_its_row(tiny):
    """The application itself, in this process: an answer that would never end ends with its client."""
    served = app.Served(replace(tiny, stop_ids=frozenset(), context=None), "tiny")
    application = app.application(served)
    body = orjson.dumps({"model": "tiny", "messages": user("hi"), "max_tokens": 10**9})

    async def run(stream):
        leave = asyncio.Event()
        inbox = [{"type": "http.request", "body": orjson.dumps(orjson.loads(body) | {"stream": stream})}]

        async def receive():
            if inbox:
                return inbox.pop()
            await leave.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            pass

        task = asyncio.create_task(application(scope_of("/v1/chat/completions"), receive, send))
        await asyncio.to_thread(wait_until, lambda: served.workers and len(served.workers[0].decoder))
        leave.set()
        await task
        await asyncio.to_thread(wait_until, lambda: not len(served.workers[0].decoder))
        return served.workers[0]

    for stream in (False, True):
        served.workers.clear()
        worker = asyncio.run(run(stream))
        assert not worker.sinks
        assert worker.cancelled == 1
        worker.put(None)


def test_what_does_not_start_says_why(tmp_path):
    with pytest.raises(ModelError) as caught, background(str(tmp_path)):
        pass
    assert "config.json" in caught.value.why


def test_what_is_not_ready_in_time_is_stopped(tiny_folder, monkeypatch):
    monkeypatch.setattr("stillhouse.models.serve._READY_SECONDS", 0.05)
    with pytest.raises(ModelError) as caught, background(str(tiny_folder)):
        pass
    assert "not ready after 0.05 s" in caught.value.what


def test_a_child_that_talks_on_is_written_to_the_log(tmp_path, monkeypatch):
    program = tmp_path / "python"  # stands in for the interpreter that `background` starts
    program.write_text(
        "#!/bin/sh\necho http://here\nhead -c 300000 /dev/zero | tr '\\0' x\necho end >&2\ncat\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr("stillhouse.models.serve.sys.executable", str(program))
    log = tmp_path / "server.log"
    with background("anything", log) as url:
        wait_until(lambda: log.read_bytes().endswith(b"end\n"))
    assert url == "http://here"
    assert log.stat().st_size > 300_000


def test_a_taken_port_is_named(url, tiny_folder):
    port = int(url.split(":")[2].removesuffix("/v1"))
    with pytest.raises(UsageError) as caught:
        serve(str(tiny_folder), port=port)
    assert str(port) in caught.value.what


def wait_until(holds):
    until = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < until, "waited for 30 s"
        time.sleep(0.005)


def is_gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for the child under /proc")
def test_the_child_ends_with_a_killed_parent(tiny_folder):
    program = (
        "import sys, stillhouse.models.serve as s\n"
        "real = s.subprocess.Popen\n"
        "def watched(*a, **k):\n"
        "    child = real(*a, **k); print(child.pid, flush=True); return child\n"
        "s.subprocess.Popen = watched\n"
        "with s.background(sys.argv[1]) as url:\n"
        "    print('torch' in sys.modules, flush=True); sys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(tiny_folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with parent:
        child = int(parent.stdout.readline())
        assert parent.stdout.readline().strip() == b"False"  # the parent needs no torch
        os.kill(child, 0)
        parent.send_signal(signal.SIGKILL)
        parent.stdin.close()
    wait_until(lambda: is_gone(child))
