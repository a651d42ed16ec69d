import importlib.util
import os
import shutil

import pytest

import checkpoints
import program
import reference
import transformers_models
from skipping import pytest_sessionfinish  # noqa: F401


def pytest_addoption(parser):
    parser.addoption("--update-faults", action="store_true", help="write FAULTS.md as the fault matrix finds it")


def pytest_collection_modifyitems(config, items):
    if not os.environ.get("SYSTEM_TEST_LONG"):
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]
    for item in items:
        if program.PROGRAM.exists() or item.path.name == "test_reference.py":
            continue
        item.add_marker(pytest.mark.skip(reason=f"{program.PROGRAM} is not built"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The checkpoint that `synth --preset tiny` makes: real names, 8 experts."""
    folder = tmp_path_factory.mktemp("synth") / "tiny"
    program.run_ok("synth", folder, "--family", "qwen3_5_moe", "--preset", "tiny")
    return folder


@pytest.fixture(scope="session")
def tiny_tensors(tiny):
    return reference.read_folder(tiny)


@pytest.fixture(scope="session")
def mini(tmp_path_factory):
    """The hand-written checkpoint: random bits, awkward names, 6 experts."""
    return checkpoints.write_mini(tmp_path_factory.mktemp("mini") / "ckpt")


@pytest.fixture(scope="session")
def mini_tensors(mini):
    return reference.read_folder(mini)


@pytest.fixture
def broken(mini, tmp_path):
    """A copy of `mini` that a test may break."""
    return checkpoints.copy(mini, tmp_path / "broken")


@pytest.fixture(scope="session")
def mini_store(mini, tmp_path_factory):
    path = tmp_path_factory.mktemp("mini_store") / "mini.h5"
    program.run_ok("load", mini, "--store", path)
    return path


@pytest.fixture(scope="session")
def transformers():
    if not importlib.util.find_spec("transformers"):
        pytest.skip("transformers is not installed")


@pytest.fixture(scope="session")
def made_by_transformers(transformers, tmp_path_factory):
    """(model, folder) of a tiny random Qwen3.5-MoE that transformers saved, its experts stacked."""
    folder = tmp_path_factory.mktemp("transformers") / "ckpt"
    return transformers_models.save_qwen3_5(folder), folder


@pytest.fixture
def strace():
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
