"""launch/mpirun.sh: the processors that it gives each rank."""

import os
from pathlib import Path

import pytest

from test_mpirun import CORES, MPI, finish

ALLOWED = 'echo "$rank $(grep Cpus_allowed_list /proc/self/status)"'


def cpus(text):
    ends = [part.split("-") for part in text.split(",")]
    return frozenset(cpu for end in ends for cpu in range(int(end[0]), int(end[-1]) + 1))


def bound(*options, env=None):
    """Rank -> the processors that it may run on."""
    lines = finish(*options, shell=ALLOWED, env=env).stdout.splitlines()
    return {int(line.split()[0]): cpus(line.split()[-1]) for line in lines}


ALL = frozenset(os.sched_getaffinity(0))
siblings = Path("/sys/devices/system/cpu/cpu0/topology/thread_siblings_list")
needs_cores_without_threads = pytest.mark.skipif(
    CORES < 2 or (siblings.exists() and len(cpus(siblings.read_text().strip())) > 1),
    reason="this machine has not two cores with one thread each",
)


@needs_cores_without_threads
@pytest.mark.parametrize("bind", ["auto", "core"])
def test_as_many_ranks_as_cores_have_one_each(bind):
    ranks = bound("-n", CORES, "--bind", bind)
    assert set(ranks.values()) == {frozenset([cpu]) for cpu in ALL} and len(ranks) == CORES


@needs_cores_without_threads
def test_more_ranks_than_cores_are_bound_to_nothing():
    assert bound("-n", CORES + 1) == dict.fromkeys(range(CORES + 1), ALL)
    assert bound("-n", 1, "--bind", "none") == {0: ALL}


@pytest.mark.skipif(ALL != {0, 1}, reason="takes a machine of two processors, which it makes two domains of")
def test_neighbours_share_a_numa_domain():
    two_domains = {"HWLOC_SYNTHETIC": "package:2 numa:1 core:1 pu:1", "HWLOC_THISSYSTEM": "1"}
    ranks = bound("-n", 4, "--bind", "numa", env=two_domains)
    expected = [{0}, {0}, {1}, {1}] if MPI == "openmpi" else [{0}, {1}, {0}, {1}]  # MPICH has no way to say it
    assert [set(ranks[rank]) for rank in range(4)] == expected
