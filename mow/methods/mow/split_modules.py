"""Split one module into M: after warm-up every cluster starts from a copy of the module that all tasks trained.

Tasks are sorted by cluster at the same time, so that a cluster is a contiguous slice ever after. Source: MoW section 4
(parameters are copied to the modules; experts, shared Transformer and embeddings are kept).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mow.methods.mow.world_model import WorldModel

# Every tensor of a model is in one of these, by the beginning of its name.
PER_MODULE = ("encoder.", "decoder.", "heads.prior.", "heads.reward.", "heads.termination.")  # a copy per module
SHARED = ("experts.", "shared.", "router.", "heads.task.")  # by all tasks
# Tensors with an axis of tasks, and that axis:
_PER_TASK_AXIS = {"task_embedding": 0, "background": 0, "heads.task.output.weight": 1, "heads.task.output.bias": 1}


def grow(model: WorldModel, order: Sequence[int], module_of_task: Sequence[int], num_modules: int) -> WorldModel:
    """A model with `num_modules` copies of the one module, tasks in a new order.

    Args:
        model: a world model with a single module.
        order: task k of the new model is task order[k] of `model`.
        module_of_task: module of each task in the new order, ascending.
    """
    assert model.num_modules == 1, f"only a model with one module can grow, this one has {model.num_modules}"
    device = model.plan.routes.device
    grown = WorldModel(
        model.config, action_size=model.action_size, module_of_task=module_of_task, num_modules=num_modules,
        across_episodes=model.across_episodes, recompute=model.recompute,
    ).to(device)  # fmt: skip
    index, old = torch.as_tensor(order, device=device), model.state_dict()
    with torch.no_grad():
        for name, target in grown.state_dict().items():
            target.copy_(_rearranged(name, old[name], target, index, model.config.perception.norm))
    return grown.train(model.training)


def _rearranged(name: str, source: Tensor, target: Tensor, order: Tensor, norm: str) -> Tensor:
    if name in _PER_TASK_AXIS:
        return source.index_select(_PER_TASK_AXIS[name], order)
    if norm == "bn_per_task" and ".norms." in name and name.startswith(("encoder.", "decoder.")):
        return source.index_select(0, order)
    if name.startswith(PER_MODULE):
        return source.expand(target.shape)  # one module -> M equal ones
    assert name.startswith(SHARED), f"{name}: add it to PER_MODULE, SHARED or _PER_TASK_AXIS"
    assert source.shape == target.shape, f"{name} is listed as shared, but modules have {list(target.shape)} of it"
    return source
