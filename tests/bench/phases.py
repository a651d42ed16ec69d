#!/usr/bin/env python3
"""Time and peak memory of every phase of the main job, beside a plain read of the same bytes in the same run.

    phases.py RANKSLICE [--preset small] [--ranks 2] [--repeats 5] [--work DIR]

Each round runs, one after the other: a plain pread of every rank's bytes into fresh memory (the floor: one process for
each rank, 4 KiB pages, no transpose, no digest), a plain write and fsync of as many bytes as the store takes, `load`
without and with verification, `load --store`, `verify` of the store, and `to-hf`. Rounds repeat; minimum and median
are printed, and the ratio of the minima to the floor. The page cache is warm. Nothing is asserted.
"""

import argparse
import json
import mmap
import multiprocessing
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

BLOCK = 1 << 20
MIB = 1 << 20


def owned_ranges(rankslice, checkpoint, ranks, rank):
    """[(path, first byte, last byte + 1)] of one rank, as `plan` lists them."""
    command = [rankslice, "plan", checkpoint, "--ranks", str(ranks), "--rank", str(rank), "--json"]
    plan = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return [(os.path.join(checkpoint, read["file"]), *read["bytes"]) for read in plan["reads"]]


def read_plainly(ranges, barrier, result):
    files = {path: os.open(path, os.O_RDONLY) for path, _, _ in ranges}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    barrier.wait()
    start = time.perf_counter()
    kept = []
    for path, begin, end in ranges:
        memory = mmap.mmap(-1, max(end - begin, 1))
        view = memoryview(memory)
        for at in range(begin, end, BLOCK):
            size = min(BLOCK, end - at)
            assert os.preadv(files[path], [view[at - begin : at - begin + size]], at) == size
        kept.append((memory, view))
    seconds = time.perf_counter() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    result.put((seconds, grown))


def plain_read(ranges_of_ranks):
    """Seconds of the slowest of as many processes as there are ranks, and the largest growth of resident memory."""
    barrier = multiprocessing.Barrier(len(ranges_of_ranks))
    results = multiprocessing.Queue()
    processes = [
        multiprocessing.Process(target=read_plainly, args=(ranges, barrier, results)) for ranges in ranges_of_ranks
    ]
    for process in processes:
        process.start()
    measured = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return max(seconds for seconds, _ in measured), max(grown for _, grown in measured)


def plain_write(path, size):
    block = os.urandom(BLOCK)
    start = time.perf_counter()
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for at in range(0, size, BLOCK):
        os.pwrite(file, block[: min(BLOCK, size - at)], at)
    os.fsync(file)
    os.close(file)
    seconds = time.perf_counter() - start
    os.unlink(path)
    return seconds


def run(rankslice, ranks, *arguments, report):
    command = ["timeout", "-k", "5", "600", "mpirun", "--oversubscribe", "-n", str(ranks), rankslice, *arguments]
    subprocess.run([*command, "-q", "--overwrite", "--report", report], check=True)
    return json.loads(pathlib.Path(report).read_text())


def one_round(rankslice, checkpoint, work, ranks, ranges, samples, memory):
    def phase(name, seconds, rss):
        samples.setdefault(name, []).append(seconds)
        memory[name] = max(memory.get(name, 0), rss)

    def peak(report, key="peak_rss_bytes", minus="bytes_owned"):
        return max(rank[key] - rank[minus] for rank in report["rank"])

    report, store, exported = (os.path.join(work, name) for name in ("report.json", "store.h5", "exported"))
    phase("plain pread", *plain_read(ranges))
    off = run(rankslice, ranks, "load", checkpoint, "--verify", "off", report=report)
    phase("load, --verify off", off["seconds"]["load"], peak(off))
    full = run(rankslice, ranks, "load", checkpoint, "--store", store, report=report)
    phase("load, digesting", full["seconds"]["load"], peak(full))
    phase("verify (held, collectives)", full["seconds"]["verify"], peak(full))
    phase("plain pwrite + fsync", plain_write(os.path.join(work, "plain"), os.path.getsize(store)), 0)
    phase("store, read back", full["seconds"]["store"], peak(full))
    verified = run(rankslice, ranks, "verify", store, report=report)
    phase("verify STORE", verified["seconds"]["verify"], peak(verified))
    back = run(rankslice, ranks, "to-hf", store, exported, report=report)
    phase("to-hf STORE, read back", back["seconds"]["to_hf"], peak(back))
    return full


def print_table(samples, memory, floors):
    print(f"{'phase':28} {'min s':>8} {'median s':>9} {'of':>22} {'ratio':>6}  {'peak RSS':>12}")
    for name, seconds in samples.items():
        floor = floors.get(name, "")
        ratio = f"{min(seconds) / min(samples[floor]):6.2f}" if floor else " " * 6
        rss = "" if name == "plain pwrite + fsync" else f"{memory[name] / MIB:8.1f} MiB"
        print(f"{name:28} {min(seconds):8.3f} {statistics.median(seconds):9.3f} {floor:>22} {ratio}  {rss:>12}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rankslice")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--work", help="a folder on the file system to measure")
    options = parser.parse_args()
    os.environ.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")

    with tempfile.TemporaryDirectory(dir=options.work) as work:
        checkpoint = os.path.join(work, "checkpoint")
        command = [options.rankslice, "synth", checkpoint, "--family", "qwen3_5_moe", "--preset", options.preset, "-q"]
        subprocess.run(command, check=True)
        ranges = [owned_ranges(options.rankslice, checkpoint, options.ranks, rank) for rank in range(options.ranks)]
        plain_read(ranges)  # warms the page cache
        samples, memory = {}, {}
        for _ in range(options.repeats):
            report = one_round(options.rankslice, checkpoint, work, options.ranks, ranges, samples, memory)
    owned = [rank["bytes_owned"] for rank in report["rank"]]
    print(f"{options.preset}: {report['bytes']['checkpoint']:,} bytes; {options.ranks} ranks, at most {max(owned):,} each")
    print("peak RSS: what a rank's resident memory exceeds its owned bytes by; of plain pread, its own growth")
    floors = {name: "plain pread" for name in samples if name.startswith(("load", "verify"))}
    floors |= {"store, read back": "plain pwrite + fsync", "to-hf STORE, read back": "plain pwrite + fsync"}
    print_table(samples, memory, floors)


if __name__ == "__main__":
    sys.exit(main())
