#!/usr/bin/env python3
"""Instructions per byte of the digest's and the transpose's kernels, counted by callgrind.

    tests/bench/instructions.py build/release/tests/bench/kernels_bench [TARGET]

TARGET is an instruction set that valgrind knows: AVX2 or less. Counts do not depend on how busy the machine is.
"""

import json
import subprocess
import sys
import tempfile

KERNELS = {
    "digest": "rankslice::weigh_lines*",
    "digest_swapped": "rankslice::weigh_lines*",
    "transpose": "rankslice::transpose(*",
    "transpose_in_cache": "rankslice::transpose(*",
}


def instructions_per_byte(program, name, function):
    with tempfile.NamedTemporaryFile() as counts:
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={counts.name}"]
        command += [
            f"--toggle-collect={function}",
            program,
            f"--benchmark_filter=^{name}$",
            "--benchmark_min_time=0.000001",
            "--benchmark_format=json",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        with open(counts.name) as file:
            total = next(int(line.split()[1]) for line in file if line.startswith("totals:"))
    (measured,) = json.loads(done.stdout)["benchmarks"]
    return total / measured["bytes"]


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    program, target = sys.argv[1], (sys.argv[2:] or ["AVX2"])[0]
    elements = (1, 2, 4, 8)
    print(f"{'instructions per byte, ' + target:32}" + "".join(f"{element:>8} B" for element in elements))
    for kernel, function in KERNELS.items():
        counted = (instructions_per_byte(program, f"{kernel}/{target}/{element}", function) for element in elements)
        print(f"{kernel:32}" + "".join(f"{count:10.3f}" for count in counted), flush=True)


if __name__ == "__main__":
    main()
