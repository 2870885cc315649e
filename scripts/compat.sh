#!/usr/bin/env bash
# SPDX-License-Identifier: AGPL-3.0-or-later
# Does this package work with other versions of Ultralytics? For each, in an environment of its own:
# the contract test, then an epoch of recorded training, and two without warm-up.
#
#   scripts/compat.sh [VERSION ...] [-- PYTEST ARGUMENT ...]
#
# VERSION is one as 8.4.0, or `newest` for the newest 8.4; both where none is given. What follows `--` takes
# the contract test's place: `scripts/compat.sh 8.4.0 -- tests/trainer`.
#
# The environments stand in .venv-compat/VERSION. They hold Ultralytics alone; all else (torch!) they borrow
# from .venv, which `make test` makes. So what is tested is another Ultralytics with the same torch.
set -euo pipefail
cd "$(dirname "$0")/.."

versions=() tests=()
while (($#)); do
    if [[ $1 == -- ]]; then
        shift
        tests=("$@")
        break
    fi
    versions+=("$1")
    shift
done
((${#versions[@]})) || versions=(8.4.0 newest)
((${#tests[@]})) || tests=(tests/test_contract.py)

main=.venv/bin/python
[[ -x $main ]] || { echo "there is no .venv here: run \`make test\` first" >&2; exit 2; }
borrowed=$("$main" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
mkdir -p .venv-compat
echo '*' >.venv-compat/.gitignore

make_environment() { # VERSION FOLDER
    local wanted="ultralytics==$1"
    [[ $1 == newest ]] && wanted='ultralytics>=8.4,<8.5'
    [[ -x $2/bin/python ]] || "$main" -m venv "$2"
    local site
    site=$("$2/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    rm -f "$site/zz-borrowed.pth" # or pip would take .venv's Ultralytics for its own
    "$2/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade --no-deps "$wanted"
    printf '%s\n%s\n' "$PWD" "$borrowed" >"$site/zz-borrowed.pth"
}

world=$(mktemp -d)
trap 'rm -rf "$world"' EXIT
failed=()
for version in "${versions[@]}"; do
    place=.venv-compat/$version
    python=$place/bin/python
    make_environment "$version" "$place"
    mkdir -p "$world/$version/config"
    environment=(YOLO_OFFLINE=true YOLO_AUTOINSTALL=false "YOLO_CONFIG_DIR=$world/$version/config" MPLBACKEND=Agg
        "GRADSTUDY_DATASETS=$world/$version/datasets" "OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}")
    found=$(env "${environment[@]}" "$python" -c 'import ultralytics; print(ultralytics.__version__, ultralytics.__file__)' | tail -n 1)
    echo "== ultralytics $found"
    case $found in
    *"/$place/"*) ;;
    *) echo "$place does not hold the Ultralytics that Python finds" >&2; exit 2 ;;
    esac
    case $version in
    newest | "${found%% *}") ;;
    *) echo "$place holds ultralytics ${found%% *}, not $version" >&2; exit 2 ;;
    esac
    "$python" -m pytest -q -p no:cacheprovider "${tests[@]}" || failed+=("$version: pytest ${tests[*]}")
    env "${environment[@]}" "$python" - "$world/$version/run" <<'PYTHON' || failed+=("$version: recorded training")
import sys

from ultralytics import YOLO
from yolo_gradstudy import GradStudyTrainer, RecordConfig, diagnose, load_run
from yolo_gradstudy.datasets import resolve_dataset

out = sys.argv[1]
trainer = GradStudyTrainer.using(RecordConfig(update_every=1, flow_every=2, flush_every=4))
YOLO("yolo26n.yaml").train(
    trainer=trainer, data=str(resolve_dataset("shapes")), fraction=0.1, epochs=1, imgsz=64, batch=8, nbs=8,
    optimizer="SGD", lr0=0.01, device="cpu", workers=0, plots=False, verbose=False,
    project=out, name="smoke", exist_ok=True,
)
run = load_run(f"{out}/smoke")
steps = run.steps
assert len(steps) >= 3, f"{len(steps)} steps were recorded"
branches = ("one2many", "one2one")
expected = {"loss", "box_loss", "cls_loss", "grad_norm", "clip_coefficient", "images", "boxes"}
expected |= {f"{what}_{branch}" for branch in branches for what in ("positives", "target_scores")}
missing = expected - set(steps.columns)
assert not missing, f"columns that are missing: {sorted(missing)}"
assert run.meta["inference_branch"] == "one2one" or run.meta["ultralytics"] != "8.4.0", run.meta["inference_branch"]
assert not run.flow("backward_gain").empty
assert [event["event"] for event in run.events] == ["started", "finished"], run.events
diagnose(run)
trainer = GradStudyTrainer.using(ablations=["no_rate_warmup", "no_momentum_warmup"], on_unhealthy="stop")
YOLO("yolo26n.yaml").train(
    trainer=trainer, data=str(resolve_dataset("shapes")), fraction=0.1, epochs=2, imgsz=64, batch=8, nbs=8,
    optimizer="SGD", lr0=0.01, warmup_epochs=1, device="cpu", workers=0, plots=False, verbose=False,
    project=out, name="unwarmed", exist_ok=True,
)
rates = load_run(f"{out}/unwarmed").steps
assert rates["lr_pg0"].iloc[0] == rates["lr_pg0"].iloc[1] > 0, rates["lr_pg0"].tolist()
print(f"recorded training: {len(steps)} steps, {len(run.layers('grad_norm').columns)} parameters, "
      f"inference branch {run.meta['inference_branch']}")
PYTHON
done

if ((${#failed[@]})); then
    printf 'FAILED  %s\n' "${failed[@]}" >&2
    exit 1
fi
echo "compatible: ${versions[*]}"
