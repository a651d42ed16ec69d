#!/usr/bin/env python3
"""startup.py PROGRAM CKPT [--ranks 2] [--repeats 15]: what a rank's start takes beside MPI_Init.

PROGRAM is rankslice, CKPT a small checkpoint: opening and loading it is in the figure. Beside it stands a C program
that calls MPI_Init and MPI_Finalize, started in the same way, taking turns. Prints medians, and their difference.
"""

import argparse
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

NOTHING = "#include <mpi.h>\nint main(int n, char** words) { MPI_Init(&n, &words); return MPI_Finalize(); }\n"


def seconds_of(command):
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("checkpoint")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source, nothing = Path(folder) / "nothing.c", Path(folder) / "nothing"
        source.write_text(NOTHING)
        subprocess.run(["mpicc", source, "-o", nothing], check=True)
        ranks = ["mpirun", "-n", str(options.ranks)]
        ways = {
            "MPI_Init and MPI_Finalize": [*ranks, nothing],
            "rankslice load": [*ranks, options.program, "load", options.checkpoint, "-q"],
            "rankslice inspect": [options.program, "inspect", options.checkpoint, "-q"],
        }
        found = {way: [] for way in ways}
        for _ in range(options.repeats):
            for way, command in ways.items():
                found[way].append(seconds_of(command))
    for way, seconds in found.items():
        print(f"{way:28}{statistics.median(seconds) * 1e3:8.0f} ms, least {min(seconds) * 1e3:.0f}")
    mpi, load = (statistics.median(found[way]) for way in list(ways)[:2])
    print(f"{'over MPI_Init':28}{(load - mpi) * 1e3:8.0f} ms")


if __name__ == "__main__":
    main()
