"""`guard.toml` read strictly, and checked for what would make the gateway unsafe or fail later."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl, urlsplit

from stillhouse.errors import UsageError
from stillhouse.guard.config import Guard, Model, Upstream, Watermark
from stillhouse.guard.lines import read_lines
from stillhouse.recipe.base import Table
from stillhouse.recipe.strict import checked, read_tree
from stillhouse.watermark import Key, read_key

# Where a secret may stand, by right or by mistake: never echoed.
HIDDEN = re.compile(r".*\b(url|database|redis|traces|\w+_env)(\..*)?")

SECRET_LETTERS, SECRET_DISTINCT = 24, 10
KNOWN_WORDS = re.compile(
    r"password|passwort|passwd|secret|admin|master|stillhouse|change-?_?me|default|letmein|welcome|qwerty|"
    r"example|insecure|test|root|sk-1234|token|key|please|12345678?9?0?|abc123|iloveyou",
    re.IGNORECASE,
)

# What only the machines of a cloud see, and what gives its caller the machine's own rights there.
_METADATA_NAMES = (
    "metadata.google.internal",
    "metadata.goog",
    "metadata",
    "instance-data",
    "instance-data.ec2",
)
_METADATA = {
    "169.254.0.0/16": "link-local addresses, among them the metadata service of most clouds",
    "100.100.100.200/32": "the metadata service of Alibaba Cloud",
    "192.0.0.192/32": "the metadata service of Oracle Cloud",
    "168.63.129.16/32": "the platform service of Azure",
    "fe80::/10": "link-local addresses",
    "fd00:ec2::/32": "the metadata services of AWS",
    "fd20:ce::254/128": "the metadata service of Google Cloud",
    "224.0.0.0/4": "multicast",
    "ff00::/8": "multicast",
    "0.0.0.0/8": "no address of a server",
    "::/128": "no address of a server",
    "240.0.0.0/4": "no address of a server",
}
_NETWORKS = [(ipaddress.ip_network(network), why) for network, why in _METADATA.items()]
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Finding:
    """An `error` keeps the gateway from starting. `where` is the setting."""

    level: Literal["error", "warning"]
    where: str
    what: str
    mend: str


def read_config(path: Path) -> Guard:
    """The settings of a gateway; relative paths in the file are taken from its own folder.

    Raises UsageError that names the line, and for an unknown key the nearest valid one.
    """
    tree, text = read_tree(path, "configuration", "write one with `stillhouse guard init`")
    config = checked(Guard, tree, text, str(path), "configuration", "docs/guard-settings.md", HIDDEN)
    folder = path.resolve().parent
    store = config.store.model_copy(update={"folder": str(folder / config.store.folder)})
    terms = config.terms and config.terms.model_copy(update={"document": str(folder / config.terms.document)})
    detection = config.detection
    if detection.thresholds is not None:
        lines = str(folder / detection.thresholds)
        detection = detection.model_copy(update={"thresholds": lines})
    models = [_placed(model, folder) for model in config.models]
    return config.model_copy(
        update={"store": store, "terms": terms, "detection": detection, "models": models}
    )


def _placed(model: Model, folder: Path) -> Model:
    placed: dict[str, Table] = {}
    if model.cascade is not None:
        calibration = str(folder / model.cascade.calibration)
        placed["cascade"] = model.cascade.model_copy(update={"calibration": calibration})
    if model.watermark is not None:
        placed["watermark"] = model.watermark.model_copy(update={"key": str(folder / model.watermark.key)})
    return model.model_copy(update=placed)


def check(config: Guard, environ: Mapping[str, str]) -> list[Finding]:
    """What is wrong with the settings on this machine, without asking anybody anything."""
    return [
        *_admin_secret(config, environ),
        *_server(config),
        *_store(config, environ),
        *_upstreams(config, environ),
        *_calibrations(config),
        *_marks(config),
        *_prices(config),
        *_tiers(config),
        *_terms(config),
        *_traces(config),
        *_detection(config),
    ]


def weakness(secret: str) -> str:
    """Why a secret that a person chose can be guessed; empty when nothing shows that it can."""
    if len(secret) < SECRET_LETTERS:
        return f"it has {len(secret)} characters, and at least {SECRET_LETTERS} are needed"
    distinct = len(set(secret))
    if distinct < SECRET_DISTINCT:
        return f"it has {distinct} distinct characters, and at least {SECRET_DISTINCT} are needed"
    if len(KNOWN_WORDS.sub("", secret)) < SECRET_LETTERS // 2:
        return "it is made of well-known words"
    steps = [ord(after) - ord(before) for before, after in pairwise(secret)]
    if sum(abs(step) <= 1 for step in steps) > len(steps) // 2:
        return "its characters follow each other in order"
    period = (secret + secret).find(secret, 1)
    if period < SECRET_LETTERS and period < len(secret):
        return f"it repeats the same {period} characters"
    return ""


def forbidden_address(address: str) -> str:
    """Why nothing may be sent to an IP address, empty where it may: loopback and private networks are fine,
    own servers lie there. For an address that a name resolved to as well: ask it before connecting."""
    try:
        number: _Address = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(number, ipaddress.IPv6Address):
        if number.ipv4_mapped is not None:
            number = number.ipv4_mapped
        elif number in _NAT64:
            number = ipaddress.IPv4Address(int(number) & 0xFFFF_FFFF)
    for network, why in _NETWORKS:
        if number.version == network.version and number in network:
            return f"{address} is in {network}: {why}"
    return ""


def url_fault(url: str) -> str:
    """Why no request may go to this URL, empty where one may. A name is not resolved: see
    `forbidden_address`."""
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".").lower()
        _ = parts.port
    except ValueError as error:
        return f"it is no URL: {error}"
    if parts.scheme not in ("http", "https"):
        return "only http and https are spoken"
    if parts.username is not None or parts.password is not None:
        return "it has credentials in it, which would be shown in messages: give them by `key_env`"
    if parts.query or parts.fragment:
        return "a query or a fragment would be lost or sent twice when the path is added"
    if not host or any(letter.isspace() or ord(letter) < 33 for letter in url):
        return "it names no host"
    if host in _METADATA_NAMES:
        return f"{host} is the metadata service of a cloud"
    return forbidden_address(_as_address(host))


def checked_tier(config: Guard, name: str) -> str:
    """The name of a tier that is there. Raises UsageError, with the nearest one."""
    if name not in config.tiers:
        near = get_close_matches(name, config.tiers, n=1, cutoff=0.4)
        known = ", ".join(config.tiers)
        mend = f"did you mean {near[0]}?" if near else f"there are: {known}"
        raise UsageError(f"there is no tier {name}", "the settings do not describe it", mend)
    return name


def unknown_tiers(config: Guard, used: Iterable[str]) -> list[Finding]:
    """Tiers that accounts have and the settings lack: requests of these accounts are refused."""
    return [
        Finding(
            "error",
            "tiers",
            f"accounts have the tier {name!r}, which is not described",
            f"add [tiers.{name}], or give these accounts another tier",
        )
        for name in sorted(set(used) - set(config.tiers))
    ]


def _as_address(host: str) -> str:
    """The usual form of an address in one of the forms that C libraries read as well: 2852039166,
    0xa9fea9fe, 169.254.43518."""
    if re.fullmatch(r"[0-9a-fx.]+", host) and host[0].isdigit():
        try:
            return socket.inet_ntoa(socket.inet_aton(host))
        except OSError:
            return host
    return host


def _admin_secret(config: Guard, environ: Mapping[str, str]) -> Iterator[Finding]:
    name = config.server.admin_secret_env
    mend = f"set {name} to the output of: openssl rand -base64 32"
    if not environ.get(name):
        yield Finding("error", "server.admin_secret_env", f"the variable {name} is not set", mend)
    elif why := weakness(environ[name]):
        yield Finding("error", "server.admin_secret_env", f"the admin secret in {name} is weak: {why}", mend)


def _server(config: Guard) -> Iterator[Finding]:
    host = config.server.host
    if host in ("localhost", "::1") or host.startswith("127."):
        return
    yield Finding(
        "warning",
        "server.host",
        f"{host} can be reached from elsewhere, and keys travel in clear",
        "put a server that speaks TLS in front, and listen on 127.0.0.1 where both are on one machine",
    )


def _store(config: Guard, environ: Mapping[str, str]) -> Iterator[Finding]:
    store = config.store
    if store.pepper_env is not None:
        pepper = environ.get(store.pepper_env)
        mend = f"set {store.pepper_env} to the output of: openssl rand -base64 32; keep it, keys die with it"
        if not pepper:
            yield Finding("error", "store.pepper_env", f"the variable {store.pepper_env} is not set", mend)
        elif why := weakness(pepper):
            yield Finding(
                "error", "store.pepper_env", f"the pepper in {store.pepper_env} is weak: {why}", mend
            )
    elif store.database is not None:
        yield Finding(
            "error",
            "store.pepper_env",
            "replicas share the accounts, and each would hash keys under a secret of its own",
            'set pepper_env = "STILLHOUSE_PEPPER", and this variable to one value everywhere',
        )
    if store.redis is not None and store.database is None:
        yield Finding(
            "error",
            "store.database",
            "replicas share the counts by Redis, but each would have accounts and records of its own",
            "name the PostgreSQL database that they share",
        )
    if store.database is not None:
        given = urlsplit(store.database)
        names = {name for name, _ in parse_qsl(given.query, keep_blank_values=True)}
        if given.password is not None or names & {"password", "sslpassword"}:
            yield Finding(
                "error",
                "store.database",
                "the URL has a password in it, which would be shown in messages",
                "leave it out; give it in the variable PGPASSWORD or in the file ~/.pgpass",
            )


def _upstreams(config: Guard, environ: Mapping[str, str]) -> Iterator[Finding]:
    for number, model in enumerate(config.models):
        students = model.cascade.upstreams if model.cascade is not None else ()
        for where, upstream in (
            *((f"models.{number}.upstreams.{n}", each) for n, each in enumerate(model.upstreams)),
            *((f"models.{number}.cascade.upstreams.{n}", each) for n, each in enumerate(students)),
        ):
            if why := url_fault(upstream.url):
                yield Finding(
                    "error", f"{where}.url", f"an upstream of {model.name} is refused: {why}", "name another"
                )
            elif _in_clear(upstream):
                yield Finding(
                    "warning",
                    f"{where}.url",
                    f"an upstream of {model.name} is spoken to without TLS, and its key travels in clear",
                    "use https, or a server on your own network",
                )
            if upstream.key_env is not None and not environ.get(upstream.key_env):
                yield Finding(
                    "error",
                    f"{where}.key_env",
                    f"the variable {upstream.key_env} with the key of an upstream is not set",
                    f"set {upstream.key_env}, or leave `key_env` out",
                )


def _calibrations(config: Guard) -> Iterator[Finding]:
    for number, model in enumerate(config.models):
        if model.cascade is not None and not Path(model.cascade.calibration).is_file():
            yield Finding(
                "error",
                f"models.{number}.cascade.calibration",
                f"there is no file {model.cascade.calibration}",
                "make one: `stillhouse cascade calibrate RUN`",
            )


def _marks(config: Guard) -> Iterator[Finding]:
    marked = [(n, model.watermark) for n, model in enumerate(config.models) if model.watermark is not None]
    for number, watermark in marked:
        where = f"models.{number}.watermark"
        try:
            marking_key(watermark)
        except UsageError as error:
            yield Finding("error", f"{where}.key", f"{error.what}: {error.why}", error.mend)
        if (watermark.accounts == "on_mark" or watermark.markers) and not config.detection.mark:
            yield Finding(
                "warning",
                f"{where}.{'accounts' if watermark.accounts == 'on_mark' else 'markers'}",
                "only accounts on the rung `mark` would be marked so, and the ladder has no such rung",
                "set detection.mark = true",
            )
    if config.detection.mark and not marked:
        yield Finding(
            "error",
            "detection.mark",
            "no model has a `watermark` to mark with",
            "give one a [models.watermark]",
        )


def marking_key(watermark: Watermark) -> Key:
    """Raises UsageError for a file that holds no key, or one that needs what the gateway has not."""
    key = read_key(Path(watermark.key))
    if key.scheme.name != "selection":
        raise UsageError(
            f"the watermark key {watermark.key} is of the scheme {key.scheme.name}",
            "it changes how a model writes, for which its server needs it",
            "make one: `stillhouse watermark rotate --scheme selection`",
        )
    return key


def _in_clear(upstream: Upstream) -> bool:
    """A key sent over plain HTTP to an address or a name that is none of a private network."""
    host = urlsplit(upstream.url).hostname or ""
    if upstream.key_env is None or not upstream.url.lower().startswith("http://"):
        return False
    try:
        return ipaddress.ip_address(_as_address(host)).is_global
    except ValueError:
        return "." in host and not host.endswith((".internal", ".local", ".localhost", ".lan"))


def _prices(config: Guard) -> Iterator[Finding]:
    for name, schedule in config.prices.items():
        for number, step in enumerate(schedule.steps):
            for side in ("input", "output"):
                price = getattr(step, side)
                if abs(price * 1000 - round(price * 1000)) > 1e-6 * max(1.0, price):
                    yield Finding(
                        "error",
                        f"prices.{name}.steps.{number}.{side}",
                        f"{price} is finer than 0.001 US dollars per million tokens, and would be rounded",
                        f"write {round(price, 3)}",
                    )
    for name in sorted(set(config.prices) - {model.price for model in config.models}):
        yield Finding("warning", f"prices.{name}", "no model has this price", "give it to one, or drop it")


def _tiers(config: Guard) -> Iterator[Finding]:
    for name, tier in config.tiers.items():
        for pattern in tier.models:
            if not any(fnmatchcase(model.name, pattern) for model in config.models):
                yield Finding(
                    "warning", f"tiers.{name}.models", f"{pattern!r} fits no model", "mend the pattern"
                )
        free = [
            model.name
            for model in config.models
            if model.price is None and any(fnmatchcase(model.name, pattern) for pattern in tier.models)
        ]
        if (tier.prepaid or tier.budget is not None) and free:
            yield Finding(
                "warning",
                f"tiers.{name}",
                f"money bounds this tier, but these models have no price: {', '.join(free)}",
                "give them a price",
            )


def _terms(config: Guard) -> Iterator[Finding]:
    if config.terms is not None and not Path(config.terms.document).is_file():
        yield Finding(
            "error",
            "terms.document",
            f"there is no file {config.terms.document}",
            "name the file with the text of the terms",
        )


def _traces(config: Guard) -> Iterator[Finding]:
    if config.record.traces is not None and (why := url_fault(config.record.traces)):
        yield Finding("error", "record.traces", f"the URL is refused: {why}", "name another")


def _detection(config: Guard) -> Iterator[Finding]:
    detection = config.detection
    if detection.thresholds is not None:
        try:
            read_lines(detection.thresholds)
        except UsageError as error:
            yield Finding("error", "detection.thresholds", f"{error.what}: {error.why}", error.mend)
    elif detection.mode == "enforce":
        yield Finding(
            "error" if detection.automatic else "warning",
            "detection.thresholds",
            "accounts would be held to thresholds of simulated traffic, which say nothing of your customers",
            "run in shadow for a month, then `stillhouse guard calibrate` and name its file",
        )
