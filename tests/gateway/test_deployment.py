"""The files of deploy/ as they stand, but for addresses: two replicas, their stores and TLS in front."""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import httpx2 as httpx
import postgres_server
import pytest
import redis_server
from behind import PROMPT, WORDS, Behind

from stillhouse.gateway.store.events import Events
from stillhouse.gateway.store.redis import RedisCounts
from stillhouse.guard.events import label
from stillhouse.guard.reading import read_config

DEPLOY = Path(__file__).parents[2] / "deploy"
HELLO = [{"role": "user", "content": "hello"}]
COST = PROMPT * 100 + WORDS * 400  # billionths of a dollar, at the prices of deploy/guard.toml
SECRETS = {
    "STILLHOUSE_ADMIN_SECRET": "Vv3tqGx7Zr9LmB2wKc8Yp4Hs6Jd1Nf5Q",
    "STILLHOUSE_PEPPER": "bT6yWq1MzR8kXe3Gu9Ph5Ls2Vd7Cn4Fj",
    "UPSTREAM_KEY": "one-that-the-upstreams-share",
}


def free_ports(count):
    with_port = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in with_port]
    for each in with_port:
        each.close()
    return ports


def filled(name, into, **exchange):
    """A file of deploy/ with other addresses and folders."""
    text = (DEPLOY / name).read_text()
    for old, new in exchange.items():
        assert old in text, f"{name} has no {old}"
        text = text.replace(old, new)
    (into / name).write_text(text)
    return into / name


def until(true, what, seconds=30, pause=0.02):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, what
        time.sleep(pause)


class Deployment:
    def __init__(self, folder, database, upstreams):
        self.folder = folder
        self.upstreams = upstreams
        self.environ = {**os.environ, **SECRETS, "OMP_NUM_THREADS": "1"}
        self.running = {}
        self.tls, clear, self.redis_port, *self.ports = free_ports(5)
        self.redis_url = f"redis://127.0.0.1:{self.redis_port}/0"
        (folder / "redis").mkdir()
        self.redis_conf = filled(
            "redis.conf", folder,
            **{
                "10.0.0.21": "127.0.0.1",
                "6379": str(self.redis_port),
                "/var/lib/redis": str(folder / "redis"),
            },
        )  # fmt: skip
        self.settings = []
        for number, port in enumerate(self.ports, 1):
            place = folder / f"guard-{number}"
            place.mkdir()
            file = filled(
                "guard.toml", place,
                **{
                    "port = 8700": f"port = {port}",
                    "0.0.0.0": "127.0.0.1",
                    "/var/lib/stillhouse/guard": str(place / "store"),
                    "postgresql://stillhouse@database/stillhouse": database,
                    "redis://redis:6379/0": self.redis_url,
                    "http://model-1:8000/v1": upstreams[0].url,
                    "http://model-2:8000/v1": upstreams[1].url,
                },
            )  # fmt: skip
            text = file.read_text()
            first = text[text.index("[[models]]") : text.index("[prices")]
            more = "".join(first.replace('"first"', f'"{name}"') for name in ("slowly", "stall"))
            file.write_text(f"{text}\n{more}")
            self.settings.append(file)
        subprocess.run(
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
            "-subj /CN=llm.example -addext subjectAltName=DNS:llm.example,IP:127.0.0.1 "
            "-keyout tls.key -out tls.crt".split(),
            cwd=folder, check=True, capture_output=True,
        )  # fmt: skip
        spare = " ".join(
            f"{kind}_temp_path {folder}/{kind};" for kind in "client_body proxy fastcgi uwsgi scgi".split()
        )
        self.nginx_conf = filled(
            "nginx.conf", folder,
            **{
                "listen 443": f"listen 127.0.0.1:{self.tls}",
                "listen 80": f"listen 127.0.0.1:{clear}",
                "/etc/stillhouse": str(folder),
                "/var/log/nginx": str(folder),
                "/run/nginx.pid": str(folder / "nginx.pid"),
                "guard-1:8700": f"127.0.0.1:{self.ports[0]}",
                "guard-2:8700": f"127.0.0.1:{self.ports[1]}",
                "http {": f"http {{ {spare}",
            },
        )  # fmt: skip
        self.url = f"https://127.0.0.1:{self.tls}"
        self.trust = ssl.create_default_context(cafile=folder / "tls.crt")

    def begin(self, name, *command):
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [str(word) for word in command], stdout=log, stderr=log, env=self.environ
            )

    def end(self, name, how=signal.SIGTERM):
        self.running[name].send_signal(how)
        return self.running.pop(name).wait(30)

    def start_redis(self):
        self.begin("redis", redis_server.program(), self.redis_conf)

    def start_gateway(self, number):
        self.begin_gateway(number)
        self.await_gateway(number)

    def begin_gateway(self, number):
        self.begin(f"guard-{number}", *self.command("serve", self.settings[number - 1]))

    def await_gateway(self, number):
        def ready():
            assert self.running[f"guard-{number}"].poll() is None, (
                self.folder / f"guard-{number}.log"
            ).read_text()
            try:
                return httpx.get(f"http://127.0.0.1:{self.ports[number - 1]}/ready").status_code == 200
            except httpx.TransportError:
                return False

        until(ready, f"gateway {number} begins to serve")

    def start_nginx(self):
        self.begin("nginx", "nginx", "-c", self.nginx_conf, "-g", "daemon off;")
        until((self.folder / "nginx.pid").exists, "nginx serves")

    def command(self, *words):
        return [sys.executable, "-m", "stillhouse.cli", "guard", *words]

    def guard(self, *words):
        command = self.command(*words, "--config", str(self.settings[0]), "--json")
        done = subprocess.run(command, env=self.environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def client(self, asynchronous=False):
        kind = httpx.AsyncClient if asynchronous else httpx.Client
        headers = {"authorization": f"Bearer {self.key}"}
        return kind(base_url=f"{self.url}/v1", headers=headers, verify=self.trust, timeout=30)

    def standing(self):
        """What the account took by what all replicas share."""

        async def read():
            counts = RedisCounts(self.redis_url)
            try:
                return dict(await counts.standing(f"account:{self.account}"))
            finally:
                await counts.close()

        return asyncio.run(read())

    def granted(self):
        """Which replica answered, by its part of the request's id; "" where it was refused."""
        with self.client() as client:
            said = client.post("/chat/completions", json={"model": "first", "messages": HELLO})
        return said.headers["x-request-id"][:-8] if said.status_code == 200 else ""


@pytest.fixture(scope="module")
def deployed(tmp_path_factory):
    for name in ("nginx", "openssl"):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed: apt-get install {name}")
    folder = tmp_path_factory.mktemp("deployment")
    try:
        with postgres_server.running() as postgres, Behind() as one, Behind() as two:
            made = Deployment(folder, postgres.url, (one, two))
            try:
                made.start_redis()
                for step in (made.begin_gateway, made.await_gateway):
                    for number in (1, 2):
                        step(number)
                made.start_nginx()
                made.account = made.guard("accounts", "add", "a customer")["id"]
                made.key = made.guard("keys", "add", made.account)["secret"]
                until(made.granted, "the first request passes")
                yield made
            finally:
                for name in list(made.running):
                    made.end(name, signal.SIGKILL if name == "redis" else signal.SIGTERM)
    except (postgres_server.Unavailable, redis_server.Unavailable) as error:
        pytest.skip(str(error))


def test_the_settings_are_sound(deployed):
    done = subprocess.run(
        deployed.command("check", str(deployed.settings[1]), "--json"),
        env=deployed.environ,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["findings"] == []


def test_a_stream_passes_byte_for_byte_as_it_comes(deployed):
    asked = {"model": "slowly", "messages": HELLO, "stream": True, "stream_options": {"include_usage": True}}
    with httpx.Client() as direct:
        wanted = direct.post(f"{deployed.upstreams[0].url}/chat/completions", json=asked).content
    with deployed.client() as client, client.stream("POST", "/chat/completions", json=asked) as said:
        assert b"".join(said.iter_raw()) == wanted
        assert said.headers["x-request-id"].startswith("req_")
    with (
        deployed.client() as client,
        client.stream("POST", "/chat/completions", json={**asked, "model": "stall"}) as said,
    ):
        parts = said.iter_raw()
        got = b""
        while got.count(b"data:") < 5:  # the server says no more until it is told to
            got += next(parts)
        deployed.upstreams[0].release()
        assert (got + b"".join(parts)).endswith(b"data: [DONE]\n\n")


def test_a_client_that_leaves_is_noticed_behind_both(deployed):
    left = deployed.upstreams[0].left["slowly"]
    asked = {"model": "slowly", "messages": HELLO, "stream": True}
    with deployed.client() as client, client.stream("POST", "/chat/completions", json=asked) as said:
        next(said.iter_raw())
    until(lambda: deployed.upstreams[0].left["slowly"] > left, "the upstream is left as well", 5)


def test_what_only_operators_may_see_and_what_is_too_long_is_refused_in_front(deployed):
    with deployed.client() as client:
        for path in ("/metrics", "/ready"):
            assert client.get(f"{deployed.url}{path}").status_code == 404
        assert client.get(f"{deployed.url}/health").status_code == 200
        assert client.get(f"{deployed.url}/admin/api/accounts").status_code == 401
        assert client.get("/models", headers={"x-long": "a" * 9000}).status_code == 400
        assert client.post("/completions", content=b"a" * (5 << 20)).status_code == 413
        assert client.get("/models").headers["strict-transport-security"]


def test_a_replica_that_is_stopped_ends_what_it_began(deployed):
    async def run():
        async with deployed.client(True) as client:
            begun = asyncio.Semaphore(0)

            async def one():
                asked = {"model": "slowly", "messages": HELLO, "stream": True}
                got = b""
                async with client.stream("POST", "/chat/completions", json=asked) as said:
                    async for part in said.aiter_raw():
                        if not got:
                            begun.release()
                        got += part
                return got

            streams = [asyncio.create_task(one()) for _ in range(6)]
            for _ in streams:
                await begun.acquire()
            deployed.running["guard-1"].send_signal(signal.SIGTERM)
            asked = {"model": "first", "messages": HELLO}
            statuses = [(await client.post("/chat/completions", json=asked)).status_code for _ in range(10)]
            return await asyncio.gather(*streams), statuses

    streams, statuses = asyncio.run(run())
    assert all(each.endswith(b"data: [DONE]\n\n") for each in streams)
    assert statuses == [200] * 10
    assert deployed.running.pop("guard-1").wait(30) == 0
    deployed.start_gateway(1)


def test_a_replica_killed_under_load_charges_nothing_twice(deployed):
    last = deployed.granted()
    until(lambda: deployed.granted() != last, "nginx asks both replicas again", pause=0.1)
    before = deployed.standing()
    seen_before = [len(each.bodies) for each in deployed.upstreams]
    whole, failed, statuses = {}, [], Counter()  # marker: request id

    async def client_of(client, number, killed):
        stream = number % 2 == 0
        for turn in range(3 if stream else 16):
            marker = f"marker {number} {turn}"
            asked = {
                "model": "slowly" if stream else "first",
                "messages": [{"role": "user", "content": marker}],
                "max_tokens": WORDS,
                "stream": stream,
            }
            try:
                async with client.stream("POST", "/chat/completions", json=asked) as said:
                    got = b"".join([part async for part in said.aiter_raw()])
            except httpx.TransportError:
                failed.append(marker)
                continue
            statuses[said.status_code] += 1
            ended = got.endswith(b"data: [DONE]\n\n") if stream else said.status_code == 200
            if said.status_code == 200 and ended:
                whole[marker] = said.headers["x-request-id"]
            else:
                failed.append(marker)
            if len(whole) >= 30 and not killed:
                killed.append(len(whole))
                deployed.end("guard-1", signal.SIGKILL)

    async def run():
        async with deployed.client(True) as client:
            killed = []
            await asyncio.gather(*(client_of(client, number, killed) for number in range(16)))
            assert killed

    asyncio.run(run())
    sent = 8 * 3 + 8 * 16
    assert len(whole) + len(failed) == sent
    assert failed, "the kill hit nobody"
    assert len(failed) <= 16, statuses  # none but what was in flight: the other replica took all the rest
    assert set(statuses) <= {200, 502}

    seen = Counter(
        body["messages"][0]["content"]
        for each, since in zip(deployed.upstreams, seen_before, strict=True)
        for body in each.bodies[since:]
    )
    assert set(seen.values()) == {1}, "a request was sent twice"
    assert set(whole) <= set(seen)
    after = deployed.standing()
    took = {what: after[what] - before.get(what, 0) for what in after}
    assert len(whole) * WORDS <= took["output_tokens", "day"] <= sent * WORDS
    most = len(failed) * (400 * WORDS + 100 * 1000)  # what was reserved stands where nobody could settle it
    assert len(whole) * COST <= took["money", "month"] <= len(whole) * COST + most

    deployed.start_gateway(1)
    with closing(Events(read_config(deployed.settings[1]).store)) as events:
        assert len({id[:-8] for id in whole.values()}) == 2  # replicas that answered
        until(
            lambda: len({id[:-8] for id in whole.values() if events.find(label(id)) is None}) <= 1,
            "the replica that lived recorded all",
        )
        rows = deployed.guard("usage", "--account", deployed.account)
    recorded = sum(round(float(row["cost"]) * 1e9) for row in rows)
    assert recorded <= after["money", "month"]


def test_what_was_used_survives_a_crash_of_redis(deployed):
    before = deployed.standing()
    assert before["money", "month"] > 0
    deployed.end("redis", signal.SIGKILL)
    with deployed.client() as client:
        said = client.post("/chat/completions", json={"model": "first", "messages": HELLO})
    assert (said.status_code, said.json()["error"]["code"]) == (503, "store_down")
    deployed.start_redis()
    until(deployed.granted, "requests pass again")
    after = deployed.standing()
    assert after["money", "month"] == before["money", "month"] + COST
    assert after["output_tokens", "day"] == before["output_tokens", "day"] + WORDS
    assert re.search(r"^appendfsync always$", (DEPLOY / "redis.conf").read_text(), re.M)
