"""Files that are there whole or not at all."""

from pathlib import Path

import pytest

from mow.system import whole_file
from mow.system.whole_file import read_json, read_object, write_json, write_whole


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for content in ({"a": [1, None]}, {"é": 2.5}):
        write_json(path, content)
        assert read_object(path) == content
    write_whole(path, b"[1]")
    assert read_json(path) == [1]
    with pytest.raises(ValueError, match=r"a\.json is not a JSON object"):
        read_object(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt(), ValueError()])
def test_what_was_there_before_stays(tmp_path: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scores.json"
    write_whole(path, "before")

    def fails(_: object) -> None:
        raise error

    monkeypatch.setattr(whole_file, "flush_file", fails)
    with pytest.raises(type(error)):
        write_whole(path, "after")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_json_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(ValueError, match=r"a\.json cannot be read \(No such file or directory\)"):
        read_json(path)
    for text in (b"", b"{", b"\xff", b"[" * 100_000):
        path.write_bytes(text)
        with pytest.raises(ValueError, match=r"a\.json is not JSON"):
            read_json(path)
