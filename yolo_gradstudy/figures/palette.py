# SPDX-License-Identifier: AGPL-3.0-or-later
"""The same colour, letter and line for the same thing in every figure; safe for colour-blind eyes.

Colours are those of Okabe and Ito, "Color Universal Design" (2008).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from yolo_gradstudy.records import Outcome

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY = "#8A8A8A"

NONFINITE = VERMILLION
"""NaN and infinity, wherever they are drawn."""

CONTROL = "control"


@dataclass(frozen=True)
class OutcomeStyle:
    """How an outcome is drawn.

    Attributes:
        colour: Fill.
        letter: What says the same without colour.
        ink: Colour of the letter on the fill.
    """

    colour: str
    letter: str
    ink: str = BLACK


OUTCOMES: dict[Outcome, OutcomeStyle] = {
    Outcome.STABLE: OutcomeStyle(GREEN, "S"),
    Outcome.RECOVERED: OutcomeStyle(SKY, "R"),
    Outcome.STUCK: OutcomeStyle(YELLOW, "K"),
    Outcome.COLLAPSED: OutcomeStyle(ORANGE, "C"),
    Outcome.EXPLODED: OutcomeStyle(PURPLE, "X"),
    Outcome.NONFINITE: OutcomeStyle(NONFINITE, "N"),
    Outcome.FAILED: OutcomeStyle("#6E6E6E", "F", "#FFFFFF"),
    Outcome.INTERRUPTED: OutcomeStyle("#DCDCDC", "I"),
    Outcome.UNKNOWN: OutcomeStyle("#FFFFFF", "?"),
}
"""Every outcome, the healthy first."""


@dataclass(frozen=True)
class ArmStyle:
    """How an arm is drawn: colour, line and marker each tell it from its neighbours."""

    colour: str
    line: Any
    marker: str


_ARM_COLOURS = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY)
_ARM_LINES = ("-", "--", "-.", ":")
_ARM_MARKERS = ("s", "^", "D", "v", "P", "X", "<", ">")


def arm_styles(arms: Iterable[str]) -> dict[str, ArmStyle]:
    """The style of each arm, from its place among all of the study's arms; the control is black.

    Args:
        arms: All arms of the study in plan order, so that an arm looks the same in each of its figures.
    """
    others = [arm for arm in dict.fromkeys(arms) if arm != CONTROL]
    styles = {CONTROL: ArmStyle(BLACK, "-", "o")}
    for place, arm in enumerate(others):
        styles[arm] = ArmStyle(
            _ARM_COLOURS[place % len(_ARM_COLOURS)],
            _ARM_LINES[place // len(_ARM_COLOURS) % len(_ARM_LINES)],
            _ARM_MARKERS[place % len(_ARM_MARKERS)],
        )
    return styles
