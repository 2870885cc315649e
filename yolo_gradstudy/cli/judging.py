# SPDX-License-Identifier: AGPL-3.0-or-later
"""The command that judges a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from yolo_gradstudy.cli.words import errors, in_words, tell
from yolo_gradstudy.records import Diagnosis, Finding

if TYPE_CHECKING:
    from yolo_gradstudy.diagnoses import SideBySide
    from yolo_gradstudy.run_folder import RecordedRun

HEALTHY, UNHEALTHY, CANNOT_TELL = 0, 1, 2
"""Exit status of ``gradstudy diagnose``."""


def diagnose(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder or an Ultralytics save_dir.")],
    other: Annotated[Path | None, typer.Argument(metavar="[OTHER]", help="A second run, to put beside it.")] = None,
    control: Annotated[Path | None, typer.Option(help="A healthy run to compare with.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The diagnosis as JSON.")] = False,
    replay: Annotated[bool, typer.Option(help="Replay the steps that incidents saved, first.")] = False,
) -> None:
    """Judge a run: exit status 0 for a healthy one, 1 for an unhealthy one, 2 where it can't be told."""
    with errors():
        from yolo_gradstudy.diagnoses import compare_runs
        from yolo_gradstudy.diagnoses import diagnose as judge
        from yolo_gradstudy.readings import control_of
        from yolo_gradstudy.run_folder import load_run

        loaded = load_run(folder)
        if replay:
            from yolo_gradstudy.trainer import replay_incidents

            replay_incidents(folder)
        paired = load_run(control) if control is not None else control_of(loaded)
        verdict = judge(loaded, paired)
        beside, second = None, None
        if other is not None:
            second = load_run(other)
            beside = compare_runs(loaded, second)
            outcome = judge(second, control_of(second)).outcome
        asked = other is not None or verdict.outcome.unhealthy
        nearest = _nearest_healthy(loaded) if asked else None
        damaged = [*loaded.damaged, *(second.damaged if second is not None else ())]
    if as_json:
        words: dict[str, Any] = {
            "run": str(folder),
            **verdict.to_dict(),
            "damaged": damaged,
            "nearest_healthy": nearest,
        }
        words["side_by_side"] = None
        if beside is not None:
            words["side_by_side"] = {"other": str(other), "outcome": str(outcome), **beside.to_dict()}
        print(json.dumps(words, indent=2))
    else:
        print_diagnosis(str(folder), verdict)
        for incident in loaded.incidents:
            _print_incident(incident)
        if beside is not None:
            _print_side_by_side(beside, f"{other}: {outcome}")
        if nearest is not None:
            print(f"  nearest healthy run: {nearest['run']}, with {_differences(nearest['differences'])}")
        for sentence in damaged:
            print(f"damaged: {sentence}")
    raise typer.Exit(HEALTHY if verdict.outcome.healthy else UNHEALTHY if verdict.outcome.unhealthy else CANNOT_TELL)


def _print_incident(incident: Mapping[str, Any]) -> None:
    """A line on where an incident began."""
    cause = incident.get("cause", {})
    where = cause.get("parameter") or cause.get("module") or ""
    told = f"{cause['what']} {where}".strip() if cause.get("what", "unknown") != "unknown" else "where is not known"
    found = f"{cause.get('found_by')}, {cause.get('certainty')}: {cause.get('evidence')}"
    print(f"  incident {incident['incident']}, {incident['kind']} at step {incident['step']}: {told} ({found})")


def _nearest_healthy(run: RecordedRun) -> dict[str, Any] | None:
    """The healthy run of the same study that differs least, and in what; None where there is none."""
    from yolo_gradstudy.diagnoses import StudyJudge, differences_of_specs, nearest_first
    from yolo_gradstudy.readings import control_of
    from yolo_gradstudy.run_folder import StudyFolder

    study = StudyFolder(run.path.resolve().parent.parent)
    if run.spec is None or not study.plan_path.is_file():
        return None
    plan, judge = study.read_plan(), StudyJudge()
    for spec in nearest_first(run.spec, plan):
        candidate = study.run(spec.run_id).load()
        try:
            if candidate is None or not judge(candidate, candidate.result, control_of(candidate, plan)).outcome.healthy:
                continue
        except ValueError:  # a damaged file of another run
            continue
        found = differences_of_specs(run.spec, spec)
        return {"run": spec.run_id, "differences": {name: list(values) for name, values in found.items()}}
    return None


def _differences(found: Mapping[str, Sequence[Any]]) -> str:
    def word(value: Any) -> str:
        if isinstance(value, list | tuple):
            return "+".join(map(str, value)) or "none"
        return "not set" if value is None else str(value)

    return ", ".join(f"{name} {word(there)} instead of {word(here)}" for name, (here, there) in found.items()) or "–"


_MARKS: dict[str, Callable[[Finding], str]] = {
    "matched": lambda f: f"[b]{f.rule}[/b]",
    "not matched": lambda f: f"no {f.rule}",
    "not checked": lambda f: f"[i]{f.rule} not checked[/i]",
}


def print_diagnosis(name: str, verdict: Diagnosis) -> None:
    """The outcome, a line a finding that says something, and the advice."""
    where = f", from step {verdict.onset_step}" if verdict.onset_step is not None else ""
    layer = f" in {verdict.onset_layer}" if verdict.onset_layer else ""
    so_far = f" (so far: {verdict.so_far})" if verdict.so_far is not None else ""
    tell(f"{escape(name)}: [b]{verdict.outcome}[/b]{so_far}{where}{layer}")
    if len(verdict.onset_layers) > 1:
        more = f" and {len(verdict.onset_layers) - 5} more" if len(verdict.onset_layers) > 5 else ""
        tell(f"  layers left their bands in this order: {', '.join(verdict.onset_layers[:5])}{more}")
    quiet: dict[str, list[str]] = {}
    for finding in verdict.findings:
        if finding.explains and finding.state != "matched":
            quiet.setdefault(finding.state, []).append(finding.rule)
        else:
            tell(f"  {_MARKS[finding.state](finding)}: {escape(finding.evidence)}")
    for state, rules in quiet.items():
        tell(f"  {state}: {', '.join(rules)}")
    for advice in verdict.advice:
        arguments = f" ({in_words(advice.arguments)})" if advice.arguments else ""
        tell(f"  advice: {escape(advice.text)}{escape(arguments)}")


def _print_side_by_side(beside: SideBySide, name: str) -> None:
    tell(f"beside {escape(name)}; {beside.common_steps} steps are in both")
    for words, parting in (("part", beside.parted), ("are a factor of 2 apart", beside.far_apart)):
        if parting is None:
            tell(f"  they never {words}")
        else:
            here, there = parting.values
            tell(f"  they {words} at step {parting.step}: {parting.quantity} {here:.6g} here, {there:.6g} there")
    if beside.layers_step is not None:
        more = f" and {len(beside.layers) - 5} more" if len(beside.layers) > 5 else ""
        tell(f"  the layers part first at step {beside.layers_step}: {', '.join(beside.layers[:5])}{more}")
    tell(f"  arguments: {escape(_differences(beside.arguments))}")
    if beside.ablations[0] != beside.ablations[1]:
        ours, theirs = (", ".join(names) or "none" for names in beside.ablations)
        tell(f"  ablations: {escape(ours)} here, {escape(theirs)} there")
