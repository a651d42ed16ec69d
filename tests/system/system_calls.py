"""Which bytes of which files each rank of a job asked for, as strace saw it."""

import re

import numpy as np
import pytest

import reference
from program import OnRank, run, run_ok

# Everything that can bring bytes of a file into memory.
CALLS = "pread64,preadv,preadv2,read,readv,mmap,sendfile,splice,tee,copy_file_range,io_uring_setup,io_uring_enter"
TRACE = f"-e trace={CALLS}"
TRACE_OPENING = f"-e trace={CALLS},openat"
OPENED = re.compile(r"openat\(.*, (?P<flags>O_[A-Z_|]+)\)\s+= (?P<fd>\d+)<")
PREAD = re.compile(r"pread64\((?P<fd>\d+)<(?P<path>[^>]*)>, .*, (?P<offset>\d+)\)\s+= (?P<got>\d+)$")
PATHS = re.compile(r"\d+<(/[^>]*)>")


def traced(*arguments, folder, ranks):
    on_rank = OnRank(folder, traced="all", strace=TRACE)
    run_ok(*arguments, ranks=ranks, on_rank=on_rank)
    return on_rank


def lines_about(on_rank, rank, paths):
    """Calls of a rank that touch any of the files."""
    wanted = {str(path) for path in paths}
    for trace in on_rank.traces(rank):
        for line in trace.read_text().splitlines():
            if wanted.intersection(PATHS.findall(line)):
                yield line


def preads(on_rank, rank, paths, past_page_cache=False):
    """(file name, first byte, end) of a rank's reads from these files. Any other call than pread is an error.

    `past_page_cache`: only by descriptors with O_DIRECT; opening is traced, too."""
    direct = set()
    for line in lines_about(on_rank, rank, [path.resolve() for path in paths]):
        if opened := OPENED.match(line):
            (direct.add if "O_DIRECT" in opened["flags"] else direct.discard)(opened["fd"])
            continue
        call = PREAD.match(line)
        assert call, f"rank {rank} gets at a file without pread: {line}"
        begin = int(call["offset"])
        if not past_page_cache or call["fd"] in direct:
            yield call["path"].rsplit("/", 1)[1], begin, begin + int(call["got"])


def times_read(on_rank, rank, paths, past_page_cache=False):
    """How often a rank read each byte of each file: file name -> counts."""
    counts = {path.name: np.zeros(path.stat().st_size, "u2") for path in paths}
    for file, begin, end in preads(on_rank, rank, paths, past_page_cache):
        counts[file][begin:end] += 1
    return counts


def tensor_bytes(ckpt):
    """File name -> where tensors lie in it."""
    masks = {path.name: np.zeros(path.stat().st_size, bool) for path in reference.shard_files(ckpt)}
    for file, begin, end in reference.extents(ckpt).values():
        masks[file][begin:end] = True
    return masks


def uring_or_skip():
    found = run("doctor", "--json").json
    if "available" not in str([entry for entry in found["hosts"][0]["findings"] if entry["check"] == "io_uring"]):
        pytest.skip("io_uring is not to be had here")
