"""Where outputs and reports may go, and what is told when they cannot."""

import json
import shutil
import subprocess

import pytest

from program import PROGRAM, expect


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    "arguments",
    [
        ["load", "{c}", "--save-shards", "{c}", "--overwrite"],
        ["load", "{c}", "--store", "{c}/config.json", "--overwrite"],
        ["load", "{c}", "--report", "{c}/config.json"],
        ["to-hf", "{c}", "{c}", "--overwrite"],
        ["to-hf", "{c}", "{c}/..", "--overwrite"],
    ],
)
def test_an_output_never_replaces_an_input(mini, tmp_path, arguments):
    copy = tmp_path / "above" / "checkpoint"
    shutil.copytree(mini, copy)
    before = contents(tmp_path)
    expect(73, *[argument.format(c=copy) for argument in arguments], says="is an input")
    assert contents(tmp_path) == before


def test_one_path_for_two_outputs_is_refused(mini, tmp_path):
    out = tmp_path / "x"
    expect(73, "load", mini, "--store", out, "--report", out, says="two outputs")
    assert not out.exists()


def test_a_report_that_cannot_be_written_is_told_once_and_before_the_work(mini, tmp_path):
    store, report = tmp_path / "s.h5", tmp_path / "nowhere" / "r.json"
    result = expect(73, "load", mini, "--store", store, "--report", report, says=report)
    assert result.stderr.count(str(report)) == 1
    assert not store.exists()


def test_a_shard_does_not_join_other_files(mini, tmp_path):
    copy = tmp_path / "checkpoint"
    shutil.copytree(mini, copy)
    expect(73, "load", copy, "--rank", 0, "--ranks", 2, "--save-shards", copy, says=copy)
    assert contents(copy) == contents(mini)


def test_errors_that_come_before_the_ranks_are_reported_too(mini, tmp_path):
    report = tmp_path / "r.json"
    result = expect(69, "load", mini, "--device", "cuda", "--report", report, "--json")
    assert json.loads(report.read_text())["error"]["code"] == 69
    assert json.loads(result.stdout)["ok"] is False


def test_a_full_stdout_is_an_error_and_a_full_stderr_is_none(mini):
    with open("/dev/full", "w") as full:
        assert subprocess.run([PROGRAM, "inspect", mini], stdout=full, stderr=subprocess.DEVNULL).returncode == 74
        assert subprocess.run([PROGRAM, "load", mini], stderr=full).returncode == 0
