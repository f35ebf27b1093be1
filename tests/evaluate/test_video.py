"""Episodes as GIFs, and the results that are kept of them."""

import numpy as np
import pytest
from PIL import Image

from mow.envs.base import FRAME_SHAPE, Episode
from mow.envs.dummy import read_counter
from mow.envs.vector import SerialVectorEnv
from mow.evaluate.video import BAR, LONGEST, SCALE, FilmedEnvs, write_gif


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
