"""Where tensors stand in memory: on huge pages or small ones as asked for, and beside them little else."""

import functools
import os
from pathlib import Path

import pytest

from program import expect, run_ok
from system_calls import uring_or_skip

MIB = 1 << 20
ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
has_huge_pages = pytest.mark.skipif(
    not ENABLED.exists() or "[never]" in ENABLED.read_text(), reason="this system has no huge pages"
)


FORBIDDEN = (
    "python3",
    "-c",
    "import ctypes, os, sys; assert ctypes.CDLL(None).prctl(41, 1, 0, 0, 0) == 0; os.execv(sys.argv[1], sys.argv[1:])",
)
"""As under a launcher that lets its processes have none: PR_SET_THP_DISABLE."""


@has_huge_pages
@pytest.mark.parametrize(("asked", "chosen"), [("auto", "on"), ("on", "on"), ("off", "off")])
def test_the_report_says_which_pages_there_are(tiny, asked, chosen):
    assert run_ok("load", tiny, "--hugepages", asked, "--json", ranks=2).json["choices"]["hugepages"] == chosen


@has_huge_pages
def test_huge_pages_that_are_asked_for_and_cannot_be_had_are_an_error_that_says_why(tiny):
    result = expect(2, "load", tiny, "--hugepages", "on", under=FORBIDDEN)
    why = "this process may have none (PR_SET_THP_DISABLE)"
    assert f"huge pages were asked for, and there are none: {why}" in result.stderr


@has_huge_pages
def test_without_being_asked_for_they_may_be_missing(tiny):
    result = run_ok("load", tiny, "-v", under=FORBIDDEN)
    assert "pages    small: this process may have none" in result.stderr


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """400 MB, a third of it experts."""
    ckpt = tmp_path_factory.mktemp("large") / "ckpt"
    run_ok("synth", ckpt, "--preset", "small", "--layers", 1, "--experts", 8)
    return ckpt


@pytest.fixture(scope="module")
def fixed(mini):
    """ranks -> what a rank needs that loads next to nothing: the program, MPI, the model."""

    def measured(ranks):
        report = run_ok("load", mini, "--ep", ranks, "--threads", 1, "--io", "pread", "--json", ranks=ranks).json
        return max(rank["peak_rss_bytes"] for rank in report["rank"])

    return functools.cache(measured)


def cool(folder):
    """Out of the page cache, so that what reads ahead has its blocks in memory."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.mark.parametrize("ep", [1, 2, 4])
@pytest.mark.parametrize(("way", "threads"), [("pread", 2), ("io_uring", 2), ("direct", 1), ("direct", 2)])
def test_beside_what_a_rank_owns_it_needs_little_memory(large, fixed, ep, threads, way):
    if way == "io_uring":
        uring_or_skip()
    cool(large)
    report = run_ok("load", large, "--ep", ep, "--threads", threads, "--io", way, "--json", ranks=ep).json
    for rank in report["rank"]:
        beside = rank["peak_rss_bytes"] - rank["bytes_owned"] - fixed(ep)
        assert beside < 16 * MIB * threads, rank
    owned = [rank["bytes_owned"] for rank in report["rank"]]
    assert ep == 1 or max(owned) < 0.9 * sum(path.stat().st_size for path in large.iterdir()), "experts are divided"
