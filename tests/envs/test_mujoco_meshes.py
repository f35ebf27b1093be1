"""Thin meshes: what becomes of vertices and faces, that the model is given back, and how little a picture shows."""

from importlib.util import find_spec

import numpy as np
import pytest

from mow.envs import make, mujoco_render
from mow.envs.mujoco_meshes import DENSE, distinct, merged, thin_meshes

needs_mujoco = pytest.mark.skipif(not find_spec("mujoco"), reason="needs mujoco")


def test_vertices_of_a_cell_become_the_one_in_their_middle() -> None:
    vertices = np.array([[0.1, 0, 0], [0.9, 0, 0], [0.4, 0, 0], [1.1, 0, 0], [-0.1, 0, 0]])
    assert merged(vertices, 1.0).tolist() == [2, 2, 2, 3, 4]
    assert merged(vertices, 0.01).tolist() == [0, 1, 2, 3, 4]


def test_of_a_face_one_copy_stays_and_none_that_has_no_area() -> None:
    faces = np.array([[3, 1, 2], [1, 2, 3], [1, 3, 2], [4, 4, 5], [5, 6, 5], [7, 8, 9]])
    assert distinct(faces).tolist() == [0, 2, 5]  # the third is the back of the first


@needs_mujoco
def test_the_model_is_thin_inside_and_as_before_after() -> None:
    mujoco_render.prepare()
    import mujoco

    points = np.random.default_rng(0).normal(size=(DENSE // 2 + 200, 3))
    ball = points / np.linalg.norm(points, axis=1, keepdims=True)  # [n, 3], whose hull has 2 n - 4 faces
    meshes = "".join(
        f'<mesh name="{name}" vertex="{" ".join(map(str, vertices.ravel()))}"/>'
        for name, vertices in (("coarse", ball[:100]), ("fine", ball))
    )
    model = mujoco.MjModel.from_xml_string(
        f"<mujoco><asset>{meshes}</asset><worldbody>"
        '<geom type="mesh" mesh="coarse"/><geom type="mesh" mesh="fine"/></worldbody></mujoco>'
    )
    names = ("mesh_face", "mesh_facenormal", "mesh_facetexcoord", "mesh_facenum")
    before = {name: getattr(model, name).copy() for name in names}
    coarse, fine = before["mesh_facenum"]
    assert coarse <= DENSE < fine
    with thin_meshes(model, 0.3):
        assert model.mesh_facenum[0] == coarse
        assert 0 < model.mesh_facenum[1] < fine / 4
        faces = model.mesh_face[model.mesh_faceadr[1] :][: model.mesh_facenum[1]]
        assert len(distinct(faces)) == len(faces)
        normal = model.mesh_normal[model.mesh_facenormal[model.mesh_faceadr[1]][0] + model.mesh_normaladr[1]]
        corner = model.mesh_vert[faces[0, 0] + model.mesh_vertadr[1]]
        assert normal @ corner > 0.8 * np.linalg.norm(corner), "each face keeps its own normals"
    for name in names:
        assert np.array_equal(getattr(model, name), before[name]), name


@pytest.mark.skipif(not find_spec("metaworld"), reason="needs metaworld")
def test_a_thin_robot_looks_the_same() -> None:
    from mow.envs.metaworld import GRAIN
    from mow.envs.mujoco_render import Renderer

    env = make("metaworld:hammer-v3", seed=0, options={})
    env.reset(seed=1)
    whole, thin, coarse = (
        Renderer(env._model, env._renderer.camera.fixedcamid, "light", grain).draw(env._data).astype(int)
        for grain in (0.0, GRAIN, 0.05)
    )
    assert np.array_equal(env._renderer.draw(env._data), thin)
    away = np.abs(thin - whole)
    # Measured on MT10: 0.29 to 0.36, and 0.9 % of the pixels by more than 8, at edges of the arm.
    assert 0 < away.mean() < 1.0
    assert (away.max(axis=-1) > 8).mean() < 0.03
    assert np.abs(coarse - whole).mean() > 2 * away.mean(), "or nothing was thinned"
    env.close()
