"""Executes the phases of a learner: acts, draws batches, updates, logs, saves; contains no method's name.

A phase either acts (each step in every task, with the updates that are due) or only updates. An update that is due may
train while the environments step, if its batch was drawn before.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mow.batch import TransitionBatch
from mow.config import RunConfig
from mow.engine.collector import Collector
from mow.engine.device import peak_bytes
from mow.engine.parallel import Alone, Ranks
from mow.engine.profile import Trace
from mow.engine.progress import Phase as PhaseProgress
from mow.engine.progress import Progress, TaskProgress
from mow.engine.recorded import RecordedEpisodes
from mow.engine.scores import recent_score
from mow.engine.sharding import MakeTasks, move
from mow.engine.shared_log import SharedLogger
from mow.engine.state import save_run
from mow.envs.suites import reference_returns
from mow.methods.base import Actor, Learner, Method, Note, Phase, Picture, Reorder, Update
from mow.nn.finite import REMEDY, NotFinite
from mow.replay import Prefetcher, Request
from mow.runs.checkpoint import save_checkpoint
from mow.runs.logger import Logger, MetricMeans, Stopwatch, duration

_MAX_FAILED_SAVES = 3
_MAX_SKIPPED = 5


class Trainer:
    """One training run."""

    def __init__(
        self,
        config: RunConfig,
        method: Method,
        collector: Collector,
        learner: Learner,
        logger: Logger,
        say: Callable[[str], None],
        *,
        check_stop: Callable[[], None] = lambda: None,
        ranks: Ranks | Alone | None = None,
        make_tasks: MakeTasks | None = None,
    ) -> None:
        """Args:
        say: prints a line.
        check_stop: called wherever the run can be saved; ends it by raising.
        ranks: of the run; None: one process.
        make_tasks: where there are several ranks, makes environments and replay of the tasks that come to this one.
        """
        self.ranks, self.make_tasks = ranks or Alone(), make_tasks
        self.replay_name: str | None = "" if self.ranks.size == 1 else None  # part of saved replay; None: no save yet
        self.saves = 0  # of that part, by this process
        self._recent: dict[str, float | None] = {}  # task -> mean of recent returns, as last gathered
        self._restarts = 0  # of simulators, likewise
        self._slowest = ""
        self.config, self.method, self.say, self.check_stop = config, method, say, check_stop
        self.collector, self.learner, self.logger = collector, learner, logger
        self.actor: Actor = learner.actor()
        self.show: Callable[[Trainer], None] | None = None  # draws the progress between steps, in place of lines
        # A batch is drawn when the one before it trains, from what the replay holds then.
        self.prefetch = Prefetcher(collector.replay, depth=config.replay.prefetch, device=learner.device)
        self.step = 0  # environment steps per task so far
        self.phase_index = 0
        self.counts = {update.kind: 0 for phase in learner.phases for update in phase.updates}  # of each kind
        self.counts_before = dict(self.counts)  # as the phase began
        self.means, self.watch = MetricMeans(), Stopwatch()
        self.last_loss: list[float] | None = None
        self.best_score: float | None = None  # of the checkpoint that is kept as the best
        self.left_out = 0  # updates, all of this process
        self._failed_saves = 0  # in a row
        self._skipped = dict.fromkeys(self.counts, 0)  # updates, in a row
        self._split: dict[str, float] = {}  # part -> seconds, as last logged
        self._trace: Trace | None = None
        self.phase = PhaseProgress(learner.phases[0].name, 0, learner.phases[0].size, time.monotonic())
        self._marked = (self.phase.started, 0)  # time of the last progress line, and the updates by then

    @property
    def tasks(self) -> list[str]:
        """Names in the present order, which `end_phase` may change."""
        return self.learner.tasks

    @property
    def updates(self) -> int:
        """Number of updates of the first kind; of all kinds in a run that never acts."""
        return sum(self.counts.values()) if self.config.recorded else next(iter(self.counts.values()), 0)

    @property
    def clock(self) -> int:
        """Place in the run that names its checkpoint: environment steps, or updates if it never acts."""
        return self.updates if self.config.recorded else self.step

    def train(self) -> None:
        """Run to the end, from wherever it is. Raises: FloatingPointError if a loss or score is not finite."""
        if isinstance(self.collector.replay, RecordedEpisodes):
            self.collector.replay.collect_first(self.say, self.check_stop)
        try:
            while self.phase_index < len(self.learner.phases):
                self.run_phase()
        finally:
            if self._trace is not None:
                self._trace.close()

    def run_phase(self) -> None:
        """The present phase from where it is to its end, and what the learner makes of its end."""
        phase = self.learner.phases[self.phase_index]
        self._begin(phase)
        if phase.act == "none":
            self._only_update(phase)
        else:
            self._act_and_update(phase)
        for event in self.learner.end_phase(phase.name, self.collector.replay.sample):
            if isinstance(event, Reorder):
                self._reorder(event.order)
            elif isinstance(event, Note):
                self.say(event.text)
            elif isinstance(event, Picture):
                self.logger.figure(event.name, torch.from_numpy(event.image), self.updates)
        self.phase_index, self.counts_before = self.phase_index + 1, dict(self.counts)

    def _only_update(self, phase: Phase) -> None:
        """`count` updates of each kind, in turn, without acting."""
        for update in phase.updates:
            begun, end = self.counts[update.kind], self.counts_before[update.kind] + update.count
            every = max(1, min(update.count // 5, self.config.log_every) if self.config.recorded else update.count // 5)
            while self.counts[update.kind] < end:
                self._draw_and_update(update)
                number = self.counts[update.kind] - self.counts_before[update.kind]
                if number % every == 0 or number == update.count:
                    self._report(f"{phase.name} {number:,}/{update.count:,}",
                                 done=self.counts[update.kind] - begun, total=end - begun)  # fmt: skip
                if self.config.recorded and (self.clock % self.config.checkpoint_every == 0 or number == update.count):
                    self._try_to_save()
                self._pause()

    def _act_and_update(self, phase: Phase) -> None:
        """Act until the phase's last step, with the updates that are due after each."""
        config, first = self.config, self._steps_before(self.phase_index)
        begun, end = self.step, first + phase.steps
        while self.step < end:
            with self.watch.on("acting"):
                if phase.act == "random":
                    self.collector.begin_random_step()
                else:
                    self.collector.begin_agent_step(self.actor, self.learner.device, phase.random_action)
            done = self.step + 1 - first
            due = [update for update in phase.updates if self._is_due(update, done)]
            self._end_step(due.pop(0) if due and due[0] is phase.updates[0] else None)
            for update in due:
                self._draw_and_update(update)
            last = self.step == end
            if phase.updates and (done % config.log_every == 0 or last):
                self._report(f"step {self.step:,}/{end:,}", done=self.step - begun, total=end - begun)
            if phase.updates and (done % config.checkpoint_every == 0 or last):
                self._try_to_save()
                self.say(self.collector.replay.describe() + (" on rank 0" if self.ranks.size > 1 else ""))
            if self._trace is not None:
                self._trace.step()
            self._pause()

    def _steps_before(self, index: int) -> int:
        """Environment steps of the phases before number `index`."""
        return sum(phase.steps for phase in self.learner.phases[:index])

    def _is_due(self, update: Update, done: int) -> bool:
        """True if an update follows the phase's step `done` and was not made before the simulators failed for good."""
        made = self.counts[update.kind] - self.counts_before[update.kind]
        return done % update.every == 0 and made < done // update.every

    def _reorder(self, order: tuple[int, ...]) -> None:
        self.prefetch.discard()  # its batches have the tasks in the old order
        if self.ranks.size > 1:
            move(self, order)
        else:
            self.collector.reorder(order)
        self.actor = self.learner.actor()  # its memory has the tasks in the old order
        self.last_loss = self.last_loss and [self.last_loss[k] for k in order]

    # Updates ---------------------------------------------------------------------------------------------------------

    def _request(self, update: Update) -> Request:
        return Request(update.num_sequences, update.length, self.counts[update.kind], update.stream)

    def _draw_and_update(self, update: Update) -> None:
        """One update on a batch that is drawn, if it was not before, from the replay as it is now."""
        with self.watch.on("gather"):
            batch = self.prefetch.next(self._request(update))
        self._update(update, batch)

    def _update(self, update: Update, batch: TransitionBatch) -> None:
        """Every `insight_every` updates of the first kind the model is diagnosed first, on the same batch."""
        every, kind = self.config.insight_every, update.kind
        due = every > 0 and kind == next(iter(self.counts)) and self.counts[kind] % every == 0
        insight = self.method.diagnostics(self.learner, batch) if due and self.method.diagnostics else {}
        self.counts[kind] += 1  # a batch whose update is left out is not drawn again
        try:
            self.means.add(self.learner.update(kind, batch, self.watch.on))
            self.means.add(insight)
            self._skipped[kind] = 0
        except NotFinite as error:
            self._leave_out(kind, batch, error)
        if batch.frame.device.type == "cpu":
            self.prefetch.give_back(batch)

    def _leave_out(self, kind: str, batch: TransitionBatch, error: NotFinite) -> None:
        """Log and count an update that would break the weights; after some in a row the run ends."""
        self._skipped[kind] += 1
        self.left_out += 1
        self.logger.skipped(self.step, self.updates, str(error))
        self.say(f"update {self.updates:,} left out: {error} ({self._skipped[kind]} in a row)")
        if self._skipped[kind] == _MAX_SKIPPED:
            path = self.logger.folder / f"diagnosis{f'-rank-{self.ranks.rank}' if self.ranks.rank else ''}.pt"
            save_checkpoint(path, {"error": str(error), "tasks": self.tasks, "batch": batch.tensors()})
            raise FloatingPointError(
                f"{error}; {_MAX_SKIPPED} updates in a row were left out, the last batch is in {path}: {REMEDY}"
            ) from error

    # Steps -----------------------------------------------------------------------------------------------------------

    def _end_step(self, update: Update | None) -> None:
        """The step of every task that was begun, and the update that is due with it.

        The update trains while the environments step, if its batch was drawn before: then neither needs the other, and
        their order changes nothing. The batch after it is drawn once the step is stored, as it always is.
        """
        if update is None or (request := self._request(update)) not in self.prefetch.pending():
            self._store_step()
            if update is not None:
                self._draw_and_update(update)
            return
        with self.watch.on("gather"):
            batch = self.prefetch.take(request)
        self._update(update, batch)
        self._store_step()
        with self.watch.on("gather"):
            self.prefetch.publish(request.following())

    def _store_step(self) -> None:
        """Once what was drawn from the replay is copied out of it."""
        with self.watch.on("gather"):
            self.prefetch.wait()
        with self.watch.on("environments"):
            stepped = self.collector.end_step(self.ranks.most)
        self.step += 1
        for episode in stepped.finished:
            self.logger.episode(self.step, episode)
        for restart in stepped.restarts:
            self.logger.restart(self.step, restart)

    # Saving ----------------------------------------------------------------------------------------------------------

    def save(self) -> Path:
        """Write replay and checkpoint, from which the run can go on; returns the path of the checkpoint."""
        self.gather()
        return save_run(self)

    @property
    def recent(self) -> dict[str, float | None]:
        """Mean of every task's recent returns, None before its first episode; on several ranks as last gathered."""
        scores = self.collector.scores
        return self._recent if self.ranks.size > 1 else {task: scores[task].mean() for task in self.tasks}

    @property
    def score(self) -> float | None:
        """Mean over tasks of the recent returns, normalised where there are references; None before each has ended."""
        return recent_score(self.recent)

    def gather(self, means: dict[str, list[float] | float] | None = None) -> dict[str, list[float] | float]:
        """Bring together what all ranks know of their tasks, for log, progress and checkpoint; returns all means."""
        own, waited = means or {}, self.ranks.waited
        self.ranks.waited = 0.0
        if not isinstance(self.logger, SharedLogger):
            return own
        scores = {task: returns.mean() for task, returns in self.collector.scores.items()}
        known = json.dumps([scores, self.collector.restarts, waited, own])
        found = [json.loads(text) for text in self.ranks.texts(known)]
        self._recent = {task: mean for each in found for task, mean in each[0].items()}
        self._restarts = sum(each[1] for each in found)
        times = [each[2] for each in found]
        if waited > 0.0:
            self._slowest = f"slowest rank {times.index(min(times))}, others wait up to {max(times):.1f} s"
        self.logger.gather()
        return {
            name: [mean for each in found for mean in each[3][name]] if isinstance(value, list) else value
            for name, value in found[0][3].items()
        }

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

    # Progress --------------------------------------------------------------------------------------------------------

    def _begin(self, phase: Phase) -> None:
        """Log the phase's note, and start its clock."""
        in_steps, before = phase.unit == "steps", sum(self.counts_before[update.kind] for update in phase.updates)
        done = self.step if in_steps else sum(self.counts[update.kind] for update in phase.updates)
        end = (self._steps_before(self.phase_index) if in_steps else before) + phase.size
        self.phase = PhaseProgress(phase.name, done, end, time.monotonic(), phase.unit)
        self._marked, self._split = (self.phase.started, self.updates), {}
        if phase.note and phase.size:
            self.say(phase.note)
        if phase.act == "agent" and self.config.profile:  # two rounds of updates, after one that is not recorded
            every = max((update.every for update in phase.updates), default=1)
            path = self.logger.folder / "trace.json"
            self._trace = Trace(path, self.learner.device, self.say, skip=every, record=2 * every)
        if self.show is not None:
            self.show(self)

    def _pause(self) -> None:
        """Between two steps, or two updates without acting: the run can be shown, saved and ended."""
        if self.show is not None:
            self.show(self)
        self.ranks.doing = f"step {self.step:,}, update {self.updates:,}"
        self.check_stop()

    def _report(self, where: str, *, done: int, total: int) -> None:
        """One progress line, and the means of all metrics since the last one."""
        self._split = self.watch.so_far
        means = self.gather(self.means.read())
        means = {**means, **self.watch.read(), "envs/restarts": float(self._restarts or self.collector.restarts)}
        if (score := self.score) is not None:
            means["score/recent_mean"] = score
        self.logger.metrics(self.step, self.updates, means, self.tasks)
        self.logger.flush()
        now, (then, updates_then) = time.monotonic(), self._marked
        self._marked = (now, self.updates)
        skip = self.logger.frame_skip
        parts = [where] if skip is None or self.config.recorded else [where, f"frames {self.step * skip:,}"]
        parts.append(f"{(self.updates - updates_then) / max(1e-9, now - then):.2f} updates/s")
        parts.append(f"ETA {duration((now - self.phase.started) * (total - done) / done)}")
        loss = means.get(self.method.loss)
        if isinstance(loss, list):
            self.last_loss = loss
            parts.append("loss " + " ".join(f"{value:.3g}" for value in loss))
        if self.show is not None:
            return
        if self._slowest:
            parts.append(self._slowest)
        if not self.config.recorded:
            scores = {task.rpartition(":")[2]: self.recent.get(task) for task in self.tasks}
            returns = (f"{name} {'-' if score is None else f'{score:.1f}'}" for name, score in scores.items())
            parts.append("return " + ", ".join(returns))
        self.say(" | ".join(parts))

    def progress(self) -> Progress:
        """The state of the run now, for the panel. Reads nothing from the device."""
        phase, skip = self.phase, self.logger.frame_skip
        declared = self.learner.phases[min(self.phase_index, len(self.learner.phases) - 1)]
        done = self.step if phase.unit == "steps" else sum(self.counts[update.kind] for update in declared.updates)
        elapsed = time.monotonic() - phase.started
        groups, losses, recent = self.learner.groups, self.last_loss, self.recent
        tasks = tuple(
            TaskProgress(task, groups[k] if groups else None, losses[k] if losses else None,
                         recent.get(task), reference_returns(task))
            for k, task in enumerate(self.tasks)
        )  # fmt: skip
        return Progress(
            preset=self.config.preset,
            folder=str(self.logger.folder),
            phase=phase,
            phases=tuple(each.name for each in self.learner.phases),
            done=done,
            eta=elapsed * (phase.end - done) / (done - phase.begun) if done > phase.begun else None,
            seconds=self.logger.seconds,
            step=self.step,
            total_steps=self.config.total_steps,
            frames=None if skip is None else self.step * skip,
            updates=self.updates,
            split=self._split or self.watch.so_far,
            memory=peak_bytes(self.learner.device),
            score=self.score,
            best=self.best_score,
            left_out=self.left_out,
            restarts=self._restarts or self.collector.restarts,
            tasks=tasks,
        )
