"""What a request may make a model tell beyond its text: log-probabilities, biases, hidden states, reasoning.

Rules for one request, by the names that vLLM, SGLang, llama.cpp, Ollama and OpenAI give their fields; a field
that is not named here is passed on. `answers` does to the answer what `decide` says. What can still be had
over many requests is told in docs/guard-leaks.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from stillhouse.guard.answers import TAGS, Filter
from stillhouse.guard.asked import Route
from stillhouse.guard.config import Leaks

MOST = 20  # alternatives of a token that servers tell at most by default
# Each tells log-probabilities by another name: of the prompt, of chosen tokens, or of more than asked.
_OTHER_LOGPROBS = (
    "prompt_logprobs logprob_token_ids return_logprob top_logprobs_num token_ids_logprob logprob_start_len "
    "return_text_in_logprobs return_meta_info n_probs post_sampling_probs"
).split()
# Biases without bounds: what may, or may not, be written at all.
_BANS = "allowed_token_ids bad_words".split()
# Each lets the client choose which tokens are compared, as a bias does.
_STEERS = (
    "guided_json guided_regex guided_choice guided_grammar guided_whitespace_pattern structured_outputs "
    "structural_tag regex ebnf grammar json_schema repetition_penalty"
).split()
# States of the model, code or tensors from the client, and ways into the server's inside: never passed on. A
# template is code: it can write a prompt of any length, which no bound on tokens would know.
_INSIDE = (
    "chat_template return_hidden_states return_routed_experts routed_experts_start_len "
    "routed_experts_prompt_start custom_logit_processor custom_params logits_processors vllm_xargs "
    "prompt_embeds input_embeds kv_transfer_params ec_transfer_params bootstrap_host bootstrap_port "
    "bootstrap_room lora_path extra_body"
).split()
# Each shows hidden reasoning by a way around the fields that hold it.
_BARES = (
    "return_token_ids separate_reasoning reasoning_format chat_template_kwargs verbose "
    "enable_response_messages previous_input_messages"
).split()
_ORDINARY = "logprobs top_logprobs logit_bias n best_of echo include response_format tool_choice".split()
_WATCHED = frozenset([*_ORDINARY, *_OTHER_LOGPROBS, *_BANS, *_STEERS, *_INSIDE, *_BARES])
# Names by which a request is bounded or read: to be known however they are spelt.
_NAMES = _WATCHED.union(
    "model messages prompt input suffix text tools reasoning stream stream_options".split(),
    "max_tokens max_completion_tokens max_output_tokens min_tokens ignore_eos".split(),
    "continue_final_message add_generation_prompt".split(),
    "role content type output audio status".split(),  # of messages and their parts
)
_LOGPROBS_OF_TEXT = "message.output_text.logprobs"


@dataclass(frozen=True, slots=True)
class Refusal:
    """`status` is 400 where another value of `param` would pass, 403 where the field is off."""

    status: Literal[400, 403]
    code: str
    param: str
    message: str


@dataclass(frozen=True, slots=True)
class Passed:
    """`body` is the very object that was given unless something in it changed. `changed` has a code for each
    thing that the client will notice; what `filter` takes out of the answer it tells itself."""

    body: Mapping[str, Any]
    changed: tuple[str, ...] = ()
    filter: Filter | None = None


Decision = Refusal | Passed


def decide(route: Route, body: Mapping[str, Any], leaks: Leaks) -> Decision:
    """Whether a request may be sent on, how, and what its answer must lose. Pure; raises nothing, whatever
    the client wrote."""
    if (refusal := _misspelt(body)) is not None:
        return refusal
    if route == "embeddings":
        return _inside(body) or Passed(body)
    if leaks.reasoning == "strip" and (refusal := _opens(route, body)) is not None:
        return refusal
    if _WATCHED.isdisjoint(body):
        return Passed(body, (), _filter(route, body, leaks))
    refusal = (
        _inside(body)
        or _several(body, leaks)
        or _echo(body, leaks)
        or _bias(body, leaks)
        or (_bares(body) if leaks.reasoning == "strip" else None)
    )
    if refusal is not None:
        return refusal
    asked = _asked(route, body)
    if isinstance(asked, Refusal):
        return asked
    return _logprobs(route, body, leaks, asked)


def _logprobs(route: Route, body: Mapping[str, Any], leaks: Leaks, asked: int | None) -> Decision:
    """`asked` is the number of alternatives that the client wants, -1 for all; None: no log-probabilities."""
    other = next((name for name in _OTHER_LOGPROBS if body.get(name)), None)
    if other is None and body.get("prompt_logprobs") is not None:
        other = "prompt_logprobs"  # to vLLM 0 means: of the prompt's own tokens
    if other is not None and leaks.logprobs != "allow":
        return _off(other, "it tells log-probabilities by another way than `logprobs`", "logprobs")
    if asked is None and other is None:
        return Passed(body, (), _filter(route, body, leaks))
    if leaks.logprobs == "refuse":
        return _off("logprobs", "log-probabilities are not told here", "logprobs")
    steer = _steered(body)
    if steer and leaks.bias_with_logprobs == "refuse":
        return Refusal(
            403,
            "bias_with_logprobs",
            steer,
            f"`{steer}` together with log-probabilities reveals the model's output layer, so this server "
            "refuses the two in one request (leaks.bias_with_logprobs); ask for one of them",
        )
    if leaks.logprobs == "allow" or asked is None:
        return Passed(body, (), _filter(route, body, leaks))
    told = leaks.top_logprobs if asked < 0 else min(asked, leaks.top_logprobs)
    changed = ("top_logprobs:capped",) if told != asked else ()
    # More than is told: else it could not be known whether the written token is among the likeliest. The
    # older route gives that token besides those asked for, the others may give it as one of them.
    likeliest = max(leaks.top_logprobs, 1)
    if route == "completions":
        name, wanted = "logprobs", likeliest
    else:
        name, wanted = "top_logprobs", min(likeliest + 1, MOST)
        likeliest = wanted - 1
    sent = body if body.get(name) == wanted else {**body, name: wanted}
    return Passed(sent, changed, _filter(route, body, leaks, told, likeliest))


def _filter(
    route: Route, body: Mapping[str, Any], leaks: Leaks, told: int | None = None, likeliest: int = 1
) -> Filter | None:
    strips = leaks.reasoning == "strip"
    texts = _texts(route, body) if strips else None
    if leaks.logprobs == "allow":
        return Filter(reasoning=True, texts=texts) if strips else None
    if told is None:
        return Filter("remove", reasoning=strips, texts=texts)
    return Filter("cap", told, likeliest, leaks.logprob_digits, strips, texts)


def _texts(route: Route, body: Mapping[str, Any]) -> int | None:
    """How many texts the answer will have; None where the request does not tell."""
    number = _whole(body.get("n") or 1)
    if route == "responses" or number is None:
        return None
    prompts = body.get("prompt") if route == "completions" else None
    several = isinstance(prompts, list | tuple) and not all(isinstance(each, int) for each in prompts)
    return number * len(prompts) if several and prompts else number


def _asked(route: Route, body: Mapping[str, Any]) -> int | Refusal | None:
    """How many alternatives of each token are asked for, None where no log-probabilities are."""
    said, top = body.get("logprobs"), body.get("top_logprobs")
    if route == "completions" and said is not None and said is not False:
        number = _whole(said)
        return _not_whole("logprobs") if number is None else number
    if said not in (None, True, False) or (isinstance(said, int | float) and not isinstance(said, bool)):
        return Refusal(400, "invalid_value", "logprobs", "`logprobs` is true or false; write one of them")
    number = 0
    if top is not None:
        if (read := _whole(top)) is None:
            return _not_whole("top_logprobs")
        number = read
    wants = said is True or number != 0
    if route == "responses":
        include = body.get("include")
        wants = wants or (isinstance(include, list | tuple) and _LOGPROBS_OF_TEXT in include)
    return number if wants else None


def _steered(body: Mapping[str, Any]) -> str:
    """The field by which the client chooses what may be written; empty where there is none."""
    for name in ("logit_bias", *_BANS, *_STEERS):
        if body.get(name) and not (name == "repetition_penalty" and body[name] == 1):
            return name
    text = body.get("text")
    forms = {
        "response_format": body.get("response_format"),
        "text": text.get("format") if isinstance(text, Mapping) else None,
    }
    for name, form in forms.items():
        if form and not (isinstance(form, Mapping) and form.get("type") in ("text", "json_object")):
            return name
    if body.get("tools"):
        if body.get("tool_choice") not in (None, "auto", "none"):
            return "tool_choice"
        if _is_strict(body["tools"]):
            return "tools"
    return ""


def _is_strict(tools: object) -> bool:
    if not isinstance(tools, list | tuple):
        return True
    functions = [tool.get("function", tool) if isinstance(tool, Mapping) else {} for tool in tools]
    return any(isinstance(each, Mapping) and each.get("strict") for each in functions)


def _bias(body: Mapping[str, Any], leaks: Leaks) -> Refusal | None:
    if leaks.logit_bias == "allow":
        return None
    for name in _BANS:
        if body.get(name):
            return _off(name, "it is a bias without bounds", "logit_bias")
    bias = body.get("logit_bias")
    if not bias:
        return None
    if leaks.logit_bias == "refuse":
        return _off("logit_bias", "biases are not taken here", "logit_bias")
    sizes = _sizes(bias)
    if sizes is None:
        said = "`logit_bias` is not usable: give an object of token ids with a number for each"
        return Refusal(400, "invalid_value", "logit_bias", said)
    if len(sizes) > leaks.logit_bias_tokens:
        return Refusal(
            400,
            "logit_bias_too_many",
            "logit_bias",
            f"`logit_bias` names {len(sizes)} tokens; this server takes {leaks.logit_bias_tokens} "
            "(leaks.logit_bias_tokens); name fewer",
        )
    # Not `>`, which a NaN would pass
    if not all(abs(size) <= leaks.logit_bias_size for size in sizes):
        return Refusal(
            400,
            "logit_bias_too_large",
            "logit_bias",
            f"a bias lies outside of -{leaks.logit_bias_size:g} to {leaks.logit_bias_size:g} "
            "(leaks.logit_bias_size); give smaller ones",
        )
    return None


def _sizes(bias: object) -> list[float] | None:
    """The biases; None where they are not numbers. llama.cpp takes pairs as well, with false for never."""
    if isinstance(bias, Mapping):
        sizes = list(bias.values())
    elif isinstance(bias, list | tuple):
        if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in bias):
            return None
        sizes = [float("-inf") if pair[1] is False else pair[1] for pair in bias]
    else:
        return None
    good = all(isinstance(size, int | float) and not isinstance(size, bool) for size in sizes)
    return sizes if good else None


def _several(body: Mapping[str, Any], leaks: Leaks) -> Refusal | None:
    for name in ("n", "best_of"):
        value = body.get(name)
        if value is None:
            continue
        number = _whole(value)
        if number is None:
            return _not_whole(name)
        if number > leaks.n:
            said = f"`{name}` is {number}; this server gives at most {leaks.n} answers to a request (leaks.n)"
            return Refusal(400, f"{name}_too_large", name, f"{said}; ask for fewer, or again")
    return None


def _echo(body: Mapping[str, Any], leaks: Leaks) -> Refusal | None:
    if leaks.echo == "allow" or not body.get("echo"):
        return None
    return _off("echo", "with log-probabilities it scores any text", "echo")


def _inside(body: Mapping[str, Any]) -> Refusal | None:
    for name in _INSIDE:
        if body.get(name):
            why = "it tells or changes what is inside the model's server"
            if name == "extra_body":
                why = "its fields belong beside `model`"
            return Refusal(403, f"{name}_refused", name, f"`{name}` is not passed on: {why}; leave it out")
    given = body.get("chat_template_kwargs")
    if isinstance(given, Mapping) and "chat_template" in given:
        why = "servers take a `chat_template` in it for the one of the model"
        said = f"`chat_template_kwargs` is not passed on: {why}; leave that out"
        return Refusal(403, "chat_template_refused", "chat_template_kwargs", said)
    return None


def _bares(body: Mapping[str, Any]) -> Refusal | None:
    """Fields that put reasoning where it would not be found."""
    for name in _BARES:
        value = body.get(name)
        bares = value is False if name == "separate_reasoning" else bool(value)
        if name == "reasoning_format":
            bares = value not in (None, "auto", "deepseek")
        if bares:
            return _off(name, "it would show hidden reasoning", "reasoning")
    return None


def _opens(route: Route, body: Mapping[str, Any]) -> Refusal | None:
    """A prompt that ends within a reasoning tag: the answer would go on in it, without the tag that tells."""
    if route == "completions":
        texts = _parts(body.get("prompt"))
        if not all(isinstance(text, str) for text in texts):
            why = "what token ids say is not known, and they may open a tag of hidden reasoning"
            return Refusal(
                400, "token_ids_refused", "prompt", f"`prompt` is not text: {why}; send it as text"
            )
        return _within("prompt", texts)
    name = "messages" if route == "chat/completions" else "input"
    messages = body.get(name)
    last = messages[-1] if isinstance(messages, list | tuple) and messages else None
    last = last if isinstance(last, Mapping) else {}
    if last.get("type") == "reasoning":
        return Refusal(403, "reasoning_refused", name, f"`{name}` ends with reasoning; add what follows it")
    if last.get("role") == "assistant":
        return _within(name, _parts(last.get("content")))
    for field, plain in (("continue_final_message", False), ("add_generation_prompt", True)):
        if body.get(field) not in (None, plain):
            return _off(field, "only a message of the assistant can be gone on with", "reasoning")
    if last.get("status") not in (None, "completed"):
        why = "only one of the assistant can be gone on with"
        return Refusal(
            403, "reasoning_refused", name, f"the last of `{name}` is not complete: {why}; complete it"
        )
    return None


def _parts(content: object) -> list[object]:
    parts = content if isinstance(content, list | tuple) else [] if content is None else [content]
    return [part["text"] if isinstance(part, Mapping) and "text" in part else part for part in parts]


def _within(name: str, parts: list[object]) -> Refusal | None:
    texts = [part for part in parts if isinstance(part, str)]
    # Some servers put the parts together with nothing between them
    for said in (*texts, "".join(texts)):
        if any(said.rfind(begin) > said.rfind(end) for begin, end in TAGS):
            why = f"`{name}` ends within a tag of hidden reasoning, which is not shown here (leaks.reasoning)"
            return Refusal(403, "reasoning_refused", name, f"{why}; close the tag or leave it out")
    return None


def _misspelt(body: Mapping[str, Any]) -> Refusal | None:
    """Servers written in Go take names whatever their case, so one that only looks unknown is none."""
    for each in _objects(body):
        for name in each:
            if not (name.isascii() and name.islower()) and (plain := name.casefold()) in _NAMES:
                return Refusal(400, "field_spelling", plain, f"a field is a misspelt `{plain}`; write that")
    return None


def _objects(body: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The request, its messages and the parts of these, whose names are not the client's own."""
    yield body
    for field in ("messages", "input"):
        messages = body.get(field)
        for message in messages if isinstance(messages, list | tuple) else ():
            if isinstance(message, dict):
                yield message
                parts = message.get("content")
                if isinstance(parts, list | tuple):
                    yield from (part for part in parts if isinstance(part, dict))


def _off(name: str, why: str, rule: str) -> Refusal:
    said = f"`{name}` is refused (leaks.{rule}): {why}; leave it out"
    return Refusal(403, f"{name}_refused", name, said)


def _not_whole(name: str) -> Refusal:
    return Refusal(400, "invalid_value", name, f"`{name}` is not a whole number; give one")


def _whole(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) else None
