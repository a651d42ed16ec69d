"""A rank of: a loop that goes on only when the next tensor has been gathered. Arguments: the checkpoint, and how many
tensors there are. Reports what happened, in its order."""

import sys
import threading

from process_group import join, report

import rankslice
from rankslice import _gathering
from rankslice._handover import Handover

rank, size = join()
folder, count = sys.argv[1], int(sys.argv[2])
happened, changed = [], threading.Condition()


def note(*event):
    with changed:
        happened.append(event)
        changed.notify_all()


def times(what):
    return sum(event == what for event, _ in happened)


class Noted(Handover):
    def finish(self):
        note("gathered", self._tensor[0])
        super().finish()


_gathering.Handover = Noted
for place, (name, _) in enumerate(rankslice.gather(rankslice.load(folder))):
    note("use", name)
    with changed:
        assert changed.wait_for(lambda: times("gathered") >= min(place + 2, count), timeout=60), f"nothing after {name}"  # noqa: B023
    note("used", name)
report(happened)
