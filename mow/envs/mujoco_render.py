"""64 x 64 pictures of MuJoCo models on a machine without a screen.

All models of a process share one GL context, and each has a MuJoCo renderer of its own in it: a context per model costs
memory and start-up time, and where one of several is left current, models are drawn into each other's buffers.

Call `prepare` before MuJoCo is loaded, which reads MUJOCO_GL then: where that is not set, it is set to what the machine
can draw with.
"""

import atexit
import ctypes
import multiprocessing
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from mow.envs.base import FRAME_SHAPE, Frame
from mow.envs.mujoco_meshes import thin_meshes

# What each backend loads, and where that comes from. Debian's names; libegl1 alone draws nothing.
_LIBRARIES = {"egl": ("libEGL.so.1", "libGL.so.1"), "osmesa": ("libOSMesa.so.8",)}
_PACKAGES = {"egl": "libegl1 libgl1", "osmesa": "libosmesa6"}
_INSTALL = "apt-get install -y --no-install-recommends"
_MAX_GEOMS = 2000  # that one picture may hold; the fullest scene of the suites has some 300


def choose_backend(environ: Mapping[str, str]) -> str:
    """Backend to draw with: MUJOCO_GL, else EGL, else OSMesa. Raises: ImportError if that cannot draw."""
    chosen = environ.get("MUJOCO_GL", "").strip().lower()
    if chosen and chosen not in _LIBRARIES:
        raise ImportError(f"MUJOCO_GL={chosen} draws only on a screen: unset it, or set it to egl or osmesa")
    missing = {name: _missing(name) for name in ([chosen] if chosen else _LIBRARIES)}
    for name, what in missing.items():
        if not what:
            return name
    first, found = next(iter(missing)), "; ".join(f"{name}: {what}" for name, what in missing.items())
    raise ImportError(f"nothing to draw with ({found}): {_INSTALL} {_PACKAGES[first]}, then set MUJOCO_GL={first}")


def _missing(backend: str) -> str:
    """Reason why a backend cannot draw; empty where it can."""
    for library in _LIBRARIES[backend]:
        if not _loads(library):
            return f"no {library}"
    return "no driver" if backend == "egl" and count_egl_devices() == 0 else ""


def _loads(library: str) -> bool:
    try:
        return bool(ctypes.CDLL(library))
    except OSError:
        return False


def count_egl_devices() -> int:
    """Devices that EGL can draw on, a software one included; 0 where libEGL has no driver behind it."""
    egl = ctypes.CDLL("libEGL.so.1")
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    egl.eglGetProcAddress.argtypes = [ctypes.c_char_p]
    address = egl.eglGetProcAddress(b"eglQueryDevicesEXT")
    if not address:
        return 0
    query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int))(address)
    count = ctypes.c_int(0)
    return count.value if query(0, None, ctypes.byref(count)) else 0


_backend, _failure = "", ""  # one of them is not empty once this process is prepared


def prepare() -> None:
    """Choose what to draw with and set MUJOCO_GL to it; the first call alone does anything.

    Where there is nothing to draw with, the error comes when something is to be drawn, so that a missing library is not
    taken for a missing simulator.
    """
    global _backend, _failure
    if _backend or _failure:
        return
    # Triton is loaded before what MuJoCo draws with: PyOpenGL opens Mesa's LLVM to the whole process, and Triton, with
    # an LLVM of its own, crashes if it is loaded after it. Workers never load it, and are spared its 85 MB.
    may_come = "torch" in sys.modules or multiprocessing.parent_process() is None
    if may_come and find_spec("triton") is not None:
        import_module("triton")
    try:
        _backend = os.environ["MUJOCO_GL"] = choose_backend(os.environ)
    except ImportError as error:
        _failure = str(error)


@contextmanager
def without_gl() -> Iterator[None]:
    """MuJoCo and dm_control, if loaded inside, open no GL, whatever MUJOCO_GL names; a Renderer still can."""
    before = os.environ.get("MUJOCO_GL")
    os.environ["MUJOCO_GL"] = "off"
    try:
        yield
    finally:
        del os.environ["MUJOCO_GL"]
        if before is not None:
            os.environ["MUJOCO_GL"] = before


_context: Any = None  # of this process, once something was drawn


def _shared_context() -> Any:
    global _context
    if _context is None:
        prepare()
        if _failure:
            raise ImportError(_failure)
        try:
            _context = import_module(f"mujoco.{_backend}").GLContext(*FRAME_SHAPE[:2])
        except RuntimeError as error:
            raise ImportError(f"{_backend} cannot draw ({error}): set MUJOCO_GL to the other of egl, osmesa") from error
    # What registers last is called first: before other libraries (dm_control) close the displays under it, or the
    # process ends with tracebacks.
    atexit.unregister(_free_context)
    atexit.register(_free_context)
    return _context


def _free_context() -> None:
    global _context
    _context.free()
    _context = None


class Renderer:
    """Draws one model.

    Args:
        model: mujoco.MjModel; its quality settings are changed.
        camera: number of a camera of the model; -1 for none of them, `Renderer.camera` is then to be placed.
        render: "full" is as set in the model, with shadows, reflections and antialiasing; "light" leaves these
            three out, which on a CPU takes a tenth of the time.
        grain: details of dense meshes below this size, in the unit of the model, are left out when drawn light; 0:
            none. See thin_meshes.
    Raises: ValueError if render is neither; ImportError, naming library and remedy, if this machine cannot draw.
    """

    def __init__(self, model: Any, camera: int, render: object, grain: float = 0.0) -> None:
        if render not in ("light", "full"):
            raise ValueError(f"unknown render {render!r}: expected 'light' or 'full'")
        self._gl = _shared_context()
        self._gl.make_current()
        import mujoco

        self._mujoco, self._model = mujoco, model
        height, width, _ = FRAME_SHAPE
        model.vis.global_.offheight, model.vis.global_.offwidth = height, width
        if render == "light":
            model.vis.quality.shadowsize = model.vis.quality.offsamples = 0  # read when the renderer is made
        self._scene = mujoco.MjvScene(model, maxgeom=_MAX_GEOMS)
        if render == "light":
            for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                self._scene.flags[flag] = 0
        with thin_meshes(model, grain) if grain and render == "light" else nullcontext():
            self._renderer = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50.value)
        self.camera, self._option, self._perturb = mujoco.MjvCamera(), mujoco.MjvOption(), mujoco.MjvPerturb()
        if camera >= 0:
            self.camera.type, self.camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, camera
        self._area = mujoco.MjrRect(0, 0, width, height)
        self._pixels = np.zeros(FRAME_SHAPE, np.uint8)  # the lowest row first, as GL has it

    def draw(self, data: Any) -> Frame:
        """The model as `data` has it: [64, 64, 3], the reader's own."""
        mujoco = self._mujoco
        self._gl.make_current()
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._renderer)
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self._model, data, self._option, self._perturb, self.camera, everything, self._scene)
        mujoco.mjr_render(self._area, self._scene, self._renderer)
        mujoco.mjr_readPixels(self._pixels, None, self._area, self._renderer)
        return self._pixels[::-1].copy()

    def renew_terrain(self) -> None:
        """Take over height fields that have changed in the model."""
        self._gl.make_current()
        for index in range(self._model.nhfield):
            self._mujoco.mjr_uploadHField(self._model, self._renderer, index)

    def close(self) -> None:
        """Free what the model takes in the GL context; more than once does no harm."""
        if self._renderer is not None:
            self._gl.make_current()
            self._renderer.free()
            self._renderer = None
