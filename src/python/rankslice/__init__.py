"""Loads Mixture-of-Experts checkpoints into training jobs, every rank only its slice, and writes them back."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from rankslice._checkpoint import Checkpoint, open
from rankslice._reports import Facts, inspect, plan
from rankslice.errors import (
    CommError,
    DeviceError,
    Error,
    FormatError,
    InputMissingError,
    Interrupted,
    IoError,
    PlanError,
    UnexpectedError,
    UsageError,
    VerifyError,
)

if TYPE_CHECKING:
    from rankslice._exporting import ExportReport, Resumed, save_shards, to_hf
    from rankslice._filling import Filled, load_into
    from rankslice._gathering import Gathering, gather
    from rankslice._loading import load
    from rankslice._state import StateDict
    from rankslice._stores import SaveReport, save_store
    from rankslice._verifying import Mismatch, Reread, VerifyReport, verify

__all__ = [
    "Checkpoint",
    "CommError",
    "DeviceError",
    "Error",
    "ExportReport",
    "Facts",
    "Filled",
    "FormatError",
    "Gathering",
    "InputMissingError",
    "Interrupted",
    "IoError",
    "Mismatch",
    "PlanError",
    "Reread",
    "Resumed",
    "SaveReport",
    "StateDict",
    "UnexpectedError",
    "UsageError",
    "VerifyError",
    "VerifyReport",
    "gather",
    "inspect",
    "load",
    "load_into",
    "open",
    "plan",
    "save_shards",
    "save_store",
    "to_hf",
    "verify",
]

_WITH_TORCH = {
    "ExportReport": "_exporting",
    "Filled": "_filling",
    "Gathering": "_gathering",
    "Mismatch": "_verifying",
    "Reread": "_verifying",
    "Resumed": "_exporting",
    "SaveReport": "_stores",
    "StateDict": "_state",
    "VerifyReport": "_verifying",
    "gather": "_gathering",
    "load": "_loading",
    "load_into": "_filling",
    "save_shards": "_exporting",
    "save_store": "_stores",
    "to_hf": "_exporting",
    "verify": "_verifying",
}
"""What needs torch, and where it is: imported when it is first asked for."""


if not TYPE_CHECKING:  # for which other names would exist, too

    def __getattr__(name: str) -> object:
        if name not in _WITH_TORCH:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"{__name__}.{_WITH_TORCH[name]}"), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
