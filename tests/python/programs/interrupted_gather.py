"""A rank of: a gather that a Ctrl-C ends. Arguments: the checkpoint, and the rank that is interrupted, which prints a
line before. Reports what the loop raised, and whether the ranks can work together afterwards."""

import sys
import time

from process_group import group_works, join, raised_by, report

import rankslice

folder, interrupted = sys.argv[1], int(sys.argv[2])
rank, size = join()
state = rankslice.load(folder)


def loop():
    with rankslice.gather(state) as tensors:  # so that the others hear of it wherever in the loop it strikes
        if rank == interrupted:
            print("here", flush=True)
        for _ in tensors:
            time.sleep(0.05)
            while interrupted == 0:  # its loop never goes on
                time.sleep(0.05)


raised = raised_by(loop)
report({"raised": raised, "group_works": group_works()})
