"""What tests share: checkpoints, and ranks of torch.distributed on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import Job

sys.path.append(str(Path(__file__).resolve().parents[1] / "system"))

from skipping import pytest_sessionfinish  # noqa: E402, F401


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A small Qwen3.5-MoE with 8 experts, all in one tensor."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    options = ["--experts", "8", "--layers", "2", "--decoder-experts", "grouped", "--mtp-experts", "grouped"]
    subprocess.run([os.environ["SYSTEM_TEST_PROGRAM"], "synth", folder, *options, "--quiet"], check=True)
    return str(folder)


@pytest.fixture(scope="session")
def saved_models(tmp_path_factory):
    """family -> (model, folder): tiny random ones, as transformers made and saved them."""
    import transformers_models

    saves = {"qwen3_5_moe": transformers_models.save_qwen3_5, "qwen3_vl_moe": transformers_models.save_qwen3_vl}
    folders = {family: tmp_path_factory.mktemp(family) / "ckpt" for family in saves}
    return {family: (save(folders[family]), folders[family]) for family, save in saves.items()}


@pytest.fixture(scope="session")
def torchrun():
    """torchrun(ranks, program, *arguments) of tests/python/programs; its ranks must all end well."""

    def run(ranks, program, *arguments):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
        command = ["timeout", "-k", "5", "200", *launcher, Path(__file__).parent / "programs" / program, *arguments]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    return run


@pytest.fixture(scope="module")
def start_ranks(tmp_path_factory):
    """start_ranks(program, ranks, *arguments) starts one of programs/: a Job, whose ranks end with the module."""
    jobs = []

    def start(program, ranks, *arguments):
        jobs.append(Job(tmp_path_factory.mktemp("ranks"), program, ranks, arguments))
        return jobs[-1]

    yield start
    for job in jobs:
        job.kill()


@pytest.fixture(scope="module")
def run_ranks(start_ranks):
    """run_ranks(program, ranks, *arguments) runs one of programs/ to its good end: what each rank reported."""

    def run(program, ranks, *arguments, timeout=120):
        ended = start_ranks(program, ranks, *arguments).end(timeout)
        failed = [f"--- rank {rank}: exit code {one.code}\n{one.output}" for rank, one in enumerate(ended) if one.code]
        assert not failed, "\n".join(failed)
        return [one.result for one in ended]

    return run
