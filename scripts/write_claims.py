# SPDX-License-Identifier: AGPL-3.0-or-later
"""Write docs/claims.md from the committed results: every claim with the experiments that test it.

    python scripts/write_claims.py            (write)
    python scripts/write_claims.py --check    (exit status 1 where the page is not up to date)

No number on the page is typed: all are computed from results/*/results.csv, the flow of runs in results/*/runs, and
results/signal, which `python scripts/measure_signal.py` writes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from results_card import Card

from yolo_gradstudy.report.claims import VERDICT_RULES, Claim, Evidence, Experiment, flow_frame, judge_claims
from yolo_gradstudy.run_folder import StudyFolder

ROOT = Path(__file__).resolve().parent.parent

STUDIES = ("stabilisation-cpu", "accuracy-shapes-cpu", "limit-coco-cpu")
"""Studies that are asked of every claim, where they are there and complete."""

_OTHER_MODEL = (frozenset({3, 4, 6, 11}), "since the others name YOLO26n, or take arms or a length that it lacks")

ASKED = {
    "yolov8n-cpu": _OTHER_MODEL,
    "yolo11n-cpu": _OTHER_MODEL,
    "coco128-cpu": (frozenset({2}), "since it shares arms, seeds and rates with another study"),
}
"""Studies that are asked of some claims, and why of no other. In ``coco128-cpu`` nearly the same pairs as in another
study would count twice; but in it no guard ended a run before its loss could become NaN."""

FAMILIES = {
    "depth": "depth", "told_apart": "depth", "residuals": "residuals", "variance": "initialisations",
    "activations": "initialisations", "loss_scale": "loss_scale", "quadratics": "quadratics",
    "batchnorm": "batchnorm", "landscape": "landscapes", "yolo26n": "detectors",
}  # fmt: skip
"""What ``measure_signal.py`` calls the family that writes each table."""

LEVEL = 0.05


def chosen_studies(results: Path) -> list[str]:
    """The studies that the page rests on."""
    return [name for name in (*STUDIES, *ASKED) if (results / name / "results.csv").is_file()]


def signal_evidence(results: Path) -> Evidence:
    """What networks that are not trained say."""
    found = {name: results / "signal" / f"{name}.csv" for name in FAMILIES}
    return Evidence(signal={name: pd.read_csv(path) for name, path in found.items() if path.is_file()})


def study_evidence(path: Path, card: Card) -> Evidence:
    """What a study says, of which its card has been read."""
    folder = StudyFolder(path)
    tables = card.answers if card.searched else {}
    asked = ASKED[path.name][0] if path.name in ASKED else None
    # What flow says is told of YOLO26n by name.
    of_yolo26n = Path(str(card.study["model"])).stem == "yolo26n"
    flow = flow_frame((s, folder.run(s.run_id).load()) for s in folder.read_plan()) if of_yolo26n else None
    pool = "" if card.searched else str(card.study["data"])
    return Evidence(card.table, tables, flow, name=path.name, pool=pool, asked=asked)


def page(results: Path) -> str:
    """The text of docs/claims.md."""
    studies = chosen_studies(results)
    cards = [card for name in studies if (card := Card.read(results / name)).is_complete]
    evidences = [signal_evidence(results), *(study_evidence(results / card.name, card) for card in cards)]
    claims = judge_claims(*evidences)
    intervals = sum(len(claim.deciding) for claim in claims)
    level = 1 - LEVEL / max(intervals, 1)
    parts = [_HEAD, _sources(cards), _rules(intervals, level), _summary(claims, level)]
    return "\n".join([*parts, *(_claim(claim, level, studies) for claim in claims)]) + "\n"


_HEAD = """<!-- SPDX-License-Identifier: AGPL-3.0-or-later -->
<!-- Written by `python scripts/write_claims.py` from results/; a change by hand is lost. -->
# Claims

What people hold to be true of exploding gradients and of the safeguards against them, each with the experiments that
test it. Every number here is computed from files in `results/`.
"""


def _sources(cards: Sequence[Card]) -> str:
    lines = [
        "| source | what it is | made by |\n|---|---|---|",
        "| `results/signal` | networks that are not trained, 5 seeds each, measured by the recorder; one CPU thread | "
        "`python scripts/measure_signal.py` |",
    ]
    for card in cards:
        what = f"{len(card.table)} trainings: {card.scale}; {card.design}; {card.machine}"
        if card.name in ASKED:
            asked, reason = ASKED[card.name]
            numbers = ", ".join(map(str, sorted(asked)))
            what += f". Asked of claim{'s' if len(asked) > 1 else ''} {numbers} only, {reason}"
        lines.append(f"| `results/{card.name}` | {what} | `{card.command}` |")
    return "\n".join(lines) + "\n"


def _rules(intervals: int, level: float) -> str:
    rows = "\n".join(f"| {what} | {when} |" for what, when in VERDICT_RULES)
    return f"""## How a verdict is given

| what is said | when |
|---|---|
{rows}

Verdicts are by 95% intervals, each experiment for itself. The column *adjusted* gives them by intervals of
{level:.3%}, which is Bonferroni’s adjustment for all {intervals} intervals on this page that decide: by these, the
chance that any verdict is due to chance alone is at most {LEVEL:.0%}, as far as intervals of so few seeds hold what
they promise. Experiments that stand beside a claim, in brackets, explain and decide nothing. Pairs of several studies
together are among those that each has by itself. “Not decided” is always at this scale: few seeds, small images,
hundreds of steps.
"""


def _summary(claims: Sequence[Claim], level: float) -> str:
    rows = "\n".join(
        f"| [{claim.number}](#claim-{claim.number}) | {claim.text} | **{claim.verdict}** | {claim.judge(level)} | "
        f"{claim.tally or 'none'} |"
        for claim in claims
    )
    return f"""## All of them

| | claim | verdict | adjusted | experiments that decide |
|---|---|---|---|---|
{rows}
"""


def _claim(claim: Claim, level: float, studies: Sequence[str]) -> str:
    parts = [f'## <a id="claim-{claim.number}"></a>{claim.number}. {claim.text}', _answer(claim, level)]
    if claim.experiments:
        parts.append(_table(claim, level))
    if claim.beyond:
        told = "\n".join(f"- {sentence}" for sentence in claim.beyond)
        parts.append(f"More interesting than the claim:\n\n{told}")
    if claim.experiments:
        parts.append(f"```sh\n{_commands(claim, studies)}\n```")
    return "\n\n".join(parts) + "\n"


def _answer(claim: Claim, level: float) -> str:
    if not claim.experiments:
        return "**Not tested**: no result here has the arm that it takes."
    words = f"**{claim.verdict.capitalize()}**: of the experiments that decide, {claim.tally}."
    if claim.judge(level) != claim.verdict:
        words += f" After adjustment it is {claim.judge(level)}."
    for verdict, lead in (("supported", "For it"), ("contradicted", "Against it"), ("not decided", "Undecided")):
        told = [_briefly(one) for one in claim.deciding if one.verdict == verdict]
        if told:
            words += f" {lead}: {'; '.join(told)}."
    return words


def _briefly(one: Experiment) -> str:
    return f"{one.what}, {one.quantity} {one.point} ({one.interval}; n = {one.n})"


def _table(claim: Claim, level: float) -> str:
    rows = []
    for one in claim.experiments:
        verdict, adjusted = one.verdict, one.judge(level)
        if not one.decides:
            verdict, adjusted = f"({verdict})", f"({adjusted})"  # type: ignore[assignment]
        cells = [
            f"{one.what}{f'; {one.note}' if one.note else ''}", one.quantity, one.n, one.point,
            f"{one.interval} ({one.estimate.method})", one.claimed, verdict, adjusted, _file(one),
        ]  # fmt: skip
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    head = "| experiment | measured | n | estimate | 95% interval | claimed | verdict | adjusted | numbers |"
    return "\n".join([head, "|---" * 9 + "|", *rows])


def _file(one: Experiment) -> str:
    """Where its numbers lie below ``results``, as code."""
    if one.table in FAMILIES:
        return f"`signal/{one.table}.csv`"
    study = one.what.rpartition("(")[2].rstrip(")")
    if "," in study:
        return f"`{one.table}.csv` of each"
    path = {"results": "results.csv", "limits": "report/limits.csv"}.get(one.table, "runs")
    return f"`{study}/{path}`"


def _commands(claim: Claim, studies: Sequence[str]) -> str:
    families = list(dict.fromkeys(FAMILIES[one.table] for one in claim.experiments if one.table in FAMILIES))
    lines = [f"python scripts/measure_signal.py {' '.join(families)}"] if families else []
    used = [name for name in studies if any(f"({name})" in one.what for one in claim.experiments)]
    lines += [f"gradstudy report results/{name}" for name in used]
    return "\n".join([*lines, "python scripts/write_claims.py"])


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, say whether the page is up to date")
    words = parser.parse_args()
    path = ROOT / "docs" / "claims.md"
    text = page(ROOT / "results")
    if words.check:
        return int(not path.is_file() or path.read_text() != text)
    path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
