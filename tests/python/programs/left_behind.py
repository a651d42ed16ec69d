"""What communicators leave behind: threads, and references to the group's messages."""

import gc
import threading
import weakref

import numpy
from process_group import join, report

from rankslice import _world

rank, size = join()
made = []
original = _world._Messages.__init__


def remember(self, *arguments):
    original(self, *arguments)
    made.append(weakref.ref(self))


_world._Messages.__init__ = remember
sent = []
for _ in range(3):
    world = _world.communicator()
    memory = numpy.zeros(1 << 16, numpy.uint8)
    sent.append(weakref.ref(memory))
    world.broadcast(memory, 0)
    del world, memory
for thread in threading.enumerate():
    if thread.name == "rankslice messages":
        thread.join(10)
gc.collect()
report(
    {
        "messages": sum(one() is not None for one in made),
        "threads": [thread.name for thread in threading.enumerate() if thread.name == "rankslice messages"],
        "memory": sum(one() is not None for one in sent),
    }
)
