"""Native names, and those of transformers' modules."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from rankslice import _native
from rankslice.errors import UsageError

Names = Literal["native", "transformers"]
"""``native``: as training frameworks have it, experts ``gate_and_up_projs`` [E, H, 2I] and ``down_projs`` [E, I, H].
``transformers``: as the modules of transformers 5 have it, ``gate_up_proj`` [E, 2I, H] and ``down_proj`` [E, H, I]."""


class Named(NamedTuple):
    """What a name stands for.

    Attributes:
        fqn: the native name.
        swapped: whether axes 1 and 2 are exchanged against the native form.
        stacked: whether it is experts.
    """

    fqn: str
    swapped: bool
    stacked: bool


def require_known(names: str) -> None:
    if names not in ("native", "transformers"):
        raise UsageError(f'names: expected "native" or "transformers", got {names!r}')


def table(checkpoint: _native.Checkpoint, names: Names) -> dict[str, Named]:
    """Every tensor of a checkpoint by its name in a state dict."""
    require_known(names)
    stacked = {parameter.fqn: parameter.stacked_experts for parameter in checkpoint.parameters}
    if names == "native":
        return {fqn: Named(fqn, False, is_stacked) for fqn, is_stacked in stacked.items()}
    keys = _native.transformers_names(checkpoint)
    return {keys.get(fqn, fqn): Named(fqn, is_stacked, is_stacked) for fqn, is_stacked in stacked.items()}


def names_of(checkpoint: _native.Checkpoint, given: Iterable[str]) -> Names:
    """Which names these are: those of which more are known; native ones where both are."""
    given = set(given)
    known = {names: len(given & table(checkpoint, names).keys()) for names in ("native", "transformers")}
    return "transformers" if known["transformers"] > known["native"] else "native"


def without_checkpoint(family: str, given: Iterable[str]) -> dict[str, Named]:
    """What names stand for in a family, each native or of transformers' modules."""
    given = list(given)
    found = _native.native_names(family, given)
    return {name: Named(fqn, stacked and fqn != name, stacked) for name, (fqn, stacked) in zip(given, found)}
