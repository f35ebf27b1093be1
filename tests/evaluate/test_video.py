"""Episodes as GIFs: what is in them, and that their length costs no memory."""

import errno
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from mow.envs.base import FRAME_SHAPE, Episode
from mow.envs.dummy import read_counter
from mow.envs.vector import SerialVectorEnv
from mow.evaluate.gif_writer import GifWriter
from mow.evaluate.video import SCALE, EpisodeFilm, WatchedEnvs


def frames_of(path):
    """[n, 64, 64, 3]."""
    with Image.open(path) as film:
        for step in range(film.n_frames):
            film.seek(step)
            yield np.asarray(film.convert("RGB"))[: 64 * SCALE : SCALE, ::SCALE]


def random_play(envs):
    return envs.step(envs.layout.random(np.random.default_rng(0)))


def test_a_film_shows_what_was_seen(tmp_path):
    film = EpisodeFilm(tmp_path / "film.gif", 2)
    seen = []
    with WatchedEnvs(SerialVectorEnv(["dummy:count-0"], seed=0, options={}), [film]) as envs:
        frame = envs.reset()[0]
        while len(envs.episodes[0]) < 3:
            if len(envs.episodes[0]) < 2:
                seen.append(frame[0])
            frame = random_play(envs).frame
    assert film.lengths == [episode.length for episode in envs.episodes[0][:2]]
    shown = list(frames_of(film.path))
    assert [read_counter(frame) for frame in shown] == [read_counter(frame) for frame in seen]
    with Image.open(film.path) as gif:
        assert gif.info["loop"] == 0
        gif.seek(film.lengths[0] - 1)
        assert gif.info["duration"] == 1000, "the end of an episode stays"
        gif.seek(film.lengths[0])
        assert gif.info["duration"] == 80
    assert film.remark == f"video: {film.path}"


@pytest.mark.parametrize("final_frames", [False, True])
def test_a_film_leaves_out_final_frames_and_what_a_lost_simulator_began(tmp_path, final_frames):
    film = EpisodeFilm(tmp_path / "film.gif", 3)
    options: dict[str, object] = {"fail_at": 16}
    failing = SerialVectorEnv(["dummy:count-0"], seed=0, options=options, max_restarts=3, final_frames=final_frames)
    with WatchedEnvs(failing, [film]) as envs:
        envs.reset()
        lost = 0
        while len(envs.episodes[0]) < 3:
            lost += len(random_play(envs).restarts)
        assert lost > 0
    expected = [step for episode in envs.episodes[0][:3] for step in range(episode.length)]
    assert [read_counter(frame)[2] for frame in frames_of(film.path)] == expected


def test_a_film_without_a_whole_episode_leaves_no_file(tmp_path):
    film = EpisodeFilm(tmp_path / "film.gif", 1)
    with WatchedEnvs(SerialVectorEnv(["dummy:count-0"], seed=0, options={}), [film]) as envs:
        envs.reset()
        for _ in range(3):
            random_play(envs)
        assert film.path.exists()
    assert not film.path.exists()
    assert film.remark == f"no video: no episode for {film.path} ended"


def test_a_long_episode_is_cut_and_takes_no_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("mow.evaluate.video.LONGEST", 150)
    film = EpisodeFilm(tmp_path / "film.gif", 1)
    frame = np.zeros(FRAME_SHAPE, np.uint8)
    film.begin(frame)

    def play(steps):
        for i in range(steps):
            frame[i % 64] += 1
            film.step(frame, 1.0)

    play(20)  # what Pillow and its font need once
    tracemalloc.start()
    play(26_980)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    film.end(Episode("dummy:slide", 0, 27_001.0, 27_001, None))
    film.close()
    assert peak < 2e6, "bytes, where the frames shown are 1.8e6 as they are and 33e6 as pictures"
    with Image.open(film.path) as gif:
        assert gif.n_frames == 150
    assert film.remark == f"video: {film.path}, only the first 150 steps of episode 1 of 27,001"


def test_a_full_disk_ends_the_film_and_not_the_play(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(GifWriter, "add", full)
    film = EpisodeFilm(tmp_path / "film.gif", 1)
    with WatchedEnvs(SerialVectorEnv(["dummy:count-0"], seed=0, options={}), [film]) as envs:
        envs.reset()
        while not envs.episodes[0]:
            random_play(envs)
    assert film.remark == f"video: {film.path} is incomplete (No space left on device)"


@pytest.mark.parametrize("whole", [True, False])
def test_pictures_come_out_as_they_went_in(whole, tmp_path):
    rng = np.random.default_rng(0)
    pictures = [np.full((40, 30, 3), 255, np.uint8)]
    for i in range(5):
        changed = pictures[-1].copy()
        changed[4 * i : 4 * i + 3, 5:9] = rng.integers(0, 256, 3)
        pictures.append(changed)
    writer = GifWriter(tmp_path / "a.gif")
    for picture in pictures:
        writer.add(Image.fromarray(picture), 50, whole=whole)
    writer.close()
    with Image.open(tmp_path / "a.gif") as gif:
        for i, picture in enumerate(pictures):
            gif.seek(i)
            assert np.array_equal(np.asarray(gif.convert("RGB")), picture)
