"""The Python programs of README.md, word for word, in a folder where the checkpoint that they name exists."""

import filecmp
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests/system"))
import transformers_models  # noqa: E402

NAME = "Qwen3.6-35B-A3B"


def programs():
    """Line in README.md -> program."""
    text = (ROOT / "README.md").read_text()
    blocks = re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return {text.count("\n", 0, block.start()) + 2: block.group(1) for block in blocks}


PROGRAMS = programs()


def program_with(words):
    (program,) = [program for program in PROGRAMS.values() if words in program]
    return program


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    transformers_models.save_qwen3_5(folder)
    return folder


@pytest.fixture
def folder(checkpoint, tmp_path):
    (tmp_path / NAME).symlink_to(checkpoint)
    return tmp_path


def run(program, folder):
    """What it prints. A first line `# torchrun OPTION… FILE` says how it is started."""
    command = ["program.py"]
    if how := re.match(r"# torchrun (.*)\n", program):
        command = ["-m", "torch.distributed.run", "--standalone", *how.group(1).split()]
    (folder / command[-1]).write_text(program)
    done = subprocess.run(
        ["timeout", "-k", "5", "120", sys.executable, *command],
        cwd=folder,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("line", PROGRAMS)
def test_it_runs(line, folder):
    run(PROGRAMS[line], folder)


def test_what_was_only_loaded_is_exported_byte_for_byte(folder):
    printed = run(program_with('"exported"'), folder)
    assert "torch.Size([6, 24, 32]) (Shard(dim=0),) torch.Size([3, 24, 32])" in printed
    assert files(folder / "exported") == files(folder / NAME)
    assert filecmp.cmpfiles(folder / "exported", folder / NAME, files(folder / NAME), shallow=False)[1:] == ([], [])


def test_what_was_trained_is_exported_as_a_checkpoint_with_other_values(folder):
    run(program_with('"trained"'), folder)
    assert files(folder / "trained") == files(folder / NAME)
    others = filecmp.cmpfiles(folder / "trained", folder / NAME, files(folder / NAME), shallow=False)[1]
    assert others and all(name.endswith(".safetensors") for name in others)


def test_an_error_says_what_the_program_would_say(folder):
    assert re.search(r"^66 .*Qwen3.6-35B-B3A", run(program_with("IoError"), folder), re.MULTILINE)
