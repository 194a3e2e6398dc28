"""Recipes for teachers that people use, and what the gate says of each: bare, and with what it asks for."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from stillhouse.errors import UsageError
from stillhouse.ledger import Ledger
from stillhouse.recipe import Teacher, parse_recipe
from stillhouse.terms import gate
from stillhouse.terms.asking import asked_of
from stillhouse.workspace import init_workspace

NOW = datetime(2026, 11, 22, 9, tzinfo=UTC)
APACHE = Path(__file__).parents[2] / "LICENSE"
OWN = "http://localhost:8000/v1"  # a server of one's own, for open weights

# model, access, endpoint: the verdict on training, a word of its reasons, and what would lift it
BARE = [
    ("gpt-4.1", "api", "https://api.openai.com/v1", "refuse", "compete", "permission of OpenAI"),
    ("claude-opus-4-5", "api", "https://api.anthropic.com/v1", "refuse", "Anthropic", "permission"),
    ("gemini-2.5-pro", "api", "https://generativelanguage.googleapis.com", "refuse", "Gemini", "paid"),
    ("grok-4", "api", "https://api.x.ai/v1", "refuse", "SpaceXAI", "Order Form"),
    ("mistral-large-latest", "api", "https://api.mistral.ai/v1", "review", "Mistral", "declare so"),
    ("deepseek-chat", "api", "https://api.deepseek.com/v1", "allow_with_obligations", "DeepSeek", ""),
    ("command-a-03-2025", "api", "https://api.cohere.com/compatibility/v1", "refuse", "Cohere", "permission"),
    ("meta-llama/Llama-2-7b-chat-hf", "weights", OWN, "refuse", "Llama 2", "monthly_users"),
    ("meta-llama/Llama-3.1-8B-Instruct", "weights", OWN, "refuse", "Llama 3.1", "monthly_users"),
    ("Qwen/Qwen3-8B", "weights", OWN, "review", "Apache", "[teacher] licence"),
    ("google/gemma-3-4b-it", "weights", OWN, "review", "Gemma Terms", "[teacher] licence"),
    ("google/gemma-4-27b", "weights", OWN, "review", "Apache", "[teacher] licence"),
    ("openai/gpt-oss-20b", "weights", OWN, "review", "Apache", "[teacher] licence"),
    ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "weights", OWN, "review", "MIT", "[teacher] licence"),
]  # fmt: skip

BEDROCK = "https://bedrock-runtime.us-east-1.amazonaws.com/openai/v1"
VERTEX = "https://us-east5-aiplatform.googleapis.com/v1/projects/p/locations/l/endpoints/openapi"
EU = "https://aiplatform.eu.rep.googleapis.com/v1"
AZURE = "https://x.services.ai.azure.com/models"

# model and host: the rows that speak, and whether the host's own terms are known
ELSEWHERE = [
    ("anthropic.claude-sonnet-4-v1:0", BEDROCK, {"aws-bedrock", "anthropic-api"}, True),
    ("mistral.mistral-large-2407-v1:0", BEDROCK, {"aws-bedrock"}, True),
    ("claude-sonnet-4@20250514", VERTEX, {"google-vertex", "anthropic-api"}, True),
    ("google/gemini-2.5-pro", VERTEX, {"google-vertex", "google-gemini-api"}, True),
    ("gemini-2.5-pro", EU, {"google-vertex", "google-gemini-api"}, True),
    ("mistral-large-2411", VERTEX, {"google-vertex"}, True),
    ("vertex_ai/claude-sonnet-4", "http://localhost:4000/v1", {"google-vertex", "anthropic-api"}, False),
    ("claude-sonnet-4-5", AZURE, {"azure-openai", "anthropic-api"}, True),
    ("grok-3", AZURE, {"azure-openai", "xai-api"}, True),
    ("openai/gpt-4o", "https://models.inference.ai.azure.com", {"azure-openai", "openai-api"}, True),
    ("grok-4", "https://us-east-1.api.x.ai/v1", {"xai-api"}, True),
    ("gpt-4o", "https://models.github.ai/inference", {"openai-api"}, False),
    ("gemini-2.5-flash", "https://proxy.example/v1", {"google-gemini-api"}, False),
    ("deepseek-ai/DeepSeek-R1", "https://api.together.xyz/v1", {"deepseek-mit"}, False),
    ("accounts/fireworks/models/llama-v3p1-8b", "https://api.fireworks.ai/inference/v1", {"llama3.1"}, False),
    ("llama-3.3-70b-versatile", "https://api.groq.com/openai/v1", {"llama3.3"}, False),
    ("qwen/qwen3-8b", "https://openrouter.ai/api/v1", {"openrouter", "qwen-apache"}, True),
]  # fmt: skip

# With facts about the operator, and the licence or a declaration: the verdict, and what is owed
GIVEN = [
    ("meta-llama/Llama-2-7b-chat-hf", {"declared": True}, "refuse", set()),
    ("meta-llama/Llama-2-7b-chat-hf", {"declared": True, "init": "meta-llama/Llama-2-7b-hf"}, "allow", set()),
    (
        "meta-llama/Llama-3.1-8B-Instruct",
        {"declared": True},
        "allow_with_obligations",
        {"name_prefix", "credit", "licence_copy", "use_policy"},
    ),
    ("Qwen/Qwen3-8B", {"licence": True}, "allow", set()),
    ("google/gemma-3-4b-it", {"declared": True}, "allow_with_obligations", {"inherits", "use_policy"}),
    ("google/gemma-4-27b", {"licence": True}, "allow", set()),
    ("openai/gpt-oss-20b", {"licence": True}, "allow", set()),
    (
        "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
        {"declared": True},
        "allow_with_obligations",
        {"name_prefix", "credit"},
    ),
    ("google/gemma-3-4b-it", {"licence": True}, "review", set()),  # an Apache text is not Gemma's
]


def decided(
    folder, model, access, endpoint, operator="", declared=False, licence=False, init="embedded:base"
):
    teacher = {"model": model, "endpoint": endpoint, "access": access}
    if licence:
        teacher["licence"] = str(APACHE)
    if declared:
        (folder / "read.txt").write_text("The text as it came with the weights.")
        teacher["terms"] = {
            "document": str(folder / "read.txt"), "read_on": "2026-11-20", "declared_by": "R. Ames"
        }  # fmt: skip
    tree = {
        "run": {"name": "small"},
        "teacher": teacher,
        "prompts": {"source": "embedded:desk"},
        "student": {"init": init},
    }
    recipe, workspace = parse_recipe(tree), init_workspace(folder)
    workspace.operator.write_text(operator)
    with Ledger.open(workspace, clock=lambda: NOW) as ledger:
        found = gate.consider(recipe, recipe.teacher, "train_target", ledger, NOW)
        if not declared or not found.to_declare:
            return found
        assert not found.allowed  # what it is about has to be said
        teacher["terms"]["about"] = list(found.to_declare)
        recipe = parse_recipe(tree)
        return gate.consider(recipe, recipe.teacher, "train_target", ledger, NOW)


@pytest.mark.parametrize(("model", "access", "endpoint", "verdict", "word", "lift"), BARE)
def test_what_a_bare_recipe_meets(tmp_path, model, access, endpoint, verdict, word, lift):
    found = decided(tmp_path, model, access, endpoint)
    assert found.verdict == verdict
    said = " ".join(reason.cited() for reason in found.reasons)
    assert word in said
    assert "compliant" not in said
    assert lift in " ".join(found.lifts)


@pytest.mark.parametrize(("model", "endpoint", "rows", "known"), ELSEWHERE)
def test_at_another_host_its_terms_count_beside_the_models(tmp_path, model, endpoint, rows, known):
    found = decided(tmp_path, model, "api", endpoint)
    assert found.verdict in ("refuse", "review")
    assert {reason.row for reason in found.reasons} == rows | (set() if known else {""})


@pytest.mark.parametrize(("model", "given", "verdict", "owed"), GIVEN)
def test_what_it_meets_with_all_that_is_asked_for(tmp_path, model, given, verdict, owed):
    operator = 'monthly_users = 1000\nmonthly_revenue_usd = 0\nyearly_revenue_usd = 0\nterritory = "DE"\n'
    operator += "sells_access_to_models = false\ncommercial = true\n"
    found = decided(tmp_path, model, "weights", OWN, operator, **given)
    assert found.verdict == verdict
    assert owed <= {each.obligation.kind for each in found.obligations}


def test_a_feature_by_a_word_that_no_row_has_is_told_the_nearest_one(tmp_path):
    tree = {
        "run": {"name": "small"},
        "teacher": {"model": "gemini-2.5-pro", "endpoint": "https://generativelanguage.googleapis.com"},
        "prompts": {"source": "embedded:desk"},
        "student": {"init": "embedded:base"},
    }
    recipe, workspace = parse_recipe(tree), init_workspace(tmp_path)
    given = {**tree["teacher"], "features": ["google_search"]}
    with pytest.raises(UsageError, match="google_search") as caught:
        asked_of(recipe, Teacher(**given), "train_target", workspace)
    assert "google_search_grounding" in caught.value.mend
