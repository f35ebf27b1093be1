"""Meshes with no more faces than a picture of 64 x 64 needs.

A robot arm of 67,000 faces covers some 900 pixels. Where a CPU draws, they are most of the cost of an agent step.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

DENSE = 3000  # faces; a mesh that has no more is left as it is
_CORNERS = ("mesh_face", "mesh_facenormal", "mesh_facetexcoord")  # what a model holds of the corners of each face

Faces = NDArray[np.integer]  # [n, 3] indices of vertices

# Of this process, by checksum of mesh and grain: the tasks of a suite share one robot.
_thinned: dict[tuple[int, int, float], tuple[NDArray[np.intp], Faces]] = {}


@contextmanager
def thin_meshes(model: Any, grain: float) -> Iterator[None]:
    """Inside, the dense meshes of a mujoco.MjModel are thin, and renderers that are made here upload those.

    Args:
        model: when this ends it is as before, so that physics never sees it.
        grain: side of the cells within which vertices become one, in the unit of the model.
    """
    kept = {name: getattr(model, name).copy() for name in ("mesh_facenum", *_CORNERS)}
    try:
        for mesh in range(model.nmesh):
            if model.mesh_facenum[mesh] > DENSE:
                _thin(model, mesh, grain)
        yield
    finally:
        for name, values in kept.items():
            getattr(model, name)[:] = values


def _thin(model: Any, mesh: int, grain: float) -> None:
    """Put the faces of one mesh that stay first, and count only those."""
    vertices = model.mesh_vert[model.mesh_vertadr[mesh] :][: model.mesh_vertnum[mesh]]  # [n, 3]
    rows = slice(model.mesh_faceadr[mesh], model.mesh_faceadr[mesh] + model.mesh_facenum[mesh])
    faces = model.mesh_face[rows]  # [m, 3]
    key = (zlib.crc32(vertices.tobytes()), zlib.crc32(faces.tobytes()), grain)
    if key not in _thinned:
        coarse = merged(vertices, grain)[faces]
        stay = distinct(coarse)
        _thinned[key] = stay, coarse[stay]
    stay, coarse = _thinned[key]
    for name in _CORNERS:
        corners = getattr(model, name)[rows]
        corners[: len(stay)] = coarse if name == "mesh_face" else corners[stay]
    model.mesh_facenum[mesh] = len(stay)


def merged(vertices: NDArray[np.floating], grain: float) -> NDArray[np.intp]:
    """Index [n] of the vertex that stands for the cell of each vertex [n, 3]: the nearest to the mean of the cell."""
    place = np.floor(vertices / grain).astype(np.int64)  # [n, 3]
    _, cell, size = np.unique(place, axis=0, return_inverse=True, return_counts=True)  # [n] which, [cells]
    middle = np.stack([np.bincount(cell, axis) / size for axis in vertices.T], axis=1)  # [cells, 3]
    order = np.lexsort((np.linalg.norm(vertices - middle[cell], axis=1), cell))  # by cell, the nearest first
    nearest = order[np.cumsum(size) - size]  # [cells]
    return nearest[cell]


def distinct(faces: Faces) -> NDArray[np.intp]:
    """Indices of the faces [n, 3] with three corners, without duplicates, at whichever corner they begin."""
    begin = faces.argmin(axis=1)[:, None]
    turned = np.take_along_axis(faces, (begin + np.arange(3)) % 3, axis=1)
    first = np.sort(np.unique(turned, axis=0, return_index=True)[1])
    flat = (faces[first] == np.roll(faces[first], 1, axis=1)).any(axis=1)
    return first[~flat]
