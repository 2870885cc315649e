#!/usr/bin/env bash
# Tables, figures and pages of the committed results, judged and drawn anew from their telemetry.
# Nothing is trained.
#
#   scripts/reproduce_plots.sh [DIR ...]     (every study under results/)
#
# At the end it says which CSV file, if any, is not the same bit for bit.
set -euo pipefail
cd "$(dirname "$0")/.."

make -s .venv/.installed
if [ $# -eq 0 ]; then
    set -- $(dirname results/*/plan.json)
fi
for folder in "$@"; do
    .venv/bin/gradstudy report "$folder"
done
.venv/bin/python scripts/checksums.py results --check
