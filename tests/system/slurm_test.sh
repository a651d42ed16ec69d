#!/usr/bin/env bash
# Job steps and a batch job under a real Slurm, on two nodes that are one machine.
#   slurm_test.sh RANKSLICE      exits 77 where Slurm cannot be started
set -euo pipefail
rankslice=$1
source_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=tests/support/slurm_one_host.sh
source "$source_dir/tests/support/slurm_one_host.sh"

obstacle=$(slurm_obstacle)
if [[ -n $obstacle ]]; then
  echo "skipped: $obstacle"
  exit 77
fi

work=$(mktemp -d)
trap 'slurm_stop; rm -rf "$work"' EXIT
slurm_start 2
cd "$work"

step() { timeout -k 5 120 srun --mpi=pmix --kill-on-bad-exit=1 --wait=60 "$@"; }

# expect_exit CODE COMMAND…
expect_exit() {
  local expected=$1 code=0
  shift
  "$@" || code=$?
  [[ $code == "$expected" ]] || { echo "exit code $code, expected $expected: $*"; exit 1; }
}

expect_report() {
  /usr/bin/python3 - "$1" <<'PYTHON'
import json, sys
report = json.load(open(sys.argv[1]))
assert report["ok"] is True, report
assert report["ranks"] == 4, report["ranks"]
assert report["mesh"] == {"ep_replicate": 1, "ep_shard": 1, "ep": 4}, report["mesh"]
assert report["verify"]["mismatches"] == [], report["verify"]
PYTHON
}

# expect_source_in FOLDER: every file of the checkpoint is there, byte for byte, and nothing else is.
expect_source_in() { diff -r checkpoint "$1"; }

echo "== a checkpoint to load"
"$rankslice" synth checkpoint --family qwen3_5_moe --preset tiny

echo "== a job step of 4 ranks on 2 nodes writes the store"
step -N2 --ntasks-per-node=2 "$rankslice" load checkpoint --ep 4 --store step.h5 --report step.json
expect_report step.json

echo "== another, of 3 ranks, gives the checkpoint back"
step -N2 -n3 "$rankslice" to-hf step.h5 back
expect_source_in back

echo "== the batch script does the same"
RANKSLICE=$rankslice timeout -k 5 120 sbatch --wait --output=batch.out \
  "$source_dir/launch/slurm/load.sbatch" "$work/checkpoint" "$work/batch.h5" || { cat batch.out; exit 1; }
expect_report batch.report.json
"$rankslice" to-hf batch.h5 back-from-batch
expect_source_in back-from-batch

echo "== a missing checkpoint ends the step with 66, with nothing under the store's name"
expect_exit 66 step -N2 --ntasks-per-node=2 "$rankslice" load missing --ep 4 --store missing.h5
[[ ! -e missing.h5 ]] || { echo "missing.h5 is there"; exit 1; }

echo "== ranks that do not find each other are refused with 78"
expect_exit 78 timeout -k 5 60 srun --mpi=none -N2 --ntasks-per-node=2 "$rankslice" load checkpoint --store alone.h5
