#!/usr/bin/env bash
# From a fresh machine to the main job: four ranks load a checkpoint, prove it, store it, and give it back.
set -euo pipefail
started_in=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  cat <<'TEXT'
Usage: launch/quickstart.sh [--work DIR] [--keep]

Installs what is needed, builds the program, synthesises a tiny Qwen3.5-MoE checkpoint, loads it on 4 ranks, each
reading only its experts, proves that together they hold it, writes one HDF5 store, reassembles the Hugging Face
checkpoint on 3 ranks, and compares every file with its source.

  --work DIR   where the data go, about 200 MB; a new folder, which is kept
  --keep       keep the data, without --work in a new folder of the system's for temporary files

Non-zero when anything failed.
TEXT
}

work=
keep=false
while (($#)); do
  case $1 in
    --work) [[ -n ${2:-} ]] || { usage >&2 && exit 2; }; work=$2 keep=true && shift ;;
    --keep) keep=true ;;
    -h | --help) usage && exit 0 ;;
    *) usage >&2 && exit 2 ;;
  esac
  shift
done

say() { printf '\n== %s\n' "$*"; }

run() {
  printf '$ %s\n' "$*"
  "$@"
}

if [[ -n $work ]]; then
  work=$(cd "$started_in" && realpath -m "$work")
  mkdir -p "$(dirname "$work")"
  mkdir "$work"
else
  work=$(mktemp -d "${TMPDIR:-/tmp}/rankslice-quickstart.XXXXXX")
fi

finish() {
  local code=$?
  if $keep; then echo "The data are in $work"; else rm -rf "$work"; fi
  ((code == 0)) || printf '\nThe quick start FAILED (exit code %s). What went wrong stands above.\n' "$code"
}
trap finish EXIT

# Open MPI wants to be told that it may run as root, and that there may be fewer cores than ranks.
mpirun=(timeout -k 5 300 mpirun --oversubscribe)
if [[ $(id -u) == 0 ]]; then mpirun+=(--allow-run-as-root); fi

say "1/6 setting up"
run launch/setup.sh

say "2/6 building the program"
run cmake --preset release --log-level=WARNING
run cmake --build --preset release --target rankslice_program
rankslice=build/release/bin/rankslice

say "3/6 synthesising a checkpoint"
run "$rankslice" synth "$work/checkpoint" --family qwen3_5_moe --preset tiny

say "4/6 four ranks load it, verify it and write the store"
run "${mpirun[@]}" -n 4 "$rankslice" load "$work/checkpoint" --ep 4 --store "$work/store.h5" --report "$work/load.json"

say "5/6 three ranks give the checkpoint back"
run "${mpirun[@]}" -n 3 "$rankslice" to-hf "$work/store.h5" "$work/back" --report "$work/to_hf.json"

say "6/6 comparing every file with its source"
files=0
while IFS= read -r -d '' file; do
  run cmp "$work/checkpoint/$file" "$work/back/$file"
  files=$((files + 1))
done < <(cd "$work/checkpoint" && find . -type f -printf '%P\0' | sort -z)
((files > 0))
[[ $(find "$work/back" -type f | wc -l) == "$files" ]] || { echo "$work/back has files that the source has not"; exit 1; }

say "Summary"
/usr/bin/env python3 - "$work/load.json" "$work/to_hf.json" "$files" <<'PYTHON'
import json, sys

load, to_hf = (json.load(open(path)) for path in sys.argv[1:3])
mib = lambda count: f"{count / 2**20:.1f} MiB"
print(f"{load['family']}: {mib(load['bytes']['checkpoint'])} loaded by {load['ranks']} ranks"
      f" in {load['seconds']['load']:.2f} s, stored in {load['seconds']['store']:.2f} s")
for rank in load["rank"]:
    print(f"  rank {rank['rank']} read {mib(rank['bytes_read'])} and holds {mib(rank['bytes_owned'])}")
verify = load["verify"]
print(f"verified: {verify['tensors']} tensors, {verify['experts']} experts, {len(verify['mismatches'])} mismatches")
print(f"given back by {to_hf['ranks']} ranks in {to_hf['seconds']['to_hf']:.2f} s:"
      f" {sys.argv[3]} files, each equal to its source byte for byte")
PYTHON
