"""What the program maps when it only looks."""

import re

import pytest

from program import run_ok

FOREIGN = re.compile(r"lib(torch|c10|ATen|cuda\.|cudart|python)")


def libraries_of(*args, folder):
    """The names of all libraries that a run maps, also of those that it opens by name later."""
    run_ok(*args, env={"LD_DEBUG": "files", "LD_DEBUG_OUTPUT": str(folder / "loader")})
    loaded = set()
    for path in folder.glob("loader.*"):
        loaded |= set(re.findall(r"file=(\S+) \[\d+\];  generating link map", path.read_text(errors="replace")))
    return loaded


@pytest.mark.parametrize("command", [["inspect"], ["plan", "--ranks", 4], ["load", "--rank", 0, "--ranks", 2]])
def test_neither_torch_nor_cuda_is_mapped_on_the_host(mini, command, tmp_path):
    loaded = libraries_of(command[0], mini, *command[1:], folder=tmp_path)
    assert any(name.startswith("libsimdjson") for name in loaded), loaded  # the loader did say what it maps
    assert not [name for name in loaded if FOREIGN.match(name)]
