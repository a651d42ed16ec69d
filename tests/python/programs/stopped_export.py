"""A rank of: writing a checkpoint until the last rank is asked to stop, then once more. Arguments: the checkpoint, the
output, and whether that is a folder ("to_hf") or a store ("save_store")."""

import dataclasses
import os
import signal
import sys

from process_group import join, raised_by, report

import rankslice

folder, out, function = sys.argv[1:]
rank, size = join()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
state = rankslice.load(folder)
write = getattr(rankslice, function)


def stop_at_the_end(phase, done, total):
    if phase == function and done == total and rank == size - 1:
        os.kill(os.getpid(), signal.SIGTERM)


stopped = raised_by(lambda: write(state, out, resume=True, progress=stop_at_the_end))
left = os.path.exists(out)
report({"stopped": stopped, "left": left, "finished": dataclasses.asdict(write(state, out, resume=True))})
