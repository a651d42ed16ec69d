"""Native stores: one HDF5 file, where the package was built with HDF5."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, cast

from rankslice import _native, _threads
from rankslice.errors import UsageError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

    from rankslice._checkpoint import Source
    from rankslice._exporting import Resumed
    from rankslice._progress import Progress
    from rankslice._taking import State

HOW = (
    "this rankslice was built without HDF5: install libhdf5 with its headers (libhdf5-dev), and then the package from "
    "its source, with pip install --config-settings=cmake.define.RANKSLICE_HDF5=ON"
)

_SIGNATURE = b"\x89HDF\r\n\x1a\n"


@cache
def library() -> _native.StoreLibrary | None:
    """None where the package was built without HDF5."""
    try:
        hdf5 = import_module("rankslice._hdf5")  # `from rankslice import` would raise ImportError alone
    except ModuleNotFoundError:
        return None
    return cast(_native.StoreLibrary, hdf5.library())


def library_for(path: str) -> _native.StoreLibrary | None:
    """What reads this file; None where it does not begin like a store. Only then is libhdf5 loaded.

    Raises:
        UsageError: the package was built without HDF5.
    """
    try:
        with open(path, "rb") as file:
            begins = file.read(len(_SIGNATURE))
    except OSError:
        begins = _SIGNATURE  # the library says what is wrong
    if begins != _SIGNATURE:
        return None
    if (hdf5 := library()) is None:
        raise UsageError(f"{path}: is a file; {HOW}")
    return hdf5


@dataclass(frozen=True)
class SaveReport:
    """What was written.

    Attributes:
        bytes_written: tensor bytes that this rank wrote.
        resumed: what ``resume`` found and took over; None where that was nothing.
    """

    bytes_written: int
    resumed: Resumed | None = None


def save_store(
    state: State,
    path: str | os.PathLike,
    *,
    source: Source | None = None,
    process_group: ProcessGroup | None = None,
    mesh: DeviceMesh | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress = None,
) -> SaveReport:
    """Writes a native store: one HDF5 file with all tensors in the native form, which all ranks write in parallel, and
    with all that ``to_hf`` needs to give the source back byte for byte. ``open``, ``load`` and the program take it.

    Only where the package was built with HDF5. Collective over the ranks of the state; arguments as of ``to_hf``.

    Raises:
        UsageError: the package was built without HDF5: it says how to get it; the state does not fit the checkpoint, or
            lacks tensors.
        VerifyError: copies differ, or what was written reads back differently.
        IoError: ``path`` exists, or cannot be written.
    """
    from rankslice._exporting import resumed
    from rankslice._progress import reporting
    from rankslice._taking import take

    hdf5 = library()
    if hdf5 is None:
        raise UsageError(f"{os.fspath(path)}: {HOW}")
    taken = take(state, source, mesh=mesh, process_group=process_group)
    world = taken.world or _native.make_solo_communicator()
    with reporting(progress, taken.world, taken.is_first) as report:
        threads = _threads.shared(taken.world)
        wrote = _native.save_store(hdf5, taken.state, os.fspath(path), world, overwrite, resume, report, threads)
    return SaveReport(wrote.bytes_written, resumed(wrote))
