"""`--metrics-file`: the text format of Prometheus, whole at any time, and what it says of a run."""

import re
import threading
import time

import pytest

from program import Run, expect, leftovers, run, run_ok, wait_until

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
SAMPLE = re.compile(rf'({NAME})(?:\{{((?:{NAME}="(?:[^"\\\n]|\\["\\n])*",?)*)\}})? (\S+)')
LABEL = re.compile(rf'({NAME})="((?:[^"\\\n]|\\["\\n])*)"')


def parse(text):
    """{name: {labels: value}} of the text exposition format; every metric has HELP and TYPE before its samples."""
    assert text.endswith("\n")
    metrics, typed, helped = {}, {}, set()
    for line in text.splitlines():
        if line.startswith("# HELP "):
            _, _, name, what = line.split(" ", 3)
            assert what and name not in helped
            helped.add(name)
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in typed and name in helped and name not in metrics
            typed[name] = kind
        else:
            match = SAMPLE.fullmatch(line)
            assert match, line
            name, labels, value = match.groups()
            assert name in typed, line
            samples = metrics.setdefault(name, {})
            key = tuple(LABEL.findall(labels or ""))
            assert key not in samples, line
            samples[key] = float(value)
    assert set(metrics) == set(typed) and set(typed.values()) == {"gauge"}
    return metrics


def values(metrics, name, by):
    """{value of label `by`: value of the sample}."""
    return {dict(labels)[by]: value for labels, value in metrics[f"rankslice_{name}"].items()}


def one(metrics, name):
    (value,) = metrics[f"rankslice_{name}"].values()
    return value


def test_metrics_say_what_the_report_says(mini, tmp_path):
    began = time.time()
    path = tmp_path / "m.prom"
    report = run_ok("load", mini, "--store", tmp_path / "s.h5", "--metrics-file", path, "--json", ranks=3).json
    metrics = parse(path.read_text())
    for samples in metrics.values():
        assert {dict(labels)["command"] for labels in samples} == {"load"}
    assert (one(metrics, "ranks"), one(metrics, "running"), one(metrics, "exit_code")) == (3, 0, 0)
    assert one(metrics, "mismatches") == 0
    assert began - 1 <= one(metrics, "start_timestamp_seconds") <= one(metrics, "last_progress_timestamp_seconds")
    assert one(metrics, "last_progress_timestamp_seconds") <= time.time() + 1
    phases = {phase: seconds for phase, seconds in report["seconds"].items() if phase != "total"}
    assert set(phases) == {"open", "plan", "load", "verify", "store"}
    assert values(metrics, "phase_seconds", "phase") == pytest.approx(phases, rel=1e-5)
    for metric, field in (("read_bytes", "bytes_read"), ("owned_bytes", "bytes_owned")):
        assert values(metrics, metric, "rank") == {str(rank["rank"]): rank[field] for rank in report["rank"]}


@pytest.mark.parametrize("command", ["verify", "to-hf"])
def test_metrics_of_every_command_of_ranks(command, mini, tmp_path):
    output = [tmp_path / "out"] if command == "to-hf" else []
    run_ok(command, mini, *output, "--metrics-file", tmp_path / "m.prom", ranks=2)
    metrics = parse((tmp_path / "m.prom").read_text())
    assert one(metrics, "exit_code") == 0
    assert command.replace("-", "_") in values(metrics, "phase_seconds", "phase")


def test_metrics_of_a_rank_by_itself_name_that_rank(mini, tmp_path):
    run_ok("load", mini, "--rank", 2, "--ranks", 3, "--metrics-file", tmp_path / "m.prom")
    metrics = parse((tmp_path / "m.prom").read_text())
    assert list(values(metrics, "last_progress_timestamp_seconds", "rank")) == ["2"]


def test_metrics_say_how_a_run_failed(mini, tmp_path):
    path = tmp_path / "m.prom"
    expect(66, "verify", tmp_path / "nothing", "--metrics-file", path, ranks=2)
    metrics = parse(path.read_text())
    assert (one(metrics, "running"), one(metrics, "exit_code")) == (0, 66)
    assert list(values(metrics, "last_progress_timestamp_seconds", "phase")) == ["open"]


def test_metrics_stand_there_while_the_job_runs(tiny, tmp_path):
    """A reader in a loop finds nothing or all of it; it sees the run go on, and then its end."""
    path = tmp_path / "m.prom"
    seen, wrong, ended = set(), [], threading.Event()

    def read_on():
        while not ended.is_set():
            try:
                metrics = parse(path.read_text())
                seen.add(one(metrics, "running"))
            except FileNotFoundError:
                assert not seen, "it was there before"
            except Exception as error:  # half a file
                wrong.append(error)
            time.sleep(0.0005)

    reader = threading.Thread(target=read_on)
    reader.start()
    try:
        for name in ("a", "b", "c"):
            run_ok("load", tiny, "--store", tmp_path / f"{name}.h5", "--metrics-file", path, ranks=2)
    finally:
        ended.set()
        reader.join()
    assert not wrong
    assert seen == {0.0, 1.0}
    assert not leftovers(path)


def test_metrics_of_a_killed_run_say_when_it_last_got_on(tiny, tmp_path):
    path = tmp_path / "m.prom"
    with Run("load", tiny, "--metrics-file", path, env={"RANKSLICE_LOG_FORMAT": "text"}) as running:
        wait_until(path.exists, 20, "the metrics")
        running.process.kill()
    assert parse(path.read_text())["rankslice_last_progress_timestamp_seconds"]


@pytest.mark.parametrize("option", ["--metrics-file", "--trace"])
def test_where_a_record_cannot_be_written_nothing_is_begun(option, mini, tmp_path):
    store = tmp_path / "s.h5"
    result = expect(
        73, "load", mini, "--store", store, option, tmp_path / "no" / "such" / "file", ranks=2, says="no/such"
    )
    assert not store.exists() and "load     " not in result.stderr


@pytest.mark.parametrize("option", ["--metrics-file", "--trace"])
def test_a_record_takes_the_place_of_no_input(option, mini_store, tmp_path):
    before = mini_store.read_bytes()
    expect(73, "verify", mini_store, option, mini_store, says="is an input")
    assert mini_store.read_bytes() == before


def test_two_records_do_not_share_a_file(mini, tmp_path):
    same = tmp_path / "same"
    expect(73, "verify", mini, "--trace", same, "--metrics-file", same, says="two outputs")


def test_metrics_that_cannot_be_written_any_more_do_not_end_the_job(tiny, tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    with Run("load", tiny, "--metrics-file", folder / "m.prom", "--store", tmp_path / "s.h5", ranks=2) as running:
        wait_until((folder / "m.prom").exists, 20, "the metrics")
        for _ in range(1000):  # against a file that is just being made
            try:
                (folder / "m.prom").unlink(missing_ok=True)
                folder.rmdir()
                break
            except OSError:
                continue
        result = running.finish()
    assert result.code == 0, result.stderr
    assert "no more metrics" in result.stderr
    assert (tmp_path / "s.h5").exists()


def test_without_the_option_there_are_no_metrics(mini, tmp_path):
    run("verify", mini, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []
