#!/usr/bin/env python3
"""fault_sweep.py [EVERY]: fails the system calls of jobs one by one, on rank 0 and on another one, and tells of every
job that hangs, crashes, ends undecided, or says that all is well and leaves something else than an undisturbed one.
With EVERY, only every EVERYth call of each kind."""

import collections
import os
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import checkpoints
import fault_matrix
from fault_matrix import RANKS, Workshop
from program import OnRank, leftovers, run, run_ok

DOCUMENTED = {0, 3, 65, 66, 73, 74}
ERRORS = collections.defaultdict(lambda: "EIO", fallocate="ENOSPC", mkdir="EACCES", ftruncate="EFBIG", openat="EMFILE")
OPERATIONS = ("load", "verify", "shards", "to_hf", "gather")


def failures(folder, originals, unfinished, every=1):
    """(operation, rank, call, number) of the calls that undisturbed jobs make on their files."""
    for operation in OPERATIONS:
        workshop = Workshop(folder / operation, *originals, unfinished[operation])
        for rank, lines in fault_matrix.profile(operation, workshop).items():
            counts = collections.Counter(line.split("(")[0] for line in lines)
            for call, count in sorted(counts.items()):
                for number in range(1, count + 1, every):
                    if rank != 1:
                        yield operation, rank, call, number


def make_originals(folder):
    ckpt = checkpoints.write_mini(folder / "ckpt")
    for path in [*ckpt.glob("* *"), *ckpt.glob("*%*")]:
        path.unlink()
    run_ok("load", ckpt, "--store", folder / "s.h5")
    return ckpt, folder / "s.h5"


def complaint(make_workshop, operation, rank, call, number, whole):
    """What is wrong with a job in which a call failed; nothing if it ended as it should."""
    workshop = make_workshop()
    try:
        return judge(workshop, operation, rank, call, number, whole)
    finally:
        shutil.rmtree(workshop.folder)


def judge(workshop, operation, rank, call, number, whole):
    inject = f"-e trace={call} -e inject={call}:error={ERRORS[call]}:when={number} {workshop.watched()}"
    on_rank = OnRank(workshop.ranks, traced=str(rank), strace=inject, codes=True)
    try:
        result = run(*workshop.arguments(operation), ranks=RANKS, on_rank=on_rank, timeout=60)
    except AssertionError as hang:
        return f"hangs: {hang}"
    codes = set(result.rank_codes.values())
    said = result.stderr.count("rankslice: error: ")
    if len(result.rank_codes) != RANKS or len(codes) != 1 or not codes <= DOCUMENTED:
        return f"codes {result.rank_codes}: {result.stderr}"
    if codes == {0}:
        return None if fault_matrix.contents(workshop.out) == whole else "success, and another output"
    if said != 1:
        return f"said {said} times: {result.stderr}"
    rests = leftovers(workshop.out)
    if rests and call not in ("unlink", "getdents64", "openat", "newfstatat"):  # of the removal itself
        return f"left {rests}: {result.stderr}"
    return f"made the output: {result.stderr}" if workshop.out.exists() and call != "fsync" else None


def main(every):
    found = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        originals = make_originals(folder)
        unfinished = {
            operation: fault_matrix.names_of_unfinished(operation, folder / f"names-{operation}", originals)
            for operation in OPERATIONS
        }
        cases = list(failures(folder, originals, unfinished, every))
        whole = {}
        for operation in {case[0] for case in cases}:
            workshop = Workshop(folder / f"whole-{operation}", *originals)
            run_ok(*workshop.arguments(operation), ranks=RANKS)
            whole[operation] = fault_matrix.contents(workshop.out)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            jobs = []
            for i, case in enumerate(cases):
                make_workshop = partial(Workshop, folder / f"{i}", *originals, unfinished[case[0]])
                jobs.append((case, pool.submit(complaint, make_workshop, *case, whole[case[0]])))
            for case, job in jobs:
                if job.result():
                    found += 1
                    print(*case, job.result(), sep="\t", flush=True)
    print(f"{len(cases)} jobs, {found} complaints")
    return found


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1) > 0)
