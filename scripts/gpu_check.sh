#!/usr/bin/env bash
# On a machine with an NVIDIA GPU: what only such a machine can show, in one folder to send back.
#
#   scripts/gpu_check.sh [OUT]          OUT is gpu-check-<host>-<date> by default
#
# Runs the tests that need a GPU, the overhead benchmark, 40 steps of the size of a full-scale study's, and a short study
# in fp16 with a loss scaler on every visible GPU; about 20 minutes on one. Each part's output and exit status is kept,
# and a failed part does not stop the others.
# Needs `make test`'s environment, which it makes where it is absent.
set -euo pipefail
cd "$(dirname "$0")/.."

out=${1:-gpu-check-$(hostname)-$(date +%Y%m%d)}
[[ -e $out ]] && { echo "error: $out is there already; choose another folder." >&2; exit 2; }
make -s .venv/.installed-test
bin=$PWD/.venv/bin
"$bin/python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' || {
  echo "error: torch sees no CUDA device on this machine; nothing that this script checks can run here." >&2
  exit 2
}
mkdir -p "$out"

part() { # name, then a command: its output and exit status are kept
  local name=$1 status=0
  shift
  echo "$name: $*"
  "$@" >"$out/$name.txt" 2>&1 || status=$?
  echo "$name $status" >>"$out/status.txt"
}

part machine bash -c "nvidia-smi; '$bin/python' -m torch.utils.collect_env; git rev-parse HEAD"
part tests "$bin/pytest" -m gpu -rs
part overhead "$bin/python" scripts/bench_overhead.py --device 0
part overhead-training "$bin/python" scripts/bench_overhead.py --device 0 --steps 0 --training
# What a step of a full-scale study takes: docs/results.md reckons its GPU hours from it.
part step-training "$bin/gradstudy" train model=yolo26n.yaml data=shapes imgsz=640 batch=64 nbs=64 epochs=10 amp=False \
  pretrained=False val=False plots=False "project=$PWD/$out" name=step
part step "$bin/python" -c "
from yolo_gradstudy import load_run
print(load_run('$out/step').steps['wall_time_s'].diff().median(), 's a step')"
part study "$bin/gradstudy" run quick --out "$out/study-fp16" precision=fp16 seeds=0
part report "$bin/gradstudy" report "$out/study-fp16" --json
rm -rf "$out"/study-fp16/runs/*/weights "$out"/step/weights

cat "$out/status.txt"
echo "Send back $out: tar -czf $out.tar.gz $out"
! grep -qv ' 0$' "$out/status.txt"
