"""A process in which the agent learns, so that it never waits for the interpreter of who trains the world model.

Weights, moments of the optimiser, ranges of returns and the random stream lie in memory that both processes see; what
is sent are contexts and numbers. So whoever holds the learner here sees what was learnt as soon as it is answered.
"""

import contextlib
import copy
import multiprocessing
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mow.batch import TransitionBatch
from mow.kernels import PhiloxState, RoutePlan
from mow.models import Routing, WorldModel
from mow.training.learner import Grounds, Learner, Metrics
from mow.training.logger import Stopwatch

Array = NDArray[Any]


@dataclass(frozen=True)
class Order:
    """One update of the agent, as it travels."""

    context: dict[str, Array]  # a TransitionBatch by field
    routes: Array
    weight_KJ: Array | None
    scale_KJ: Array | None
    num_experts: int
    entropy: float
    step_sizes: list[float]  # of the optimiser's groups


@dataclass(frozen=True)
class Answer:
    """What came of it."""

    metrics: dict[str, Array]
    seconds: dict[str, float]  # by part
    cpu_seconds: float = 0.0  # of that process since it last answered
    error: Exception | None = None


class AgentProcess:
    """Made by the first update, once tasks are grouped; a learner is on the CPU, its updates plain PyTorch.

    Args:
        world_model: the copy that is dreamt in; its values are written here, before an update begins.
        rng: of the rollouts.
        num_threads: of PyTorch, there.
    """

    def __init__(self, learner: Learner, world_model: WorldModel, rng: PhiloxState, num_threads: int) -> None:
        _begin_moments(learner.agent_optimiser)
        alone = copy.copy(learner)  # what an update of the agent reads, and no more
        alone.world_model, alone.rng, alone.acting = world_model, rng, learner.agent
        alone.world_model_optimisers = []
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, alone, num_threads), name="mow-agent", daemon=True
        )
        with _without_ctrl_c():
            self._process.start()  # torch moves what both shall see to shared memory
        theirs.close()

    def begin(self, context: TransitionBatch, grounds: Grounds, step_sizes: list[float]) -> None:
        """Send an update on its way."""
        plan, scale = grounds.routing.plan, grounds.routing.scale_KJ
        order = Order(
            context={field.name: getattr(context, field.name).numpy() for field in fields(context)},
            routes=plan.routes.numpy(),
            weight_KJ=None if grounds.routing.weight_KJ is None else grounds.routing.weight_KJ.numpy(),
            scale_KJ=None if scale is None else scale.numpy(),
            num_experts=plan.num_experts,
            entropy=grounds.entropy,
            step_sizes=step_sizes,
        )
        with contextlib.suppress(BrokenPipeError):  # whoever waits for the answer is told
            self._connection.send(order)

    def answer(self) -> Answer:
        """Wait for it. A process that has died answers with an error."""
        try:
            found: Answer = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join(10)
            return Answer({}, {}, error=RuntimeError(
                f"the process in which the agent learns has died (exit code {self._process.exitcode}; -9: out of "
                "memory?): go on from the last checkpoint with --resume, with OMP_NUM_THREADS=1 in one process"
            ))  # fmt: skip
        return found

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()


@contextlib.contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Ctrl-C waits until this is left; a process that is started inside never hears of it."""
    resource_tracker.ensure_running()  # which would let it through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def metrics_of(answer: Answer) -> Metrics:
    return {name: torch.from_numpy(np.asarray(metric)) for name, metric in answer.metrics.items()}


def _serve(connection: Connection, learner: Learner, num_threads: int) -> None:
    """In that process, until nobody is at the other end."""
    torch.set_num_threads(num_threads)
    before = 0.0
    while True:
        try:
            order = connection.recv()
        except EOFError:
            return
        answer = _learn(learner, order)
        spent = time.process_time()
        answer, before = replace(answer, cpu_seconds=spent - before), spent
        try:
            connection.send(answer)
        except BrokenPipeError:
            return


def _learn(learner: Learner, order: Order) -> Answer:
    watch = Stopwatch()
    context = TransitionBatch(**{name: torch.from_numpy(array) for name, array in order.context.items()})
    weight, scale = (None if x is None else torch.from_numpy(x) for x in (order.weight_KJ, order.scale_KJ))
    routing = Routing(RoutePlan(torch.from_numpy(order.routes), order.num_experts), weight, scale)
    for group, size in zip(learner.agent_optimiser.param_groups, order.step_sizes, strict=True):
        group["lr"] = size
    grounds = Grounds(learner.world_model, routing, learner.rng, order.entropy)
    try:
        metrics = learner.update_agent(context, grounds, watch.on)
    except Exception as error:  # noqa: BLE001 - it is raised again by whoever ends the update
        return Answer({}, watch.so_far, error=error)
    return Answer({name: metric.detach().numpy() for name, metric in metrics.items()}, watch.so_far)


def _begin_moments(optimiser: torch.optim.Optimizer) -> None:
    """As Adam's first step would, so that they can be shared before it."""
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            if not optimiser.state[parameter]:
                zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                optimiser.state[parameter] = {"step": torch.zeros(()), **zeros}
