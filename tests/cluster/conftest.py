"""Clusters in the box (box.sh): what their tests share."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "system"))

from hosts import Hosts  # noqa: E402

import program  # noqa: E402
from skipping import pytest_sessionfinish  # noqa: E402, F401


@pytest.fixture(scope="session")
def three_hosts():
    return Hosts(3)


@pytest.fixture
def hosts(three_hosts):
    """Three of them, as good as new before and after each test."""
    yield three_hosts
    three_hosts.reset()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The checkpoint that `synth --preset tiny` makes: real names, 8 experts."""
    folder = tmp_path_factory.mktemp("synth") / "tiny"
    program.run_ok("synth", folder, "--family", "qwen3_5_moe", "--preset", "tiny")
    return folder
