"""mypy finds nothing in the package, nor in how README.md uses it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytest.importorskip("mypy", reason="mypy is not installed (tests/requirements.txt)")


def package():
    """Where it stands with the stubs of what is C++."""
    import rankslice

    return Path(rankslice.__file__).parent


def complaints(cache, *what):
    settings = ["--config-file", ROOT / "pyproject.toml", "--cache-dir", cache]
    command = [sys.executable, "-m", "mypy", *settings, *what]
    done = subprocess.run(command, cwd=package().parent, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if ": error:" in line]


def complaints_about(programs, cache, folder):
    """Those about programs alone."""
    paths = [folder / f"program_{number}.py" for number in range(len(programs))]
    for path, program in zip(paths, programs, strict=True):
        path.write_text(program)
    return [line for line in complaints(cache, "--scripts-are-modules", *paths) if not line.startswith("rankslice/")]


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("mypy")


def test_the_package_is_typed_without_contradiction(cache):
    assert complaints(cache, "-p", "rankslice") == []


def test_the_programs_of_the_readme_use_it_as_it_is_typed(cache, tmp_path):
    programs = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert complaints_about(programs, cache, tmp_path) == []


def test_a_wrong_use_is_found(cache, tmp_path):
    wrong = ['rankslice.load("CKPT", world="2")', 'rankslice.lode("CKPT")', 'rankslice.load("CKPT").checkpoint.pth']
    found = complaints_about([f"import rankslice\n{line}\n" for line in wrong], cache, tmp_path)
    assert sorted(line.rpartition("[")[2] for line in found) == ["attr-defined]", "attr-defined]", "call-arg]"]
