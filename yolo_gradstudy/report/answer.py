# SPDX-License-Identifier: AGPL-3.0-or-later
"""A study's tables → the sentences that answer it: which safeguard carries how much.

Pure functions of tables. Nothing is said that an interval does not hold, and where nothing is decided that is said.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from yolo_gradstudy.records import Outcome
from yolo_gradstudy.tables import CONTROL, arm_order

MOST_NAMED = 3
"""Most arms that a sentence gives with their numbers; a table has all."""

LEVEL = 0.05


@dataclass(frozen=True)
class Answer:
    """What a study found.

    Attributes:
        sentences: What was found, the strongest first.
        control: What became of the control.
        caveats: What the numbers are not adjusted for, or lack.
        source: The table that has the numbers, by the name of its file without its ending.
    """

    sentences: tuple[str, ...]
    control: str
    caveats: tuple[str, ...] = ()
    source: str = ""


def answer(results: pd.DataFrame, tables: Mapping[str, pd.DataFrame]) -> Answer:
    """The answer of a study: of a search by its limits, of any other by its comparisons.

    Args:
        results: ``results_table``.
        tables: The tables that answer with intervals, by the names of their files.
    """
    if not any(Outcome(name).tells for name in results["outcome"]):
        return Answer(("No run has an outcome yet that says anything of stability.",), "")
    arms = arm_order(results["arm"])
    if CONTROL not in arms:
        told = f"The study has no arm “{CONTROL}”, so nothing is compared; what each arm came to stands below."
        return Answer((told,), "", source="outcomes")
    if "limit_ratios" in tables:
        return _of_search(tables["limit_ratios"], tables["limits"], len(arms) - 1)
    if len(arms) == 1:
        return Answer(
            ("The control is the study’s only arm: nothing was removed, and no safeguard is compared.",),
            describe_control(results),
            source="outcomes",
        )
    found = _of_grid(results, tables["comparisons"], tables["over_rates"])
    return _with_accuracy(found, _rows(tables["accuracy"]))


# A search ----------------------------------------------------------------------------------------------


def _of_search(ratios: pd.DataFrame, limits: pd.DataFrame, others: int) -> Answer:
    rows = _rows(ratios)
    own = next(row for row in rows if row["arm"] == CONTROL)
    control = _control_limit(own)
    compared = [row for row in rows if row["arm"] != CONTROL]
    if not compared:
        return Answer(("The control is the search’s only arm: no safeguard is compared.",), control, (), "limits")
    decided = sorted(filter(_is_decided, compared), key=lambda row: -abs(row["log2_ratio"]))
    unsure = [row for row in compared if not _is_decided(row)]
    sentences = []
    if decided:
        named = "; ".join(_ratio_words(row, n == 0) for n, row in enumerate(decided[:MOST_NAMED]))
        sentences.append(named[0].upper() + named[1:] + _more(decided) + ".")
    if unsure:
        sentences.append(_unsure_words(unsure, bool(decided)))
    caveats = []
    if others > 1 and decided:
        caveats.append(f"Intervals are of one arm each, not adjusted for the {others} arms that are compared.")
    edges = limits[limits["resolved"].notna()]
    if wide := int((~edges["resolved"].astype(bool) & (edges["n_excluded"] > 0)).sum()):
        caveats.append(
            f"{_count(wide, 'edge')} of {len(edges)} {_are(wide)} wider than a step of the grid, with a probe that "
            "says nothing: between the largest stable and the first broken rate it counts as not alive."
        )
    bounded = sum(row["n_bounded"] or 0 for row in compared)
    if bounded:
        caveats.append(
            f"{_count(bounded, 'pair')} of seeds {_are(bounded)} left out of the ratios, since a limit is only a bound."
        )
    return Answer(tuple(sentences), control, tuple(caveats), "limit_ratios")


def _is_decided(row: Mapping[str, Any]) -> bool:
    low, high = row["t_low"], row["t_high"]
    return low is not None and high is not None and (low > 0 or high < 0)


def _ratio_words(row: Mapping[str, Any], first: bool) -> str:
    less = row["log2_ratio"] < 0
    low, high = sorted(2 ** abs(row[name]) for name in ("t_low", "t_high"))
    lead = f"with {row['arm']} the largest learning rate at which training stays alive is" if first else row["arm"]
    factor = f"{2 ** abs(row['log2_ratio']):.3g} times {'smaller' if less else 'larger'}"
    of_what = " than the control’s" if first else ""
    student = ", Student’s t" if first else ""
    interval = f"95% interval {low:.3g} to {high:.3g} times{student}"
    return f"{lead} {factor}{of_what} (2^{abs(row['log2_ratio']):.1f}; {interval}; n = {_count(row['n'], 'seed')})"


def _unsure_words(rows: Sequence[Mapping[str, Any]], besides: bool) -> str:
    told = []
    for row in rows[:MOST_NAMED]:
        pairs = (row["n"] or 0) + (row["n_bounded"] or 0)
        if row["t_low"] is not None:
            told.append(
                f"{row['arm']} ({2 ** row['log2_ratio']:.3g} times the control’s, 95% interval {2 ** row['t_low']:.3g} "
                f"to {2 ** row['t_high']:.3g} times; n = {_count(row['n'], 'seed')})"
            )
        elif pairs:
            told.append(
                f"{row['arm']} (lower than the control’s in {row['losses']} and higher in {row['wins']} of "
                f"{_count(pairs, 'pair')}, too few for an interval)"
            )
        else:
            told.append(f"{row['arm']} (no pair of seeds yet)")
    if besides:
        return f"No difference from the control is decided for {_listed(told)}{_more(rows)}."
    return (
        "No arm’s largest stable learning rate differs from the control’s beyond chance at this n: "
        f"{_listed(told)}{_more(rows)}."
    )


def _control_limit(row: Mapping[str, Any]) -> str:
    if row["limit_median"] is None:
        return "Control: its largest stable learning rate is not known yet."
    bound = f"{row['median_bound']} " if row["median_bound"] else ""
    return (
        f"Control: it stays alive up to a learning rate of {bound}{row['limit_median']:g} "
        f"(median of n = {_count(row['n'], 'seed')})."
    )


# A grid ------------------------------------------------------------------------------------------------


def _of_grid(results: pd.DataFrame, comparisons: pd.DataFrame, over_rates: pd.DataFrame) -> Answer:
    control = describe_control(results)
    rows = [row for row in _rows(comparisons) if row["n"]]
    if not rows:
        told = "No arm has a run that can be paired with a run of the control yet."
        return Answer((told,), control, source="comparisons")
    if not any(row["discordant"] for row in rows):
        told = (
            f"No arm differs from the control: in each of the {_count(sum(row['n'] for row in rows), 'pair')} of runs "
            f"(same seed and learning rate, {_count(len(rows), 'comparison')}) both are healthy or both unhealthy."
        )
        return Answer((told,), control, _grid_caveats(rows), "comparisons")
    together = [row for row in _rows(over_rates) if row["p"] is not None]
    sentences = [*_over_rates(together), *_by_rate(rows, bool(together))]
    if not together:
        return Answer(tuple(sentences), control, _grid_caveats(rows), "comparisons")
    return Answer(tuple(sentences), control, (_TOGETHER, *_grid_caveats(rows)), "over_rates")


_TOGETHER = (
    "Over all learning rates pairs of one seed are not taken for independent: p is the larger of McNemar’s exact one "
    "over pairs and Student’s over seeds, and the interval the wider of both; it leaves out 0 only where both tests do."
)


def _over_rates(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is decided over all learning rates together; nothing where there is one rate or one seed."""
    if not rows:
        return []
    rates = {row["rates"] for row in rows}
    where = f"Over all {_count(rates.pop(), 'learning rate') if len(rates) == 1 else 'learning rates'} together"
    ranked = sorted(rows, key=lambda row: (row["p"], -abs(row["difference"])))
    decided = [row for row in ranked if row["p_holm"] < LEVEL]
    alone = [row for row in ranked if row["p"] < LEVEL <= row["p_holm"]]
    if decided:
        named = "; ".join(_together_words(row) for row in decided[:MOST_NAMED])
        verb = "changes" if len(decided) == 1 else "change"
        found = [f"{where} {_count(len(decided), 'arm')} {verb} the share of unhealthy runs beyond chance: {named}"]
        found[0] += f"{_more(decided)}."
    else:
        adjusted = f" after Holm over {rows[0]['family']} arms" if rows[0]["family"] > 1 else ""
        found = [f"{where} no arm differs from the control beyond chance{adjusted}."]
        if not alone:
            largest = max(rows, key=lambda row: (abs(row["difference"]), -row["p"]))
            found.append(f"The largest difference is that of {_together_words(largest)}.")
    if alone:
        named = "; ".join(_together_words(row, adjusted=False) for row in alone[:MOST_NAMED])
        more = " more" if decided else ""
        found.append(f"Not adjusted for their number, {_count(len(alone), 'arm')}{more} would: {named}{_more(alone)}.")
    return found


def _by_rate(rows: Sequence[Mapping[str, Any]], besides: bool) -> list[str]:
    """What is decided at single learning rates; besides what was said of all of them, no more than that."""
    decided = sorted((row for row in rows if row["p_holm"] < LEVEL), key=lambda row: (row["p_holm"], -row["n"]))
    if decided:
        named = "; ".join(_difference_words(row) for row in decided[:MOST_NAMED])
        one = "one arm changes" if len({row["arm"] for row in decided}) == 1 else "arms change"
        lead = f"At single learning rates {one}" if besides else f"{one[0].upper()}{one[1:]}"
        found = [f"{lead} the share of unhealthy runs beyond chance: {named}{_more(decided)}."]
        return found if besides else [*found, *filter(None, [_rest_words(rows, decided)])]
    lead = "At a single learning rate no arm differs" if besides else "No arm differs"
    arms = arm_order(row["arm"] for row in rows)
    largest = max(rows, key=lambda row: (abs(row["difference"]), -row["p"], -arms.index(row["arm"])))
    return [
        f"{lead} from the control beyond chance at this n{_reach(rows)}.",
        f"The largest difference {'there ' if besides else ''}is that of {_difference_words(largest)}.",
    ]


def _with_accuracy(found: Answer, rows: Sequence[Mapping[str, Any]]) -> Answer:
    """What mAP says besides where it is an endpoint, or why it is none."""
    own = [row for row in rows if row["arm"] == CONTROL and row["map50_95"] is not None]
    if not own or not any(row["n"] > row["n_broken"] for row in own):  # validation was off
        return found
    best = max(own, key=lambda row: row["map50_95"])
    if best["reason"]:
        return replace(found, caveats=(*found.caveats, f"mAP is no endpoint here: {best['reason']}."))
    interval = f" (95% interval {best['low']:.2f} to {best['high']:.2f})" if best["low"] is not None else ""
    control = (
        f"{found.control} Its mAP50-95 at the end is {best['map50_95']:.2f}{interval} at the best of its rates, "
        f"{best['lr0']:g}; n = {_count(best['n'], 'run')}."
    )
    compared = [row for row in rows if row["difference_low"] is not None]
    if not compared:
        return replace(found, control=control)
    decided = [row for row in compared if row["difference_low"] > 0 or row["difference_high"] < 0]
    decided.sort(key=lambda row: -abs(row["difference"]))
    named = [_accuracy_words(row) for row in decided[:MOST_NAMED]]
    if named:
        told = f"mAP50-95 differs from the control’s at the same rate: {'; '.join(named)}{_more(decided)}."
    else:
        largest = max(compared, key=lambda row: abs(row["difference"]))
        told = (
            f"No difference of mAP50-95 is decided at this n; the largest of {_count(len(compared), 'comparison')} is "
            f"{_accuracy_words(largest)}."
        )
    caveat = f"Intervals of mAP50-95 are Student’s 95%, not adjusted for {_count(len(compared), 'comparison')}."
    return replace(found, control=control, sentences=(*found.sentences, told), caveats=(*found.caveats, caveat))


def _accuracy_words(row: Mapping[str, Any]) -> str:
    broken = f", {row['n_broken']} of {row['n']} broke" if row["n_broken"] else ""
    return (
        f"{row['arm']} at lr0 {row['lr0']:g} {signed(row['difference'], 2)} ({signed(row['difference_low'], 2)} to "
        f"{signed(row['difference_high'], 2)}, n = {_count(row['n_pairs'], 'pair')}{broken})"
    )


def _difference_words(row: Mapping[str, Any]) -> str:
    """Of an arm at one learning rate."""
    holm = f", {row['p_holm']:.2g} after Holm over {row['family']} comparisons" if row["family"] > 1 else ""
    return (
        f"{row['arm']} at lr0 {row['lr0']:g}: {_shares(row)} (95% interval {_interval(row)}, Tango; McNemar’s exact "
        f"p = {row['p']:.2g}{holm}; n = {_count(row['n'], 'pair')})"
    )


def _together_words(row: Mapping[str, Any], adjusted: bool = True) -> str:
    """Of an arm over all learning rates."""
    holm = f", {row['p_holm']:.2g} after Holm over {row['family']} arms" if adjusted and row["family"] > 1 else ""
    return (
        f"{row['arm']}: {_shares(row)} (95% interval {_interval(row)}; p = {row['p']:.2g}{holm}; n = "
        f"{_count(row['n'], 'pair')} of {_count(row['seeds'], 'seed')})"
    )


def _shares(row: Mapping[str, Any]) -> str:
    own, others = row["both"] + row["only_arm"], row["both"] + row["only_control"]
    return (
        f"unhealthy in {own} of {row['n']} runs, the control in {others} of {row['n']}, a difference of "
        f"{percent(row['difference'])}"
    )


def _interval(row: Mapping[str, Any]) -> str:
    return f"{percent(row['difference_low'])} to {percent(row['difference_high'])}"


def percent(share: float) -> str:
    """A difference of shares with its sign, rounded: ``+12%``, ``−30%``, ``0%``."""
    return f"{signed(100 * share, 0)}%"


def signed(value: float, digits: int = 1) -> str:
    """A number with its sign, a proper minus, and no sign where it is 0 as written."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def _reach(rows: Sequence[Mapping[str, Any]]) -> str:
    """Why no p could be small, where none could."""
    most = max(row["n"] for row in rows)
    needs = rows[0]["needs"]
    if most >= needs:
        return ""
    return f": a p below {LEVEL:g} takes {needs} pairs that differ, and no comparison has more than {most}"


def _rest_words(rows: Sequence[Mapping[str, Any]], decided: Sequence[Mapping[str, Any]]) -> str:
    rest = arm_order(row["arm"] for row in rows)
    of_decided = {row["arm"] for row in decided}
    rest = [arm for arm in rest if arm not in of_decided]
    if not rest:
        return ""
    return f"Not decided at this n: {_listed(rest[:MOST_NAMED])}{_more(rest)}."


def _grid_caveats(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    excluded = sum(row["n_excluded"] for row in rows)
    if not excluded:
        return ()
    told = "failed, interrupted or unknown, or with such a run of the control"
    return (f"{_count(excluded, 'run')} {_are(excluded)} left out of the comparisons: {told}.",)


def describe_control(results: pd.DataFrame) -> str:
    """How often the control was unhealthy, by learning rate."""
    own = results[results["arm"] == CONTROL]
    rows = [
        (float(lr0), [Outcome(name) for name in own.loc[own["lr0"] == lr0, "outcome"]])
        for lr0 in sorted(own["lr0"].unique())
    ]
    told = [(lr0, [outcome for outcome in found if outcome.tells]) for lr0, found in rows]
    n = sum(len(found) for _, found in told)
    if not n:
        return "Control: none of its runs says anything of stability yet."
    unhealthy = sum(outcome.unhealthy for _, found in told for outcome in found)
    told = [(lr0, found) for lr0, found in told if found]
    by_rate = [f"{sum(outcome.unhealthy for outcome in found)} of {len(found)} at lr0 {lr0:g}" for lr0, found in told]
    more = f": {', '.join(by_rate)}" if len(by_rate) > 1 else f", at lr0 {told[0][0]:g}"
    return f"Control: unhealthy in {unhealthy} of {_count(n, 'run')}{more}."


# Words -------------------------------------------------------------------------------------------------


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as dicts, None where missing."""
    return [
        {str(key): None if _is_missing(value) else value for key, value in row.items()}
        for row in frame.astype("object").to_dict("records")
    ]


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def _listed(words: Iterable[str]) -> str:
    *some, last = words
    return f"{', '.join(some)} and {last}" if some else last


def _more(rows: Sequence[object]) -> str:
    left = len(rows) - MOST_NAMED
    return f", and {left} more in the table" if left > 0 else ""
