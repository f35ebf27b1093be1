"""Recording of episodes, in this process or in workers; the same folder byte for byte with any number of them."""

import multiprocessing
import signal
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mow.envs.guarded import GuardedEnv
from mow.envs.suites import reference_returns
from mow.envs.vector_process import follow_parent, quiet_start
from mow.errors import UsageError
from mow.offline.behaviours import Behaviour, Policy, RunOpener, behaviours, check_experts, make_policy
from mow.offline.files import RecordedEpisode, StoredTask, Writer, stored_task

EPISODES_AHEAD = 4  # per worker
COMMIT_S = 1.0  # seconds between two changes of the folder, each of which waits for the disk

Job = tuple[str, int]  # task, number of the episode


def no_runs(run: str, task: str, seed: int) -> Policy:
    """A RunOpener for callers that have none. Raises: UsageError."""
    raise UsageError(f"policy run:{run} is opened by the command mow collect alone: use that")


def collect(
    tasks: Sequence[str],
    folder: Path,
    episodes: int,
    policy: str,
    *,
    noise: Sequence[float] = (),
    seed: int = 0,
    workers: int = 0,
    options: Mapping[str, object] | None = None,
    open_run: RunOpener = no_runs,
    progress: Callable[[Job], None] = lambda job: None,
) -> tuple[StoredTask, ...]:
    """Append episodes of every task to a folder of recorded episodes.

    Episode e of a task draws from a random stream of its own, named by seed, task and e, where e counts on behind the
    episodes that the folder has. A process that is killed loses the episodes of the last COMMIT_S.

    Args:
        tasks: "suite:Task", with continuous actions and state observations.
        folder: new, or of recorded episodes, of these tasks or of others.
        episodes: of each task.
        policy, noise: see behaviours.
        workers: processes; 0 plays here.
        options: of the environments, see mow.envs.make; "obs" is always "state".
        open_run: opens trained runs; a function that workers can import.
        progress: called with every episode once it is recorded.
    Returns: what the folder then holds. Raises: UsageError in one line; what was recorded until then is kept.
    """
    player = Player(behaviours(policy, noise), seed, {**(options or {}), "obs": "state"}, open_run)
    if len(set(tasks)) < len(tasks):
        raise UsageError("a task is named twice: name each once")
    with closing(player), _plain_errors():
        specs = [player.open(task).task for task in tasks]
        stored = [stored_task(spec, reference_returns(spec.name)) for spec in specs]
        check_experts(player.pattern, specs)
        with closing(Writer(folder, stored)) as writer:
            begin = {name: task.episodes for name, task in writer.tasks.items()}
            jobs = [(task, begin[task] + i) for task in tasks for i in range(episodes)]
            with closing(_played(player, jobs, workers)) as played:
                _append(writer, jobs, played, progress)
            return tuple(writer.tasks[task] for task in tasks)


def _append(
    writer: Writer, jobs: Sequence[Job], played: Iterator[RecordedEpisode], progress: Callable[[Job], None]
) -> None:
    """Append in the order of the jobs, some episodes at once; after an error too what was recorded before it."""
    waiting: list[RecordedEpisode] = []
    begun = time.monotonic()
    try:
        for i, (job, episode) in enumerate(zip(jobs, played, strict=True)):
            waiting.append(episode)
            if i + 1 == len(jobs) or jobs[i + 1][0] != job[0] or time.monotonic() > begun + COMMIT_S:
                appended, waiting = waiting, []
                writer.append(job[0], appended)
                begun = time.monotonic()
            progress(job)
    finally:
        if waiting:
            writer.append(job[0], waiting)


@dataclass
class Player:
    """Plays episodes, each a function of seed, task and number; keeps the environment of one task."""

    pattern: tuple[Behaviour, ...]
    seed: int
    options: dict[str, object]
    open_run: RunOpener
    _env: GuardedEnv | None = field(default=None, init=False)
    _name: str = field(default="", init=False)

    def open(self, task: str) -> GuardedEnv:
        """The environment of a task. Raises: SimulatorFailure."""
        if self._env is None or self._name != task:
            self.close()
            self._env, self._name = GuardedEnv(task, seed=self.seed, options=self.options), task
        return self._env

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None

    def play(self, job: Job) -> RecordedEpisode:
        """One episode. Raises: SimulatorFailure, UsageError."""
        task, number = job
        env, behaviour = self.open(task), self.pattern[number % len(self.pattern)].of(task)
        sequence = np.random.SeedSequence((self.seed, zlib.crc32(task.encode()), number))
        reset_seed, rng = int(sequence.generate_state(1)[0]) >> 1, np.random.default_rng(sequence)
        policy = make_policy(behaviour, env.task, rng, self.open_run)
        seen, _ = env.reset(seed=reset_seed)
        states, actions, rewards, successes = [seen], [], [], []
        terminated = truncated = False
        while not (terminated or truncated):
            actions.append(policy(seen))
            seen, reward, terminated, truncated, info = env.step(actions[-1])
            states.append(seen)
            rewards.append(reward)
            successes += [info["success"]] if "success" in info else []
        return RecordedEpisode(
            np.stack(states), np.stack(actions), np.array(rewards, np.float32), terminated, behaviour.policy,
            noise=behaviour.noise, seed=reset_seed, success=any(successes) if successes else None,
            final_success=successes[-1] if successes else None,
        )  # fmt: skip


_player: Player  # of a worker


def _start_worker(player: Player) -> None:
    global _player
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    threading.Thread(target=follow_parent, daemon=True).start()
    _player = player


def _play(job: Job) -> RecordedEpisode:
    with _plain_errors():
        return _player.play(job)


def _played(player: Player, jobs: Sequence[Job], workers: int) -> Generator[RecordedEpisode]:
    """The episodes in the order of the jobs; workers play a few ahead."""
    if workers == 0:
        yield from map(player.play, jobs)
        return
    player.close()
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker, (player,))
    ahead: deque[Future[RecordedEpisode]] = deque()
    try:
        for job in jobs:
            with quiet_start():  # a process starts where none is idle
                ahead.append(pool.submit(_play, job))
            if len(ahead) > EPISODES_AHEAD * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    except BrokenProcessPool as error:
        raise UsageError("a worker has died, perhaps for lack of memory: collect again with fewer --workers") from error
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Make what a simulator or the check of an episode raises a UsageError, which every process can unpickle."""
    try:
        yield
    except (ImportError, ValueError) as error:
        raise UsageError(" ".join(str(error).split())) from None
