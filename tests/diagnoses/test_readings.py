# SPDX-License-Identifier: AGPL-3.0-or-later
"""Runs that are not whole: an Ultralytics folder that nothing recorded, an earlier version's, no detector's."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.diagnoses.cases import epochs, from_step, make_run, plain_run, with_
from yolo_gradstudy.diagnoses import diagnose
from yolo_gradstudy.records import Outcome
from yolo_gradstudy.run_folder import load_run

COMMITTED = Path(__file__).resolve().parents[2] / "results" / "coco128-cpu"
RISING = list(np.linspace(0.0, 0.4, 10))
LOST = [*RISING[:6], 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("columns", "outcome", "says"),
    [
        ({"scores": RISING}, Outcome.STABLE, "mAP50-95 0.4 at the end"),
        ({"scores": [0.0] * 10}, Outcome.UNKNOWN, "never passed 0"),
        ({"scores": LOST}, Outcome.COLLAPSED, "in epoch 6, and 0 in the last"),
        ({"losses": [4.0] * 10}, Outcome.UNKNOWN, "no mAP was recorded"),
        ({"scores": RISING, "losses": [4.0] * 8 + [math.nan] * 2}, Outcome.NONFINITE, "from epoch 9 on"),
        ({"scores": RISING, "losses": [4.0, math.nan] + [4.0] * 8}, Outcome.RECOVERED, "spiked in epoch 2"),
        ({"scores": RISING, "losses": [4.0] * 9 + [400.0]}, Outcome.EXPLODED, "over 10 times"),
        ({"scores": [0.0] * 10, "losses": [4.0, 400.0] + [4.0] * 8}, Outcome.UNKNOWN, "no mAP shows that it came back"),
    ],
)
def test_plain_folder(columns, outcome, says):
    verdict = diagnose(plain_run(**columns))
    assert verdict.outcome is outcome, verdict.evidence
    assert says in verdict.evidence
    assert verdict.onset_step is None
    assert {f.state for f in verdict.findings if f.explains} <= {"not checked", "not matched"}
    if outcome in (Outcome.NONFINITE, Outcome.EXPLODED, Outcome.COLLAPSED):
        assert dict(verdict.advice[0].arguments) == {"lr0": pytest.approx(0.03)}


@pytest.mark.parametrize(
    ("planned", "patience", "outcome"),
    [(10, 0, Outcome.STABLE), (100, 0, Outcome.INTERRUPTED), (100, 5, Outcome.STABLE), (None, 0, Outcome.STABLE)],
)
def test_plain_folder_that_ends_early(planned, patience, outcome):
    run = plain_run(scores=RISING)
    run.arguments = {"patience": patience} | ({"epochs": planned} if planned else {})
    verdict = diagnose(run)
    assert verdict.outcome is outcome
    assert verdict.so_far is (Outcome.STABLE if outcome is Outcome.INTERRUPTED else None)


def test_a_run_whose_end_is_lost_is_not_judged_by_what_is_left():
    """A dead run's first half looks healthy: a damaged last part must not make it so."""
    half = make_run(steps=30)
    for event, told in ((60, "steps 31 to 60"), (30, None)):
        half.events[:] = [{"event": "started", "step": 0}, {"event": "finished", "step": event}]
        verdict = diagnose(half)
        assert (verdict.outcome is Outcome.UNKNOWN) == (told is not None)
        assert told is None or told in verdict.evidence
    half.meta["record"] = {"every": 10}
    half.events[-1]["step"] = 39
    assert diagnose(half).outcome is Outcome.STABLE


def test_plain_folder_beside_one_that_learned():
    low = plain_run(scores=[0.0] * 10)
    low.arguments["lr0"] = 1e-6
    verdict = diagnose(low, plain_run(scores=RISING))
    assert verdict.outcome is Outcome.STUCK
    assert dict(verdict.advice[0].arguments) == {"lr0": 0.1}
    early = plain_run(scores=[0.0])  # after one epoch the control had learned nothing either
    assert diagnose(early, plain_run(scores=RISING)).outcome is Outcome.INTERRUPTED
    assert diagnose(low, plain_run(scores=[0.0] * 10)).outcome is Outcome.UNKNOWN


def test_plain_folder_that_ended_with_nan_was_not_interrupted():
    run = plain_run(losses=[4.0] * 9 + [math.nan])
    run.arguments["epochs"] = 100
    assert diagnose(run).outcome is Outcome.NONFINITE


def write_folder(path, rows, arguments="epochs: 10\n"):
    path.mkdir(parents=True)
    frame = epochs(scores=rows).reset_index()
    frame.columns = [f"  {c}" for c in frame.columns]  # as Ultralytics pads them
    (path / "results.csv").write_text(frame.to_csv(index=False))
    if arguments is not None:
        (path / "args.yaml").write_text(arguments)
    return path


def test_plain_folder_is_read_from_disk(tmp_path):
    run = load_run(write_folder(tmp_path / "a", RISING))
    assert run.arguments == {"epochs": 10}
    assert diagnose(run).outcome is Outcome.STABLE
    broken = load_run(write_folder(tmp_path / "b", RISING, "epochs: [10\n"))
    assert diagnose(broken).outcome is Outcome.STABLE
    assert "args.yaml can't be read" in broken.damaged[0]
    assert diagnose(load_run(write_folder(tmp_path / "c", RISING, "- a list\n"))).outcome is Outcome.STABLE
    assert diagnose(load_run(write_folder(tmp_path / "d", RISING, None))).outcome is Outcome.STABLE


def test_results_of_a_study_are_no_run(tmp_path):
    (tmp_path / "results.csv").write_text("run_id,arm\na,b\n")
    with pytest.raises(ValueError, match="no telemetry"):
        load_run(tmp_path)
    (tmp_path / "results.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="no telemetry"):
        load_run(tmp_path)


def no_detector(**columns):
    """What `GradRecorder` leaves of any network."""
    nothing = dict.fromkeys(("boxes", "target_scores_one2many", "target_scores_one2one"))
    run = make_run(branches=(), **nothing, **columns)
    run.meta = {"parameters": [], "groups": ["0"]}
    return run


@pytest.mark.parametrize(
    ("columns", "outcome", "onset"),
    [
        ({}, Outcome.UNKNOWN, None),
        ({"loss": from_step(50, math.nan, 150.0)}, Outcome.NONFINITE, 50),
        ({"loss": from_step(50, 1e6, 150.0)}, Outcome.EXPLODED, 50),
        ({"loss": None}, Outcome.UNKNOWN, None),
        ({"loss": -np.arange(60.0)}, Outcome.UNKNOWN, None),  # a likelihood may be negative
    ],
)
def test_network_that_is_no_detector(columns, outcome, onset):
    verdict = diagnose(no_detector(**columns))
    assert (verdict.outcome, verdict.onset_step) == (outcome, onset)
    assert not verdict.outcome.healthy
    if outcome is Outcome.UNKNOWN:
        assert "no rule was able to see whether the detector is alive" in verdict.evidence


def test_model_without_assigner_is_judged_by_its_map():
    """RT-DETR has no task-aligned assigner; Ultralytics validates it."""
    assert diagnose(with_(no_detector(), epochs=epochs(scores=RISING))).outcome is Outcome.STABLE
    assert diagnose(with_(no_detector(), epochs=epochs(scores=LOST))).outcome is Outcome.COLLAPSED
    spiking = no_detector(loss=from_step(30, 150.0, 150.0) + 1e5 * (np.arange(60) == 30))
    assert diagnose(with_(spiking, epochs=epochs(scores=RISING))).outcome is not Outcome.STABLE


@pytest.mark.parametrize("run_id", sorted(p.name for p in (COMMITTED / "runs").iterdir())[::9])
def test_telemetry_of_an_earlier_version_is_judged(run_id):
    run = load_run(COMMITTED / "runs" / run_id)
    committed = pd.read_csv(COMMITTED / "results.csv").set_index("run_id")["outcome"]
    verdict = diagnose(run)
    assert verdict.outcome is not Outcome.STUCK
    assert verdict.outcome.healthy == (committed[run_id] in ("stable", "recovered"))
    assert "not checked" in {f.state for f in verdict.findings if f.explains}
