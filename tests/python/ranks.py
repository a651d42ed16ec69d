"""Programs of tests under torchrun."""

import subprocess
import sys
from pathlib import Path

SECONDS = 240


def run_ranks(program, count, *arguments):
    """Runs tests/python/programs/PROGRAM as so many ranks; it fails when one of them does."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)]
    path = Path(__file__).parent / "programs" / program
    command = ["timeout", "-k", "5", str(SECONDS), *torchrun, path, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
