#!/usr/bin/env bash
# Installs what rankslice is built with: Debian or Ubuntu packages, and LibTorch from PyPI in .venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  cat <<'TEXT'
Usage: launch/setup.sh [--lean | --tests | --runtime]

  --lean    what it takes to build and run the program (default; LibTorch is 1.3 GB)
  --tests   and what the tests need: the whole of torch for the Python reference (5.7 GB), what the Python package is
            built with, strace, HDF5 tools, and, only where they can be had, ShellCheck for one test, iproute2 and Slurm
            for those on clusters, MPICH to run some once more, and Clang for fuzzing. Slurm's packages bring services
            (munge, slurmctld, slurmd) that Debian starts where it can
  --runtime
            only what a program that was built elsewhere needs to run, on Debian 12

Safe to repeat: what is there is left alone, and when all is there the network is not used. Needs root or sudo only
for missing packages. LibTorch comes from, in this order: LIBTORCH_ROOT, the torch of the python3 on PATH (an active
virtual environment or conda), .venv. The first two are honoured: then a lean setup makes no .venv.

Exit codes: 0 done, 2 wrong usage, 69 packages are missing and neither root nor sudo is there to install them,
others as apt-get or pip leave them.
TEXT
}

say() { printf 'setup: %s\n' "$*"; }

readonly build_packages=(
  g++ cmake ninja-build ccache pkg-config git ca-certificates python3 python3-venv
  libopenmpi-dev openmpi-bin libhdf5-dev libsimdjson-dev nlohmann-json3-dev libcli11-dev libfmt-dev libxxhash-dev libpcre2-dev
  libssl-dev libhwy-dev liburing-dev
  libgtest-dev libgmock-dev)
# What the program is linked with, and ssh, by which mpirun starts the ranks of other hosts.
readonly runtime_packages=(libfmt9 libhdf5-103-1 libhwy1 libpcre2-8-0 libsimdjson14 libssl3 liburing2 openmpi-bin openssh-client)
readonly test_packages=(python3-dev strace hdf5-tools libbenchmark-dev valgrind)
readonly slurm_packages=(slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge)
# Beside Open MPI, whose programs keep the plain names: Debian ranks them higher.
readonly mpich_packages=(mpich libmpich-dev)
# Clang before 16 cannot compile the ranges of libstdc++ 12. llvm: names in the stack traces of findings.
readonly fuzz_packages=(clang-19 libclang-rt-19-dev llvm-19)

# The first lines of the requirements: enough for FindLibTorch, when installed without their dependencies.
readonly requirements=tests/requirements.txt
readonly oldest_torch=2.7

# What needs another transformers than all other tests, and so has a folder of its own.
readonly automodel_requirements=tests/python/automodel_requirements.txt
readonly automodel=.cache/automodel

missing_packages() {
  local installed package
  installed=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' "$@" 2>/dev/null || true)
  for package in "$@"; do
    grep -qxF "installed $package" <<<"$installed" || echo "$package"
  done
}

as_root() {
  if [[ $(id -u) == 0 ]]; then "$@"; else sudo "$@"; fi
}

apt_quietly() {
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 "$@" >/dev/null
}

# install_packages PACKAGE…: those that are missing.
install_packages() {
  local missing
  mapfile -t missing < <(missing_packages "$@")
  ((${#missing[@]})) || return 0
  if [[ $(id -u) != 0 ]] && ! command -v sudo >/dev/null; then
    say "packages are missing, and to install them takes root. Have an administrator run:"
    echo "  apt-get update && apt-get install --no-install-recommends ${missing[*]}"
    return 69
  fi
  say "installing packages: ${missing[*]}"
  apt_quietly update && apt_quietly install -y --no-install-recommends "${missing[@]}"
}

# install_if_possible NAME PACKAGE…
install_if_possible() { install_packages "${@:2}" || say "without $1: tests that take it will be skipped"; }

setup_packages() {
  if ! command -v dpkg-query >/dev/null; then
    say "this is neither Debian nor Ubuntu: packages are left to you. There they are called: ${build_packages[*]}"
    return 0
  fi
  local packages=("${build_packages[@]}")
  if [[ $mode == runtime ]]; then packages=("${runtime_packages[@]}"); fi
  if [[ $mode == tests ]]; then packages+=("${test_packages[@]}"); fi
  install_packages "${packages[@]}"
  say "packages are there"
  if [[ $mode == tests ]]; then
    install_if_possible ShellCheck shellcheck
    install_if_possible iproute2 iproute2
    install_if_possible Slurm "${slurm_packages[@]}"
    install_if_possible MPICH "${mpich_packages[@]}"
    install_if_possible Clang "${fuzz_packages[@]}"
  fi
}

# Prints "PATH VERSION" of the torch that a build finds before .venv; found as files, since importing it takes seconds.
torch_of_user() {
  if [[ -n ${LIBTORCH_ROOT:-} ]]; then
    echo "$LIBTORCH_ROOT" "$(cat "$LIBTORCH_ROOT/build-version" 2>/dev/null || echo unknown)"
    return
  fi
  python3 - "$PWD/.venv" 2>/dev/null <<'PYTHON' || true
import importlib.metadata, importlib.util, os, sys
spec = importlib.util.find_spec("torch")
if spec and not os.path.realpath(spec.submodule_search_locations[0]).startswith(os.path.realpath(sys.argv[1])):
    print(spec.submodule_search_locations[0], importlib.metadata.version("torch"))
PYTHON
}

venv_pip() { .venv/bin/python -m pip --disable-pip-version-check -q "$@"; }

# install_python PIP-ARGUMENT…: installs what is not there yet; asks no index (nor a place for wheels that pip is
# configured with, hence --isolated) when nothing is missing.
install_python() {
  if ! .venv/bin/python -c '' 2>/dev/null; then
    say "making .venv"
    local python=/usr/bin/python3
    [[ -x $python ]] || python=python3
    "$python" -m venv --clear .venv
  fi
  if venv_pip install --isolated --no-index --dry-run "$@" >/dev/null 2>&1; then return 0; fi
  say "installing Python packages into .venv: $*"
  venv_pip install "$@"
}

setup_python() {
  local path version libtorch
  read -r path version < <(torch_of_user) || true
  if [[ -n ${path:-} ]]; then
    say "using the torch that you have: $path ($version)"
    if [[ $version != unknown && $(printf '%s\n' "$oldest_torch" "$version" | sort -V | head -n 1) != "$oldest_torch" ]]; then
      say "it is older than $oldest_torch: set LIBTORCH_ROOT to a newer one, or leave the environment that it comes from"
      return 1
    fi
  fi
  if [[ $mode == tests ]]; then
    install_python -r "$requirements"
  elif [[ -z ${path:-} ]]; then
    mapfile -t libtorch < <(grep -E '^(torch|nvidia-cuda-(runtime|cupti))==' "$requirements")
    install_python --no-deps "${libtorch[@]}"
  fi
  say "LibTorch is there"
}

setup_automodel() {
  cmp -s "$automodel_requirements" "$automodel/requirements.txt" && return 0
  say "installing NeMo Automodel into $automodel"
  rm -rf "$automodel"
  venv_pip install --no-deps --target "$automodel" -r "$automodel_requirements" &&
    cp "$automodel_requirements" "$automodel/requirements.txt"
}

mode=lean
for argument in "$@"; do
  case $argument in
    --lean) mode=lean ;;
    --tests) mode=tests ;;
    --runtime) mode=runtime ;;
    -h | --help) usage && exit 0 ;;
    *) usage >&2 && exit 2 ;;
  esac
done

setup_packages
if [[ $mode == runtime ]]; then exit; fi
setup_python
if [[ $mode == tests ]]; then setup_automodel || say "without NeMo Automodel: its tests will be skipped"; fi
