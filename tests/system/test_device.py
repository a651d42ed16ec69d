"""--device where there is no GPU to be seen, by a program that was built for GPUs and by one that was not."""

import json
import os

import pytest

from program import OnRank, expect, run, run_ok

BUILT_FOR_GPUS = os.environ.get("SYSTEM_TEST_CUDA") == "1"


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")


def test_a_gpu_that_is_asked_for_and_not_there_ends_every_rank_with_the_cause(mini, tmp_path):
    result = run("load", mini, "--device", "cuda", ranks=3, on_rank=OnRank(tmp_path / "ranks", codes=True))
    assert result.rank_codes == dict.fromkeys(range(3), 69)
    said = [line for line in result.stderr.splitlines() if "--device cuda" in line]
    assert len(said) == 1, result.stderr
    causes = ["CUDA_VISIBLE_DEVICES=-1"] if BUILT_FOR_GPUS else ["built without CUDA", "--preset cuda"]
    assert all(cause in said[0] for cause in causes)


def test_auto_takes_the_cpu_and_says_so(mini):
    report = run_ok("load", mini, "--device", "auto", "--json", ranks=2).json
    assert report["device"] == report["choices"]["device"] == "cpu"
    assert not any("peak_device_bytes" in rank for rank in report["rank"])


def test_a_plan_needs_no_gpu(mini):
    run_ok("load", mini, "--device", "cuda", "--dry-run")


@pytest.mark.parametrize("command", ["verify", "to-hf"])
def test_commands_that_use_no_gpu_do_not_pretend_to(command, mini, tmp_path):
    out = [tmp_path / "out"] if command == "to-hf" else []
    expect(2, command, mini, *out, "--device", "cuda", says="only load")
    assert not list(tmp_path.iterdir())


def test_the_cause_is_in_the_report(mini, tmp_path):
    expect(69, "load", mini, "--device", "cuda", "--report", tmp_path / "r.json")
    error = json.loads((tmp_path / "r.json").read_text())["error"]
    assert error["code"] == 69 and "--device cuda" in error["message"]
