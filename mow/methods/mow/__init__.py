'''Networks: the world model and the agent that is trained inside it.

To try a variant of a part, write the other part with the signature of the one it stands for, and choose between them
once, in a constructor; no `forward` reads the config. Example: a prior with a hidden layer, in
mow/methods/mow/prior.py beside DensePrior. Its weights have a module axis [M, ...], so that a cluster has its own.

```python
from mow.nn.modular import ModularMLP
from mow.methods.mow.prior import rows_in
from torch import nn


class DeepPrior(nn.Module):
    """One hidden layer on h_t; no events."""

    num_events = 0

    def __init__(self, config, num_modules, embedding_size):
        super().__init__()
        sizes = config.width, config.prior_width, config.perception.latent_size
        self.next_latent = ModularMLP(num_modules, *sizes, num_layers=1, embedding_size=embedding_size)

    def forward(self, inputs, plan, embedding):
        """Prior logits [K, 1, B * L, Z] and events [K, 1, B * L, 0]."""
        hidden = rows_in(inputs.hidden)
        return self.next_latent(hidden, plan, embedding), hidden[..., :0]
```

The switch is one word of the config, and an ablation makes it a preset, a row of `mow ablate` and a test that exactly
one field differs from the parent. flops.py and footprint.py count what a config costs: add it there too.

```diff
--- mow/methods/mow/config_model.py
-    prior: Literal["dense", "local"] = "dense"
+    prior: Literal["dense", "local", "deep"] = "dense"
-            self.prior == "dense" or self.perception.latent == "spatial",
+            self.prior != "local" or self.perception.latent == "spatial",
--- mow/methods/mow/heads.py
             self.prior = LocalPrior(config, num_modules, action_size, d)
+        elif config.prior == "deep":
+            self.prior = DeepPrior(config, num_modules, d)
--- mow/methods/mow/ablations.py
     "no_balance_loss": Ablation("loss.balance", lambda _: 0.0, "nothing keeps all experts in use"),
+    "deep_prior": Ablation("model.prior", lambda _: "deep", "the prior has a hidden layer"),
```

Before that, try it in an existing model: imagination and updates need no change.

```python
import torch

from mow.methods.mow.records import HeadInput
from mow.methods.mow.config_model import PerceptionConfig, WorldModelConfig
from mow.methods.mow.world_model import WorldModel

perception = PerceptionConfig(channels=(2, 2, 2, 2), groups=4, classes=5)
config = WorldModelConfig(width=16, num_heads=2, feedforward=16, embedding_size=8, perception=perception)
model = WorldModel(config, action_size=3, module_of_task=(0, 0, 1), num_modules=2)
model.heads.prior = DeepPrior(config, num_modules=2, embedding_size=8)
shape = (3, 2, 6)  # K tasks, B windows, L steps
head_input = HeadInput(latent=torch.zeros(*shape, 20), action=torch.zeros(*shape, 3), hidden=torch.randn(*shape, 16))
assert model.predict(head_input).next_latent_logits.shape == (*shape, 4, 5)  # [K, B, L, S, C]
```
'''

from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING

from mow.methods.base import Method, Metrics, TaskSet
from mow.methods.mow.config import MowConfig
from mow.methods.mow.presets import BATCHINGS, PRESETS, shortened, summary, with_batching

if TYPE_CHECKING:
    import torch

    from mow.batch import TransitionBatch
    from mow.methods.mow.learner import Learner


def _build(config: MowConfig, tasks: TaskSet, device: "torch.device") -> "Learner":
    from mow.methods.mow.learner import Learner

    return Learner.of_tasks(config, tasks, device)


def _diagnostics(learner: "Learner", batch: "TransitionBatch") -> Metrics:
    from mow.methods.mow.diagnostics import measure

    return measure(learner, batch)


def _context(config: MowConfig, device: "torch.device") -> AbstractContextManager[str]:
    from mow.methods.mow.compile import updates_as_asked

    return updates_as_asked(config, device)


METHOD = Method(
    name="mow",
    config=MowConfig,
    presets=PRESETS,
    build=_build,
    loss="loss/world_model",
    diagnostics=_diagnostics,
    summary=summary,
    context=_context,
    batchings={name: partial(with_batching, name=name) for name in BATCHINGS},
    shortened=shortened,
)
