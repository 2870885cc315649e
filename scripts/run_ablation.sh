#!/usr/bin/env bash
# The ablation study on a GPU box: every GPU that torch sees, one run each at once.
#
#   scripts/run_ablation.sh [STUDY] [DATA] [OUT] [KEY=VALUE ...]
#
# STUDY      a packaged study or a YAML file                      (stabilisation)
# DATA       a data set's name or a data YAML                     (the study's own)
# OUT        the study's folder                                   (runs/STUDY-DATA)
# KEY=VALUE  training arguments, or what else `gradstudy run` changes of a study
#
# Interrupted, it goes on where it was when started again.
set -euo pipefail
cd "$(dirname "$0")/.."

study=${1:-stabilisation}
data=${2:-}
name=$(basename "${study%.*}")
out=${3:-runs/$name${data:+-$(basename "${data%.*}")}}

make -s .venv/.installed
exec .venv/bin/gradstudy run "$study" --out "$out" ${data:+--data "$data"} "${@:4}"
