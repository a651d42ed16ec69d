"""Where tensors stand in memory: on huge pages or small ones as asked for, and beside them little else."""

from pathlib import Path

import pytest

from program import expect, run_ok

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
    """600 MB, half of it experts."""
    ckpt = tmp_path_factory.mktemp("large") / "ckpt"
    run_ok("synth", ckpt, "--preset", "small", "--layers", 1, "--experts", 24)
    return ckpt


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("verify", ["off", "full"])
def test_beside_what_a_rank_owns_it_needs_little_memory(large, ranks, verify):
    report = run_ok("load", large, "--verify", verify, "--threads", 1, "--json", ranks=ranks).json
    assert report["bytes"]["owned"] > 500 * MIB
    for rank in report["rank"]:
        assert rank["peak_rss_bytes"] < rank["bytes_owned"] + 32 * MIB, rank
