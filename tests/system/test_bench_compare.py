"""`bench --compare`: other libraries load the very same tensors, and a chart of how long that takes."""

import json
import os
import sys
import xml.etree.ElementTree as ET

import pytest

from program import expect, run_ok

ALWAYS = ["rankslice --verify off", "rankslice", "safetensors", "torch DCP", "pread, 4 KiB pages"]
NO_LIBRARIES = {"PYTHONPATH": "/nowhere"}
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


def texts_of(root, style):
    return [text.text for text in root.iter(f"{SVG}text") if style in text.get("class").split()]


def test_the_chart_has_a_bar_for_every_way_warm_and_cold(tiny, tmp_path):
    chart = tmp_path / "a chart.svg"
    options = ["--cold", "--cache", "drop", "--hugepages", "off", "--io", "pread", "--scratch", tmp_path]
    found = compare(tiny, *options, "--chart", chart, "--json").json
    assert [step["step"] for step in found["steps"]] == ["compare", "compare-cold"]
    root = ET.parse(chart).getroot()
    warm, cold = ([entry["seconds_min"] for entry in step["runs"]] for step in found["steps"])
    runs = found["steps"][0]["runs"]
    bars = [bar for bar in root.iter(f"{SVG}rect") if "bar" in bar.get("class").split()]
    seconds = [figure for both in zip(warm, cold, strict=True) for figure in both]
    widest = max(float(bar.get("width")) for bar in bars)
    for bar, figure in zip(bars, seconds, strict=True):
        assert float(bar.get("width")) == pytest.approx(max(1.0, widest * figure / max(seconds)), abs=0.2)
    kinds = [bar.get("class").split()[1] for bar in bars[::2]]
    ours = ["ours" if entry["name"].startswith("rankslice") else "theirs" for entry in runs[:-1]]
    assert kinds == [*ours, "limit"]
    assert texts_of(root, "name") == [entry["name"] for entry in runs]
    ratios = [figure / first[0] for first in (warm, cold) for figure in first]
    told = sorted(float(text.split()[3]) for text in texts_of(root, "figure"))
    assert told == pytest.approx(sorted(ratios), abs=0.051)
    over = [max(seen["peak_rss_bytes"] - seen["owned_bytes"] for seen in entry["memory"]) for entry in runs[:-1]]
    notes = [text.split()[0] for text in texts_of(root, "note")[1:] if text]
    assert notes == [f"{figure / 1e6:.0f}" for figure in over]
    command = " ".join(texts_of(root, "command"))
    expected = "rankslice bench tiny --cold --repeats 1 --io pread --cache drop --hugepages off --scratch "
    assert command.startswith("$ mpirun -n 1 " + expected) and command.endswith("--chart 'a chart.svg'")
    assert max(map(len, texts_of(root, "command") + texts_of(root, "caption"))) <= 128
    assert root.find(f"{SVG}title").text.startswith("Loading a qwen3_5_moe checkpoint")
    assert "prefers-color-scheme: dark" in chart.read_text()


@pytest.mark.parametrize("name", ["<b>&.svg", "ctrl\x1b.svg", b"\xff\xfe.svg", "x" * 200 + ".svg"], ids=repr)
def test_a_chart_is_xml_whatever_names_are_in_it(name, tiny, tmp_path):
    chart = tmp_path / os.fsdecode(name)
    compare(tiny, "--chart", chart, "--scratch", tmp_path, env=NO_LIBRARIES)
    root = ET.parse(chart).getroot()
    assert max(map(len, texts_of(root, "command"))) <= 128


# What becomes of those that fail -------------------------------------------------------------------------------------


def with_module(folder, name, text):
    (folder / name).write_text(text)
    return {"PYTHONPATH": str(folder)}


def test_our_own_package_that_loads_something_else_is_an_error(tiny, tmp_path):
    for content, says in [("{}", "missing"), ("{'model.bogus': None}", "model.bogus: not expected")]:
        env = with_module(tmp_path, "rankslice.py", f"def load(*_, **__):\n    return {content}\n")
        arguments = ["bench", tiny, "--repeats", 1, "--compare", sys.executable, "--scratch", tmp_path]
        expect(3, *arguments, env=env, says=["rankslice in Python", says], ranks=2)
        assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == ["rankslice.py"]


FAILING = [  # how a torch reader begins, in its first or second loading, and why it is left out
    ("raise MemoryError('too much')", 2, "too much"),
    ("os._exit(9)", 1, "has ended"),
    ("time.sleep(1000)", 1, "says nothing for 30 s"),
    ("return Nothing()", 1, "does not load what the checkpoint has"),
]
FAULT = """
import os, time
import torch.distributed.checkpoint.hf_storage as module

class Reader(module.HuggingFaceStorageReader):
    def read_data(self, plan, planner):
        open(os.path.join("{folder}", str(time.monotonic_ns())), "w").close()
        if len(os.listdir("{folder}")) >= {count}:
            {begins}
        return super().read_data(plan, planner)

class Nothing:
    def wait(self):
        pass

module.HuggingFaceStorageReader = Reader
"""


@pytest.mark.parametrize(("begins", "loading", "why"), FAILING)
def test_a_library_that_fails_is_left_out_and_the_others_are_measured(begins, loading, why, tiny, tmp_path):
    """The last rank's, when it loads to be looked at, or to be timed."""
    (tmp_path / "times").mkdir()
    fault = FAULT.format(folder=tmp_path / "times", count=2 * loading, begins=begins)
    env = with_module(tmp_path, "sitecustomize.py", fault)
    result = compare(tiny, "--scratch", tmp_path, "--timeout", 30, "--json", env=env, ranks=2)
    (step,) = result.json["steps"]
    names = [entry["name"] for entry in step["runs"]]
    assert "safetensors" in names and names[-1] == "pread, 4 KiB pages" and "torch DCP" not in names
    assert {ratio["limit"] for ratio in step["ratios"]} == set(names[2:])
    assert result.stderr.count("torch DCP is not compared: ") == 1 and why in result.stderr
    assert set(step.get("left_out", {})) == ({"torch DCP"} if loading == 2 else set())


def test_libraries_know_nothing_of_the_ranks(tiny, tmp_path):
    """Or one that calls MPI_Init would be a rank of the same job."""
    seen = tmp_path / "seen"
    env = with_module(
        tmp_path, "sitecustomize.py", f"import json, os\nopen('{seen}', 'w').write(json.dumps(dict(os.environ)))\n"
    )
    compare(tiny, "--scratch", tmp_path, env=env | {"KEPT": "1"}, ranks=2)
    variables = json.loads(seen.read_text())
    assert variables["KEPT"] == "1"
    assert not [name for name in variables if name.startswith(("OMPI_", "PMIX_", "PMI_"))]


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
