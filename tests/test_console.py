"""Words that nobody hears."""

import errno
import io
import os
import signal

import pytest

from mow.console import tell


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


class Full(io.StringIO):
    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_another_matter() -> None:
    with pytest.raises(OSError, match="No space left"):
        tell(Full(), "much\n")
