"""The agent learns beside the world model: each of its updates has until the next one begins.

    update i begins:  with a copy of the world model as it is now, and with a stream of random numbers of its own
    until i + 1:      acting and world-model updates go on; who acts is the agent before update i
    then:             the agent that has learnt takes over, and update i + 1 begins

What is learnt depends on this order alone: an update counts when the next one begins, however early it was done. So it
is the same to the bit whether updates run on a thread of their own or at once, where they begin.
Differs: STORM updates one after the other; here actions lag behind by one update of the agent.
"""

import copy
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mow.batch import TransitionBatch
from mow.kernels import PhiloxState
from mow.models import WorldModel
from mow.training.guard import NotFinite
from mow.training.learner import Grounds, Learner, Metrics
from mow.training.logger import Stopwatch

_Module = TypeVar("_Module", bound=nn.Module)


class Beside:
    """Begins and ends updates of a learner's agent; all methods belong to the thread that trains the world model."""

    def __init__(self, learner: Learner, watch: Stopwatch, *, num_threads: int) -> None:
        """Args:
            watch: counts how long imagination and actor-critic take: as such, or where they have a thread of their
                own as beside/imagination and beside/actor_critic, when an update ends.
            num_threads: of PyTorch, for the agent on a thread of its own, to be used inside `sharing`; 0: updates run
                where they begin.
        Raises: ValueError for a thread beside a GPU or compiled updates, which one thread feeds.
        """
        if num_threads and (learner.device.type != "cpu" or learner.config.optim.compile):
            raise ValueError("on a GPU, and with compiled updates, the agent has no thread of its own: num_threads=0")
        self.learner = learner
        # Seeds of other streams are small: this one has the other half of the range to itself.
        self.rng = PhiloxState.from_seed((learner.config.seed + 2**62) % 2**63, learner.device)
        self._watch = watch
        self._own_watch = Stopwatch() if num_threads else watch
        self._num_threads = num_threads
        self._model: WorldModel | None = None  # the copy
        self.context: TransitionBatch | None = None  # of the last update that this process began
        self._update: Future[Metrics] | None = None
        self._thread: ThreadPoolExecutor | None = None
        if num_threads:
            settle = partial(torch.set_num_threads, num_threads)  # of that thread
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="mow-agent", initializer=settle)

    @property
    def busy(self) -> bool:
        """Has an update begun that has not been ended?"""
        return self._update is not None

    def begin(self, context: TransitionBatch) -> None:
        """Begin an update from replay contexts, which nobody may write to before it is ended."""
        assert self._update is None, "the update before must end first"
        learner = self.learner
        if learner.acting is learner.agent:
            learner.acting = _frozen_copy(learner.agent)
        grounds = learner.grounds(self._world_model(), self.rng)
        self.context = context
        if self._thread is not None:
            self._update = self._thread.submit(self._learn, context, grounds)
        else:
            self._update = Future()
            try:
                self._update.set_result(self._learn(context, grounds))
            except NotFinite as error:
                self._update.set_exception(error)

    def end(self) -> Metrics:
        """Wait for the update; from now on who has learnt acts. Raises: what the update raised."""
        assert self._update is not None, "an update must begin first"
        update, self._update = self._update, None
        try:
            return update.result()
        finally:
            if self._own_watch is not self._watch:
                self._watch.take(self._own_watch, "beside")
            _copy_values(self.learner.acting, self.learner.agent)

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """While updates run beside, the thread that trains the world model has the rest of PyTorch's threads.

        Afterwards it has all of them again, and the agent's is ended, after its update.
        """
        before = torch.get_num_threads()
        torch.set_num_threads(max(1, before - self._num_threads))
        try:
            yield
        finally:
            torch.set_num_threads(before)
            if self._thread is not None:
                self._thread.shutdown()

    def state_dict(self) -> dict[str, object] | None:
        """Beside the learner's own state, once an update that is under way has been waited for; None before the first.

        That an update failed is not kept: whoever goes on has not counted it.
        """
        if self.learner.acting is self.learner.agent:
            return None
        metrics = self._update.result() if self._update is not None and self._update.exception() is None else None
        return {"acting": self.learner.acting.state_dict(), "rng": self.rng.state(), "metrics": metrics}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Go on from a state_dict(), after the learner has loaded its own."""
        if state is None:
            return
        self.learner.acting = _frozen_copy(self.learner.agent)
        self.learner.acting.load_state_dict(state["acting"])
        self.rng.load(state["rng"])
        if state["metrics"] is not None:
            self._update = Future()
            self._update.set_result({name: metric.to(self.learner.device) for name, metric in state["metrics"].items()})

    def _world_model(self) -> WorldModel:
        """The copy, as the learner's model is now."""
        if self._model is None:
            self._model = _frozen_copy(self.learner.world_model)
        else:
            _copy_values(self._model, self.learner.world_model)
        return self._model

    def _learn(self, context: TransitionBatch, grounds: Grounds) -> Metrics:
        return self.learner.update_agent(context, grounds, self._own_watch.on)


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
