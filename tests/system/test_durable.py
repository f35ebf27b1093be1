"""File systems that do not flush a folder, cut a file or link: saved all the same, and said once."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mow.replay import save
from mow.runs.checkpoint import keep_as_best, load_checkpoint, save_checkpoint
from mow.runs.paths import best_path, checkpoint_path
from mow.system import whole_file
from mow.system.whole_file import link_or_copy
from tests.replay.test_segments import add, loaded, make_buffer

OF_FOLDERS = [errno.EINVAL, errno.ENOTSUP, errno.EACCES]


@pytest.fixture(autouse=True)
def nothing_said_yet() -> Iterator[None]:
    whole_file._warn_unflushed.cache_clear()
    yield
    whole_file._warn_unflushed.cache_clear()


def refusing(number: int, patch: pytest.MonkeyPatch, *, folders: bool, files: bool) -> None:
    """os.fsync as on a file system that lacks it for some."""
    fsync = os.fsync

    def refuse(handle: int) -> None:
        if folders if stat.S_ISDIR(os.fstat(handle).st_mode) else files:
            raise OSError(number, os.strerror(number))
        fsync(handle)

    patch.setattr(os, "fsync", refuse)


@pytest.mark.parametrize("number", OF_FOLDERS)
def test_a_folder_that_is_not_flushed_is_said_once_and_all_is_saved(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refusing(number, monkeypatch, folders=True, files=False)
    buffer = make_buffer("raw", 20)
    for step in (1, 2):
        save_checkpoint(checkpoint_path(tmp_path, step), {"step": step})
        save(add(buffer, 8), tmp_path / "replay")
    assert load_checkpoint(checkpoint_path(tmp_path, 2), torch.device("cpu"))["step"] == 2
    assert loaded(tmp_path / "replay").num_steps == buffer.num_steps
    said = [record.message for record in caplog.records]
    assert len(said) == 1
    assert said[0].startswith("this file system does not flush: saves are complete")


def test_files_that_are_not_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refusing(errno.EINVAL, monkeypatch, folders=True, files=True)
    save_checkpoint(tmp_path / "a.pt", {"step": 1})
    assert load_checkpoint(tmp_path / "a.pt", torch.device("cpu"))["step"] == 1
    assert len(caplog.records) == 1


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize(("folders", "files"), [(True, False), (False, True)])
def test_a_disk_that_fails_is_still_an_error(
    tmp_path: Path, number: int, folders: bool, files: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing(number, monkeypatch, folders=folders, files=files)
    with pytest.raises(OSError) as failed:  # noqa: PT011 - its number is what is tested
        save_checkpoint(tmp_path / "a.pt", {"step": 1})
    assert failed.value.errno == number



def without(name: str, number: int, patch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    patch.setattr(os, name, missing)



def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint_path(tmp_path, 1)
    save_checkpoint(path, {"step": 1})
    without("link", errno.ENOTSUP, monkeypatch)
    flushed: list[int] = []
    fsync: Callable[[int], None] = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (flushed.append(os.fstat(handle).st_size), fsync(handle)))
    keep_as_best(path, 1.0)
    assert flushed[0] == path.stat().st_size, "a copy is on the disk before it takes the name of the best"
    assert load_checkpoint(best_path(tmp_path), torch.device("cpu"))["step"] == 1
    link_or_copy(path, tmp_path / "other")
    assert (tmp_path / "other").read_bytes() == path.read_bytes()
