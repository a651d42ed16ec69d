"""Native stores from Python: what was saved comes back, and so do the files that it was made of."""

import filecmp
import os
import subprocess
import sys
from pathlib import Path

import pytest

import expected
import rankslice
from rankslice import _stores

with_hdf5 = pytest.mark.skipif(_stores.library() is None, reason="the package was built without HDF5")


def assert_files_equal(folder, other):
    names = sorted(os.listdir(folder))
    assert names == sorted(os.listdir(other))
    match, *differ = filecmp.cmpfiles(folder, other, names, shallow=False)
    assert sorted(match) == names, differ


@with_hdf5
def test_a_store_gives_back_tensors_and_files(tiny, tmp_path):
    rankslice.save_store(rankslice.load(tiny), tmp_path / "tiny.h5")
    state = rankslice.load(tmp_path / "tiny.h5")
    expected.assert_same({name: expected.bits(tensor) for name, tensor in state.items()}, expected.whole_state(tiny))
    assert rankslice.verify(state).reference == "store"
    rankslice.to_hf(state, tmp_path / "back")
    assert_files_equal(tiny, tmp_path / "back")


@with_hdf5
@pytest.mark.parametrize("resume", [True, False])
def test_a_store_that_may_be_resumed_says_in_the_log_what_it_found(resume, tiny, tmp_path, caplog):
    left = tmp_path / "tiny.h5.partial-0123456789abcdef"
    left.touch()
    rankslice.save_store(rankslice.load(tiny), tmp_path / "tiny.h5", resume=resume)
    logged = [(record.name, record.levelname) for record in caplog.records if str(left) in record.getMessage()]
    assert logged == ([("rankslice", "WARNING")] if resume else [])


@with_hdf5
def test_ranks_save_one_store_together_and_load_their_parts_of_it(run_ranks, tiny, tmp_path):
    run_ranks("storing.py", 2, tiny, tmp_path)
    assert_files_equal(tiny, tmp_path / "back")


@with_hdf5
def test_a_store_that_exists_is_replaced_only_when_asked(tiny, tmp_path):
    state = rankslice.load(tiny)
    rankslice.save_store(state, tmp_path / "tiny.h5")
    with pytest.raises(rankslice.IoError, match="exists") as raised:
        rankslice.save_store(state, tmp_path / "tiny.h5")
    assert raised.value.file == str(tmp_path / "tiny.h5")
    rankslice.save_store(state, tmp_path / "tiny.h5", overwrite=True)


@with_hdf5
def test_an_opened_store_says_what_it_is(tiny, tmp_path):
    rankslice.save_store(rankslice.load(tiny), tmp_path / "tiny.h5")
    assert rankslice.inspect(tmp_path / "tiny.h5")["format"] == "store"


SAYS_WHAT_IS_LOADED = """
import sys, rankslice
for path in sys.argv[1:]:
    try:
        rankslice.open(path)
    except rankslice.FormatError:
        pass
print("rankslice._hdf5" in sys.modules)
"""


@with_hdf5
@pytest.mark.parametrize(("saved", "loads"), [(None, False), ("shards", False), ("store", True), ("of a store", True)])
def test_libhdf5_is_loaded_when_there_is_a_store_to_read(tiny, tmp_path, saved, loads):
    path = tmp_path / "saved"
    if saved == "shards":
        rankslice.save_shards(rankslice.load(tiny), path)
    elif saved == "store":
        rankslice.save_store(rankslice.load(tiny), path)
    elif saved == "of a store":
        rankslice.save_store(rankslice.load(tiny), tmp_path / "source")
        rankslice.save_shards(rankslice.load(tmp_path / "source"), path)
    (tmp_path / "text").write_text("neither a store nor a folder")
    paths = [tiny, tmp_path / "text", *([path] if saved else [])]
    done = subprocess.run([sys.executable, "-c", SAYS_WHAT_IS_LOADED, *paths], capture_output=True, text=True)
    assert done.stdout == f"{loads}\n", done.stderr


def test_without_hdf5_it_is_said_how_to_get_it(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(_stores, "library", lambda: None)
    with pytest.raises(rankslice.UsageError, match="RANKSLICE_HDF5=ON"):
        rankslice.save_store(rankslice.load(tiny), tmp_path / "tiny.h5")
    Path(tmp_path / "some.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(rankslice.UsageError, match="RANKSLICE_HDF5=ON"):
        rankslice.open(tmp_path / "some.h5")
