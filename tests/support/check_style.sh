#!/usr/bin/env bash
# check_style.sh shell|format: ShellCheck over every script, or clang-format over every C++ file.
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

case ${1:-} in
  shell) check_shell ;;
  format) check_format ;;
  *) echo "usage: check_style.sh shell|format" >&2 && exit 2 ;;
esac
