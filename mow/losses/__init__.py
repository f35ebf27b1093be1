'''Losses: tensors in, one unweighted number per task out, [K]; the joint balance loss gives a scalar.

To add one, for example a penalty on fast changes of h_t, first write mow/losses/smoothness.py: equation, shapes and
source, no model and no config; export it below, and add a row to README's table of equations.

```python
from torch import Tensor


def smoothness_loss(hidden: Tensor, is_first: Tensor) -> Tensor:
    """Mean squared change of h_t from step to step of an episode: [K, B, L, D], [K, B, L] bool -> [K].

        L_smooth = mean over pairs (t - 1, t) inside one episode of ||h_t - h_{t-1}||^2 / D

    Source: slow feature analysis, Wiskott and Sejnowski 2002.
    """
    moved = (hidden[:, :, 1:] - hidden[:, :, :-1]).square().mean(dim=-1)  # [K, B, L - 1]
    inside = (~is_first[:, :, 1:]).float()
    return (moved * inside).sum(dim=(1, 2)) / inside.sum(dim=(1, 2)).clamp_min(1.0)
```

Then a test with numbers worked out by hand, tests/losses/test_smoothness.py:

```python
import torch


def test_smoothness_by_hand():
    hidden = torch.tensor([[0.0, 0.0], [1.0, 3.0], [9.0, 9.0], [9.0, 7.0]]).view(1, 1, 4, 2)
    is_first = torch.tensor([True, False, True, False]).view(1, 1, 4)
    # Pairs (0, 1): (1 + 9) / 2 = 5. (1, 2) crosses an end. (2, 3): (0 + 4) / 2 = 2.
    assert smoothness_loss(hidden, is_first).tolist() == [3.5]
    assert smoothness_loss(hidden, torch.ones(1, 1, 4, dtype=torch.bool)).tolist() == [0.0]
```

Last its weight, 0 where it is new, so that nothing changes by default, and its place among the
terms. Curves per task, harmony weights, task gradients and the report follow from there by themselves.

```diff
--- mow/methods/mow/config.py
     representation: float = 0.1
+    smoothness: float = 0.0
-        not_negative(self, "free_bits")
+        not_negative(self, "free_bits", "smoothness")
--- mow/methods/mow/world_model_loss.py
-    return 6 if task_head else 5
+    return 7 if task_head else 6
         "representation": latent.representation,
+        "smoothness": smoothness_loss(posterior.hidden, batch.is_first),
```

`python -m mow.train --loss.smoothness 0.1` uses it. An entry in mow/methods/mow/ablations.py makes it a row
of `mow ablate`.
'''

from mow.losses.actor_critic import entropy_bonus, entropy_unit, policy_loss, value_loss
from mow.losses.balance import balance_loss, expert_use
from mow.losses.dynamics import LatentLosses, latent_losses
from mow.losses.harmony import harmony_loss
from mow.losses.prediction import reward_loss, task_loss, termination_loss
from mow.losses.reconstruction import reconstruction_loss

__all__ = [
    "LatentLosses",
    "balance_loss",
    "entropy_bonus",
    "entropy_unit",
    "expert_use",
    "harmony_loss",
    "latent_losses",
    "policy_loss",
    "reconstruction_loss",
    "reward_loss",
    "task_loss",
    "termination_loss",
    "value_loss",
]
