"""Checkpoints that tests share."""

import os
import subprocess

import pytest


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A small Qwen3.5-MoE with 8 experts, all in one tensor."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    options = ["--experts", "8", "--layers", "2", "--decoder-experts", "grouped", "--mtp-experts", "grouped"]
    subprocess.run([os.environ["SYSTEM_TEST_PROGRAM"], "synth", folder, *options, "--quiet"], check=True)
    return str(folder)
