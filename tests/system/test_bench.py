"""`bench`: what it measures, that its figures follow from its samples, and that it leaves nothing behind."""

import collections
import os
import re
import shlex
import shutil
import signal
import statistics
import tempfile
from pathlib import Path

import numpy as np
import pytest

import reference
from program import OnRank, Run, expect, run, run_ok, wait_until
from reference import Mesh
from test_reads import own_bytes, tensor_bytes, times_read, traced

TWICE = ["--repeats", 2]
PREAD = {"pread, 4 KiB pages", "pread, 2 MiB pages"}
COLD_PREAD = {"pread, 4 KiB pages", "O_DIRECT"}
PWRITE = {"pwrite, fsync", "pwrite"}
COMPARED = {  # step: {what is measured: its limits}
    "load": {
        "load --verify off": PREAD,
        "load, digesting": {"load --verify off"},
        "load --verify coverage": {"load --verify off"},
        "load --verify full": {"load --verify off"},
        "load --verify reread": {"load --verify off"},
    },
    "read": {f"engine, {by}": {"pread, used memory"} for by in ("pread", "io_uring", "direct")},
    "verify": {"verify": {"read memory"}},
    "store": {"store": PWRITE},
    "to-hf": {
        "to-hf": PWRITE,
        "to-hf, streamed": PWRITE,
        "to-hf --gather": {"pwrite, fsync, rank 0", "pwrite, rank 0"},
    },
    "gather": {"gather": {"memcpy"}},
    "transpose": {
        "transpose, fresh memory": {"memcpy, fresh memory"},
        "transpose, warm memory": {"memcpy, warm memory"},
    },
    "digest": {"digest, as stored": {"read memory"}, "digest, swapped": {"read memory"}},
    "plan": {f"{which} ranks": {"all of 1 rank"} for which in ("all of 64", "all of 4096", "one of 4096")},
}
TALKING = {
    "collectives": {
        f"{call}, {size}": {f"{limit}, {size}" for limit in (f"MPI, {call}", *also)}
        for call in ("all_reduce", "broadcast", "gather", "ring")
        for size, also in (("64 B", []), ("8.39 MB", ["memcpy"]))
    }
}
COLD = {
    "cold": {f"load --io {backend}": COLD_PREAD for backend in ("auto", "pread", "io_uring", "direct")},
    "read-cold": COMPARED["read"],
}


def compared_by(ranks):
    return COMPARED | (TALKING if ranks > 1 else {})


@pytest.fixture
def scratch(tmp_path):
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module", params=[None, 2], ids=["alone", "2 ranks"])
def measured(request, tmp_path_factory):
    """(ranks, report, scratch folder) of a bench of everything on the synthetic `tiny`."""
    folder = tmp_path_factory.mktemp("bench")
    arguments = ["bench", "--preset", "tiny", "--cold", "--repeats", 3, "--scratch", folder, "--json"]
    return request.param or 1, run_ok(*arguments, ranks=request.param).json, folder


def runs_of(step):
    return {entry["name"]: entry for entry in step["runs"]}


def step_named(report, name):
    return next(step for step in report["steps"] if step["step"] == name)


# What is measured ---------------------------------------------------------------------------------------------------


def test_every_step_stands_beside_its_limits(measured):
    ranks, report, _ = measured
    assert report["schema"] == "rankslice.bench/1" and report["ok"] is True
    found = {}
    for step in report["steps"]:
        compared = found.setdefault(step["step"], {})
        for ratio in step["ratios"]:
            compared.setdefault(ratio["ours"], set()).add(ratio["limit"])
        assert set(runs_of(step)) == {name for ours, limits in compared.items() for name in {ours} | limits}
    assert found == compared_by(ranks) | COLD
    assert list(found) == list(compared_by(ranks) | COLD)


def test_all_samples_are_there_and_the_figures_follow_from_them(measured):
    _, report, _ = measured
    assert report["repeats"] == 3
    for step in report["steps"]:
        runs = runs_of(step)
        for entry in runs.values():
            assert len(entry["seconds"]) == 3 and min(entry["seconds"]) > 0
            assert entry["seconds_min"] == min(entry["seconds"])
            assert entry["seconds_median"] == statistics.median(entry["seconds"])
            assert entry["gb_per_second"] == pytest.approx(entry["bytes"] / entry["seconds_median"] / 1e9)
            assert entry["meaning"]
            if "count" in entry:
                assert entry["microseconds_each"] == pytest.approx(entry["seconds_median"] * 1e6 / entry["count"])
        for ratio in step["ratios"]:
            ours, limit = (runs[ratio[which]]["seconds"] for which in ("ours", "limit"))
            assert ratio["of_minima"] == pytest.approx(min(ours) / min(limit))
            assert ratio["of_medians"] == pytest.approx(statistics.median(ours) / statistics.median(limit))


def test_the_median_of_two_samples_is_their_mean(tiny):
    report = run_ok("bench", tiny, *TWICE, "--steps", "digest", "--json").json
    for entry in report["steps"][0]["runs"]:
        assert entry["seconds_median"] == pytest.approx(sum(entry["seconds"]) / 2)


def test_ours_and_its_limit_move_the_same_bytes(measured, tiny, tiny_tensors):
    """The bytes are those of the plan, of the native form, of the files, and of the largest stacked tensor."""
    ranks, report, _ = measured
    mesh = Mesh(1, ranks)
    states = [reference.local_state(tiny_tensors, mesh, rank) for rank in range(ranks)]
    held = sum(value.nbytes for state in states for value in state.values())
    native = sum(value.nbytes for value in reference.local_state(tiny_tensors, Mesh(1, 1), 0).values())
    expected = {
        "load": sum(reference.bytes_wanted(tiny_tensors, mesh, rank) for rank in range(ranks)),
        "verify": held,
        "store": native,
        "to-hf": sum(path.stat().st_size for path in reference.shard_files(tiny)),
        "transpose": max(value.nbytes for key, value in tiny_tensors.items() if reference.is_stacked(key)),
    }
    expected["digest"] = expected["transpose"]
    expected["gather"] = report["checkpoint"]["bytes"]
    expected |= dict.fromkeys(["cold", "read", "read-cold"], expected["load"])
    expected["plan"] = 0  # of tensors, which it counts
    for step in [step for step in report["steps"] if step["step"] != "collectives"]:
        assert {entry["bytes"] for entry in step["runs"]} == {expected[step["step"]]}, step["step"]
    assert report["checkpoint"]["bytes"] == sum(value.nbytes for value in tiny_tensors.values())


@pytest.mark.usefixtures("strace")
def test_all_kinds_of_loading_read_the_very_same_bytes(tiny, tiny_tensors, tmp_path):
    """Once to warm the cache, five times ours, and twice plainly; and for `reread` once what another rank read."""
    on_rank = traced("bench", tiny, "--repeats", 1, "--steps", "load", folder=tmp_path, ranks=2)
    everything = tensor_bytes(tiny)
    for rank in range(2):
        counts = times_read(on_rank, rank, reference.shard_files(tiny))
        for file, owned in own_bytes(tiny, tiny_tensors, Mesh(1, 2), rank).items():
            others = counts[file].astype(int)[everything[file]] - 8 * owned[everything[file]]
            assert others.min() >= 0 and others.max() <= 3, f"rank {rank}, {file}"  # in aligned blocks, which overlap


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("step", ["store", "to-hf"])
def test_the_plain_writers_write_every_byte_and_sync_where_they_say_so(step, tiny, tiny_tensors, scratch, tmp_path):
    """All ranks together, once with fsync and once without; of exports then the same by rank 0 alone."""
    on_rank = OnRank(tmp_path / "ranks", traced="all", strace="-e trace=pwrite64,fsync")
    run_ok("bench", tiny, "--repeats", 1, "--steps", step, "--scratch", scratch, ranks=2, on_rank=on_rank)
    if step == "store":
        native = reference.local_state(tiny_tensors, Mesh(1, 1), 0)
        sizes = {"plain": sum(value.nbytes for value in native.values())}
    else:
        sizes = {f"plain-{i}": path.stat().st_size for i, path in enumerate(reference.shard_files(tiny))}
    written = {name: np.zeros(size, "u1") for name, size in sizes.items()}
    calls = "".join(trace.read_text() for rank in range(2) for trace in on_rank.traces(rank))
    for name, offset, put in re.findall(r"pwrite64\(\d+<[^>]*/(plain[-\d]*)>, .*, (\d+)\)\s+= (\d+)", calls):
        written[name][int(offset) : int(offset) + int(put)] += 1
    synced = collections.Counter(re.findall(r"fsync\(\d+<[^>]*/(plain[-\d]*)>\)\s+= 0", calls))
    by_rank_0 = step == "to-hf"
    assert all((counts == (4 if by_rank_0 else 2)).all() for counts in written.values())
    assert synced == dict.fromkeys(sizes, 3 if by_rank_0 else 2)  # by two ranks, and by one


def test_peak_memory_of_loading_is_that_of_each_rank(measured, tiny_tensors):
    ranks, report, _ = measured
    for name in COMPARED["load"]:
        entry = runs_of(step_named(report, "load"))[name]
        if entry["memory"] is None:
            pytest.skip("this system does not let the peak of a process be reset")
        assert [seen["rank"] for seen in entry["memory"]] == list(range(ranks))
        for seen in entry["memory"]:
            held = reference.local_state(tiny_tensors, Mesh(1, ranks), seen["rank"])
            assert seen["owned_bytes"] == sum(value.nbytes for value in held.values())
            assert seen["peak_rss_bytes"] > seen["rss_before_bytes"] > 0


def test_the_machine_is_described_rank_by_rank(measured):
    ranks, report, _ = measured
    assert [entry["rank"] for entry in report["rank"]] == list(range(ranks)) and report["ranks"] == ranks
    for entry in report["rank"]:
        assert entry["kernel"] == os.uname().release and entry["host"] == os.uname().nodename
        assert 1 <= entry["usable_cores"] <= entry["cores"] == os.cpu_count()
        assert {"cpu", "huge_pages"} <= set(entry)
    assert report["versions"]["rankslice"] and report["comm"] == ("mpi" if ranks > 1 else "none")
    assert report["scratch"]["file_system"] and report["page_cache"] == "warm"


@pytest.mark.parametrize("of", ["tiny", "mini_store"])
def test_a_checkpoint_or_store_of_ones_own(of, scratch, request):
    path = request.getfixturevalue(of)
    result = run_ok("bench", path, *TWICE, "--scratch", scratch, "--json", ranks=2)
    report = result.json
    assert report["checkpoint"]["path"] == str(path) and report["checkpoint"]["preset"] is None
    assert report["checkpoint"]["format"] == ("huggingface" if of == "tiny" else "store")
    assert [step["step"] for step in report["steps"]] == list(compared_by(2))
    assert list(scratch.iterdir()) == []


def test_a_rank_without_experts_is_no_hindrance(mini, scratch):
    run_ok("bench", mini, "--repeats", 1, "--scratch", scratch, "-q", ranks=7)


def test_planning_and_talking_count_tensors_and_calls(measured, tiny_tensors):
    ranks, report, _ = measured
    assert {(e["count"], e["of"]) for e in step_named(report, "plan")["runs"]} == {(len(tiny_tensors), "tensor")}
    for entry in step_named(report, "collectives")["runs"] if ranks > 1 else []:
        size = {"64 B": 64, "8.39 MB": 8 << 20}[entry["name"].split(", ")[-1]]
        assert entry["of"] == "call" and entry["bytes"] == ranks * size * entry["count"]


@pytest.mark.parametrize("mesh", [Mesh(2, 1), Mesh(1, 2), Mesh(1, 1, 2)], ids=str)
def test_every_mesh_can_be_measured(mesh, tiny, tiny_tensors, scratch):
    shape = ["--ep", mesh.ep, "--ep-shard", mesh.ep_shard]
    arguments = ["--scratch", scratch, "--steps", "load,store,digest", "--cold", "--json", *shape]
    report = run_ok("bench", tiny, "--repeats", 1, *arguments, ranks=2).json
    assert report["mesh"] == mesh.sizes
    held = [reference.local_state(tiny_tensors, mesh, rank) for rank in range(2)]
    for name in ("load", "cold"):
        memory = step_named(report, name)["runs"][0]["memory"] or []
        owned = [sum(value.nbytes for value in state.values()) for state in held]
        assert [seen["owned_bytes"] for seen in memory] == owned[: len(memory)]


def test_steps_are_measured_once_in_the_usual_order(tiny):
    report = run_ok("bench", *TWICE, "--json", "--steps", "digest", "--steps", "digest,verify", tiny).json
    assert [step["step"] for step in report["steps"]] == ["verify", "digest"]
    from_environment = run_ok("bench", tiny, *TWICE, "--json", env={"RANKSLICE_STEPS": "digest,verify"}).json
    assert [step["step"] for step in from_environment["steps"]] == ["verify", "digest"]


# Cold runs ----------------------------------------------------------------------------------------------------------


def test_cold_steps_are_measured_only_where_they_are_asked_for(tiny):
    arguments = ["bench", tiny, *TWICE, "--json", "--steps"]
    assert [step["step"] for step in run_ok(*arguments, "digest").json["steps"]] == ["digest"]
    assert [step["step"] for step in run_ok(*arguments, "digest", "--cold").json["steps"]] == ["digest", *COLD]
    assert [step["step"] for step in run_ok(*arguments, "cold").json["steps"]] == ["cold"]


@pytest.mark.usefixtures("strace")
def test_every_rank_has_every_file_forgotten_before_every_cold_run(tiny, tmp_path):
    on_rank = OnRank(tmp_path / "ranks", traced="all", strace="-e trace=fadvise64")
    step = run_ok("bench", tiny, *TWICE, "--steps", "cold", "--json", ranks=2, on_rank=on_rank).json["steps"][0]
    for rank in range(2):
        calls = "".join(trace.read_text() for trace in on_rank.traces(rank))
        forgotten = re.findall(r"fadvise64\(\d+<[^>]*/([^/>]+)>, 0, 0, POSIX_FADV_DONTNEED\)\s+= 0", calls)
        names = [path.name for path in reference.shard_files(tiny)]
        assert collections.Counter(forgotten) == dict.fromkeys(names, 2 * len(step["runs"]))
    assert [entry["left_in_page_cache_bytes"] for entry in step["runs"]] == [[0, 0]] * len(step["runs"])


def test_what_stays_in_the_page_cache_is_told(tiny, tmp_path):
    """The files of a tmpfs are nowhere else."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        kept = shutil.copytree(tiny, Path(folder) / "kept")
        arguments = ["bench", kept, "--repeats", 1, "--steps", "cold", "-q"]
        step = run_ok(*arguments, "--json").json["steps"][0]
        text = run_ok(*arguments).stdout
    files = sum(path.stat().st_size for path in reference.shard_files(tiny))
    for entry in step["runs"]:
        assert entry["left_in_page_cache_bytes"] == [files]
        line = rf"^{entry['name']} +began with some of it in the page cache in repeat 1 \(\d"
        assert re.search(line, text, re.MULTILINE), text


# What is told -------------------------------------------------------------------------------------------------------


def test_the_table_has_a_line_for_everything_and_says_once_what_it_means(tiny, scratch):
    text = run_ok("bench", tiny, *TWICE, "--cold", "--scratch", scratch, "-q", ranks=2).stdout
    table, _, meanings = text.partition("\nBelow each")
    for step, compared in (compared_by(2) | COLD).items():
        for ours, limits in compared.items():
            block = table[re.search(rf"^(?:{step})? +{re.escape(ours)} +\d", table, re.MULTILINE).start() :]
            for limit in limits:
                assert re.search(rf"^ +: {re.escape(limit)} .*\d\.\d\d +\d+\.\d\d$", block, re.MULTILINE), (ours, limit)
            assert len(re.findall(rf"^\S* +{re.escape(ours)}  ", meanings, re.MULTILINE)) == 1, ours
    assert str(scratch) in text


def test_the_report_is_the_same_document(tiny, tmp_path):
    path = tmp_path / "bench.json"
    printed = run_ok("bench", tiny, *TWICE, "--steps", "digest", "--json", "--report", path).stdout
    assert path.read_text() == printed


def test_the_examples_of_the_help_work(tiny, scratch):
    text = run_ok("bench", "--help").stdout
    examples = [shlex.split(line.partition(" rankslice ")[2]) for line in text.splitlines() if "mpirun" in line]
    assert len(examples) == 2
    for example in examples:
        # The one checkpoint that it names is not everybody's.
        arguments = [tiny if "Qwen" in word else word for word in example]
        run_ok(*arguments, "--scratch", scratch, "-q", ranks=2, cwd=scratch)


def test_a_dry_run_measures_and_makes_nothing(scratch):
    result = run_ok("bench", "--dry-run", "--scratch", scratch, "--steps", "load,store")
    assert "load" in result.stderr and "store" in result.stderr and str(scratch) in result.stderr
    assert (result.stdout, list(scratch.iterdir())) == ("", [])


# What is left behind ------------------------------------------------------------------------------------------------


def test_nothing_is_left_of_a_run_that_ends_well(measured):
    _, _, folder = measured
    assert list(folder.iterdir()) == []


def test_what_others_left_stays_and_is_named(tiny, scratch):
    (scratch / "precious.txt").write_text("mine")
    (scratch / "rankslice-bench-killed").mkdir()
    result = run_ok("bench", tiny, *TWICE, "--scratch", scratch, "--steps", "store,to-hf", ranks=2)
    assert sorted(path.name for path in scratch.iterdir()) == ["precious.txt", "rankslice-bench-killed"]
    assert result.stderr.count("rankslice-bench-killed") == 1 and "precious" not in result.stderr


@pytest.mark.parametrize(("variable", "where"), [("TMPDIR", "temporary"), (None, "working")])
def test_the_usual_place_is_tmpdir_or_the_working_folder(variable, where, tmp_path):
    for name in ("temporary", "working"):
        (tmp_path / name).mkdir()
    env = {"TMPDIR": str(tmp_path / "temporary") if variable else ""}
    arguments = ["bench", "--preset", "tiny", "--steps", "digest", "--repeats", 1, "--json"]
    report = run_ok(*arguments, env=env, cwd=tmp_path / "working").json
    assert report["scratch"]["path"] == str(tmp_path / where)
    assert [list((tmp_path / name).iterdir()) for name in ("temporary", "working")] == [[], []]


@pytest.mark.parametrize("ranks", [None, 2])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("moment", ["synthesizing", "measuring"])
def test_nothing_is_left_of_a_run_that_is_stopped(moment, number, code, ranks, scratch, tmp_path):
    on_rank = OnRank(tmp_path / "ranks", codes=True)
    preset = {"synthesizing": "small", "measuring": "tiny"}[moment]
    made = {"synthesizing": "*/checkpoint.partial-*/*.safetensors", "measuring": "*/store.h5*"}[moment]
    arguments = ["bench", "--preset", preset, "--repeats", 1000, "--scratch", scratch, "--steps", "store"]
    with Run(*arguments, ranks=ranks, on_rank=on_rank) as job:
        wait_until(lambda: any(scratch.glob(made)), 30, f"{made} to be made")
        os.kill(on_rank.pid((ranks or 1) - 1), number)
        result = job.finish()
    assert result.rank_codes == dict.fromkeys(range(ranks or 1), code), result.stderr
    assert list(scratch.iterdir()) == []


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("step", ["store", "to-hf"])
def test_nothing_is_left_of_a_run_that_fails(step, tiny, scratch, tmp_path):
    fault = "-e trace=pwrite64 -e inject=pwrite64:error=ENOSPC:when=5+"
    on_rank = OnRank(tmp_path / "ranks", traced="1", strace=fault, codes=True)
    result = run("bench", tiny, *TWICE, "--scratch", scratch, "--steps", step, ranks=2, on_rank=on_rank)
    assert result.rank_codes == {0: 74, 1: 74}, result.stderr
    assert result.stderr.count("No space left on device") == 1
    assert list(scratch.iterdir()) == []


# What is wrong ------------------------------------------------------------------------------------------------------

WRONG = [
    (2, ["--steps", "bogus"], "bogus"),
    (2, ["--steps", "load,bogus"], "bogus"),
    (2, ["--repeats", "0"], "--repeats"),
    (2, ["--preset", "nonsense"], "nonsense"),
    (2, ["--preset", "tiny", "--family", "nonsense"], "nonsense"),
    (2, ["CKPT", "--preset", "tiny"], "--preset"),
    (66, ["nowhere"], "nowhere"),
    (73, ["--preset", "tiny", "--scratch", "nowhere"], "nowhere"),
    (73, ["CKPT", "--scratch", "CKPT"], "is an input"),
    (73, ["CKPT", "--scratch", "CKPT/below"], "is an input"),
]


@pytest.mark.parametrize("ranks", [None, 2])
@pytest.mark.parametrize(("code", "arguments", "says"), WRONG, ids=str)
def test_wrong_usage_and_wrong_places(code, arguments, says, ranks, mini, tmp_path):
    before = sorted(mini.rglob("*"))
    filled = [word.replace("CKPT", str(mini)) for word in arguments]
    on_rank = OnRank(tmp_path / "ranks", codes=True)
    result = run("bench", *filled, ranks=ranks, on_rank=on_rank, cwd=tmp_path)
    assert result.rank_codes == dict.fromkeys(range(ranks or 1), code), result.stderr
    assert says in result.stderr and result.stderr.count("error: ") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["ranks"] and sorted(mini.rglob("*")) == before


def test_one_rank_cannot_talk(tiny):
    expect(2, "bench", tiny, "--steps", "load,collectives", says=["collectives", "one rank"])


def test_a_broken_checkpoint_is_refused_by_all_before_anything_is_written(broken, scratch, tmp_path):
    path = reference.shard_files(broken)[0]
    path.write_bytes(path.read_bytes()[:-1])
    on_rank = OnRank(tmp_path / "ranks", codes=True)
    result = run("bench", broken, "--scratch", scratch, ranks=2, on_rank=on_rank)
    assert result.rank_codes == {0: 65, 1: 65}, result.stderr
    assert list(scratch.iterdir()) == []


def test_a_disk_without_the_room_is_seen_before_it_is_filled(scratch, tmp_path):
    """Of a terabyte there are only the headers; what is to be written would be real."""
    vast = tmp_path / "vast"
    synth = ["synth", vast, "--family", "qwen3_5_moe", "--preset", "small", "--experts", 65536, "--headers-only"]
    run_ok(*synth)
    words = ["are needed there", str(scratch)]
    expect(73, "bench", vast, "--steps", "store", "--scratch", scratch, says=words, ranks=2)
    assert list(scratch.iterdir()) == []


def test_an_error_is_reported_as_everywhere(tmp_path):
    report = run("bench", tmp_path / "nowhere", "--json").json
    assert (report["schema"], report["ok"], report["error"]["code"]) == ("rankslice.report/1", False, 66)
