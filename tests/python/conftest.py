"""Checkpoints that tests share."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A small Qwen3.5-MoE with 8 experts, all in one tensor."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    options = ["--experts", "8", "--layers", "2", "--decoder-experts", "grouped", "--mtp-experts", "grouped"]
    subprocess.run([os.environ["SYSTEM_TEST_PROGRAM"], "synth", folder, *options, "--quiet"], check=True)
    return str(folder)


@pytest.fixture(scope="session")
def torchrun():
    """torchrun(ranks, program, *arguments) of tests/python/programs; its ranks must all end well."""

    def run(ranks, program, *arguments):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
        command = ["timeout", "-k", "5", "200", *launcher, Path(__file__).parent / "programs" / program, *arguments]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    return run
