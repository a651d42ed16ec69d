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

Where MPICH is there, what uses MPI runs once more with it, after all has run with Open MPI.
Tests that cannot run here are skipped, with the reason, and do not count as failures. One that fails runs once more;
if it passes then, the summary calls it unsteady.
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

configure() { cmake --preset "$1" >/dev/null; }

configure_and_build() {
  local preset=$1
  shift
  echo "== building: $preset"
  configure "$preset" && cmake --build --preset "$preset" "$@"
}

# run_ctest FOLDER OPTION…: what fails once beside others, on a machine that is busy, is told apart from what fails.
run_ctest() {
  local folder=$1
  shift
  ctest --test-dir "$folder" --output-on-failure --parallel "$(nproc)" --repeat until-pass:2 \
    --output-junit "$PWD/$folder/junit.xml" "$@" "${ctest_options[@]}" 2>&1 |
    tests/support/explain_outcomes.py "$folder/junit.xml"
}

# run_stage PRESET LABELS: some of the tests in another build. Those that were asked for may not be among them.
run_stage() {
  local without_tests=error
  if ((${#ctest_options[@]})); then without_tests=ignore; fi
  configure_and_build "$1" && echo "== testing: $1" && run_ctest "build/$1" --no-tests="$without_tests" -L "$2"
}

# has_tests PRESET LABELS: whether any of them were asked for, as far as can be known before they are built.
has_tests() {
  configure "$1"
  ! ctest --test-dir "build/$1" -N -L "$2" "${ctest_options[@]}" | grep -x 'Total Tests: 0' >/dev/null
}

# show_as_skipped REASON FOLDER TEST…: as tests of a folder that the last run includes.
show_as_skipped() {
  local reason=$1 folder=$2 name
  shift 2
  mkdir -p "$folder"
  for name; do
    echo "add_test(\"$name\" sh -c \"echo skipped: $reason; exit 77\")"
    echo "set_tests_properties(\"$name\" PROPERTIES SKIP_RETURN_CODE 77 LABELS \"${name%%.*}\")"
  done >"$folder/CTestTestfile.cmake"
  folders+=("$PWD/$folder")
}

cuda_tests() {
  local test
  for test in tests/gpu/*_test.cpp tests/unit/nccl_*_test.cpp; do
    echo "$(basename "$(dirname "$test")").$(basename "$test" .cpp)"
  done
}

launch/setup.sh --tests

if $all; then
  export SYSTEM_TEST_LONG=1
  run_stage asan 'unit|mpi'
  if command -v clang++-19 >/dev/null; then
    configure_and_build fuzz
    echo "== fuzzing"
    run_ctest build/fuzz --no-tests=error -L fuzz
  else
    echo "== without fuzzing: there is no clang++-19"
  fi
fi

folders=("$PWD/build/release")
mpich=true
if ! { command -v mpicxx.mpich && command -v mpiexec.hydra; } >/dev/null; then
  mpich=false
  show_as_skipped "MPICH is not installed" build/without-mpich mpi.all_with_mpich
fi

configure_and_build release

# The GPU tests are one target of the cuda preset. Together with the others they make one run, with one summary.
if command -v nvcc >/dev/null || [[ -x /usr/local/cuda/bin/nvcc ]]; then
  configure_and_build cuda --target gpu_tests
  folders+=("$PWD/build/cuda/tests/gpu")
else
  mapfile -t names < <(cuda_tests)
  show_as_skipped "there is no nvcc" build/without-cuda "${names[@]}"
fi
mkdir -p build/all
printf 'subdirs("%s")\n' "${folders[@]}" >build/all/CTestTestfile.cmake

echo "== testing"
code=0
run_ctest build/all --no-tests=error || code=$?
if $mpich && has_tests mpich launcher; then run_stage mpich launcher || code=$?; fi

if ((${#ctest_options[@]} == 0)); then
  echo "== which tests hold to which rule of the model adapters"
  tests/support/check_rules.py . --junit build/all/junit.xml || code=$?
fi
exit "$code"
