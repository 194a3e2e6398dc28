"""The rows that come with the package: which ids each speaks about, and the researched facts it rests on."""

import json
import re
from datetime import date
from pathlib import Path

import pytest

from stillhouse.terms.facts import Feature, Need, Scale, Territory
from stillhouse.terms.registry import shipped

REFERENCE = Path(__file__).parents[3] / "shared" / "reference" / "terms.json"
ROWS = shipped().rows()
PATTERNS = [(row, pattern) for row in ROWS for pattern in row.models]


def keys(model, access, endpoint=""):
    return [match.row.key for match in shipped().matches(model, access, endpoint)]


def an_id(pattern):
    """Some id that the pattern fits."""
    return re.sub(r"\[(\d)-\d\]", r"\1", pattern).replace("*", "7b-x")


@pytest.mark.parametrize(("row", "pattern"), PATTERNS, ids=[f"{r.key}:{p}" for r, p in PATTERNS])
def test_an_id_of_each_pattern_finds_its_row_in_any_case(row, pattern):
    for name in (an_id(pattern), an_id(pattern).upper(), an_id(pattern).lower()):
        found = keys(name, row.access)
        assert row.key in found
    assert shipped().row(row.key).verdict == row.verdict
    for excluded in row.excluding:
        assert row.key not in keys(an_id(excluded), row.access)


@pytest.mark.parametrize("row", [row for row in ROWS if row.hosts], ids=lambda row: row.key)
def test_each_host_speaks_for_itself_whatever_the_model_is_called(row):
    for host in row.hosts:
        found = keys("some-model-of-nobody", "api", f"https://{an_id(host)}/v1")
        assert found == [row.key]
        assert not keys("some-model-of-nobody", "api", f"https://{an_id(host)}.example.org/v1")
        assert not keys("some-model-of-nobody", "api", f"https://evil.example/{an_id(host)}")


WEIGHTS = {
    "Qwen/Qwen2.5-3B-Instruct": ("qwen-research", "refuse"),
    "Qwen/Qwen2.5-7B-Instruct": ("qwen-apache", "allow"),
    "Qwen/Qwen2.5-72B-Instruct": ("qwen2.5-72b", "allow_with_obligations"),
    "Qwen/Qwen2.5-Coder-3B": ("qwen-research", "refuse"),
    "Qwen/Qwen2.5-Coder-32B-Instruct": ("qwen-apache", "allow"),
    "Qwen/Qwen2.5-VL-72B-Instruct": ("qwen2.5-72b", "allow_with_obligations"),
    "Qwen/Qwen2-72B": ("tongyi-qianwen", "refuse"),
    "Qwen/Qwen2-7B": ("qwen-apache", "allow"),
    "Qwen/Qwen1.5-14B": ("tongyi-qianwen", "refuse"),
    "Qwen/Qwen3-8B": ("qwen-apache", "allow"),
    "Qwen/Qwen3.8-27B": ("qwen-apache", "allow"),
    "Qwen/Qwen3.8-2.4T-A95B": ("qwen3.8-max", "review"),
    "Qwen/Qwen3.8-Flash-Next": ("qwen-community-1.0", "review"),
    "google/gemma-2b": ("gemma1-3n", "allow_with_obligations"),
    "google/gemma-3-12b-it": ("gemma1-3n", "allow_with_obligations"),
    "google/gemma-3n-E4B-it": ("gemma1-3n", "allow_with_obligations"),
    "google/gemma-4-12b-it": ("gemma4", "allow"),
    "moonshotai/Kimi-K2-Instruct-0905": ("kimi-k2", "allow_with_obligations"),
    "moonshotai/Kimi-K3-Instruct": ("kimi-k3", "review"),
    "meta-llama/Llama-2-7b-chat-hf": ("llama2", "refuse"),
    "meta-llama/Meta-Llama-3-8B-Instruct": ("llama3.0", "refuse"),
    "meta-llama/Meta-Llama-3.1-8B-Instruct": ("llama3.1", "allow_with_obligations"),
    "meta-llama/Llama-3.1-70B": ("llama3.1", "allow_with_obligations"),
    "meta-llama/Llama-3.2-11B-Vision": ("llama3.2", "allow_with_obligations"),
    "meta-llama/Llama-4-Scout-17B-16E": ("llama4", "allow_with_obligations"),
    "openai/gpt-oss-20b": ("gpt-oss", "allow"),
    "deepseek-ai/DeepSeek-R1": ("deepseek-mit", "allow"),
    "deepseek-ai/DeepSeek-R1-Distill-Llama-70B": ("deepseek-r1-distill-llama", "allow_with_obligations"),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B": ("deepseek-r1-distill-qwen", "allow"),
    "deepseek-ai/DeepSeek-R1-0528-Qwen3-8B": ("deepseek-r1-distill-qwen", "allow"),
    "deepseek-ai/DeepSeek-V3": ("deepseek-licence", "allow_with_obligations"),
    "deepseek-ai/DeepSeek-V3-0324": ("deepseek-mit", "allow"),
    "deepseek-ai/DeepSeek-V2.5": ("deepseek-licence", "allow_with_obligations"),
    "zai-org/GLM-5.3": ("glm-5.3", "allow_with_obligations"),
    "zai-org/GLM-5.3-Flash": ("glm-mit", "allow"),
    "zai-org/GLM-4.6": ("glm-mit", "allow"),
    "THUDM/glm-4-9b-chat": ("glm4-9b", "refuse"),
    "mistralai/Codestral-22B-v0.1": ("mistral-mnpl", "refuse"),
    "mistralai/Mamba-Codestral-7B-v0.1": ("mistral-apache", "allow"),
    "mistralai/Mistral-Large-Instruct-2411": ("mistral-mrl", "refuse"),
    "mistralai/Mistral-Large-3-675B": ("mistral-apache", "allow"),
    "mistralai/Devstral-2-123B": ("devstral2", "review"),
    "mistralai/Devstral-Small-2507": ("mistral-apache", "allow"),
    "allenai/OLMo-2-1124-7B": ("olmo-base", "allow"),
    "nvidia/Llama-3.3-Nemotron-Super-49B": ("nvidia-llama-nemotron", "allow_with_obligations"),
    "nvidia/NVIDIA-Nemotron-3-Nano-30B": ("nvidia-nemotron-open-model", "allow_with_obligations"),
    "nvidia/NVIDIA-Nemotron-3-Ultra-500B": ("nvidia-openmdw", "allow"),
    "nvidia/NVIDIA-Nemotron-Nano-9B-v2": ("nvidia-open-model", "allow_with_obligations"),
    "xai-org/grok-1": ("grok-1-weights", "allow"),
    "xai-org/grok-2": ("grok-2-weights", "refuse"),
    "MiniMaxAI/MiniMax-M2": ("minimax-m2", "allow_with_obligations"),
    "MiniMaxAI/MiniMax-M3": ("minimax-m3", "review"),
}


@pytest.mark.parametrize(("model", "wanted"), WEIGHTS.items(), ids=list(WEIGHTS))
def test_a_checkpoint_has_its_own_licence_and_not_its_siblings(model, wanted):
    (row,) = (match.row for match in shipped().matches(model, "weights"))
    assert (row.key, row.verdict) == wanted


@pytest.mark.parametrize(
    ("model", "access", "endpoint", "wanted"),
    [
        ("gpt-4o", "api", "https://api.openai.com/v1", ["openai-api"]),
        ("gpt-oss-120b", "api", "https://api.openai.com/v1", ["openai-api", "gpt-oss"]),
        ("anything", "api", "https://API.OPENAI.COM./v1", ["openai-api"]),
        ("gpt-4o", "api", "https://corp.openai.azure.com/openai", ["azure-openai", "openai-api"]),
        ("azure/gpt-4o", "api", "", ["azure-openai", "openai-api"]),
        (
            "anthropic.claude-sonnet-4-v1:0",
            "api",
            "https://bedrock-runtime.eu-west-1.amazonaws.com",
            ["aws-bedrock", "anthropic-api"],
        ),
        ("bedrock/meta-llama/Llama-3.1-70B", "api", "", ["aws-bedrock", "llama3.1"]),
        ("anthropic/claude-4", "router", "https://openrouter.ai/api/v1", ["openrouter", "anthropic-api"]),
        ("openrouter/openai/gpt-oss-20b", "router", "", ["openrouter", "gpt-oss"]),
        ("qwen/qwen3-8b", "router", "https://openrouter.ai/api/v1", ["openrouter", "qwen-apache"]),
        ("gemini-2.5-pro", "api", "https://generativelanguage.googleapis.com", ["google-gemini-api"]),
        (
            "gemini-2.5-pro",
            "api",
            "https://us-central1-aiplatform.googleapis.com",
            ["google-vertex", "google-gemini-api"],
        ),
        ("Qwen/Qwen3-8B", "api", "http://127.0.0.1:8000/v1", ["qwen-apache"]),
        ("gpt-4o", "api", "http://127.0.0.1:8000/v1", ["openai-api"]),
        ("o3-mini", "api", "https://api.openai.com/v1", ["openai-api"]),
        ("claude", "consumer_app", "https://claude.ai/chat", ["anthropic-consumer"]),
        ("chatgpt.com", "consumer_app", "", ["openai-consumer"]),
        ("grok-4", "api", "https://api.x.ai/v1", ["xai-api"]),
        ("embedded:desk", "shipped", "", ["stillhouse"]),
        ("embedded:base", "shipped", "", ["stillhouse"]),
    ],
)
def test_every_layer_that_holds_is_found(model, access, endpoint, wanted):
    assert keys(model, access, endpoint) == wanted


@pytest.mark.parametrize(
    ("model", "access", "endpoint"),
    [
        ("nobody/knows-this", "weights", ""),
        ("gpt-4o", "weights", ""),
        ("somebody/gpt-oss-20b-tuned", "weights", ""),
        ("Qwen/Qwen2-VL-72B", "weights", ""),
        ("moonshotai/Kimi-K2-Instruct", "shipped", ""),
        ("embedded:desk", "weights", ""),
        ("embedded:desk", "api", "http://localhost:9000/v1"),
        ("embedded:desk", "import", ""),
        ("embedded:other", "shipped", ""),
        ("", "api", ""),
        ("", "weights", ""),
    ],
)
def test_where_nothing_is_known_no_row_is_found(model, access, endpoint):
    assert keys(model, access, endpoint) == []


@pytest.mark.parametrize(
    ("model", "access", "endpoint", "wanted"),
    [
        ("gpt-4o", "weights", "http://10.0.0.5:4000/v1", [("openai-api", "refuse")]),
        ("claude-3-5-sonnet", "weights", "http://10.0.0.5:4000/v1", [("anthropic-api", "refuse")]),
        ("gpt-oss-20b", "weights", "http://10.0.0.5:4000/v1", [("gpt-oss", "allow")]),
        ("glm-4.6", "weights", "http://10.0.0.5:4000/v1", []),  # open weights, by a name that allows nothing
        ("EleutherAI/gpt-j-6b", "weights", "http://10.0.0.5:4000/v1", []),
        ("litellm/openai/gpt-4o", "api", "http://10.0.0.5:4000/v1", [("openai-api", "refuse")]),
        ("litellm/claude-4", "api", "http://10.0.0.5:4000/v1", [("anthropic-api", "refuse")]),
        (
            "azure_openai/gpt-4o",
            "api",
            "http://10.0.0.5:4000/v1",
            [("azure-openai", "refuse"), ("openai-api", "refuse")],
        ),
        ("ft:gpt-4o:me", "api", "http://10.0.0.5:4000/v1", [("openai-api", "refuse")]),
        ("x", "api", "https://eu.api.openai.com/v1", [("openai-api", "refuse")]),
        ("Llama-3.1-8B-Instruct", "weights", "", [("llama3.1", "review")]),
        ("llama3.1:8b", "weights", "http://localhost:11434/v1", [("llama3.1", "review")]),
        ("llama3.1", "api", "http://localhost:11434/v1", [("llama3.1", "review")]),
        ("llama3:8b", "weights", "", [("llama3.0", "refuse")]),
        ("llama2:7b", "weights", "", [("llama2", "refuse")]),
        ("unsloth/Llama-3.1-8B", "weights", "", [("llama3.1", "review")]),
        ("somebody/Llama-3.1-8B-abliterated", "weights", "", [("llama3.1", "review")]),
        ("Qwen2.5-72B-Instruct", "weights", "", [("qwen2.5-72b", "review")]),
        ("qwen2.5:72b", "weights", "", [("qwen2.5-72b", "review")]),
        ("qwen-2.5-72b-instruct", "weights", "", [("qwen2.5-72b", "review")]),
        ("qwen2.5:3b", "weights", "", [("qwen-research", "refuse")]),
        ("qwen3:8b", "weights", "", []),
        ("Qwen3-8B", "weights", "", []),
        ("gemma2:9b", "weights", "", [("gemma1-3n", "review")]),
        ("gemma-2-9b-it", "weights", "", [("gemma1-3n", "review")]),
        ("gemma4:27b", "weights", "", []),
        ("Ministral-8B-Instruct-2410", "weights", "", [("mistral-mrl", "refuse")]),
        ("DeepSeek-R1-Distill-Llama-8B", "weights", "", [("deepseek-r1-distill-llama", "review")]),
    ],
)
def test_a_part_of_a_name_forbids_and_allows_nothing(model, access, endpoint, wanted):
    assert [
        (match.row.key, match.row.verdict) for match in shipped().matches(model, access, endpoint)
    ] == wanted


def test_terms_reach_through_a_teacher_to_those_of_its_own_teachers():
    matches = shipped().matches("allenai/Llama-3.1-Tulu-3-8B", "weights")
    assert [(m.layer, m.row.key, m.through) for m in matches] == [
        ("model", "tulu3", ""),
        ("upstream", "llama3.1", "tulu3"),
        ("upstream", "gemma1-3n", "tulu3"),
        ("upstream", "qwen2.5-72b", "tulu3"),
    ]
    assert keys("allenai/OLMo-2-1124-13B-Instruct", "weights") == ["olmo2-instruct", "gemma1-3n"]


def test_imported_answers_are_held_against_every_way_that_they_may_have_been_got():
    assert keys("gpt-4o", "import") == ["openai-api"]
    assert keys("claude.ai", "import") == ["anthropic-consumer"]
    assert keys("Qwen/Qwen2.5-3B", "import") == ["qwen-research"]


# What the researched table says. It is not part of the repository.

reference = pytest.mark.skipif(not REFERENCE.is_file(), reason="the researched table is not here")


def researched():
    return json.loads(REFERENCE.read_text()) if REFERENCE.is_file() else []


FACTS = [fact for fact in researched() if fact["key"] != "unknown-default"]  # no row is that row


@reference
def test_the_rows_are_those_of_the_researched_table_and_the_shipped_models():
    assert {row.key for row in ROWS} == {fact["key"] for fact in FACTS} | {"stillhouse"}
    assert {fact["date_seen"] for fact in FACTS} == {shipped().as_of.isoformat()}


@reference
@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact["key"])
def test_a_row_has_the_researched_facts(fact):
    row = shipped().row(fact["key"])
    assert (row.vendor, row.access, row.priority) == (fact["vendor"], fact["access"], fact["priority"])
    # Further names of the same models come after those
    assert list(row.models)[: len(fact["id_patterns"])] == fact["id_patterns"]
    assert list(row.excluding)[: len(fact["exclude_patterns"])] == fact["exclude_patterns"]
    licence = fact["licence"]
    assert (row.licence.name, row.licence.spdx, row.licence.hub_tag) == (
        licence["name"],
        licence["spdx"],
        licence["hf_tag"],
    )
    assert row.trains_others == fact["may_train_other_models"]
    assert row.trains_competing == fact["may_train_competing_models"]
    assert row.verdict == fact["default_verdict"]
    assert row.liftable == fact["authorisation_can_lift"]
    assert row.claims_student == fact["output_trained_model_is_derivative"]
    assert (row.clause_ref, row.version) == (fact["clause_ref"], fact["terms_version"])
    assert (row.source, row.source_seen) == (fact["source_url"], fact["source_url_status"] == "seen")
    assert row.evidence == fact["evidence"].split("+")[0]
    assert row.confidence == fact["confidence"]
    day = fact["source_snapshot_date"]
    # Of a text that is dated by its month the row has the first day.
    assert row.read_on == (date.fromisoformat(f"{day}-01"[:10]) if day else None)


NEEDS = {
    "non_commercial": "non_commercial",
    "paid_tier_only": "paid_tier",
    "no_programmatic_collection": "not_by_program",
    "pin_provider": "pinned_provider",
    "prompt_logging_off": "no_prompt_logging",
    "licence_check_per_checkpoint": "licence_text",
    "layered_terms": "model_licence",
}
OWED = {
    "model_name_prefix": "name_prefix",
    "no_vendor_marks": "no_mark",
    "attribution_display": "credit",
    "notice_file": "notice",
    "include_licence_copy": "licence_copy",
    "derivative_licence_inherits": "inherits",
    "acceptable_use_policy": "use_policy",
    "disclose_ai_generated": "label_ai",
    "accuracy_check": "check_output",
    "preserve_provenance_signals": "keep_signals",
    "notify_licensor": "notify",
    "attribution_note": "note",
}
IN_WORDS = {  # what no type can hold: the row's text has this
    ("openai-api", "allow_case"): "inside OpenAI's own service",
    ("mistral-api", "no_reverse_engineering"): "reverse engineering",
    ("openrouter", "record_response_field"): "`provider`",
    ("nvidia-open-model", "guardrail_and_litigation_terms"): "guardrails",
    ("nvidia-open-model", "upstream_teacher_terms"): "'Improved using Qwen'",
}


@reference
@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact["key"])
def test_a_row_has_every_researched_condition(fact):
    row = shipped().row(fact["key"])
    cases = [one for one in fact["conditions"] if one["kind"] == "allow_case"]
    text = row.clause + row.notes
    for one in fact["conditions"]:
        kind = one["kind"]
        if kind in NEEDS:
            assert any(isinstance(c, Need) and c.need == NEEDS[kind] for c in row.conditions)
        elif kind in OWED:
            owed = [o for o in row.obligations if o.kind == OWED[kind]]
            wording = [one.get("text") or one.get("value") or one.get("mark")]
            wording = [words for words in one.get("any_of", wording) if words and words != "Attachment A"]
            assert any(set(wording) <= set(o.texts) for o in owed)
            if "redistributed" in one.get("applies_if", ""):
                assert all(o.redistributes for o in owed)
        elif kind == "scale_threshold":
            above = 0 if one["value"] == "model_as_a_service" else one["value"]
            scales = [c for c in row.conditions if isinstance(c, Scale) and c.above == above]
            assert scales
            assert all(c.verdict or c.owed for c in scales)
        elif kind == "territory":
            (territory,) = (c for c in row.conditions if isinstance(c, Territory))
            assert territory.excluded == (("EU", "GB", "KR") if "exclude" in one else ("EU",))
            assert (territory.modality == "multimodal") == ("multimodal" in one.get("detail", ""))
        elif kind in ("feature_ban", "feature_review"):
            verdict = "refuse" if kind == "feature_ban" else "review"
            assert Feature(tuple(one["features"]), verdict, "") in [
                Feature(c.features, c.verdict, "") for c in row.conditions if isinstance(c, Feature)
            ]
        elif kind == "modality_ban":
            assert any(isinstance(c, Feature) and c.features == ("image_output",) for c in row.conditions)
        elif kind == "written_authorisation":
            assert one["grantor"].split("/")[0] in row.lifted_by
            assert row.liftable
        elif kind == "upstream_teacher_terms" and "refs" in one:
            assert list(row.upstream) == one["refs"]
        elif kind == "allow_case" and len(cases) == len(row.cases):
            assert row.cases
        else:
            assert IN_WORDS[fact["key"], kind] in text
    assert len(row.cases) == len([c for c in cases if "fine-tuning service" not in c["when"]])


@reference
def test_no_sentence_is_taken_from_the_researched_table():
    def runs(text, length=8):
        words = re.findall(r"\w+", text.lower())
        return {tuple(words[at : at + length]) for at in range(len(words) - length + 1)}

    theirs = {run for fact in FACTS for run in runs(fact["clause_paraphrase"]) | runs(fact["notes"])}
    assert theirs
    for row in ROWS:
        whys = [one.why for one in (*row.cases, *row.conditions)] + [o.where for o in row.obligations]
        for text in (row.clause, row.notes, row.covers, *whys):
            assert not runs(text) & theirs, row.key
