"""A rank of: writing a checkpoint until the last rank is asked to stop, then once more. Arguments: the checkpoint, and
the output."""

import dataclasses
import os
import signal
import sys

from process_group import join, raised_by, report

import rankslice

folder, out = sys.argv[1:]
rank, size = join()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
state = rankslice.load(folder)


def stop_at_the_end(phase, done, total):
    if phase == "to_hf" and done == total and rank == size - 1:
        os.kill(os.getpid(), signal.SIGTERM)


stopped = raised_by(lambda: rankslice.to_hf(state, out, resume=True, progress=stop_at_the_end))
left = os.path.exists(out)
report({"stopped": stopped, "left": left, "finished": dataclasses.asdict(rankslice.to_hf(state, out, resume=True))})
