"""README.md: a model card with metadata for the Hub, made from the facts of a release alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stillhouse.release.facts import MARGIN, Facts, Teacher, compute, missing
from stillhouse.release.markdown import NOT_RECORDED, code, interval, percent, table, text

# SPDX ids that the Hub knows, in lower case; any other licence is `other` there, with its name beside it.
_ON_HUB = frozenset(
    "afl-3.0 apache-2.0 artistic-2.0 bsd-2-clause bsd-3-clause bsl-1.0 cc-by-2.0 cc-by-3.0 cc-by-4.0 "
    "cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-4.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 "
    "cc-by-sa-4.0 cc0-1.0 epl-2.0 eupl-1.1 eupl-1.2 isc mit mpl-2.0 ncsa ofl-1.1 postgresql unlicense wtfpl "
    "zlib".split()
)
_LINE_BREAKS = frozenset("\x85\u2028\u2029")  # YAML's, beside the common ones
UNANCHORED = "unanchored: internally consistent only. Nobody else is known to hold a checkpoint."


def model_card(facts: Facts) -> str:
    """Markdown that begins with YAML. A fact that was not recorded is said to be missing."""
    import yaml

    head = yaml.safe_dump(metadata(facts), sort_keys=True, allow_unicode=True, width=10**6)
    if not _LINE_BREAKS.isdisjoint(head):  # as they are, they would be read back as blanks
        head = yaml.safe_dump(metadata(facts), sort_keys=True, width=10**6)
    parts = [f"---\n{head}---", f"# {text(facts.name)}", _origin(facts), *_credits(facts)]
    parts += ["## Scores", _scores(facts), "## Where the training rows came from", _rows(facts)]
    parts += ["## Limits", _limits(facts), "## Training", _training(facts)]
    lacking = missing(facts)
    if lacking:
        listed = "\n".join(f"- {text(one)}" for one in lacking)
        parts += ["## Missing", f"Not recorded, and so not stated here:\n\n{listed}"]
    return "\n\n".join(parts) + "\n"


def metadata(facts: Facts) -> dict[str, Any]:
    """What the Hub reads. `base_model` is the student's base, where that is a model of the Hub; the teachers
    are in a key of our own, for the Hub has no relation for them."""
    found: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["distillation", "stillhouse", "synthetic"],
        "distilled_from": [_distilled(facts, teacher) for teacher in facts.teachers],
    }
    if facts.student.base_is_on_hub:
        found |= {"base_model": facts.student.base, "base_model_relation": "finetune"}
    if facts.licence is not None:
        known = facts.licence.lower() in _ON_HUB
        found["license"] = facts.licence.lower() if known else "other"
        if not known:
            found |= {"license_name": facts.licence, "license_link": "LICENSE"}
    if facts.samples.languages:
        found["language"] = list(facts.samples.languages)
    if facts.samples.prompts.startswith("hf:"):
        found["datasets"] = [facts.samples.prompts.split(":")[1]]
    return found


def _distilled(facts: Facts, teacher: Teacher) -> dict[str, Any]:
    return {
        "model": teacher.model,
        "revision": teacher.revision,
        "access": teacher.access,
        "rows": teacher.rows,
        "share_of_rows": round(teacher.rows / facts.samples.kept, 4) if facts.samples.kept else None,
        "verdicts": sorted({decision.verdict for decision in teacher.decisions}),
        "terms_sha256": sorted({sha for decision in teacher.decisions for sha in decision.terms_sha256}),
    }


def _origin(facts: Facts) -> str:
    student = facts.student
    taught = " and ".join(code(teacher.model) for teacher in facts.teachers)
    begun = "from nothing" if student.base is None else f"from {code(student.base)}"
    if student.base_sha256:
        begun += f" (digest of its files {code(student.base_sha256[:12])})"
    return (
        f"Distilled by stillhouse (run {code(facts.run)}) from the answers of {taught}, starting {begun}. "
        f"{student.parameters:,} parameters, {text(student.architecture)}, at most "
        f"{text(student.context)} tokens of context. Licence: {text(facts.licence)}."
    )


def _credits(facts: Facts) -> list[str]:
    """The lines of credit that are owed, word for word, as in ATTRIBUTION.md."""
    return [f"**{text(line)}**" for line in facts.credits]


def _scores(facts: Facts) -> str:
    found = facts.evaluation
    rows = [(text(f.name), interval(f.value, f.low, f.high), text(f.n)) for f in found.figures]
    scores = table(("", "score (95 % interval)", "prompts"), rows)
    kept = interval(found.retention.value, found.retention.low, found.retention.high)
    ruling = ""
    if found.margin is not None:
        margin = percent(found.margin)
        ruling = f" With a margin of {margin}, set before anything was scored: {text(found.ruling)}."
    return (
        f"{scores}\n\nPrompts: {text(found.source)}. Share of the teacher's score kept: {kept}.{ruling} "
        f"FLOPs per answer against the teacher's: {percent(found.flops_ratio)}."
    )


def _rows(facts: Facts) -> str:
    samples = facts.samples
    dropped = ", ".join(f"{text(why)} {n:,}" for why, n in sorted(samples.dropped.items())) or "none"
    unscored = ", ".join(f"{text(why)} {n:,}" for why, n in sorted(samples.unscored.items())) or "none"
    head = (
        "teacher",
        "revision",
        "asked at",
        "rows",
        "answers",
        "tokens in and out",
        "allowed by",
        "texts read",
    )
    teachers = table(head, [_teacher(teacher) for teacher in facts.teachers])
    owed = [
        f"- {text(one.teacher)}: {one.obligation.kind.replace('_', ' ')}"
        + (f", {text(' or '.join(one.obligation.texts))}" if one.obligation.texts else "")
        + (f" ({text(one.obligation.where)})" if one.obligation.where else "")
        for one in facts.due
    ]
    standing = UNANCHORED if facts.anchored is None else f"anchored at size {facts.anchored:,}"
    return "\n\n".join(
        [
            f"{samples.kept:,} rows were kept of {samples.answers:,} answers to the prompts of "
            f"{code(samples.prompts)}{', and to others invented from them' if samples.grown else ''}"
            f"{_deferred(samples.deferred)}; "
            f"dropped: {dropped}; set aside unscored: {unscored}.",
            teachers,
            *(_taught_by(one.model, one.upstream) for one in facts.teachers if one.upstream is not None),
            *_base(facts),
            *(["What the terms ask of this model:", "\n".join(owed)] if owed else []),
            "Every row is a leaf in the ledger that names the teacher's answer, and every answer names the "
            f"decision by which it was allowed. When this was written the ledger had {facts.size:,} leaves "
            f"with the root {code(facts.root)}.",
            standing,
        ]
    )


def _taught_by(model: str, said: Mapping[str, Any]) -> str:
    """Who taught a model that is a release. `said` names those with whose weights it began as well."""
    taught = [each for each in said["teachers"] if each.get("use") != "base"]
    who = " and ".join(code(each["model"]) for each in taught)
    known = f"by {who}, as its signed record says" if who else f"by nobody known: {text(said['unknown'])}"
    if who and said["unknown"]:
        known += f"; not all is known: {text(said['unknown'])}"
    begun = " and ".join(code(each["model"]) for each in said["teachers"] if each.get("use") == "base")
    known += f"; it began as {begun}" if begun else ""
    return f"{code(model)} is the release {code(said['release'])}, and was itself taught {known}."


def _base(facts: Facts) -> list[str]:
    """Who taught the weights that the student began with, and theirs in turn, as far as that is recorded."""
    if facts.begun is None:
        return []
    said = facts.begun["upstream"]
    if said is None:
        return [
            f"The base {code(facts.begun['model'])} is no release of stillhouse: who taught it is not known."
        ]
    return [f"Its base {_taught_by(facts.begun['model'], said)}"]


def _deferred(count: int) -> str:
    return f", and to {count:,} requests of customers who agreed to training" if count else ""


def _teacher(teacher: Teacher) -> tuple[str, ...]:
    decisions = ", ".join(f"leaf {d.leaf}: {text(d.verdict)}" for d in teacher.decisions)
    texts = sorted({sha for decision in teacher.decisions for sha in decision.terms_sha256})
    tokens = f"{teacher.prompt_tokens:,} and {teacher.completion_tokens:,}"
    if teacher.uncounted:
        tokens += f", without {teacher.uncounted:,} answers that have no counts"
    return (
        code(teacher.model),
        code(teacher.revision[:16]) if teacher.revision else NOT_RECORDED,
        text(teacher.host) if teacher.host else text(teacher.access),
        f"{teacher.rows:,}",
        f"{teacher.exchanges:,}",
        tokens,
        decisions,
        ", ".join(code(sha[:16]) for sha in texts) or NOT_RECORDED,
    )


def _limits(facts: Facts) -> str:
    lines = [
        f"It learnt the answers to {facts.samples.kept:,} prompts. What it does on others was not measured.",
        "It repeats its teacher's mistakes where those were not dropped.",
        "A gate's verdict says which text was named, by whom and when it was read. It is no legal advice.",
        *facts.evaluation.notes,
    ]
    return "\n".join(f"- {text(line)}" for line in lines)


def _training(facts: Facts) -> str:
    training, counted = facts.training, compute(facts)
    least = "at least " if counted.unknown else ""
    return (
        f"Objective {code(training.objective)}, {training.steps:,} steps, {training.epochs:g} epochs, "
        f"{training.tokens:,} tokens ({training.target_tokens:,} of them learnt), seed {training.seed}, "
        f"{text(training.dtype)} on {text(training.device)}, {training.seconds:,.0f} s. Operations: {least}"
        f"{counted.total:.2e}, give or take {percent(MARGIN)}: {counted.training:.2e} for training, {least}"
        f"{counted.answers:.2e} for the teachers' answers and {least}{counted.readings:.2e} for what a "
        "teacher read in training. `eu/scope.json` says how that is counted."
    )
