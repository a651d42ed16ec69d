#!/usr/bin/env bash
# Installs what is needed, builds everything, runs the tests.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  cat <<'TEXT'
Usage: tests/run.sh [--all] [CTEST-OPTION…]

  --all           first the unit and MPI tests once more under the address and undefined-behaviour sanitizers, and a
                  minute of fuzzing for each format that is read; then also the long system tests
  CTEST-OPTION…   to ctest: -R REGEX, -L LABEL (unit, mpi, system, cluster, python, package, check, gpu,
                  fuzz), --rerun-failed, …

Tests that cannot run here are skipped, with the reason, and do not count as failures.
TEXT
}

all=false
ctest_options=()
for argument in "$@"; do
  case $argument in
    --all) all=true ;;
    -h | --help) usage && exit 0 ;;
    *) ctest_options+=("$argument") ;;
  esac
done

configure_and_build() {
  local preset=$1
  shift
  echo "== building: $preset"
  cmake --preset "$preset" >/dev/null
  cmake --build --preset "$preset" "$@"
}

# run_ctest FOLDER OPTION…
run_ctest() {
  local folder=$1
  shift
  ctest --test-dir "$folder" --output-on-failure --no-tests=error --parallel "$(nproc)" \
    --output-junit "$PWD/$folder/junit.xml" "$@" "${ctest_options[@]}" 2>&1 |
    tests/support/explain_skips.py "$folder/junit.xml"
}

# show_cuda_tests_as_skipped FOLDER: what the cuda preset would run.
show_cuda_tests_as_skipped() {
  mkdir -p "$1"
  local test name
  for test in tests/gpu/*_test.cpp tests/unit/nccl_*_test.cpp; do
    name=$(basename "$(dirname "$test")").$(basename "$test" .cpp)
    echo "add_test(\"$name\" sh -c \"echo skipped: there is no nvcc; exit 77\")"
    echo "set_tests_properties(\"$name\" PROPERTIES SKIP_RETURN_CODE 77 LABELS \"${name%%.*}\")"
  done >"$1/CTestTestfile.cmake"
}

launch/setup.sh --tests

if $all; then
  export SYSTEM_TEST_LONG=1
  configure_and_build asan
  echo "== testing: asan"
  run_ctest build/asan -L 'unit|mpi'
  if command -v clang++-19 >/dev/null; then
    configure_and_build fuzz
    echo "== fuzzing"
    run_ctest build/fuzz -L fuzz
  else
    echo "== without fuzzing: there is no clang++-19"
  fi
fi

configure_and_build release

# The GPU tests are one target of the cuda preset. Together with the others they make one run, with one summary.
folders=("$PWD/build/release")
if command -v nvcc >/dev/null || [[ -x /usr/local/cuda/bin/nvcc ]]; then
  configure_and_build cuda --target gpu_tests
  folders+=("$PWD/build/cuda/tests/gpu")
else
  folders+=("$PWD/build/without-cuda")
  show_cuda_tests_as_skipped build/without-cuda
fi
mkdir -p build/all
printf 'subdirs("%s")\n' "${folders[@]}" >build/all/CTestTestfile.cmake

echo "== testing"
run_ctest build/all

if ((${#ctest_options[@]} == 0)); then
  echo "== which tests hold to which rule of the model adapters"
  tests/support/check_rules.py . --junit build/all/junit.xml
fi
