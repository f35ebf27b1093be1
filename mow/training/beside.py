"""The agent learns beside the world model: each of its updates has until the next one begins.

    update i begins:  with a copy of the world model as it is now, and with a stream of random numbers of its own
    until i + 1:      acting and world-model updates go on; who acts is the agent before update i
    then:             the agent that has learnt takes over, and update i + 1 begins

What is learnt depends on this order alone: an update counts when the next one begins, however early it was done. So it
is the same to the bit whether updates are made in a process of their own or at once, where they begin.
Differs: STORM updates one after the other; here actions lag behind by one update of the agent.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mow.batch import TransitionBatch
from mow.kernels import PhiloxState
from mow.models import WorldModel
from mow.training.agent_process import AgentProcess, metrics_of
from mow.training.guard import NotFinite
from mow.training.learner import Learner, Metrics
from mow.training.logger import Stopwatch

_Module = TypeVar("_Module", bound=nn.Module)


class Beside:
    """Begins and ends updates of a learner's agent."""

    def __init__(self, learner: Learner, watch: Stopwatch, *, num_threads: int) -> None:
        """Args:
            watch: counts how long imagination and actor-critic take: as such, or where they have a process of their
                own as beside/imagination and beside/actor_critic, when an update ends.
            num_threads: of PyTorch, for the agent in a process of its own, to be used inside `sharing`; 0: updates run
                where they begin.
        Raises: ValueError for a process beside a GPU or compiled updates.
        """
        if num_threads and (learner.device.type != "cpu" or learner.config.optim.compile):
            raise ValueError("on a GPU, and with compiled updates, the agent has no process of its own: num_threads=0")
        self.learner, self.watch, self.num_threads = learner, watch, num_threads
        # Seeds of other streams are small: this one has the other half of the range to itself.
        self.rng = PhiloxState.from_seed((learner.config.seed + 2**62) % 2**63, learner.device)
        self.cpu_seconds = 0.0  # of its process
        self.busy = False  # has an update begun that has not been ended?
        self.context: TransitionBatch | None = None  # of the last update that this process began
        self._outcome: Metrics | Exception | None = None  # of the update that has begun, once it is known
        self._model: WorldModel | None = None  # the copy
        self._process: AgentProcess | None = None

    def begin(self, context: TransitionBatch) -> None:
        """Begin an update from replay contexts."""
        assert not self.busy, "the update before must end first"
        learner = self.learner
        if learner.acting is learner.agent:
            learner.acting = _frozen_copy(learner.agent)
        model = self._copied_model()
        grounds = learner.grounds(model, self.rng)
        self.context, self.busy = context, True
        if self.num_threads:
            if self._process is None:
                self._process = AgentProcess(learner, model, self.rng, self.num_threads)
            self._process.begin(context, grounds, [group["lr"] for group in learner.agent_optimiser.param_groups])
            return
        try:
            self._outcome = learner.update_agent(context, grounds, self.watch.on)
        except NotFinite as error:
            self._outcome = error

    def end(self) -> Metrics:
        """Wait for the update; from now on who has learnt acts. Raises: what the update raised."""
        assert self.busy, "an update must begin first"
        outcome = self._wait()
        self.busy, self._outcome = False, None
        _copy_values(self.learner.acting, self.learner.agent)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """While updates run beside, this process has the rest of PyTorch's threads.

        Afterwards it has all of them again, and the agent's process is ended, after its update.
        """
        before = torch.get_num_threads()
        torch.set_num_threads(max(1, before - self.num_threads))
        try:
            yield
        finally:
            torch.set_num_threads(before)
            if self._process is not None:
                if self.busy:
                    self._wait()
                self._process.close()
                self._process = None

    def state_dict(self) -> dict[str, object] | None:
        """Beside the learner's own state, once an update that is under way has been waited for; None before the first.

        That an update failed is not kept: whoever goes on has not counted it.
        """
        if self.learner.acting is self.learner.agent:
            return None
        outcome = self._wait() if self.busy else None
        metrics = None if isinstance(outcome, Exception) else outcome
        return {"acting": self.learner.acting.state_dict(), "rng": self.rng.state(), "metrics": metrics}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Go on from a state_dict(), after the learner has loaded its own."""
        if state is None:
            return
        self.learner.acting = _frozen_copy(self.learner.agent)
        self.learner.acting.load_state_dict(state["acting"])
        self.rng.load(state["rng"])
        if state["metrics"] is not None:
            device = self.learner.device
            self.busy, self._outcome = True, {name: metric.to(device) for name, metric in state["metrics"].items()}

    def _wait(self) -> Metrics | Exception:
        if self._outcome is None:
            assert self._process is not None, "an update that is under way is in a process"
            answer = self._process.answer()
            self.cpu_seconds += answer.cpu_seconds
            for part, seconds in answer.seconds.items():
                self.watch.add(f"beside/{part}", seconds)
            self._outcome = answer.error or metrics_of(answer)
        return self._outcome

    def _copied_model(self) -> WorldModel:
        """The copy, as the learner's model is now."""
        if self._model is None:
            self._model = _frozen_copy(self.learner.world_model)
        else:
            _copy_values(self._model, self.learner.world_model)
        return self._model


def _frozen_copy(module: _Module) -> _Module:
    copied = copy.deepcopy(module).requires_grad_(False)
    for parameter in copied.parameters():
        parameter.grad = None
    return copied


@torch.no_grad()
def _copy_values(into: nn.Module, source: nn.Module) -> None:
    for old, new in zip(_values(into), _values(source), strict=True):
        old.copy_(new)


def _values(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())
