"""Output that is not read, cannot be written, or has letters that the stream lacks."""

import errno
import io
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from mow.system.console import program, tell


def test_where_nobody_reads_it_is_as_if_the_terminal_were_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[int] = []
    monkeypatch.setattr(signal, "raise_signal", raised.append)
    end, begin = os.pipe()
    with open(begin, "w", encoding="utf-8") as stream:
        tell(stream, "heard\n")
        assert os.read(end, 100) == b"heard\n"
        os.close(end)
        for _ in range(2):
            tell(stream, "not heard\n")
    assert raised == [signal.SIGHUP], "said once; what follows goes nowhere"



def test_without_a_stream_there_is_no_output() -> None:
    tell(None, "lost")
    closed = io.StringIO()
    closed.close()
    tell(closed, "lost")




def full_device() -> io.TextIOWrapper:
    return open("/dev/full", "w", encoding="utf-8")



def test_a_command_that_may_lose_output_says_so_once(capsys: pytest.CaptureFixture[str]) -> None:
    @program("mow.some")
    def main(arguments: Sequence[str] | None = None) -> int:
        with full_device() as stream:
            for _ in range(3):
                tell(stream, "lost\n")
        return 7

    assert main() == 7
    said = capsys.readouterr().err
    assert said == "the output takes no more (No space left on device): lines are lost, all else goes on\n"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (OSError(errno.EACCES, "Permission denied", "x"), 1, "mow.some: [Errno 13] Permission denied: 'x'\n"),
        (MemoryError(), 1, "mow.some: MemoryError\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_an_error_of_the_system_is_one_line(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @program("mow.some")
    def main(arguments: Sequence[str] | None = None) -> int:
        raise error

    assert main([]) == code
    assert capsys.readouterr().err == line




def shell(line: str, **env: str) -> "subprocess.CompletedProcess[bytes]":
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | env
    return subprocess.run(["bash", "-c", line], capture_output=True, env=variables)


LOST = "the output takes no more (No space left on device): lines are lost, all else goes on\n"
ENVS = f"{sys.executable} -m mow.envs"


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        (f"{ENVS} >&-", 0, ""),
        (f"{ENVS} >&- 2>&- <&-", 0, ""),
        (f"{ENVS} --no-such-flag 2>&-", 2, ""),
        (f"{ENVS} > /dev/full", 0, LOST),
        (f"{ENVS} --help > /dev/full", 0, LOST),
        (f"{ENVS} --help | true; exit ${{PIPESTATUS[0]}}", 129, ""),
        (f"LC_ALL=C PYTHONIOENCODING=ascii {ENVS}", 0, ""),
        (f"{sys.executable} -m mow.train --help > /dev/full", 0, LOST),
        (f"{sys.executable} -m mow.train no\xffpreset 2> /dev/full", 2, ""),
    ],
)
def test_commands_and_their_streams(line: str, code: int, said: str) -> None:
    done = shell(line)
    error = done.stderr.decode()
    assert (done.returncode, error.count("\n")) == (code, int(bool(said))), error
    assert error.startswith(said)


def test_a_file_never_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    """A library that writes to descriptor 1 or 2 would write into it."""
    program = (
        "import os; from mow.system.console import _open_streams; _open_streams(); file = open('data', 'w'); "
        "os.write(1, b'noise'); os.write(2, b'noise')"
    )
    done = shell(f"cd {tmp_path} && {sys.executable} -c \"{program}\" >&- 2>&- <&-")
    assert done.returncode == 0
    assert (tmp_path / "data").read_text() == ""
