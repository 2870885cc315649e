#!/usr/bin/env bash
# Tables, figures and pages of the committed results, judged and drawn anew from their telemetry.
# Nothing is trained.
#
#   scripts/reproduce_plots.sh [DIR ...]     (every study under results/)
#
# At the end it says which CSV file, if any, is not the same bit for bit, and whether README, docs and the claims' page
# are what the results say.
set -euo pipefail
cd "$(dirname "$0")/.."

make -s .venv/.installed
complete=
if [ $# -eq 0 ]; then
    complete=--complete
    set -- $(dirname results/*/plan.json)
fi
for folder in "$@"; do
    .venv/bin/gradstudy report "$folder"
done
status=0
.venv/bin/python scripts/checksums.py results --check $complete || status=1
.venv/bin/python scripts/write_claims.py --check || { echo "docs/claims.md is not what the results say."; status=1; }
.venv/bin/python scripts/readme_tables.py --check || status=1
exit $status
