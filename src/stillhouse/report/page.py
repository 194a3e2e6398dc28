"""The page, from top to bottom."""

from __future__ import annotations

from stillhouse.report.cascaded import cascaded
from stillhouse.report.changed import changed
from stillhouse.report.cost import cost
from stillhouse.report.further import further
from stillhouse.report.layout import document
from stillhouse.report.limits import limits
from stillhouse.report.markup import tag
from stillhouse.report.provenance import provenance
from stillhouse.report.quality import against_cost, families, headline, loss_curves, verdict
from stillhouse.report.read import Facts
from stillhouse.report.rows import answers, funnel
from stillhouse.report.worth import judged, worth

_SECTIONS = (
    ("quality", "Quality"),
    ("families", "Families"),
    ("cascade", "Cascade"),
    ("further", "Other students"),
    ("changed", "Changes"),
    ("judge", "Judge"),
    ("loss", "Loss"),
    ("rows", "Rows"),
    ("answers", "Answers"),
    ("worth", "Worth"),
    ("cost", "Cost"),
    ("provenance", "Provenance"),
    ("limits", "Limits"),
)


def render(facts: Facts, shown: int) -> str:
    """The whole page with at most `shown` answers side by side. The same facts give the same bytes."""
    optional = {"cascade": cascaded(facts), "further": further(facts), "judge": judged(facts)}
    links = [tag("a", words, href=f"#{name}") for name, words in _SECTIONS if optional.get(name, True)]
    body = tag(
        "body",
        tag("a", "Skip to the verdict", href="#main", class_="skip"),
        tag(
            "main",
            verdict(facts),
            tag("nav", links, aria_label="Sections"),
            against_cost(facts),
            families(facts, shown),
            optional["cascade"],
            optional["further"],
            changed(facts),
            optional["judge"],
            loss_curves(facts),
            funnel(facts),
            answers(facts, shown),
            worth(facts),
            cost(facts),
            provenance(facts),
            limits(facts),
            id="main",
        ),
        tag("footer", "Made by stillhouse from the files of the run folder; no script, nothing loaded."),
    )
    return document(f"{facts.name}: {headline(facts)}", body)
