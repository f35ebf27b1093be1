"""Animated GIFs written picture by picture; memory holds only the last one."""

from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from PIL.Image import Image


class GifWriter:
    """An endless loop of pictures of one size; the file is made with the first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._last: Image | None = None

    def add(self, picture: "Image", milliseconds: int, *, whole: bool = False) -> None:
        """Append an RGB picture with a palette of its own; only the box that differs from the last one is stored.

        Args:
            milliseconds: how long the picture is shown.
            whole: store all of it, so that it does not depend on those before it (see `cut`).
        Raises: OSError if the file cannot be written.
        """
        from PIL import Image, ImageChops
        from PIL.GifImagePlugin import getdata, getheader

        box = (0, 0, *picture.size)
        if self._last is not None and not whole:
            box = ImageChops.difference(self._last, picture).getbbox() or (0, 0, 1, 1)
        part = picture.crop(box).quantize(256, dither=Image.Dither.NONE)
        if self._file is None:
            self._file = open(self._path, "wb")  # noqa: SIM115 - closed by close()
            # `duration` makes it GIF 89a, the version that has loops and delays.
            self._file.write(b"".join(getheader(part.copy(), info={"loop": 0, "duration": milliseconds})[0]))
        data = getdata(part, box[:2], duration=milliseconds, disposal=1, include_color_table=True)
        self._file.write(b"".join(data))
        self._last = picture

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._file.tell() if self._file else 0

    def cut(self, size: int) -> None:
        """Remove the pictures after the first `size` bytes of the file; the next one must be whole."""
        if self._file is not None and size:
            self._file.seek(size)
            self._file.truncate()
        elif self._file is not None:
            self._file.close()
            self._file = None
            self._path.unlink()

    def close(self) -> None:
        """Raises: OSError if the end of the file cannot be written."""
        if self._file is not None:
            with self._file as file:
                file.write(b";")
            self._file = None
