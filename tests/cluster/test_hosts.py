"""Ranks on three hosts: load, verify, store and to-hf, what goes over their network, and what they read."""

import hashlib
import json
import re
import shutil

import mpirun
import pytest
import readme

import checkpoints
import reference
from program import OnRank, run_ok
from system_calls import TRACE, tensor_bytes, times_read


def test_a_checkpoint_goes_through_three_hosts_byte_for_byte(hosts, tiny, tmp_path):
    store, out = tmp_path / "tiny.h5", tmp_path / "out"
    loaded = mpirun.run_ok(hosts, "load", tiny, "--ep", 2, "--store", store, "--json").json
    assert loaded["ranks"] == 6 and loaded["mesh"] == {"ep_replicate": 3, "ep_shard": 1, "ep": 2}
    assert [rank["host"] for rank in loaded["rank"]] == ["node1", "node1", "node2", "node2", "node3", "node3"]
    verified = mpirun.run_ok(hosts, "verify", store, "--against", tiny, "--json").json
    assert verified["verify"]["mismatches"] == []
    mpirun.run_ok(hosts, "to-hf", store, out)
    assert not checkpoints.folder_differences(tiny, out)


# What goes over the network ------------------------------------------------------------------------------------------

# Beside the tensors: a header of 66 bytes on packets of up to 64 KiB, and one for each acknowledgement. What ranks, MPI
# and its daemons say to each other besides is taken off: it is what the same job sends without passing tensors on.
OVERHEAD = 0.03


def network_bytes(hosts, *arguments, per_host):
    """host -> (received, sent) in a job."""
    before = hosts.interface_bytes()
    mpirun.run_ok(hosts, *arguments, per_host=per_host)
    after = hosts.interface_bytes()
    return {host: [after[host][way] - before[host][way] for way in (0, 1)] for host in hosts.names}


def assert_as_planned(planned, measured, without):
    """`planned`: host -> (received, sent) bytes of tensors. All else that either of the jobs sends is little."""
    for host, ways in planned.items():
        for way, name in enumerate(("received", "sent")):
            more = measured[host][way] - without[host][way]
            print(f"{host} {name}: planned {ways[way]}, measured {more}")
            assert ways[way] <= measured[host][way], (host, name)
            assert abs(more - ways[way]) <= OVERHEAD * max(ways[way], 8 << 20), (host, name)


def on_each_host(ranks, per_host):
    return [ranks[begin : begin + per_host] for begin in range(0, len(ranks), per_host)]


@pytest.mark.parametrize("per_host", [1, 2])
def test_dense_tensors_that_are_read_once_come_to_each_host_once(per_host, hosts, tiny):
    plan = run_ok("plan", tiny, "--ranks", 3 * per_host, "--dense", "once", "--json").json["dense"]["rank"]
    # In the ring, the first rank of a host gets from the one before, and the last sends to the next one.
    planned = {
        host: (ranks[0]["bytes_received"], ranks[-1]["bytes_sent"])
        for host, ranks in zip(hosts.names, on_each_host(plan, per_host), strict=True)
    }
    once = network_bytes(hosts, "load", tiny, "--dense", "once", per_host=per_host)
    each = network_bytes(hosts, "load", tiny, "--dense", "each-rank", per_host=per_host)
    assert_as_planned(planned, once, each)


def test_gathering_sends_the_planned_bytes_to_the_first_host(hosts, tiny, tmp_path):
    plan = run_ok("plan", tiny, "--ranks", 3, "--json").json["gather"]["of_checkpoint"]["rank"]
    planned = {host: (plan[i]["bytes_received"], plan[i]["bytes_sent"]) for i, host in enumerate(hosts.names)}
    gathered = network_bytes(hosts, "to-hf", tiny, tmp_path / "gathered", "--gather", per_host=1)
    direct = network_bytes(hosts, "to-hf", tiny, tmp_path / "direct", per_host=1)
    assert_as_planned(planned, gathered, direct)
    assert not checkpoints.folder_differences(tiny, tmp_path / "gathered")


# What is read --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
def test_three_hosts_read_every_byte_once_in_total(hosts, tiny, tmp_path):
    """Without being told: they share no page cache."""
    on_rank = OnRank(tmp_path / "ranks", traced="all", strace=TRACE)
    report = mpirun.run_ok(hosts, "load", tiny, "--json", on_rank=on_rank).json
    files = reference.shard_files(tiny)
    times = [times_read(on_rank, rank, files) for rank in range(6)]
    for file, mask in tensor_bytes(tiny).items():
        assert (sum(of_rank[file] for of_rank in times)[mask] == 1).all(), file
    assert report["choices"]["dense"] == "once"
    assert report["bytes"]["read"] == sum(int(mask.sum()) for mask in tensor_bytes(tiny).values())


# README.md -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def readme_folder(hosts, tiny, tmp_path):
    """What README.md names, as tiny checkpoints, and the hosts as mpirun finds them where nothing else is said."""
    for name in ("tiny", "Qwen3.6-35B-A3B"):
        shutil.copytree(tiny, tmp_path / name)
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in reference.shard_files(tiny)]
    (tmp_path / "Qwen3.6-35B-A3B/SHA256SUMS").write_text("".join(sums))
    run_ok("synth", tmp_path / "Qwen3.5-35B-A3B-FP8", "--preset", "tiny", "--quantization", "fp8")
    run_ok("load", tmp_path / "Qwen3.5-35B-A3B-FP8", "--store", tmp_path / "qwen-fp8.h5")
    (tmp_path / "hostfile").write_text("".join(f"{host} slots=3\n" for host in hosts.names))
    return tmp_path


def test_the_commands_of_the_readme_run_on_three_hosts(hosts, readme_folder):
    shutil.copytree(readme_folder / "Qwen3.6-35B-A3B", readme_folder / "released")  # one of them adds a manifest
    # bench makes checkpoints of 2 GB, and doctor judges this machine.
    lines = [line for line in readme.mpirun_commands() if not re.search(" (bench|doctor)", line)]
    assert len(lines) >= 9
    for line in lines:
        shutil.rmtree(readme_folder / "exported", ignore_errors=True)
        done = mpirun.shell(hosts, line, readme_folder)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        source = "tiny" if "tiny.h5 exported" in line else "released"
        if " exported" in line and "fp8" not in line:
            assert not checkpoints.folder_differences(readme_folder / source, readme_folder / "exported"), line
    report = json.loads((readme_folder / "load.json").read_text())
    assert sorted({rank["host"] for rank in report["rank"]}) == hosts.names
    fp8 = readme_folder / "Qwen3.5-35B-A3B-FP8"
    assert not checkpoints.folder_differences(fp8, readme_folder / "as_before")
