"""Which folders a run can begin in, and that only one process trains in a folder, with locks and without."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from mow.errors import UsageError
from mow.runs.folder import claimed, clear, is_unused

NO_LOCKS = [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP]


@pytest.fixture
def without_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    number = getattr(request, "param", errno.ENOSYS)

    def missing(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", missing)


def refusal(folder: Path) -> str:
    with pytest.raises(UsageError) as refused, claimed(folder):
        pass
    return str(refused.value)


@pytest.mark.parametrize("number", [errno.EWOULDBLOCK, errno.EACCES])
def test_a_folder_that_is_locked_is_refused(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", locked)
    assert refusal(tmp_path) == f"another process trains in {tmp_path}: wait for it, or give another --folder"


def test_another_error_of_the_disk_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OSError, match="Input/output error"), claimed(tmp_path):
        pass


@pytest.mark.parametrize("without_locks", NO_LOCKS, indirect=True)
def test_without_locks_a_file_takes_their_place(tmp_path: Path, without_locks: None) -> None:
    with claimed(tmp_path):
        said = refusal(tmp_path)
        path = tmp_path / "lock.owner"
        assert f"(process {os.getpid()} on " in said
        assert said.endswith(f"if it has ended, delete {path}")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["lock"]
    with claimed(tmp_path):
        pass


def test_what_a_killed_process_has_left_is_refused(tmp_path: Path, without_locks: None) -> None:
    (tmp_path / "lock.owner").write_text("process 1 on another")
    assert refusal(tmp_path).endswith(f"(process 1 on another): wait, or give another --folder; if it has ended, "
                                      f"delete {tmp_path / 'lock.owner'}")  # fmt: skip
    (tmp_path / "lock.owner").unlink()
    with claimed(tmp_path):
        assert (tmp_path / "lock.owner").exists()


# What a run has left -------------------------------------------------------------------------------------------------


def begun(folder: Path) -> Path:
    """As after a failure before the first step."""
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("lock", "config.json", "versions.json", "metrics.jsonl", "events.out.tfevents.1.host.2.0"):
        (folder / name).touch()
    return folder


def test_a_run_that_ended_before_its_first_step_makes_way(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    assert is_unused(folder)
    assert clear(folder)
    assert [path.name for path in folder.iterdir()] == ["lock"]
    assert not clear(folder)


@pytest.mark.parametrize("name", ["checkpoints/step_00000001.pt", "metrics.jsonl", "notes.txt", "replay/x"])
def test_anything_more_does_not(tmp_path: Path, name: str) -> None:
    path = begun(tmp_path / "run") / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("something\n")
    assert not is_unused(tmp_path / "run")
    with pytest.raises(UsageError, match="is not empty: give another --folder"):
        clear(tmp_path / "run")
    assert path.read_text() == "something\n"


def test_nor_does_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert not is_unused(tmp_path / "file")
    assert is_unused(tmp_path / "missing")
