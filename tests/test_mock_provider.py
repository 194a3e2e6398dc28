"""The mock provider keeps what it promises: OpenAI's own client talks to it, and a kill loses it nothing."""

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from mock_provider import Settings, entries, read_journal, serving

QUICK = Settings(latency=0.001, answer_bytes=200)


def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key="none", max_retries=0)


def say(asking: openai.OpenAI, text: str) -> openai.types.chat.ChatCompletion:
    return asking.chat.completions.create(
        model="m", messages=[{"role": "user", "content": text}], max_tokens=60
    )


def batch_file(folder: Path, count: int) -> Path:
    path = folder / "batch.jsonl"
    bodies = (
        {"model": "m", "messages": [{"role": "user", "content": f"step {i}"}], "max_tokens": 60}
        for i in range(count)
    )
    lines = (
        {"custom_id": f"c{i}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        for i, body in enumerate(bodies)
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def created(asking: openai.OpenAI, path: Path) -> openai.types.Batch:
    with path.open("rb") as file:
        sent = asking.files.create(file=file, purpose="batch")
    return asking.batches.create(
        input_file_id=sent.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"shard": "abc"},
    )


def ended(asking: openai.OpenAI, name: str) -> openai.types.Batch:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        batch = asking.batches.retrieve(name)
        if batch.status in ("completed", "failed", "expired", "cancelled"):
            return batch
        time.sleep(0.02)
    raise AssertionError(f"the batch is still {batch.status}")


def lines_of(asking: openai.OpenAI, name: str | None) -> Iterator[dict]:
    if name is not None:
        yield from map(json.loads, asking.files.content(name).text.splitlines())


def test_answers_depend_on_the_question_and_are_billed_once_each(tmp_path: Path):
    with serving(tmp_path, QUICK) as provider, client(provider.url) as asking:
        first, second, other = say(asking, "one"), say(asking, "one"), say(asking, "two")
    assert first.choices[0].message.content == second.choices[0].message.content
    assert first.choices[0].message.content != other.choices[0].message.content
    seen = entries(read_journal(provider.journal)[0])
    assert [entry.prompt for entry in seen] == ["one", "one", "two"]
    assert {entry.sent for entry in seen} == {"whole"}
    assert first.usage is not None
    assert seen[0].tokens == [first.usage.prompt_tokens, first.usage.completion_tokens]
    assert seen[0].dollars == pytest.approx((seen[0].tokens[0] * 1.0 + seen[0].tokens[1] * 4.0) / 1e6)


def test_what_passes_the_rate_is_refused_with_when_to_come_back(tmp_path: Path):
    limits = Settings(latency=0.001, limits="0:60:0", burst_seconds=1.0)
    refusals = []
    with serving(tmp_path, limits) as provider, client(provider.url) as asking:
        for i in range(9):
            try:
                say(asking, f"step {i}")
            except openai.RateLimitError as error:
                refusals.append(error.response.headers)
    assert 1 <= len(refusals) <= 8
    assert all(refusal["x-ratelimit-limit-requests"] == "60" for refusal in refusals)
    assert all("retry-after" in refusal for refusal in refusals)
    does = Counter(entry.does for entry in entries(read_journal(provider.journal)[0]))
    assert does == {"answer": 9 - len(refusals), "limited": len(refusals)}


def test_faults_are_the_same_in_every_run(tmp_path: Path):
    bad = Settings(
        latency=0.001, answer_bytes=200, faults="cut_work=0.2,cut_body=0.2,error=0.2,truncated=0.2"
    )

    def failures(folder: Path) -> list[str]:
        found = []
        with serving(folder, bad) as provider, client(provider.url) as asking:
            for i in range(30):
                try:
                    say(asking, f"step {i}")
                    found.append("answered")
                except Exception as error:
                    found.append(type(error).__name__)
        bills = {entry.does: entry.dollars > 0 for entry in entries(read_journal(provider.journal)[0])}
        assert bills == {
            "answer": True,
            "cut_work": True,
            "cut_body": True,
            "error": False,
            "truncated": True,
        }
        return found

    first = failures(tmp_path / "first")
    assert first == failures(tmp_path / "second")
    assert len(set(first)) >= 3


def test_a_batch_outlives_the_kill_of_its_provider_and_is_billed_once(tmp_path: Path):
    slow = Settings(latency=0.001, answer_bytes=200, batch_seconds=1.0, batch_errors=0.1)
    with serving(tmp_path, slow) as provider, client(provider.url) as asking:
        made = created(asking, batch_file(tmp_path, 200))
        while len(read_journal(provider.journal)[0]) < 50:
            time.sleep(0.01)
        provider.process.kill()
    with serving(tmp_path, slow) as provider, client(provider.url) as asking:
        assert [(batch.id, batch.metadata) for batch in asking.batches.list()] == [
            (made.id, {"shard": "abc"})
        ]
        done = ended(asking, made.id)
        good = list(lines_of(asking, done.output_file_id))
        bad = list(lines_of(asking, done.error_file_id))
        counts = done.request_counts
    assert done.status == "completed"
    assert counts is not None
    assert (counts.total, counts.completed, counts.failed) == (200, len(good), len(bad))
    ids = [line["custom_id"] for line in good]
    assert sorted(ids + [line["custom_id"] for line in bad]) == sorted(f"c{i}" for i in range(200))
    assert ids != sorted(ids, key=lambda name: int(name[1:]))
    assert {line["response"]["status_code"] for line in bad} == {500}
    billed = entries(read_journal(provider.journal)[0])
    assert len({entry.place for entry in billed}) == len(billed) == 200
    assert sum(entry.dollars > 0 for entry in billed) == len(good)


def test_expired_and_cancelled_batches_give_what_was_done(tmp_path: Path):
    short = Settings(answer_bytes=200, batch_seconds=5.0, batch_window=1.5)
    with serving(tmp_path, short) as provider, client(provider.url) as asking:
        late = created(asking, batch_file(tmp_path, 100))
        stopped = created(asking, batch_file(tmp_path, 100))
        while asking.batches.retrieve(stopped.id).status == "validating":
            time.sleep(0.02)
        asking.batches.cancel(stopped.id)
        for name, status in ((late.id, "expired"), (stopped.id, "cancelled")):
            done = ended(asking, name)
            assert done.status == status
            left = list(lines_of(asking, done.error_file_id))
            assert {line["error"]["code"] for line in left} == {f"batch_{status}"}
            assert len(left) + len(list(lines_of(asking, done.output_file_id))) == 100


def test_what_openai_refuses_is_refused(tmp_path: Path):
    with serving(tmp_path, Settings(batch_seconds=0.1)) as provider, client(provider.url) as asking:
        too_many = created(asking, batch_file(tmp_path, 50_001))
        assert ended(asking, too_many.id).status == "failed"
        twice = tmp_path / "twice.jsonl"
        twice.write_text(2 * batch_file(tmp_path, 1).read_text())
        errors = ended(asking, created(asking, twice).id).errors
        assert errors is not None
        assert [error.code for error in errors.data or []] == ["duplicate_custom_id"]
        huge = tmp_path / "huge.jsonl"
        with huge.open("wb") as file:
            os.truncate(file.fileno(), (200 << 20) + 1)
        with pytest.raises(openai.APIStatusError, match="at most 209715200 bytes"):
            created(asking, huge)


def test_a_batch_whose_confirmation_is_lost_is_there_all_the_same(tmp_path: Path):
    deaf = Settings(batch_seconds=0.1, lost_replies=1.0)
    with serving(tmp_path, deaf) as provider, client(provider.url) as asking:
        path = batch_file(tmp_path, 3)
        with pytest.raises(openai.APIConnectionError):
            created(asking, path)
        (sent,) = asking.files.list()
        with pytest.raises(openai.APIConnectionError):
            asking.batches.create(
                input_file_id=sent.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
        (made,) = asking.batches.list()
        assert ended(asking, made.id).status == "completed"
