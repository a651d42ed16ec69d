#!/bin/sh
# run_pytest.sh PYTHON FILE [OPTION…]: run one test file; 77 (skipped, for ctest) where Python or its packages are missing.
python=$1
file=$2
shift 2
if [ ! -x "$python" ]; then
  echo "skipped: no Python at $python (RANKSLICE_TEST_PYTHON)"
  exit 77
fi
missing=$("$python" -c '
import importlib.util
packages = "torch numpy safetensors h5py transformers pytest".split()
print(*[name for name in packages if not importlib.util.find_spec(name)])') || exit 77
if [ -n "$missing" ]; then
  echo "skipped: $python lacks $missing (tests/requirements.txt)"
  exit 77
fi
# Runs beside one another would share a folder, and clear it for one another.
folder=$(mktemp -d "${TMPDIR:-/tmp}/pytest.XXXXXX") || exit 1
"$python" -m pytest -q --rootdir "$(dirname "$file")" --basetemp "$folder" "$file" "$@"
code=$?
case $code in
  0 | 77) rm -rf "$folder" ;;
  *) echo "what it wrote is in $folder" ;;
esac
exit $code
