# SPDX-License-Identifier: AGPL-3.0-or-later
"""What people hold to be true of training's safeguards, and what tables say of it.

``experiments`` says what a verdict rests on, ``training`` reads a study's outcomes, ``flow`` what its layers did,
``signals`` the tables of ``results/signal``; ``table`` has the claims. To add one, add a ``Question`` to ``CLAIMS``.
"""

from yolo_gradstudy.report.claims.experiments import (
    Claim,
    Estimate,
    Evidence,
    Experiment,
    Mean,
    Share,
)
from yolo_gradstudy.report.claims.flow import flow_frame
from yolo_gradstudy.report.claims.rules import VERDICT_RULES, verdict_rule
from yolo_gradstudy.report.claims.table import CLAIMS, judge_claims

__all__ = [
    "CLAIMS",
    "VERDICT_RULES",
    "Claim",
    "Estimate",
    "Evidence",
    "Experiment",
    "Mean",
    "Share",
    "flow_frame",
    "judge_claims",
    "verdict_rule",
]
