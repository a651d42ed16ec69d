#!/usr/bin/env bash
# check_style.sh shell|format|python|dockerfile [PYTHON]: ShellCheck over every script, clang-format over every C++ file, or over every
# Python file the Ruff of a PYTHON (python3), as pyproject.toml says.
# Exits 77 when the tool is not there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

skip() {
  echo "skipped: $1"
  exit 77
}

check_shell() {
  command -v shellcheck >/dev/null || skip "shellcheck is not installed"
  find launch tests .ci -type f \( -name '*.sh' -o -name '*.sbatch' -o -path .ci/run \) -print0 |
    xargs -0 shellcheck
}

# Other versions of clang-format lay some constructs out differently.
check_format() {
  local version=14 program
  for program in "clang-format-$version" clang-format; do
    if "$program" --version 2>/dev/null | grep -q "version $version\."; then
      find include src tests \( -name '*.[ch]pp' -o -name '*.cu' \) -print0 | xargs -0 "$program" --dry-run -Werror
      return
    fi
  done
  skip "clang-format $version is not installed"
}

check_python() {
  local python=$1
  "$python" -m ruff --version >/dev/null 2>&1 || skip "$python has no ruff (tests/requirements.txt)"
  "$python" -m ruff check --no-cache src tests
  "$python" -m ruff format --no-cache --diff src tests
}

check_dockerfile() {
  local hadolint
  hadolint=$(dirname "$1")/hadolint
  [[ -x $hadolint ]] || skip "there is no hadolint beside $1 (tests/requirements.txt)"
  "$hadolint" Dockerfile
}

case ${1:-} in
  shell) check_shell ;;
  format) check_format ;;
  python) check_python "${2:-python3}" ;;
  dockerfile) check_dockerfile "${2:-python3}" ;;
  *) echo "usage: check_style.sh shell|format|python|dockerfile [PYTHON]" >&2 && exit 2 ;;
esac
