"""`guard.toml`: every setting of the gateway with its type, its bounds and what it is for."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stillhouse.guard.windows import MOST
from stillhouse.recipe.base import Positive, Table

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$")]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Dollars = Annotated[float, Field(ge=0, le=1_000_000)]
Amount = Annotated[int, Field(gt=0, le=MOST)]
Rule = Literal["refuse", "cap", "allow"]


class Server(Table):
    host: str = Field(default="127.0.0.1", description="Address to listen on; put TLS in front of others.")
    port: int = Field(default=8700, ge=0, le=65_535, description="0 takes a free one.")
    public_url: str | None = Field(
        default=None,
        pattern=r"^https?://[^/]+$",
        description="Scheme and host by which clients reach it, where TLS or another name stands in front.",
    )
    body_bytes: int = Field(default=4 << 20, ge=1 << 10, description="Longest request body.")
    head_seconds: Seconds = Field(default=10.0, description="Time that a client has to send its request.")
    keep_alive_seconds: Seconds = Field(default=75.0, description="How long an idle connection is kept.")
    connections: Positive = Field(
        default=20_000,
        description="Open connections at once, and no more than three quarters of the files that the system "
        "lets the process open; more are refused.",
    )
    drain_seconds: Seconds = Field(
        default=30.0, description="On SIGTERM: time for open answers to end before they are cut."
    )
    admin_secret_env: Variable = Field(
        default="STILLHOUSE_ADMIN_SECRET",
        description="Variable with the secret of the console and the admin API; weak ones are refused.",
    )


class Store(Table):
    folder: str = Field(default=".stillhouse/guard", description="Accounts, counts and events of one node.")
    database: str | None = Field(
        default=None,
        pattern=r"^postgres(ql)?://",
        description="PostgreSQL that replicas share, for accounts and events; without it SQLite in `folder`.",
    )
    redis: str | None = Field(
        default=None,
        pattern=r"^(rediss?|unix)://",
        description="Redis that replicas share, for counts; without it one process keeps them in `folder`.",
    )
    redis_durable: bool = Field(
        default=False,
        description="The operator vouches for `appendonly yes` and `appendfsync always`, where the Redis does"
        " not let them be read.",
    )
    pepper_env: Variable | None = Field(
        default=None,
        description="Variable with the secret under which keys are hashed; without it a file in `folder`.",
    )
    stale_seconds: float = Field(
        default=60.0,
        ge=0,
        le=3600,
        description="While the accounts cannot be read, known callers may still list the models for so long; "
        "what costs money is refused.",
    )


class Upstream(Table):
    url: str = Field(pattern=r"^https?://", description="OpenAI-compatible base URL, with its /v1.")
    model: str | None = Field(default=None, description="The model's name there, where it is another one.")
    key_env: Variable | None = Field(default=None, description="Variable with the key for this server.")
    connect_seconds: Seconds = 5.0
    first_byte_seconds: Seconds = 300.0
    silent_seconds: Seconds = Field(default=60.0, description="Longest silence in the middle of an answer.")
    answer_seconds: Seconds = Field(default=3600.0, description="Longest answer, from its first byte on.")


class Limits(Table):
    """None: no such limit."""

    requests_per_minute: Amount | None = None
    requests_per_day: Amount | None = None
    input_tokens_per_minute: Amount | None = None
    input_tokens_per_day: Amount | None = None
    output_tokens_per_minute: Amount | None = None
    output_tokens_per_day: Amount | None = None
    concurrent: Amount | None = Field(default=None, description="Requests in flight.")


class TokenPrice(Table):
    """US dollars per million tokens, as they cost the operator."""

    input: float = Field(ge=0, le=100_000)
    output: float = Field(ge=0, le=100_000)


class Cascade(Table):
    """A student that answers first. The model's own `upstreams` are then the teacher's."""

    upstreams: list[Upstream] = Field(min_length=1, description="The student's servers, tried in order.")
    calibration: str = Field(description="File that `stillhouse cascade calibrate` wrote for this student.")
    family: str | None = Field(
        default=None, description="Family of prompts asked here, whose own threshold is then taken."
    )
    teacher_down: Literal["student", "error"] = Field(
        default="error", description="Where the teacher gives no answer: the student's, marked, or the error."
    )
    audit: float = Field(
        default=0.02, ge=0, le=1, description="Share of sure answers for which the teacher is asked as well."
    )
    student_price: TokenPrice | None = Field(
        default=None, description="What the student costs, to tell what is saved; none: that is unknown."
    )
    teacher_price: TokenPrice | None = Field(default=None, description="And the teacher.")


class Watermark(Table):
    """Marks in the answers to chats, an account's own in each: docs/guard-marks.md."""

    key: str = Field(
        description="Key file of the scheme `selection`; older ones in its folder find what they marked."
    )
    best_of: int = Field(
        default=4,
        ge=1,
        le=16,
        description="Answers that are asked for; the one that fits the key best is given. 1: markers alone.",
    )
    accounts: Literal["all", "on_mark"] = Field(
        default="all", description="`on_mark`: only accounts on the ladder's rung `mark` or a higher one."
    )
    paid_by: Literal["operator", "customer"] = Field(
        default="operator",
        description="Who pays for the answers that are not given; `customer`: they also count in its limits.",
    )
    markers: bool = Field(
        default=False,
        description="On the rung `mark` answers also have markers, wordings by key: docs/guard-markers.md.",
    )

    @model_validator(mode="after")
    def marks_something(self) -> Self:
        if self.best_of == 1 and not self.markers:
            raise ValueError("nothing would be marked: one answer is no choice, and there are no markers")
        return self


class Model(Table):
    name: Name
    upstreams: list[Upstream] = Field(min_length=1, description="Tried in order; the next when one is down.")
    cascade: Cascade | None = Field(
        default=None, description="A distilled student that is asked before the `upstreams`."
    )
    watermark: Watermark | None = Field(default=None, description="Answers are marked with this key.")
    price: str | None = Field(default=None, description="Name of a schedule in `prices`; none: no charge.")
    max_output_tokens: Positive = Field(
        default=4096, description="Given to a request without `max_tokens`, and the most that one may ask."
    )
    context_tokens: Positive | None = Field(default=None, description="Bound on a prompt, where known.")
    limits: Limits = Limits()


class Step(Table):
    """US dollars per million tokens from the month's `over`-th token on."""

    over: int = Field(default=0, ge=0)
    input: float = Field(ge=0, le=100_000)
    output: float = Field(ge=0, le=100_000)


class Schedule(Table):
    steps: list[Step] = Field(min_length=1)

    @model_validator(mode="after")
    def rises(self) -> Self:
        overs = [step.over for step in self.steps]
        if overs[0] != 0 or overs != sorted(set(overs)):
            raise ValueError("the first step begins at 0 and each further one later")
        return self


class Leaks(Table):
    """Fields of a request that tell more of a model than its text. `cap` allows what stands beside it."""

    logprobs: Rule = "cap"
    top_logprobs: int = Field(default=5, ge=0, le=20, description="Most rivals told, under `cap`.")
    logprob_digits: int | None = Field(default=2, ge=0, le=6, description="Digits kept, under `cap`.")
    logit_bias: Rule = "cap"
    logit_bias_tokens: int = Field(default=10, ge=0, description="Most tokens biased, under `cap`.")
    logit_bias_size: float = Field(
        default=2.0,
        ge=0,
        le=100,
        description="Largest bias, under `cap`; what a larger one gives away: docs/guard-leaks.md.",
    )
    bias_with_logprobs: Literal["refuse", "allow"] = Field(
        default="refuse", description="The two together reveal the output layer (Carlini et al. 2024)."
    )
    n: Positive = Field(default=4, description="Most answers to a request.")
    echo: Literal["refuse", "allow"] = "refuse"
    reasoning: Literal["strip", "allow"] = Field(
        default="strip", description="Fields of an answer that hold hidden reasoning."
    )


class Tier(Table):
    models: list[str] = Field(default=["*"], description="Names or patterns of models that it may ask.")
    limits: Limits = Field(default=Limits(), description="Of each account of this tier.")
    key_limits: Limits = Field(default=Limits(), description="Of each key of such an account.")
    budget: Dollars | None = Field(default=None, description="US dollars a calendar month (UTC), at most.")
    prepaid: bool = Field(default=False, description="Only what was paid in before can be spent.")
    leaks: Leaks = Leaks()


class Terms(Table):
    version: str = Field(min_length=1, max_length=64)
    document: str = Field(description="File with the text of the terms, served at /terms.")
    training: Literal["forbidden", "with_permission", "allowed"] = Field(
        description="May answers train another model? Said at /.well-known/ai-terms.json."
    )
    competing: Literal["forbidden", "with_permission", "allowed"] = Field(
        default="forbidden", description="And one that competes?"
    )
    contact: str = ""
    must_accept: bool = Field(
        default=False, description="Requests of accounts that have not accepted this version are refused."
    )


class Record(Table):
    text: Literal["never", "with_consent"] = Field(
        default="never", description="Keep prompts and answers, sealed, of accounts that consented."
    )
    text_days: Positive = 30
    deferred: Literal["never", "with_consent"] = Field(
        default="never",
        description="Keep what a cascade's teacher was asked and answered, sealed, of accounts that agreed "
        "to training.",
    )
    deferred_days: Positive = 30
    event_days: Positive = 400
    traces: str | None = Field(default=None, pattern=r"^https?://", description="OTLP endpoint for spans.")


class Detection(Table):
    """Who seems to copy the model, and what is done then, a step at a time: docs/guard-ladder.md."""

    mode: Literal["off", "shadow", "enforce"] = Field(
        default="shadow", description="`shadow`: what would be done is recorded, and nothing is done."
    )
    thresholds: str | None = Field(
        default=None,
        description="File that `stillhouse guard calibrate` wrote; without it those of simulated traffic.",
    )
    automatic: bool = Field(default=False, description="An account may be stopped without a person.")
    mark: bool = Field(
        default=False,
        description="A rung `mark` before the review: answers are marked where a model has a `watermark`.",
    )
    step_hours: float = Field(default=24.0, ge=0, le=8760, description="Least time between two steps.")
    throttle_share: float = Field(
        default=0.25,
        gt=0,
        le=1,
        description="What a throttled account keeps of its requests and daily tokens.",
    )
    throttle_requests_per_minute: Amount = Field(
        default=20, description="The most that it keeps, where its own limit is higher or there is none."
    )
    spared_days: float = Field(
        default=30.0, ge=0, le=3650, description="After an undo the same pattern makes no step for so long."
    )
    lapse_days: float = Field(
        default=30.0,
        gt=0,
        le=3650,
        description="A step that no person has looked at ends when the score was low for so long.",
    )
    evidence_days: Positive = Field(
        default=90, description="What is kept of an account's requests is deleted so long after the last one."
    )
    contact: str = Field(default="", description="Where to appeal by other ways, such as an address.")


class Guard(Table):
    server: Server = Server()
    store: Store = Store()
    models: list[Model] = Field(min_length=1)
    prices: dict[str, Schedule] = Field(default={})
    tiers: dict[str, Tier] = Field(default={"default": Tier()})
    terms: Terms | None = None
    record: Record = Record()
    detection: Detection = Detection()

    @model_validator(mode="after")
    def consent_has_terms(self) -> Self:
        if self.record.deferred == "with_consent" and self.terms is None:
            raise ValueError("record.deferred needs [terms]: training is agreed to by a version of these")
        return self

    @model_validator(mode="after")
    def names_exist(self) -> Self:
        names = [model.name for model in self.models]
        if len(set(names)) < len(names):
            raise ValueError("two models have one name")
        for model in self.models:
            if model.price is not None and model.price not in self.prices:
                raise ValueError(f"model {model.name} has the price {model.price!r}, which `prices` lacks")
        return self
