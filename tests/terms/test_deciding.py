"""The decision alone: rows, permissions and declarations in, a verdict out. No ledger here."""

from dataclasses import replace
from datetime import timedelta

import pytest
from maker import BANS_RIVALS, READ, TODAY, asked, permission, row, verdict

from stillhouse.terms.deciding import decide
from stillhouse.terms.facts import Case, Feature, Licence, Need, Obligation, Scale, Student, Territory
from stillhouse.terms.ruling import TRAINS

NOTICE = Obligation("notice", ("made with m",))
ABOUT_MAKER = replace(READ, about=("maker-api",))


def test_no_row_is_refused_and_a_text_that_somebody_read_stands_for_one():
    nothing = decide(asked(), [], (), (), TODAY)
    assert (nothing.verdict, nothing.basis) == ("refuse", "none")
    assert "no terms are known" in nothing.reason
    read = decide(asked(), [], (), [READ], TODAY)
    assert (read.verdict, read.basis) == ("allow", "declaration")
    assert "R. Ames declares" in read.reason
    assert verdict([], asked("prompt_seed"), declaration=READ) == "allow"
    assert verdict([], asked("judge"), declaration=READ) == "refuse"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"scope": ("evaluation",)}, "does not include train_target"),
        ({"scope": ()}, "scope is nothing"),
        ({"sha256": ""}, "missing or empty"),
        ({"read_on": TODAY + timedelta(days=2)}, "in the future"),
        ({"declared_by": "  "}, "names nobody"),
    ],
)
def test_a_declaration_that_does_not_cover_the_use_is_refused(change, reason):
    decision = decide(asked(), [], (), [replace(READ, **change)], TODAY)
    assert decision.verdict == "refuse"
    assert reason in decision.reason


def test_what_is_allowed_says_which_text_was_read_when_and_by_whom():
    decision = decide(asked(), [row()], (), (), TODAY)
    assert decision.verdict == "allow"
    assert (
        "no restriction of this use found in Maker Terms, read on 2026-11-01, by R. Ames" in decision.reason
    )
    assert "compliant" not in decision.reason


def test_the_strictest_row_wins_and_obligations_add_up():
    polite = row(key="other", verdict="allow_with_obligations", obligations=(NOTICE,))
    inherits = Obligation("inherits", ("Maker Licence",))
    both = decide(asked(), [polite, row(key="third", obligations=(inherits,))], (), (), TODAY)
    assert both.verdict == "allow_with_obligations"
    assert [(owed.row, owed.obligation) for owed in both.obligations] == [
        ("other", NOTICE),
        ("third", inherits),
    ]
    assert verdict([polite, row(**BANS_RIVALS)]) == "refuse"


def test_obligations_are_owed_for_the_ways_of_giving_out_that_they_name():
    named = row(verdict="allow_with_obligations", obligations=(NOTICE,))
    inside = decide(asked(student={"mode": "internal"}), [named], (), (), TODAY)
    assert inside.obligations == ()
    copy = row(obligations=(Obligation("licence_copy", ("Maker Licence",), redistributes=True),))
    assert decide(asked(), [copy], (), (), TODAY).verdict == "allow"
    cut = asked()
    cut = replace(cut, student=replace(cut.student, base="M-1"))
    assert decide(cut, [copy], (), (), TODAY).verdict == "allow_with_obligations"
    assert decide(asked("evaluation"), [named], (), (), TODAY).obligations == ()


def test_a_case_stands_for_the_rows_verdict_only_where_all_of_it_holds():
    case = Case("allow", "classifiers that stay inside", tasks=("classifier",), modes=("internal",))
    bans = row(**BANS_RIVALS, cases=(case,))
    assert verdict([bans], asked(student={"task": "classifier", "mode": "internal"})) == "allow"
    assert verdict([bans], asked(student={"task": "classifier"})) == "refuse"
    assert verdict([bans], asked(student={"mode": "internal"})) == "refuse"
    family = row(**BANS_RIVALS, cases=(Case("allow", "of the family", bases=("maker/*",)),))
    ours = replace(asked(), student=Student("small", "Maker/base-2"))
    assert verdict([family], ours) == "allow"


def test_whether_the_student_competes_is_yes_where_nobody_said():
    bans = row(**BANS_RIVALS)
    assert verdict([bans]) == "refuse"
    assert verdict([bans], asked(student={"competes": True})) == "refuse"
    assert verdict([bans], asked(student={"competes": False})) == "review"
    only_rivals = row(**{**BANS_RIVALS, "trains_others": "yes"})
    assert verdict([only_rivals], asked(student={"competes": False})) == "allow"
    assert (
        verdict([row(**{**BANS_RIVALS, "trains_others": "no"})], asked(student={"competes": False}))
        == "refuse"
    )


def test_a_ban_on_training_is_none_on_measuring_but_silence_is_no_permission():
    bans = row(**BANS_RIVALS)
    assert verdict([bans], asked("evaluation")) == "review"
    assert verdict([bans], asked("evaluation", {"competes": False})) == "allow"
    assert verdict([bans], asked("evaluation"), declaration=ABOUT_MAKER) == "allow"
    for use in TRAINS - {"train_target"}:
        assert verdict([bans], asked(use)) == "refuse"
    for unread in ({"trains_others": "unknown"}, {"evidence": "memory"}, {"confidence": "low"}):
        assert verdict([row(**{**BANS_RIVALS, **unread})], asked("evaluation")) == "refuse"
    assert verdict([row(**BANS_RIVALS, access="consumer_app")], asked("evaluation")) == "refuse"


@pytest.mark.parametrize("confidence", ["medium", "low"])
def test_what_was_read_badly_is_for_a_person_to_read(confidence):
    doubtful = row(confidence=confidence)
    assert verdict([doubtful]) == "review"
    lifted = decide(asked(), [doubtful], (), [ABOUT_MAKER], TODAY)
    assert (lifted.verdict, lifted.basis) == ("allow", "declaration")
    assert verdict([doubtful], declaration=replace(ABOUT_MAKER, scope=("evaluation",))) == "review"


def test_weights_need_the_licence_text_that_came_with_them():
    free = row(access="weights", licence=Licence("Apache License 2.0", "Apache-2.0", sha256=("ef" * 32,)))
    here = {"access": "weights", "endpoint": ""}
    assert verdict([free], asked(**here)) == "review"
    assert verdict([free], asked(**here, licence_spdx="MIT")) == "review"
    assert verdict([free], asked(**here, licence_spdx="Apache-2.0")) == "allow"
    assert verdict([free], asked(**here, licence_sha256="ef" * 32)) == "allow"
    assert verdict([free], asked(**here), declaration=ABOUT_MAKER) == "review"
    its_licence = replace(READ, about=("maker-api/licence_text",))
    assert verdict([free], asked(**here), declaration=its_licence) == "allow"


def test_a_known_model_at_an_unknown_server_needs_the_servers_terms():
    free = row(access="weights", licence=Licence("Apache License 2.0", "Apache-2.0"))
    elsewhere = asked(endpoint="https://host.example/v1", licence_spdx="Apache-2.0")
    decision = decide(elsewhere, [free], (), (), TODAY)
    assert decision.verdict == "refuse"
    assert "the terms of https://host.example/v1 are not known" in decision.reason
    assert decision.to_declare == ("host.example",)
    assert verdict([free], elsewhere, declaration=READ) == "refuse"
    assert verdict([free], elsewhere, declaration=ABOUT_MAKER) == "refuse"
    assert verdict([free], elsewhere, declaration=replace(READ, about=("host.example",))) == "allow"
    assert verdict([free, row(key="host")], elsewhere) == "allow"


def test_a_vendors_terms_are_not_those_of_a_stranger_that_passes_its_answers_on():
    theirs = row(hosts=("api.maker.example", "*.maker.example"))
    for host in ("api.maker.example", "eu.maker.example"):
        assert verdict([theirs], asked(endpoint=f"https://{host}/v1")) == "allow"
    elsewhere = asked(endpoint="https://proxy.example/v1")
    assert decide(elsewhere, [theirs], (), (), TODAY).to_declare == ("proxy.example",)
    bans = row(**BANS_RIVALS, hosts=("api.maker.example",))
    assert verdict([bans], elsewhere, [permission()]) == "refuse"
    assert verdict([bans], elsewhere, [permission({"servers": ("proxy.example",)})]) == "allow"


def test_a_platforms_permission_does_not_stand_for_the_maker_of_what_it_passes_on():
    behind = Need("model_licence", "refuse", "its maker's terms hold as well")
    platform = row(key="platform", vendor="Platform", **BANS_RIVALS, conditions=(behind,))
    leave = [permission(grantor="Platform Inc.")]
    alone = decide(asked(), [platform], leave, (), TODAY)
    assert alone.verdict == "refuse"
    assert any("[teacher] checkpoint" in lift for lift in alone.lifts)
    assert verdict([platform, row()], permissions=leave) == "allow"


@pytest.mark.parametrize(
    ("condition", "of", "unsaid", "fine"),
    [
        (
            Scale("monthly_users", 700, "too many users", "refuse"),
            {"operator": {"monthly_users": 701}},
            {},
            {"operator": {"monthly_users": 700}},
        ),
        (
            Scale("yearly_revenue_usd", 20, "a service of models", "refuse", hosting_models=True),
            {"operator": {"yearly_revenue_usd": 21, "sells_access_to_models": True}},
            {"operator": {"yearly_revenue_usd": 21}},
            {"operator": {"sells_access_to_models": False}},
        ),
        (
            Territory(("EU", "UK"), "no rights there"),
            {"operator": {"territory": "de"}},
            {},
            {"operator": {"territory": "CH"}},
        ),
        (
            Need("non_commercial", "refuse", "research alone"),
            {"operator": {"commercial": True}},
            {},
            {"operator": {"commercial": False}},
        ),
        (Need("paid_tier", "refuse", "paid access alone"), {"paid": False}, {}, {"paid": True}),
        (
            Need("pinned_provider", "refuse", "who answers must be known"),
            {"provider_pinned": False},
            {},
            {"provider_pinned": True},
        ),
        (
            Need("no_prompt_logging", "refuse", "it keeps what is asked"),
            {"prompt_logging": True},
            {},
            {"prompt_logging": False},
        ),
    ],
)
def test_a_condition_tightens_and_what_nobody_said_is_refused_by_name(condition, of, unsaid, fine):
    limited = row(conditions=(condition,))
    assert verdict([limited], asked(**of)) == "refuse"
    silent = decide(asked(**unsaid), [limited], (), (), TODAY)
    assert silent.verdict == "refuse"
    assert "nobody said" in silent.reason
    assert any(lift.startswith("say ") for lift in silent.lifts)
    assert verdict([limited], asked(**fine)) == "allow"


def test_the_other_conditions():
    grounded = row(conditions=(Feature(("web_search",), "refuse", "grounded answers carry a ban"),))
    assert verdict([grounded], asked(features=("Web_Search",))) == "refuse"
    assert verdict([grounded]) == "allow"
    by_hand = row(conditions=(Need("not_by_program", "refuse", "nothing by program"),))
    assert verdict([by_hand], asked("evaluation")) == "refuse"
    router = row(key="router", access="router", conditions=(Need("model_licence", "refuse", "its licence"),))
    assert verdict([router]) == "refuse"
    assert verdict([router, row()]) == "allow"
    pictures = row(conditions=(Territory(("EU",), "no rights there", "multimodal"),))
    assert verdict([pictures], asked(operator={"territory": "FR"})) == "allow"
    assert verdict([pictures], asked(operator={"territory": "FR"}, multimodal=True)) == "refuse"
    shown = row(conditions=(Scale("monthly_users", 100, "show the name", owed=NOTICE),))
    big = decide(asked(operator={"monthly_users": 101}), [shown], (), (), TODAY)
    assert (big.verdict, big.obligations[0].obligation) == ("allow_with_obligations", NOTICE)
    assert verdict([shown], asked(operator={"monthly_users": 99})) == "allow"


def test_a_declaration_lifts_what_it_is_about_and_nothing_else():
    web = Feature(("web_search", "maps"), "review", "answers of a search are others' text")
    searched, maps = asked(features=("web_search", "maps")), replace(READ, about=("maker-api/maps",))
    unsaid = decide(searched, [row(conditions=(web,))], (), [READ], TODAY)
    assert (unsaid.verdict, unsaid.to_declare) == ("review", ("maker-api/maps", "maker-api/web_search"))
    assert any('about = ["maker-api/maps", "maker-api/web_search"]' in lift for lift in unsaid.lifts)
    assert any("says no `about`" in lift for lift in unsaid.lifts)
    half = decide(searched, [row(conditions=(web,))], (), [maps], TODAY)
    assert (half.verdict, half.to_declare) == ("review", ("maker-api/web_search",))
    search = replace(READ, document="search.txt", about=("maker-api/web_search",))
    by_two = decide(searched, [row(conditions=(web,))], (), [maps, search], TODAY)
    assert (by_two.verdict, set(by_two.declared)) == ("allow", {maps, search})
    of_both = replace(READ, about=("maker-api/maps", "maker-api/web_search"))
    assert verdict([row(conditions=(web,))], searched, declaration=of_both) == "allow"
    rows = [row(confidence="medium"), row(key="router", vendor="Router", confidence="medium")]
    first = decide(asked(), rows, (), [ABOUT_MAKER], TODAY)
    assert (first.verdict, first.to_declare) == ("review", ("router",))
    elsewhere = decide(asked(), [], (), [replace(READ, about=("x",))], TODAY)
    assert "is about x, and not about m-1 at maker.example" in elsewhere.reason
    assert verdict([], declaration=replace(READ, about=("maker.example",))) == "allow"


def test_a_refusal_is_lifted_by_the_authors_permission_alone_and_only_where_it_can_be():
    bans = row(**BANS_RIVALS, obligations=(NOTICE,))
    lifted = decide(asked(), [bans], [permission()], (), TODAY)
    assert (lifted.verdict, lifted.basis, lifted.permissions) == (
        "allow_with_obligations",
        "authorisation",
        (7,),
    )
    assert verdict([bans], declaration=ABOUT_MAKER) == "refuse"
    assert verdict([replace(bans, liftable=False)], permissions=[permission()]) == "refuse"
    assert verdict([bans], permissions=[permission(grantor="Somebody else")]) == "refuse"
    other = replace(bans, key="router", vendor="Router")
    assert verdict([bans, other], permissions=[permission()]) == "refuse"
    both = [permission(), permission(grantor="Router Ltd", leaf=9)]
    assert decide(asked(), [bans, other], both, (), TODAY).permissions == (7, 9)


def test_a_servers_unknown_terms_are_lifted_by_a_permission_that_names_it_alone():
    free = row(access="weights", vendor="Other", licence=Licence("Apache License 2.0", "Apache-2.0"))
    at = asked(endpoint="https://host.example:8443/v1", licence_spdx="Apache-2.0")
    for known in ([free], []):  # of a teacher whose weights are known, and of one of whom nothing is
        silent = decide(at, known, [permission()], (), TODAY)
        assert (silent.verdict, silent.permissions) == ("refuse", ())
        assert any('servers = ["host.example"]' in lift for lift in silent.lifts), silent.lifts
        elsewhere = decide(at, known, [permission({"servers": ("api.example",)})], (), TODAY)
        assert elsewhere.verdict == "refuse"
        assert any("for answers of api.example, not of host.example" in lift for lift in elsewhere.lifts)
        for servers in (("host.example",), ("*",)):
            named = decide(at, known, [permission(), permission({"servers": servers}, leaf=9)], (), TODAY)
            assert (named.verdict, named.permissions) == ("allow", (9,))
    brought = replace(at, access="import", endpoint="")
    assert verdict([free], brought, [permission({"servers": ("*.example",)})]) == "refuse"
    assert verdict([free], brought, [permission({"servers": ("import",)})]) == "allow"
    here = replace(at, access="weights", endpoint="")
    assert verdict([], here, [permission()]) == "allow"


@pytest.mark.parametrize(
    ("scope", "more", "why"),
    [
        ({}, {"valid_to": TODAY - timedelta(days=1)}, "ended on 2026-11-20"),
        ({}, {"valid_from": TODAY + timedelta(days=1)}, "not valid before 2026-11-22"),
        ({}, {"revoked": 12}, "revoked (leaf 12)"),
        ({"models": ("other-*", "m-1")}, {"fault": "its signature does not hold"}, "does not hold"),
        ({"uses": ("evaluation",)}, {}, "not for train_target"),
        ({"competing": False}, {}, "does not compete"),
        ({"students": ("Large*",)}, {}, "called Large*, not small"),
        ({"modes": ("internal",)}, {}, "given out as internal, not as weights"),
        ({"territory": ("CH",)}, {}, "nobody said `territory`"),
        ({"volume": 10}, {"used": 10}, "used up: 10 of 10 exchanges"),
    ],
)
def test_a_permission_that_is_not_in_force_says_why(scope, more, why):
    decision = decide(asked(), [row(**BANS_RIVALS)], [permission(scope, **more)], (), TODAY)
    assert decision.verdict == "refuse"
    assert any("p-1 is not in force" in lift and why in lift for lift in decision.lifts), decision.lifts


def test_what_obliges_does_so_still_where_a_condition_of_it_was_lifted():
    nowhere = Territory(("EU",), "no rights there")
    polite = row(verdict="allow_with_obligations", conditions=(nowhere,))
    at_home = asked(operator={"territory": "DE"})
    assert verdict([polite], at_home) == "refuse"
    assert verdict([polite], at_home, [permission()]) == "allow_with_obligations"


def test_a_permission_for_another_model_is_none():
    assert verdict([row(**BANS_RIVALS)], permissions=[permission({"models": ("x*",)})]) == "refuse"


def test_what_was_had_under_a_permission_stays_allowed_when_it_is_used_up():
    full = permission({"volume": 10}, used=10)
    assert decide(asked(), [row(**BANS_RIVALS)], [full], (), TODAY, further=0).allowed
