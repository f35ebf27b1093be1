"""The run from first step to last: random prefill, warm-up, grouping of the tasks, then acting and learning in turn.

    prefill:  P random steps per task (counted)
    warm-up:  updates of the world model with one module for all tasks
    grouping: gradients per task -> clusters -> one module each, tasks sorted by cluster
    joint:    each step: act in every task; every n steps one world-model update and one update in imagination

Source: MoW sections 3 and 4; the order and the ratio follow STORM's loop.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor

from mow.batch import TransitionBatch
from mow.config import Config
from mow.engine.collector import Collector
from mow.engine.peak_memory import measured_peak
from mow.engine.profile import Trace
from mow.engine.progress import Phase, PhaseName
from mow.engine.scores import recent_score
from mow.engine.state import keep_and_prune, save_run
from mow.methods.mow.diagnostics import measure
from mow.methods.mow.learner import Learner
from mow.nn.finite import REMEDY, NotFinite
from mow.replay import Prefetcher, Request
from mow.runs.checkpoint import save_checkpoint
from mow.runs.logger import Logger, MetricMeans, Stopwatch, duration

# Streams of the replay's random draws: the same (seed, counter) gives other windows in each.
WORLD_MODEL_STREAM, IMAGINATION_STREAM, CLUSTERING_STREAM, BACKGROUND_STREAM = 0, 1, 2, 3
_MAX_FAILED_SAVES = 3
_MAX_SKIPPED = 5


class Run:
    """One training run: who acts, who learns, who writes down."""

    def __init__(
        self,
        config: Config,
        collector: Collector,
        learner: Learner,
        logger: Logger,
        say: Callable[[str], None],
        *,
        check_stop: Callable[[], None] = lambda: None,
    ) -> None:
        """Args: check_stop: called wherever the run can be saved; ends it by raising what it likes."""
        self.check_stop = check_stop
        self.look: Callable[[Run], None] | None = None  # shows how far it is, between steps; else progress lines do
        self.config, self.collector, self.learner, self.logger, self.say = config, collector, learner, logger, say
        # A batch is drawn when the one before it trains, from what the replay holds then.
        self.prefetch = Prefetcher(collector.replay, depth=config.replay.prefetch, device=learner.device)
        self.step = 0  # environment steps per task so far
        self.agent_updates = 0
        self.means = MetricMeans()
        self.watch = Stopwatch()
        self.first_loss: list[float] | None = None
        self.last_loss: list[float] | None = None
        self.best_score: float | None = None  # of the checkpoint that is kept as the best
        self._failed_saves = 0  # in a row
        self._skipped = {"world model": 0, "agent": 0}  # updates, in a row
        self.left_out = 0  # updates, all of this process
        self.split: dict[str, float] = {}  # part -> seconds, as last logged
        self._trace = self._new_trace()
        self._measured: set[str] = set()  # kinds of update whose peak of memory has been said
        self.phase = Phase("prefill", 0, config.prefill_steps, time.monotonic())
        self._marked = (self.phase.started, 0)  # when the last progress line was said, and the updates by then

    @property
    def tasks(self) -> list[str]:
        """Names in the order of the moment, which grouping changes."""
        return self.learner.tasks

    def train(self) -> None:
        """Run to the end, from wherever it is. Raises: FloatingPointError if a loss or score is not finite."""
        if self.learner.grouping is None:
            self.prefill()
            self.warm_up()
            self.group()
        try:
            self.joint()
        finally:
            if self._trace is not None:
                self._trace.close()

    def prefill(self) -> None:
        """Random steps, so that there is something to learn from."""
        total = self.config.prefill_steps
        self._begin(f"prefill: {total:,} random steps per task", "prefill", end=total)
        while self.step < total:
            with self.watch.on("acting"):
                self.collector.begin_random_step()
            self._end_step()
            self._pause()

    def warm_up(self) -> None:
        """World-model updates with one module for all tasks."""
        if self.config.model.perception.background != "none" and self.learner.updates == 0:
            self.learner.world_model.set_background(self._prefill_frames())
        total = self.config.warmup_updates
        if total == 0:
            return
        said = f"warm-up: {total:,} world-model updates, one module for {len(self.tasks)} tasks"
        self._begin(said, "warm-up", end=total)
        every, first = max(1, total // 5), self.learner.updates
        for update in range(first + 1, total + 1):
            self._update_world_model()
            if update % every == 0 or update == total:
                self._report(f"warm-up {update:,}/{total:,}", done=update - first, total=total - first)
            self._pause()

    def group(self) -> None:
        """Group the tasks and sort everything that holds tasks."""
        learner, config = self.learner, self.config
        self._begin(None, "grouping", end=learner.updates)
        grouping = learner.group(map(self._clustering_batch, range(config.clustering.num_batches)))
        fresh = self._clustering_batch(config.clustering.num_batches)
        terms = learner.weighted_terms(fresh) if config.warmup_updates else None
        names = self.tasks
        learner.regroup(grouping, terms)
        self.prefetch.discard()  # what it holds has the tasks in the old order
        self.collector.reorder(grouping.order)
        self.first_loss, self.last_loss = (
            loss and [loss[k] for k in grouping.order] for loss in (self.first_loss, self.last_loss)
        )
        groups = " | ".join(f"{i}: {', '.join(group)}" for i, group in enumerate(grouping.groups(names)))
        detail = f"silhouette {grouping.silhouette:.2f}, stability {grouping.stability:.2f}"
        for name, share in list(grouping.shares.items())[:1]:
            detail += f", the largest part of the features is {name} with {share:.0%}"
        self.say(f"modules: {groups}" + (f" ({detail})" if grouping.silhouette == grouping.silhouette else ""))
        shades = (127.5 * (1.0 + torch.from_numpy(grouping.similarity).clamp(-1, 1))).to(torch.uint8)
        self.logger.figure("clustering/similarity", shades.unsqueeze(-1).expand(-1, -1, 3), learner.updates)

    def joint(self) -> None:
        """Act and learn until the last step."""
        config, schedule = self.config, self.config.schedule
        self._begin(f"joint training: to {config.total_steps:,} steps per task", "joint", end=config.total_steps)
        begun = self.step
        while self.step < config.total_steps:
            with self.watch.on("acting"):
                self.collector.begin_agent_step(self.learner)
            done = self.step + 1 - config.prefill_steps
            self._end_step(update=self._is_due(done))
            if done % schedule.agent_every == 0:
                self._update_agent()
            last = self.step == config.total_steps
            if done % config.log_every == 0 or last:
                self._report(
                    f"step {self.step:,}/{config.total_steps:,}",
                    done=self.step - begun,
                    total=config.total_steps - begun,
                )
            if done % config.checkpoint_every == 0 or last:
                self._try_to_save()
                self.say(self.collector.replay.describe())
            if self._trace is not None:
                self._trace.step()
            self._pause()

    def _new_trace(self) -> Trace | None:
        """Of two rounds of updates, after one that is not watched; None where none was asked for."""
        if not self.config.profile:
            return None
        every = max(self.config.schedule.world_model_every, self.config.schedule.agent_every)
        return Trace(self.logger.folder / "trace.json", self.learner.device, self.say, skip=every, record=2 * every)

    def save(self) -> Path:
        """Write replay and checkpoint, from which the run can go on; returns the path of the checkpoint."""
        path = save_run(self)
        keep_and_prune(self, path)
        return path

    @property
    def score(self) -> float | None:
        """Mean over tasks of the recent returns, normalised where there are references; None before each has ended."""
        return recent_score({task: self.collector.scores[task].mean() for task in self.tasks})

    def _try_to_save(self) -> None:
        """A disk that is full for a while does not end the run. Raises: OSError at the third failure in a row."""
        try:
            self.say(f"checkpoint: {self.save()}")
        except OSError as error:
            self._failed_saves += 1
            if self._failed_saves == _MAX_FAILED_SAVES:
                raise
            self.say(f"no checkpoint was written ({error}); the run goes on, the one before stays: free some space")
        else:
            self._failed_saves = 0

    def _is_due(self, done: int) -> bool:
        """Is there a world-model update after so many steps of joint training?

        It may have been made already, where the simulators failed for good during it.
        """
        every = self.config.schedule.world_model_every
        return done % every == 0 and self.learner.updates < self.config.warmup_updates + done // every

    def _update_world_model(self) -> None:
        """One update on a batch that is drawn, if it was not before, from what the replay holds now."""
        request = self._request(self.learner.updates)
        with self.watch.on("gather"):
            batch = self.prefetch.next(request)
        self._train_world_model(batch)

    def _train_world_model(self, batch: TransitionBatch) -> None:
        """Every `insight_every` updates a look inside the model first, on the same batch."""
        every = self.config.insight_every
        due = every > 0 and self.learner.updates % every == 0
        insight = measure(self.learner, batch) if due else {}
        with self._guarded("world model", batch), self.watch.on("world_model"):
            self.means.add(self.learner.update_world_model(batch))
            self.means.add(insight)
        self._give_back(batch)
        self._say_peak("world-model")

    def _update_agent(self) -> None:
        imagination = self.config.imagination
        with self.watch.on("gather"):
            context = self.prefetch.next(
                Request(imagination.num_sequences, imagination.context, self.agent_updates, IMAGINATION_STREAM)
            )
        self.agent_updates += 1
        with self._guarded("agent", context):
            self.means.add(self.learner.update_agent(context, watch=self.watch.on))
        self._give_back(context)
        self._say_peak("agent")

    def _say_peak(self, kind: str) -> None:
        """After the first update of its kind that this process makes: what was estimated is now known."""
        if kind not in self._measured:
            self._measured.add(kind)
            self.say(f"peak memory after the first {kind} update: {measured_peak(self.learner.device)}")

    @contextmanager
    def _guarded(self, learning: str, batch: TransitionBatch) -> Iterator[None]:
        """An update that would break the weights is left out, said and counted; after some in a row the run ends."""
        try:
            yield
        except NotFinite as error:
            self._skipped[learning] += 1
            self.left_out += 1
            self.logger.skipped(self.step, self.learner.updates, str(error))
            self.say(f"update {self.learner.updates:,} left out: {error} ({self._skipped[learning]} in a row)")
            if self._skipped[learning] == _MAX_SKIPPED:
                path = self.logger.folder / "diagnosis.pt"
                save_checkpoint(path, {"error": str(error), "tasks": self.tasks, "batch": vars(batch)})
                raise FloatingPointError(
                    f"{error}; {_MAX_SKIPPED} updates in a row were left out, the last batch is in {path}: {REMEDY}"
                ) from error
        else:
            self._skipped[learning] = 0

    # Batches ---------------------------------------------------------------------------------------------------------

    def _request(self, update: int) -> Request:
        batch = self.config.batch
        return Request(batch.num_sequences, batch.length, update, WORLD_MODEL_STREAM)

    def _give_back(self, batch: TransitionBatch) -> None:
        if batch.frame.device.type == "cpu":
            self.prefetch.give_back(batch)

    def _prefill_frames(self) -> Tensor:
        """A few hundred frames of each task: uint8 [K, N, 64, 64, 3]."""
        length = self.config.batch.length
        batch = self.collector.replay.sample(max(1, 256 // length), length, counter=0, stream=BACKGROUND_STREAM)
        return batch.frame.flatten(1, 2).to(self.learner.device)

    def _clustering_batch(self, counter: int) -> TransitionBatch:
        size = self.config.batch
        return self.collector.replay.sample(size.num_sequences, size.length, counter=counter, stream=CLUSTERING_STREAM)

    # Words and curves ------------------------------------------------------------------------------------------------

    def _begin(self, message: str | None, name: PhaseName, *, end: int) -> None:
        begun = self.step if name in ("prefill", "joint") else self.learner.updates
        self.phase = Phase(name, begun, end, time.monotonic())
        self._marked = (self.phase.started, self.learner.updates)
        self.split = {}
        if message is not None:
            self.say(message)
        if self.look is not None:
            self.look(self)

    def _pause(self) -> None:
        """Between two steps, or two updates of the warm-up: the run can be looked at, saved and ended."""
        if self.look is not None:
            self.look(self)
        self.check_stop()

    def _end_step(self, *, update: bool = False) -> None:
        """The step of every task that was begun, and the world-model update that is due with it.

        The update trains while the environments step, if its batch was drawn before: then neither needs the other, and
        their order changes nothing. The batch after it is drawn once the step is stored, as it always is.
        """
        request = self._request(self.learner.updates)
        meanwhile = update and request in self.prefetch.pending()
        if meanwhile:
            with self.watch.on("gather"):
                batch = self.prefetch.take(request)
            self._train_world_model(batch)
        self._store_step()
        if meanwhile:
            with self.watch.on("gather"):
                self.prefetch.publish(request.following())
        elif update:
            self._update_world_model()

    def _store_step(self) -> None:
        """Once what was drawn from the replay is copied out of it."""
        with ExitStack() as stack:
            with self.watch.on("gather"):
                stack.enter_context(self.prefetch.writing())
            with self.watch.on("environments"):
                stepped = self.collector.end_step()
        self.step += 1
        for episode in stepped.finished:
            self.logger.episode(self.step, episode)
        for restart in stepped.restarts:
            self.logger.restart(self.step, restart)

    def _report(self, where: str, *, done: int, total: int) -> None:
        """One progress line, and the means of all metrics since the last one."""
        self.split = self.watch.so_far
        means = {**self.means.read(), **self.watch.read(), "envs/restarts": float(self.collector.restarts)}
        if (score := self.score) is not None:
            means["score/recent_mean"] = score
        self.logger.metrics(self.step, self.learner.updates, means, self.tasks)
        self.logger.flush()
        now, (then, updates_then) = time.monotonic(), self._marked
        self._marked = (now, self.learner.updates)
        seconds = max(1e-9, now - then)
        rate = (self.learner.updates - updates_then) / seconds
        skip = self.logger.frame_skip
        parts = [where] if skip is None else [where, f"frames {self.step * skip:,}"]
        parts += [f"{rate:.2f} updates/s", f"ETA {duration((now - self.phase.started) * (total - done) / done)}"]
        loss = means.get("loss/world_model")
        if isinstance(loss, list):
            self.first_loss, self.last_loss = self.first_loss or loss, loss
            parts.append("loss " + " ".join(f"{value:.1f}" for value in loss))
        if self.look is not None:
            return
        scores = [self.collector.scores[task].mean() for task in self.tasks]
        returns = (
            f"{task.rpartition(':')[2]} {'-' if score is None else f'{score:.1f}'}"
            for task, score in zip(self.tasks, scores, strict=True)
        )
        self.say(" | ".join([*parts, "return " + ", ".join(returns)]))
