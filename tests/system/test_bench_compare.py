"""`bench --compare`: other libraries load the very same tensors, and a chart of how long that takes."""

import sys
import xml.etree.ElementTree as ET

import pytest

from program import expect, run_ok

ALWAYS = ["rankslice --verify off", "rankslice", "safetensors", "torch DCP", "pread, 4 KiB pages"]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """Each expert's matrices in tensors of their own."""
    path = tmp_path_factory.mktemp("split") / "ckpt"
    run_ok("synth", path, "--family", "qwen3_moe", "--preset", "tiny", "-q")
    return path


def compare(*arguments, **how):
    return run_ok("bench", *arguments, "--repeats", 1, "--compare", sys.executable, **how)


@pytest.mark.parametrize(
    ("of", "shape"), [("tiny", []), ("tiny", ["--ep", 1, "--ep-shard", 2]), ("mini", []), ("split", [])], ids=str
)
def test_others_end_up_with_the_same_tensors_on_every_mesh(of, shape, request, tmp_path):
    """Which is checked before they are timed: a step that is there has passed."""
    arguments = [request.getfixturevalue(of), *shape, "--scratch", tmp_path, "--json"]
    report = compare(*arguments, ranks=3 if of == "mini" else 2).json
    (step,) = report["steps"]
    assert step["step"] == "compare"
    assert [entry["name"] for entry in step["runs"] if entry["name"] in ALWAYS] == ALWAYS
    assert len({entry["bytes"] for entry in step["runs"]}) == 1
    compared = {(ratio["ours"], ratio["limit"]) for ratio in step["ratios"]}
    assert compared == {(ours, entry["name"]) for ours in ALWAYS[:2] for entry in step["runs"][2:]}
    held = {name: seen["owned_bytes"] for name, seen in memory_of_rank_0(step)}
    assert len(set(held.values())) <= 1, held
    assert list(tmp_path.iterdir()) == []


def memory_of_rank_0(step):
    return [(entry["name"], entry["memory"][0]) for entry in step["runs"] if entry.get("memory")]


def test_the_chart_has_a_bar_for_every_way_warm_and_cold(tiny, tmp_path):
    chart = tmp_path / "chart.svg"
    found = compare(tiny, "--cold", "--chart", chart, "--scratch", tmp_path, "--json").json
    assert [step["step"] for step in found["steps"]] == ["compare", "compare-cold"]
    root = ET.parse(chart).getroot()
    runs = [entry for step in found["steps"] for entry in step["runs"]]
    bars = root.findall(f"{SVG}rect")
    assert len(bars) == len(runs)
    longest = max(entry["seconds_min"] for entry in runs)
    widest = max(float(bar.get("width")) for bar in bars)
    for bar, entry in zip(bars, runs, strict=True):
        expected = max(1.0, widest * entry["seconds_min"] / longest)
        assert float(bar.get("width")) == pytest.approx(expected, abs=0.2), entry["name"]
        assert bar.get("class") == ("ours" if entry["name"].startswith("rankslice") else "other")
    texts = [text.text for text in root.findall(f"{SVG}text")]
    assert [text for text in texts if text in {entry["name"] for entry in runs}] == [entry["name"] for entry in runs]
    assert any(text.startswith("mpirun -n 1 rankslice bench tiny --cold --repeats 1 --compare") for text in texts)
    assert "prefers-color-scheme: dark" in chart.read_text()


def test_a_library_that_loads_something_else_is_found_out(tiny, tmp_path):
    """Here one that calls itself rankslice."""
    for content, says in [("{}", "missing"), ("{'model.bogus': None}", "model.bogus: not expected")]:
        (tmp_path / "rankslice.py").write_text(f"def load(*_, **__):\n    return {content}\n")
        arguments = ["bench", tiny, "--repeats", 1, "--compare", sys.executable, "--scratch", tmp_path]
        expect(3, *arguments, env={"PYTHONPATH": str(tmp_path)}, says=["rankslice in Python", says], ranks=2)
        assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == ["rankslice.py"]


def test_libraries_that_are_not_there_are_named(tiny, tmp_path):
    (tmp_path / "safetensors.py").write_text("raise ImportError('none of that here')\n")
    env = {"PYTHONPATH": str(tmp_path)}
    result = run_ok("bench", tiny, "--repeats", 1, "--compare", sys.executable, "--scratch", tmp_path, env=env)
    assert "without safetensors: ImportError: none of that here" in result.stderr
    assert " : safetensors " not in result.stdout and " : pread, 4 KiB pages " in result.stdout


def test_a_python_that_cannot_be_started_or_fails(tiny, tmp_path):
    arguments = ["bench", tiny, "--repeats", 1, "--scratch", tmp_path, "--compare"]
    expect(66, *arguments, tmp_path / "nowhere", says=["nowhere", "cannot be started"], ranks=2)
    failing = tmp_path / "failing"
    failing.write_text("#!/bin/sh\necho not today >&2\nexit 1\n")
    failing.chmod(0o755)
    expect(74, *arguments, failing, says=["failing", "not today"])


@pytest.mark.parametrize(
    ("of", "arguments", "says"),
    [
        ("tiny", ["--chart", "chart.svg"], "--chart"),
        ("mini_store", ["--compare", "python3"], "no folder of safetensors files"),
    ],
)
def test_what_cannot_be_compared(of, arguments, says, request, tmp_path):
    expect(2, "bench", request.getfixturevalue(of), *arguments, says=[says], cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_quantised_weights_are_not_compared(tmp_path):
    path = tmp_path / "fp8"
    run_ok("synth", path, "--family", "qwen3_5_moe", "--preset", "tiny", "--quantization", "fp8", "-q")
    expect(2, "bench", path, "--compare", sys.executable, "--scratch", tmp_path, says=["dequantised"])
