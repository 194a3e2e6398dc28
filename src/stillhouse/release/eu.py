"""What the AI Act's template, documentation form and scope ask for, as far as it was recorded.

The template is that of the Commission of 24 July 2025 for the public summary of training content, in its own
order; the form is that of the Code of Practice. Both are filled voluntarily. Nothing here says that a law is
kept: it says what was recorded, and what was not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from stillhouse.release.facts import FREE_LICENCES, MARGIN, Facts, Teacher, compute, missing
from stillhouse.release.markdown import table, text

GENERAL_PURPOSE = 1e23  # operations above which a model that writes is taken for a general-purpose one
SYSTEMIC = 1e25

_VOLUNTARY = (
    "Written by stillhouse from recorded facts, voluntarily. It is no legal advice, and no statement that "
    "any duty applies or is met. A field without a value was not recorded."
)
_LIMITS = frozenset(
    {"inherits", "use_policy", "name_prefix"}
)  # obligations that a free licence does not have

_Section = tuple[str, str, Sequence[tuple[str, Any]]]
Standing = Literal["below", "above", "within the margin", "not known"]


def training_content_summary(facts: Facts) -> dict[str, Any]:
    """The template's fields 0 to 3.3 in its order. It covers what was added to the base and nothing else."""
    operator, samples, student = facts.operator, facts.samples, facts.student
    last = max((t.times[1][:10] for t in facts.teachers if t.times), default=None)
    hub, made = samples.prompts.startswith("hf:"), samples.prompts.startswith("embedded:")
    elsewhere = "no" if made else None  # of prompts in a file only the operator knows where they are from
    sections: list[_Section] = [
        (
            "0",
            "The summary",
            [("Version of the summary", facts.version), ("Last update", facts.written.date().isoformat())],
        ),
        (
            "1.1",
            "Provider",
            [
                ("Provider's name", operator.name),
                ("Provider's contact", operator.contact),
                ("Authorised representative", operator.authorised_representative),
            ],
        ),
        (
            "1.2",
            "Model",
            [
                ("Versioned model name", f"{facts.name} {facts.version}"),
                ("Model dependencies", student.base or "none: trained from nothing"),
                ("Date of placing on the Union market", _day(operator.market_date)),
            ],
        ),
        (
            "1.3",
            "Training data",
            [
                ("Modality", "text"),
                ("Size", _size(facts)),
                ("Types of content", f"{samples.kept} prompts with answers written by AI models"),
                ("Latest date of acquisition", last),
                ("Continuous training", None),
                ("Linguistic characteristics", list(samples.languages) if samples.languages else None),
                ("Other characteristics", None),
                ("Comments", "What was added to the base; for the base itself see its own summary."),
            ],
        ),
        (
            "2.1",
            "Publicly available datasets",
            [
                ("Used", "yes, as prompts" if hub else elsewhere),
                ("Modality", "text" if hub else None),
                ("Datasets", [_hub_link(samples.prompts)] if hub else []),
                ("Description of others", None),
                ("Comments", None),
            ],
        ),
        (
            "2.2.1",
            "Data licensed by rightsholders",
            [("Commercial licences with rightsholders", elsewhere), ("Modality", None)],
        ),
        (
            "2.2.2",
            "Private data of other third parties",
            [
                ("Used", elsewhere),
                ("Known datasets", []),
                (
                    "Description",
                    None if made or hub else f"prompts from {samples.prompts}, origin not recorded",
                ),
            ],
        ),
        (
            "2.3",
            "Data crawled and scraped",
            [
                ("Crawled by the provider or on its behalf", elsewhere),
                ("Crawlers, purposes, behaviour, period, sources", None),
                ("Modality", None),
                ("Top domains", None),
                ("Comments", "stillhouse has no crawler."),
            ],
        ),
        ("2.4", "User data", _user_data(samples.deferred, elsewhere)),
        ("2.5", "Synthetic data", _synthetic(facts)),
        ("2.6", "Other sources", [("Used", elsewhere), ("Description", None)]),
        (
            "3.1",
            "Reservations of rights",
            [
                ("Signatory of the Code of Practice", None),
                ("Measures for text and data mining opt-outs", None),
            ],
        ),
        (
            "3.2",
            "Illegal content",
            [("Measures", None), ("Rows dropped, by reason", dict(sorted(samples.dropped.items())))],
        ),
        (
            "3.3",
            "Other information",
            [
                ("Ledger", f"{facts.origin}, {facts.size} leaves, root {facts.root}"),
                ("Anchored", "no" if facts.anchored is None else f"at size {facts.anchored}"),
                ("Teachers", "provenance/teachers.json"),
                ("Rows", "provenance/rows.parquet"),
            ],
        ),
    ]
    return _document("Public summary of training content", facts, sections)


def _user_data(deferred: int, elsewhere: str | None) -> list[tuple[str, Any]]:
    whose = "of customers who agreed to training, with what the teacher answered"
    return [
        ("From interactions with the model", "yes" if deferred else elsewhere),
        ("From other services", elsewhere),
        ("Description", f"{deferred:,} requests to a cascade, {whose}" if deferred else None),
    ]


def model_documentation_form(facts: Facts) -> dict[str, Any]:
    """The fields of the Model Documentation Form."""
    operator, student, training = facts.operator, facts.student, facts.training
    counted = compute(facts)
    sections: list[_Section] = [
        (
            "1",
            "General",
            [
                ("Legal name of the provider", operator.name),
                ("Model name and versions", f"{facts.name} {facts.version}"),
                ("Model authenticity", f"SHA-256 {student.sha256} over config, tokenizer and weights"),
                ("Release date", facts.written.date().isoformat()),
                ("Union market date", _day(operator.market_date)),
                ("Model dependencies", student.base or "none: trained from nothing"),
            ],
        ),
        (
            "2",
            "Properties",
            [
                ("Architecture", student.architecture),
                ("Design specification", _design(facts)),
                ("Input modalities and size", _context(facts)),
                ("Output modalities and size", _context(facts)),
                ("Parameters", f"{student.parameters} (two figures: {student.parameters:.1e})"),
            ],
        ),
        (
            "3",
            "Distribution and use",
            [
                ("Distribution channels", None),
                ("Licence", facts.licence),
                ("Acceptable use policy", None),
                ("Intended and restricted uses", None),
                ("Types of systems", None),
                ("Means of integration, hardware", "a folder that transformers and vLLM load"),
                ("Software", dict(facts.software) or None),
            ],
        ),
        (
            "4",
            "Training",
            [
                ("Specification of the process", _process(facts)),
                ("Rationale of decisions", None),
                ("Settings", dict(training.settings)),
            ],
        ),
        (
            "5",
            "Data",
            [
                ("Type and modality", "text"),
                ("Provenance", f"answers of {', '.join(t.model for t in facts.teachers)} (synthetic)"),
                ("How obtained and selected", f"prompts of {facts.samples.prompts}, answers kept by rules"),
                ("Number of data points", facts.samples.kept),
                ("Scope", None),
                ("Curation: answers, kept, dropped by reason", _curation(facts)),
                ("Measures against unsuitable data", None),
                ("Measures against bias", None),
            ],
        ),
        (
            "6",
            "Resources",
            [
                ("Training time", f"{training.seconds:.0f} seconds on {training.device}"),
                ("Compute, operations", f"{'at least ' if counted.unknown else ''}{counted.total}"),
                ("Method", compute_method(facts)),
                ("Energy for training", None),
                ("Benchmark of inference", None),
            ],
        ),
    ]
    return _document("Model Documentation Form", facts, sections)


def scope(facts: Facts) -> dict[str, Any]:
    """How the operations stand to the thresholds of the Commission's guidelines, and the conditions of the
    relief for open-source models one by one."""
    counted, base = compute(facts), facts.operator.base_training_flop
    modified = {"third_of_base": base / 3} if base else {}
    thresholds = {
        **modified,
        "third_of_general_purpose": GENERAL_PURPOSE / 3,
        "general_purpose": GENERAL_PURPOSE,
    }
    tokens = sum(counted.unknown.values())
    return {
        "title": "Scope",
        "note": _VOLUNTARY,
        "operations": {
            "training": counted.training,
            "teachers_answers": counted.answers,
            "teachers_readings": counted.readings,
            "total": counted.total,
            "total_is_least": bool(counted.unknown),
            "margin": MARGIN,
            "method": compute_method(facts),
            "teachers_of_unknown_size": dict(counted.unknown),
        },
        "thresholds": {
            name: {
                "operations": limit,
                "standing": standing(counted.total, limit, bool(counted.unknown)),
                # How large teachers of unknown size would have to be, all of one size, to reach it.
                "teacher_parameters_to_reach": max(
                    0, round((limit / (1 + MARGIN) - counted.total) / (2 * tokens))
                )
                if tokens
                else None,
            }
            for name, limit in thresholds.items()
        },
        "base_training_operations": base,
        "relief_for_open_source": _relief(facts),
        "missing": list(missing(facts)),
    }


def standing(total: float, limit: float, least: bool) -> Standing:
    """Where a count that may be off by the margin lies; `least` says that it is only the least."""
    if total * (1 - MARGIN) > limit:
        return "above"
    if least:
        return "not known"
    return "below" if total * (1 + MARGIN) < limit else "within the margin"


def compute_method(facts: Facts) -> str:
    said = (
        "6 operations for each parameter of the student and each token that went through it in training (2 "
        "more where it learnt from its own text); 2 for each parameter of a teacher and each token that it "
        "read or wrote for the answers that rows were chosen from, the dropped ones as well, or that it read "
        "in training. What was added to the base counts. Left out: the training of the base and of the "
        "teachers, answers for evaluation, failed runs."
    )
    unknown = compute(facts).unknown
    return (
        f"{said} Not counted, for their size is not known: {', '.join(sorted(unknown))}." if unknown else said
    )


def markdown(document: dict[str, Any]) -> str:
    """A document of this module to be read; the same fields in the same order."""
    parts = [f"# {text(document['title'])}", text(document["note"])]
    for section in document["sections"]:
        rows = [(text(each["field"]), _shown(each["value"])) for each in section["fields"]]
        parts += [f"## {section['section']} {text(section['title'])}", table(("field", "value"), rows)]
    if document["missing"]:
        parts += ["## Missing", "\n".join(f"- {text(one)}" for one in document["missing"])]
    return "\n\n".join(parts) + "\n"


def _document(title: str, facts: Facts, sections: Sequence[_Section]) -> dict[str, Any]:
    return {
        "title": title,
        "note": _VOLUNTARY,
        "sections": [
            {
                "section": number,
                "title": name,
                "fields": [{"field": field, "value": value} for field, value in fields],
            }
            for number, name, fields in sections
        ],
        "missing": list(missing(facts)),
    }


def _synthetic(facts: Facts) -> list[tuple[str, Any]]:
    taught = facts.teachers
    return [
        ("Made by or for the provider to train on the outputs of another model", "yes" if taught else "no"),
        ("Modality", "text"),
        ("General-purpose models on the market that were used, with their summaries", None),
        ("Models used, as far as recorded", [_teacher(facts, teacher) for teacher in taught]),
        ("What is known of the data that trained them", {t.model: t.lineage for t in taught}),
        (
            "Other questions to models in this run",
            [
                {"stage": use.stage, "model": use.model, "answers": use.exchanges}
                | {"tokens_read": use.prompt_tokens, "tokens_written": use.completion_tokens}
                for use in facts.uses
            ],
        ),
        (
            "Comments",
            "Which of these models are on the Union market is not recorded. Each answer is a leaf of the "
            "ledger that 3.3 names.",
        ),
    ]


def _teacher(facts: Facts, teacher: Teacher) -> dict[str, Any]:
    return {
        "model": teacher.model,
        "revision": teacher.revision,
        "access": teacher.access,
        "host": teacher.host,
        "modality": "text",
        "answers": teacher.exchanges,
        "rows": teacher.rows,
        "share_of_rows": round(teacher.rows / facts.samples.kept, 4) if facts.samples.kept else None,
        "tokens_read": teacher.prompt_tokens,
        "tokens_written": teacher.completion_tokens,
        "answers_without_counts": teacher.uncounted,
        "first_answer": teacher.times[0] if teacher.times else None,
        "last_answer": teacher.times[1] if teacher.times else None,
    }


def _relief(facts: Facts) -> dict[str, dict[str, str]]:
    limits = sorted({o.obligation.kind for t in facts.teachers for o in t.obligations} & _LIMITS)
    licence, why = "unknown", "no licence is recorded"
    if limits:
        licence, why = "no", f"a teacher's terms put limits on the student: {', '.join(limits)}"
    elif facts.licence in FREE_LICENCES:
        licence, why = "yes", f"{facts.licence} asks for no payment and limits neither use nor scale"
    elif facts.licence:
        why = f"{facts.licence} is not among the licences that are known here"
    said = {
        "licence_free_of_limits_on_use_scale_and_payment": (licence, why),
        "weights_public": ("unknown", "where the weights are put is not recorded"),
        "architecture_public": ("yes", "config.json and README.md in this folder, once it is public"),
        "information_on_use_public": ("yes", "README.md in this folder, once it is public"),
        "no_monetisation": ("unknown", "not recorded"),
        "no_systemic_risk": ("unknown", "the base's training is not known to be below 1e25 operations")
        if (facts.operator.base_training_flop or SYSTEMIC) + compute(facts).total >= SYSTEMIC
        else ("yes", "base and distillation together are below 1e25 operations"),
    }
    return {name: {"holds": holds, "why": why} for name, (holds, why) in said.items()}


def _size(facts: Facts) -> str:
    tokens = round(facts.training.tokens / facts.training.epochs) if facts.training.epochs else 0
    span = "less than 1 billion"
    if tokens >= 10**13:
        span = "more than 10 trillion"
    elif tokens >= 10**9:
        span = "1 billion to 10 trillion"
    return f"{span} tokens: {tokens:,}, counted by the student's tokenizer, each row once"


def _design(facts: Facts) -> dict[str, int | None]:
    student = facts.student
    return {"layers": student.layers, "width": student.width, "vocabulary": student.vocabulary}


def _context(facts: Facts) -> str | None:
    context = facts.student.context
    return None if context is None else f"text, at most {context} tokens of input and output together"


def _process(facts: Facts) -> str:
    training = facts.training
    return (
        f"objective {training.objective}, {training.steps} steps, {training.epochs:g} epochs, "
        f"{training.tokens} tokens, seed {training.seed}, {training.dtype}"
    )


def _curation(facts: Facts) -> dict[str, Any]:
    samples = facts.samples
    return {
        "answers": samples.answers,
        "kept": samples.kept,
        "dropped": dict(samples.dropped),
        "unscored": dict(samples.unscored),
    }


def _hub_link(source: str) -> str:
    return f"https://huggingface.co/datasets/{source.split(':')[1]}"


def _day(day: Any) -> str | None:
    return None if day is None else str(day)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{text(k)}: {_shown(v)}" for k, v in value.items()) or "none"
    if isinstance(value, list):
        return "<br>".join(map(_shown, value)) or "none"
    return text(value)
