"""Episodes as GIFs, and the results that are kept of them."""

import numpy as np
import pytest
from PIL import Image

from mow.envs import vec
from mow.envs.base import FRAME_SHAPE, Episode
from mow.envs.dummy import read_counter
from mow.envs.vector import SerialVectorEnv, make_vector
from mow.errors import UsageError
from mow.evaluate import pictures
from mow.evaluate.video import BAR, LONGEST, SCALE, FilmedEnvs, write_gif
from mow.methods.bc.config import BcConfig


def frames_of(path):
    """[n, 64, 64, 3]."""
    with Image.open(path) as film:
        for step in range(film.n_frames):
            film.seek(step)
            yield np.asarray(film.convert("RGB"))[: 64 * SCALE : SCALE, ::SCALE]


def played(tmp_path, num_films, num_episodes, **how):
    """Environments that have played, and the frames that were seen at the steps of their first episodes."""
    seen, lost = [], 0
    with SerialVectorEnv(["dummy:count-0"], seed=0, **{"options": {}, **how}) as envs:
        filmed = FilmedEnvs(envs, [tmp_path / "a task"], num_films)
        frame = filmed.reset()[0]
        while len(filmed.episodes[0]) < num_episodes:
            seen.append(frame[0])
            step = filmed.step(envs.layout.random(np.random.default_rng(0)))
            frame, lost = step.frame, lost + len(step.restarts)
    return filmed, seen, lost


def test_a_film_shows_what_was_seen(tmp_path):
    filmed, seen, _ = played(tmp_path, 2, 3)
    lengths = [episode.length for episode in filmed.episodes[0]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a task-1.gif", "a task-2.gif"]
    shown = [frame for path in sorted(tmp_path.iterdir()) for frame in frames_of(path)]
    assert [read_counter(frame) for frame in shown] == [read_counter(frame) for frame in seen[: sum(lengths[:2])]]
    with Image.open(tmp_path / "a task-1.gif") as gif:
        assert gif.size == (64 * SCALE, 64 * SCALE + BAR)
        assert (gif.n_frames, gif.info["loop"], gif.info["duration"]) == (lengths[0], 0, 80)
        gif.seek(lengths[0] - 1)
        assert gif.info["duration"] == 1000, "the end of an episode stays"


@pytest.mark.parametrize("final_frames", [False, True])
def test_a_film_leaves_out_final_frames_and_what_a_lost_simulator_began(tmp_path, final_frames):
    options: dict[str, object] = {"fail_at": 16}
    filmed, _, lost = played(tmp_path, 3, 3, options=options, max_restarts=3, final_frames=final_frames)
    assert lost > 0
    for number, episode in enumerate(filmed.episodes[0], start=1):
        shown = [read_counter(frame)[2] for frame in frames_of(tmp_path / f"a task-{number}.gif")]
        assert shown == list(range(episode.length))


def test_without_films_no_file_is_written_and_the_results_are_kept(tmp_path):
    filmed, _, _ = played(tmp_path, 0, 2)
    assert len(filmed.episodes[0]) == 2
    assert list(tmp_path.iterdir()) == []
    assert filmed.specs[0].name == "dummy:count-0"


def test_a_long_episode_is_cut(tmp_path):
    frames = [(np.full(FRAME_SHAPE, i % 200, np.uint8), float(i)) for i in range(LONGEST // 20)]
    write_gif(tmp_path / "a.gif", frames, Episode("dummy:slide", 0, 27_001.0, 27_001, None))
    assert len(list(frames_of(tmp_path / "a.gif"))) == LONGEST // 20


STATES = {"obs": "state"}


@pytest.mark.parametrize(("task", "state", "at"), [
    ("vec:lq", [2.0, 0.0], (31, 58)), ("vec:button", [-1.0, 1.0], (31, 5)),
    ("vec:reach", [1.0, 1.0, -1.0, -1.0], (5, 58)), ("vec:pendulum", [0.0, 1.0, 0.0], (31, 56)),
])  # fmt: skip
def test_a_state_of_vec_is_drawn_where_it_is(task, state, at):
    frame = vec.draw(task, np.array([*state, 0.0, 0.0], np.float32))
    assert (frame.shape, frame.dtype) == (FRAME_SHAPE, np.uint8)
    assert frame[at].tolist() == [20, 20, 20]
    assert frame[at[0], 63 - at[1]].tolist() != [20, 20, 20], "on the other side"


def test_states_of_vec_are_filmed(tmp_path):
    config = BcConfig(preset="bc", tasks=("vec:button",), total_steps=0)
    with pictures.drawing(config, seed=3, workers=0) as draw, make_vector(
        config.tasks, seed=3, num_workers=0, options=STATES
    ) as envs:
        filmed = FilmedEnvs(envs, [tmp_path / "a"], 1, draw)
        state, seen = filmed.reset()[0], []
        while not filmed.episodes[0]:
            seen.append(vec.draw("vec:button", state[0]))
            state = filmed.step(np.ones((1, 1), np.float32)).frame
        filmed.step(np.ones((1, 1), np.float32))
    assert [*map(np.ndarray.tolist, frames_of(tmp_path / "a-1.gif"))] == [*map(np.ndarray.tolist, seen)]


def test_others_are_played_again_with_frames(monkeypatch):
    """With the same seed and actions; rewards that differ end it."""
    config, asked = BcConfig(preset="bc", tasks=("dummy:count-0",), total_steps=0), []

    def twin(tasks, *, options, **how):
        asked.append(options["obs"])
        return SerialVectorEnv(tasks, seed=how["seed"], options={})

    monkeypatch.setattr(pictures, "make_vector", twin)
    with pictures.drawing(config, seed=3, workers=0) as draw, twin(config.tasks, options=STATES, seed=3) as envs:
        assert (draw(None, None, None) == envs.reset()[0]).all()
        action = envs.layout.random(np.random.default_rng(0))
        step = envs.step(action)
        assert (draw(action, None, step.reward) == step.frame).all()
        with pytest.raises(UsageError, match="has other rewards"):
            draw(action, None, step.reward + 1.0)
    assert asked == ["frame", "state"]


def test_vec_beside_other_tasks_is_one_line():
    config = BcConfig(preset="bc", tasks=("vec:lq", "dummy:count-0"), total_steps=0)
    with (
        pytest.raises(UsageError, match="no videos, leave --video out: task 'vec:lq' has no"),
        pictures.drawing(config, seed=3, workers=0),
    ):
        pass
