"""NeMo Automodel's own adapters give the same tensors, and its models take ours.

It needs another transformers than all other tests, and so programs of its own, where that comes first."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import made
from ranks import run_ranks

PROGRAMS = Path(__file__).parent / "programs"
AUTOMODEL = Path(__file__).parents[2] / ".cache/automodel"
INSTALLED = AUTOMODEL / "requirements.txt"
pytestmark = pytest.mark.skipif(not INSTALLED.exists(), reason="launch/setup.sh --tests has not installed Automodel")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(AUTOMODEL), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # compiling takes longer than computing


@pytest.mark.parametrize("program", ["automodel_whole.py", "automodel_odd.py"])
def test_one_rank(program):
    inner = [sys.executable, "-m", "pytest", "-q", "--rootdir", str(PROGRAMS), str(PROGRAMS / program)]
    done = subprocess.run(["timeout", "-k", "5", "240", *inner], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_two_ranks(tmp_path):
    options = {
        "uneven": ["--family", "qwen3_5_moe", "--experts", "7", "--layers", "1"],
        "qwen3_5_moe": ["--family", "qwen3_5_moe"],
        "fp8": ["--family", "qwen3_5_moe", "--quantization", "fp8"],
        "qwen3_vl_moe": ["--family", "qwen3_vl_moe"],
        "qwen3_moe": ["--family", "qwen3_moe"],
    }
    run_ranks("automodel_ranks.py", 2, *(made.synth(tmp_path / name, *given) for name, given in options.items()))
