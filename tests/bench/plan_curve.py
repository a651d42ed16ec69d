#!/usr/bin/env python3
"""plan_curve.py [--program PATH] [--preset NAME] [--most 4096]: what `plan` costs for 1, 2, 4, … ranks.

Of a checkpoint of real shapes without values, made in a temporary folder. As many ranks share the experts as there are
experts, if that many are there; the others are replicas. Of each number of ranks the fastest of some runs: seconds from
the start of the process to its end, the peak of its resident memory, and how long what it prints is.
"""

import argparse
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path

PROGRAM = Path(__file__).resolve().parents[2] / "build/release/bin/rankslice"


def run(command):
    """Seconds, the peak of resident memory in KiB, and the length of what it prints."""
    with tempfile.TemporaryFile() as out:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise SystemExit(f"{' '.join(map(str, command))}: exit code {process.returncode}")
        return seconds, used.ru_maxrss, out.seek(0, os.SEEK_END)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=PROGRAM, type=Path)
    parser.add_argument("--preset", default="qwen3.5-397b-a17b")
    parser.add_argument("--most", default=4096, type=int)
    parser.add_argument("--repeats", default=3, type=int)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ckpt = Path(folder) / "ckpt"
        run([args.program, "synth", ckpt, "--preset", args.preset, "--headers-only", "--quiet"])
        said = subprocess.run([args.program, "inspect", ckpt], check=True, capture_output=True, text=True).stdout
        experts = max(int(ep) for ep in re.findall(r"--ep (\d+)", said))
        print(f"{'ranks':>6}  {'ep':>4}  {'seconds':>8}  {'MiB':>6}  {'--json s':>8}  {'MiB':>6}  {'KB printed':>10}")
        ranks = 1
        while ranks <= args.most:
            ep = min(ranks, experts)
            command = [args.program, "plan", ckpt, "--ranks", str(ranks), "--ep", str(ep)]
            text = min(run(command) for _ in range(args.repeats))
            json = min(run([*command, "--json"]) for _ in range(args.repeats))
            print(
                f"{ranks:>6}  {ep:>4}  {text[0]:>8.3f}  {text[1] / 1024:>6.1f}  {json[0]:>8.3f}  {json[1] / 1024:>6.1f}"
                f"  {json[2] / 1e3:>10.1f}"
            )
            ranks *= 2


if __name__ == "__main__":
    main()
