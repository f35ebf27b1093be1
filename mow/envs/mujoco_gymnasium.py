"""MuJoCo environments of gymnasium, drawn as all robots here are: in the one GL context of the process, at 64 x 64."""

from typing import Any

import mujoco
import numpy as np

from mow.envs import mujoco_render


def renderer_of(env: Any, render: object) -> mujoco_render.Renderer:
    """Renderer of a gymnasium.envs.mujoco.MujocoEnv, which must never draw itself: it would open a GL context of its
    own, and environments that each have one draw into each other's.

    The camera is the one that the registration names, else the model's own that follows the body ("track"), else
    a free one as the environment places it. Source: gymnasium 1.4, MujocoRenderer. Differs: that prefers the free
    camera to the following one; it stays where an episode began, and what runs leaves its picture.

    Raises: ValueError if render is neither "light" nor "full"; ImportError if this machine cannot draw.
    """
    model, registered = env.model, env.mujoco_renderer
    own = registered.camera_id if registered.camera_id is not None else -1
    camera = own if own >= 0 else mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, "track")
    renderer = mujoco_render.Renderer(model, camera, render)
    if camera < 0:
        _place(renderer.camera, model, registered.default_cam_config or {})
    return renderer


def _place(camera: Any, model: Any, config: dict[str, Any]) -> None:
    """A free camera, or one that follows the body which `config` names, as gymnasium places it before the first episode
    draws anything, so that the view is the same for all seeds."""
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    camera.lookat[:] = np.median(data.geom_xpos, axis=0)
    camera.distance = model.stat.extent
    for name, value in config.items():
        if isinstance(value, np.ndarray):
            getattr(camera, name)[:] = value
        else:
            setattr(camera, name, value)
    follows = config.get("trackbodyid", -1) >= 0
    camera.type = mujoco.mjtCamera.mjCAMERA_TRACKING if follows else mujoco.mjtCamera.mjCAMERA_FREE
