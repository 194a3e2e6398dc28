"""What holds of every decision, whatever the rows, the question, the permissions and the declarations."""

from dataclasses import fields, replace
from datetime import timedelta
from typing import get_args

from hypothesis import given, settings
from hypothesis import strategies as st
from maker import TODAY, permission, row

from stillhouse.terms.deciding import DeclaredTerms, decide
from stillhouse.terms.facts import (
    STRICTEST,
    Access,
    Answer,
    Asked,
    Case,
    Confidence,
    Evidence,
    Feature,
    Licence,
    Mode,
    Need,
    Obligation,
    Operator,
    Scale,
    Student,
    Task,
    Territory,
    Use,
    Verdict,
)
from stillhouse.terms.ruling import ALLOWED

words = st.sampled_from(["m-1", "M-2", "maker/base", "", "x"])
modes = st.lists(st.sampled_from(get_args(Mode)), max_size=2).map(tuple)
verdicts = st.sampled_from(get_args(Verdict))
maybe = st.none() | st.booleans()
figures = st.none() | st.integers(0, 20)
obligations = st.builds(
    Obligation,
    kind=st.sampled_from(["notice", "inherits", "no_mark"]),
    texts=st.just(("x",)),
    modes=modes,
    redistributes=st.booleans(),
)
needs = st.sampled_from(
    ["non_commercial", "paid_tier", "not_by_program", "pinned_provider", "no_prompt_logging", "licence_text"]
)
conditions = st.one_of(
    st.builds(
        Scale,
        figure=st.sampled_from(["monthly_users", "monthly_revenue_usd", "yearly_revenue_usd"]),
        above=st.integers(0, 20),
        why=st.just("scale"),
        verdict=st.none() | verdicts,
        owed=st.none() | obligations,
        modes=modes,
        hosting_models=st.booleans(),
    ),
    st.builds(
        Territory,
        excluded=st.lists(st.sampled_from(["EU", "UK", "US"]), max_size=2).map(tuple),
        why=st.just("territory"),
        modality=st.sampled_from(["any", "multimodal"]),
    ),
    st.builds(Feature, features=st.just(("web_search",)), verdict=verdicts, why=st.just("feature")),
    st.builds(Need, need=needs, verdict=verdicts, why=st.just("need")),
)
cases = st.builds(
    Case,
    verdict=verdicts,
    why=st.just("case"),
    uses=st.lists(st.sampled_from(get_args(Use)), max_size=2).map(tuple),
    tasks=st.lists(st.sampled_from(get_args(Task)), max_size=2).map(tuple),
    modes=modes,
    bases=st.lists(words, max_size=2).map(tuple),
)
rows = st.builds(
    row,
    key=st.sampled_from("abcd"),
    vendor=st.sampled_from(["Maker", "Other / Maker", ""]),
    access=st.sampled_from([*get_args(Access), "any"]),
    licence=st.builds(Licence, name=st.just("L"), spdx=st.none() | st.just("MIT")),
    trains_others=st.sampled_from(get_args(Answer)),
    trains_competing=st.sampled_from(get_args(Answer)),
    verdict=verdicts,
    liftable=st.booleans(),
    clause=st.sampled_from(["", "a clause"]),
    read_on=st.none() | st.just(TODAY),
    evidence=st.sampled_from(get_args(Evidence)),
    confidence=st.sampled_from(get_args(Confidence)),
    cases=st.lists(cases, max_size=2).map(tuple),
    conditions=st.lists(conditions, max_size=2).map(tuple),
    obligations=st.lists(obligations, max_size=2).map(tuple),
)
questions = st.builds(
    Asked,
    model=words,
    revision=st.just(""),
    access=st.sampled_from(get_args(Access)),
    endpoint=st.sampled_from(["", "https://maker.example/v1"]),
    use=st.sampled_from(get_args(Use)),
    student=st.builds(
        Student,
        name=words,
        base=words,
        task=st.sampled_from(get_args(Task)),
        mode=st.sampled_from(get_args(Mode)),
        competes=maybe,
    ),
    operator=st.builds(
        Operator,
        monthly_users=figures,
        monthly_revenue_usd=figures,
        yearly_revenue_usd=figures,
        territory=st.none() | st.sampled_from(["DE", "GB", "US"]),
        sells_access_to_models=maybe,
        commercial=maybe,
    ),
    features=st.sampled_from([(), ("web_search",)]),
    provider_pinned=maybe,
    prompt_logging=maybe,
    paid=maybe,
    multimodal=st.booleans(),
    licence_spdx=st.sampled_from(["", "MIT", "Apache-2.0"]),
)
permissions = st.builds(
    permission,
    scope=st.fixed_dictionaries(
        {
            "models": st.just(("m*",)),
            "uses": st.lists(st.sampled_from(get_args(Use)), max_size=3).map(tuple),
            "volume": st.none() | st.just(5),
            "competing": st.booleans(),
            "servers": st.sampled_from([(), ("maker.example",)]),
        }
    ),
    used=st.integers(0, 6),
    revoked=st.none() | st.just(3),
    grantor=st.sampled_from(["Maker", "Other"]),
)
topics = ("a", "b", "c", "a/licence_text", "b/web_search", "a/monthly_users", "maker.example", "import")
declared_terms = st.builds(
    DeclaredTerms,
    about=st.lists(st.sampled_from(topics), max_size=6, unique=True).map(tuple),
    document=st.just("t.txt"),
    sha256=st.sampled_from(["", "ab" * 32]),
    read_on=st.dates(TODAY - timedelta(days=1), TODAY + timedelta(days=3)),
    declared_by=st.sampled_from(["", "R. Ames"]),
    scope=st.lists(st.sampled_from(get_args(Use)), max_size=3).map(tuple),
)
declarations = st.lists(declared_terms, max_size=2)
several = st.lists(rows, min_size=1, max_size=3, unique_by=lambda each: each.key)
permitted = st.lists(permissions, max_size=2)


def rank(decision):
    return STRICTEST.index(decision.verdict)


@settings(max_examples=300, deadline=None)
@given(questions, several, rows, permitted, declarations)
def test_another_row_or_condition_never_makes_it_more_lenient(of, known, new, granted, declared):
    before = decide(of, known, granted, declared, TODAY)
    more = [*known, replace(new, key="new")]
    # The one exception: a text that was missing for a server, or that another row asks for, is brought.
    server_known = any(each.access in ("api", "router", "consumer_app") for each in known)
    if server_known or of.access not in ("api", "router", "consumer_app", "import"):
        assert rank(decide(of, more, granted, declared, TODAY)) >= rank(before)
    tighter = replace(known[0], conditions=(*known[0].conditions, *new.conditions))
    assert rank(decide(of, [tighter, *known[1:]], granted, declared, TODAY)) >= rank(before)


@settings(max_examples=300, deadline=None)
@given(questions, several, permitted, declarations)
def test_the_verdict_is_the_strictest_of_what_each_row_came_to(of, known, granted, declared):
    decision = decide(of, known, granted, declared, TODAY)
    strictest = max(STRICTEST.index(reason.verdict) for reason in decision.reasons)
    assert rank(decision) == max(strictest, 1 if decision.obligations and strictest == 0 else 0)
    assert decision.reason
    assert decision.allowed or decision.lifts
    assert decision.allowed == (decision.verdict in ALLOWED)


@settings(max_examples=300, deadline=None)
@given(questions, several, permitted, declarations, st.data())
def test_a_fact_that_is_taken_away_never_makes_it_more_lenient(of, known, granted, declared, data):
    name = data.draw(
        st.sampled_from([f.name for f in fields(Operator)] + ["paid", "prompt_logging", "provider_pinned"])
        | st.sampled_from(["competes", "licence_spdx"])
    )
    if name == "competes":
        less = replace(of, student=replace(of.student, competes=None))
    elif name == "licence_spdx":
        less = replace(of, licence_spdx="")
    elif name in ("paid", "prompt_logging", "provider_pinned"):
        less = replace(of, **{name: None})
    else:
        less = replace(of, operator=replace(of.operator, **{name: None}))
    assert rank(decide(less, known, granted, declared, TODAY)) >= rank(
        decide(of, known, granted, declared, TODAY)
    )


@settings(max_examples=200, deadline=None)
@given(questions, several, permitted, declarations)
def test_what_lifts_is_never_needed_less_without_it(of, known, granted, declared):
    alone = decide(of, known, (), (), TODAY)
    assert rank(decide(of, known, granted, declared, TODAY)) <= rank(alone)
    if declared and alone.verdict == "refuse" and not granted:
        server = any(reason.row == "" for reason in alone.reasons)
        assert server or decide(of, known, (), declared, TODAY).verdict == "refuse"
