"""What is said of a disk that takes nothing."""

import errno
import os

import pytest

from mow.errors import UsageError
from mow.runs.disk import explain_disk_errors, folder_to_write
from mow.runs.folder import claimed


def failed(error: OSError, folder) -> str:
    with pytest.raises(OSError) as told, explain_disk_errors(folder):  # noqa: PT011 - its text is what is tested
        raise error
    return str(told.value)


def test_a_folder_is_made_with_those_above_it(tmp_path):
    assert folder_to_write(tmp_path / "a" / "b", "--out").is_dir()
    assert folder_to_write(tmp_path / "a" / "b", "--out") == tmp_path / "a" / "b"


def test_a_place_where_nothing_can_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"cannot make .*file/x \(Not a directory\): name another place with --out"):
        folder_to_write(tmp_path / "file" / "x", "--out")


def test_a_folder_that_cannot_be_written_to_is_named_before_anything_is_computed(tmp_path, monkeypatch):
    """As on a file system that is mounted read-only, where root may not write either."""
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(UsageError, match=r"cannot write to .* \(not writable\): name another place with --folder"):
        folder_to_write(tmp_path, "--folder")


def test_nor_can_a_run_go_on_there(tmp_path):
    (tmp_path / "lock").mkdir()
    with pytest.raises(UsageError, match=r"cannot write to .* \(Is a directory\): make it writable"), claimed(tmp_path):
        pass


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "free some space"), (errno.EROFS, "make it writable"), (errno.EIO, "mend the disk")],
)
def test_the_system_s_words_get_a_remedy_and_what_is_left(tmp_path, number, remedy):
    told = failed(OSError(number, os.strerror(number), "there"), tmp_path)
    assert told == f"[Errno {number}] {os.strerror(number)}: 'there': {remedy}; no checkpoint was saved"
    (tmp_path / "checkpoints").mkdir()
    newest = tmp_path / "checkpoints" / "step_00000004.pt"
    newest.touch()
    told = failed(OSError(number, os.strerror(number)), tmp_path)
    assert told.endswith(f": {remedy}; python -m mow.train --resume {tmp_path} goes on from {newest}")


def test_words_of_ours_stay_and_errors_of_other_kinds_too(tmp_path):
    told = failed(OSError(errno.ENOSPC, "the replay was not saved: free some space"), tmp_path)
    assert told == "[Errno 28] the replay was not saved: free some space; no checkpoint was saved"
    with pytest.raises(ConnectionError, match=r"^gone$"), explain_disk_errors(tmp_path):
        raise ConnectionError("gone")
