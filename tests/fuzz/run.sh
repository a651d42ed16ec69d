#!/usr/bin/env bash
# run.sh PROGRAM SECONDS: fuzzes with a program of the preset `fuzz`, from its corpus on. An input that breaks it is left
# in findings/ beside the program, and is reproduced by PROGRAM FILE. What is new but no finding stays in found/ there.
set -euo pipefail

program=$1
seconds=$2
name=$(basename "$program" _fuzz)
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
beside=$(cd "$(dirname "$program")" && pwd)

mkdir -p "$beside/findings" "$beside/found/$name"
options=(-max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -malloc_limit_mb=2048 -max_len=4096
  -print_final_stats=1 -print_funcs=0 -verbosity=0 -artifact_prefix="$beside/findings/$name-")
if [[ -f $here/$name.dict ]]; then options+=(-dict="$here/$name.dict"); fi
symbolizer=$(command -v llvm-symbolizer-19 || true)
export ASAN_OPTIONS=detect_stack_use_after_return=1:external_symbolizer_path="$symbolizer"
export UBSAN_OPTIONS=print_stacktrace=1:external_symbolizer_path="$symbolizer"
exec nice -n 15 "$program" "${options[@]}" "$beside/found/$name" "$here/corpus/$name"
