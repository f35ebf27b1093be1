"""Means between two readings, curves per task in the event file, and a loud end when a number is not finite."""

import contextlib
import errno
import json
import math
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from mow.envs.base import Episode
from mow.runs.logger import Logger, MetricMeans, Stopwatch, duration

TASKS = ("atari:Pong", "atari:Boxing")


@pytest.fixture
def logger(tmp_path: Path) -> Iterator[Logger]:
    with contextlib.closing(Logger(tmp_path, frame_skip=4)) as made:
        yield made


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder)).Reload()


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_means_by_hand() -> None:
    means = MetricMeans()
    means.add({"loss": torch.tensor([1.0, 10.0]), "norm": torch.tensor(4.0)})
    means.add({"loss": torch.tensor([2.0, 30.0])})
    assert means.read() == {"loss": [1.5, 20.0], "norm": 4.0}  # norm came once


def test_reading_starts_anew() -> None:
    means = MetricMeans()
    means.add({"loss": torch.tensor([1.0, 10.0])})
    means.read()
    assert means.read() == {}
    means.add({"loss": torch.tensor([7.0, 8.0])})
    assert means.read() == {"loss": [7.0, 8.0]}


def test_means_keep_no_graph_and_no_alias() -> None:
    means = MetricMeans()
    loss = torch.tensor([1.0], requires_grad=True)
    means.add({"loss": loss * 2})
    total = torch.tensor([5.0])
    means.add({"other": total})
    total.fill_(99.0)  # a metric that is updated in place afterwards
    assert means.read() == {"loss": [2.0], "other": [5.0]}
    half = MetricMeans()
    for _ in range(3):
        half.add({"x": torch.tensor(1000.5, dtype=torch.float64), "y": torch.tensor([1.0], dtype=torch.bfloat16)})
    assert half.read() == {"x": 1000.5, "y": [1.0]}


def test_one_curve_per_task(logger: Logger, tmp_path: Path) -> None:
    logger.metrics(100, 50, {"world_model/total": [3.0, 4.5], "norm": 0.25}, TASKS)
    logger.metrics(200, 150, {"world_model/total": [2.0, 3.5]}, TASKS)
    logger.flush()
    board = events(tmp_path)
    assert set(board.Tags()["scalars"]) == {"world_model/total/atari:Pong", "world_model/total/atari:Boxing", "norm"}
    pong = [(e.step, e.value) for e in board.Scalars("world_model/total/atari:Pong")]
    assert pong == [(50, 3.0), (150, 2.0)]
    assert [(e.step, e.value) for e in board.Scalars("norm")] == [(50, 0.25)]
    first, second = lines(tmp_path)
    seconds = first.pop("seconds")
    assert isinstance(seconds, float)
    assert seconds >= 0
    assert first == {
        "step": 100,
        "frames": 400,
        "updates": 50,
        "world_model/total/atari:Pong": 3.0,
        "world_model/total/atari:Boxing": 4.5,
        "norm": 0.25,
    }
    assert second["frames"] == 800


def test_an_episode(logger: Logger, tmp_path: Path) -> None:
    logger.episode(123, Episode(task="atari:Boxing", index=1, episode_return=-2.5, length=77, success=None))
    logger.flush()
    board = events(tmp_path)
    (score,), (length,) = (board.Scalars(f"{name}/atari:Boxing") for name in ("episode_return", "episode_length"))
    assert (score.step, score.value, length.value) == (123, -2.5, 77)
    (line,) = lines(tmp_path)
    assert line == {"step": 123, "task": "atari:Boxing", "episode_return": -2.5, "length": 77, "success": None}


def test_a_figure(logger: Logger, tmp_path: Path) -> None:
    image = torch.zeros(5, 9, 3, dtype=torch.uint8)
    logger.figure("similarity", image, 3)
    logger.flush()
    (found,) = events(tmp_path).Images("similarity")
    assert (found.step, found.height, found.width) == (3, 5, 9)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_stops_the_run(logger: Logger, value: float) -> None:
    message = rf"actor/loss/atari:Boxing became {value} near step 700: start a new run with a lower"
    with pytest.raises(FloatingPointError, match=message):
        logger.metrics(700, 9, {"norm": 1.0, "actor/loss": [1.0, value]}, TASKS)
    with pytest.raises(FloatingPointError, match=f"norm became {value} near step 800"):
        logger.metrics(800, 9, {"norm": value}, TASKS)


def test_values_must_match_the_tasks(logger: Logger) -> None:
    with pytest.raises(ValueError, match="zip"):
        logger.metrics(1, 1, {"loss": [1.0, 2.0, 3.0]}, TASKS)


def test_lines_of_an_earlier_run_stay(tmp_path: Path) -> None:
    for step in (1, 2):
        with contextlib.closing(Logger(tmp_path, frame_skip=1)) as logger:
            logger.metrics(step, step, {}, TASKS)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


@pytest.mark.parametrize(
    ("seconds", "clock"),
    [
        (-3, "0:00"),
        (0, "0:00"),
        (4.9, "0:04"),
        (59.99, "0:59"),
        (245, "4:05"),
        (3599, "59:59"),
        (3723, "1:02:03"),
        (360_000, "100:00:00"),
    ],
)
def test_duration(seconds: float, clock: str) -> None:
    assert duration(seconds) == clock


def test_a_stopwatch_counts_each_part_between_two_readings(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("mow.runs.logger.time.monotonic", lambda: now[0])
    watch = Stopwatch()
    for part, seconds in (("env", 1.0), ("agent", 2.5), ("env", 0.25)):
        with watch.on(part):
            now[0] += seconds
        now[0] += 10.0  # counted nowhere
    assert watch.read() == {"time/env": 1.25, "time/agent": 2.5}
    assert watch.read() == {}


def test_tasks_that_differ_in_frames_per_step_count_none(tmp_path: Path) -> None:
    with contextlib.closing(Logger(tmp_path, frame_skip=None)) as logger:
        logger.metrics(10, 1, {}, TASKS)
    assert "frames" not in lines(tmp_path)[0]


def test_a_writer_that_fails_is_one_line_and_the_next_write_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An unhandled error of a thread would fail this test; those of other threads are still told."""
    before, logger = threading.excepthook, Logger(tmp_path, frame_skip=4)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    episode = Episode(task="atari:Boxing", index=1, episode_return=1.0, length=7, success=None)
    logger.flush()
    writer = logger._board._get_file_writer().event_writer._async_writer
    with monkeypatch.context() as patch:
        patch.setattr(writer._writer, "write", full)
        writer._byte_queue.put(b"an event")
        writer._worker.join()
    with pytest.raises(OSError, match="No space left"):
        logger.episode(1, episode)
    assert [record.getMessage() for record in caplog.records] == [
        "TensorBoard's curves are not written any more: [Errno 28] No space left on device"
    ]
    heard: list[object] = []
    monkeypatch.setattr(logger, "_hook", heard.append)
    other = threading.Thread(target=full)
    other.start()
    other.join()
    assert len(heard) == 1
    monkeypatch.undo()
    with pytest.raises(OSError, match="No space left"):
        logger.close()
    assert threading.excepthook == before


def test_a_logger_that_cannot_be_made_leaves_no_hook(tmp_path: Path) -> None:
    before = threading.excepthook
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(IsADirectoryError):
        Logger(tmp_path, frame_skip=4)
    assert threading.excepthook == before


def test_no_point_is_there_twice_after_a_resume(tmp_path: Path) -> None:
    """Episodes over steps, metrics over updates, a figure; a checkpoint in between, from which two processes go on."""
    episode = Episode(task="atari:Boxing", index=1, episode_return=1.0, length=7, success=None)
    with contextlib.closing(Logger(tmp_path, frame_skip=4)) as logger:
        logger.episode(5, episode)
        logger.metrics(8, 2, {"norm": 0.5}, TASKS)
        state = logger.state_dict()
        logger.metrics(8, 3, {"norm": 0.75}, TASKS)
        logger.episode(9, episode)
    for _ in range(2):
        with contextlib.closing(Logger(tmp_path, frame_skip=4)) as logger:
            logger.load_state_dict(state)
            logger.metrics(8, 3, {"norm": 0.75}, TASKS)
            logger.figure("similarity", torch.zeros(5, 9, 3, dtype=torch.uint8), 3)
            logger.episode(9, episode)
    board = events(tmp_path)
    assert [(e.step, e.value) for e in board.Scalars("norm")] == [(2, 0.5), (3, 0.75)]
    assert [e.step for e in board.Scalars("episode_return/atari:Boxing")] == [5, 9]
    assert [e.step for e in board.Images("similarity")] == [3]
    assert [line["step"] for line in lines(tmp_path)] == [5, 8, 8, 9]


def test_a_logger_that_writes_nothing_leaves_no_curves(tmp_path: Path) -> None:
    with contextlib.closing(Logger(tmp_path, frame_skip=4)) as logger:
        logger.flush()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
