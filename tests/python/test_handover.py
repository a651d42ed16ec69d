"""What stands between the thread that gathers and the loop that uses the tensors."""

import gc
import threading
import weakref

import pytest

from rankslice._gathering import Gathering
from rankslice._handover import Handover
from rankslice.errors import UnexpectedError


def put(handover, name):
    """As C++ does it: returns whether there was room."""
    if handover.room_for(name, "BF16", [2]) is None:
        return False
    handover.finish()
    return True


def test_there_is_room_for_the_next_tensor_only_when_the_last_one_was_taken():
    handover = Handover(None)
    assert put(handover, "a")
    assert not put(handover, "b")
    assert handover.take()[0] == "a"
    assert put(handover, "b")
    assert handover.take()[0] == "b"


def test_memory_of_a_tensor_that_was_taken_is_the_loop_s_alone():
    handover = Handover(None)
    put(handover, "a")
    freed = weakref.ref(handover.take()[1])
    assert freed() is None


def test_what_was_finished_before_a_failure_is_not_handed_out():
    handover = Handover(None)
    put(handover, "a")
    handover.end(LookupError("all is lost"))
    with pytest.raises(LookupError, match="all is lost"):
        handover.take()
    assert handover.take() is None


def test_progress_is_passed_on():
    shown = []
    Handover(lambda *progress: shown.append(progress)).look("gather", 1, 2)
    assert shown == [("gather", 1, 2)]


def endless_gathering():
    """One that goes on until it is left, and what came of it."""
    handover, ended = Handover(None), []

    def work():
        number = 0
        try:
            while True:
                number += put(handover, str(number))
        except BaseException as error:
            ended.append(error)
            raise

    return Gathering(handover, work), ended


def test_leaving_waits_until_the_gathering_has_ended():
    gathering, ended = endless_gathering()
    assert [next(gathering)[0] for _ in range(3)] == ["0", "1", "2"]
    gathering.close()
    (error,) = ended
    assert isinstance(error, UnexpectedError) and "after 3 tensors" in str(error)
    assert list(gathering) == []


def test_a_gathering_that_another_thread_frees_ends_too():
    gathering, ended = endless_gathering()
    threads = [thread for thread in threading.enumerate() if thread.name == "rankslice gather"]
    holder = [gathering]
    del gathering
    thread = threading.Thread(target=holder.clear)
    thread.start()
    thread.join()
    threads[0].join(60)
    assert len(ended) == 1


def test_nothing_is_left_of_a_gathering_that_failed():
    handover = Handover(None)

    def work():
        raise LookupError("all is lost")

    gathering = Gathering(handover, work)
    with pytest.raises(LookupError, match="all is lost"):
        next(gathering)
    gc.collect()
    gc.disable()
    try:
        freed = weakref.ref(handover)
        del gathering, handover
        assert freed() is None
    finally:
        gc.enable()
