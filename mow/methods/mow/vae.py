"""One categorical VAE per cluster of tasks, conditioned on the task embedding.

    encode:  frame [64, 64, 3] -> two to four convolutions -> [n, n] features, e_k -> posterior logits [S, C]
    decode:  latent [Z], e_k -> [n, n] features -> as many transposed convolutions -> frame

n is 8 after two convolutions, else 4.

Source: MoW section 3 (modular VAEs), STORM (four convolutions). The place where e_k enters is inferred.
Additions of this package: fewer convolutions, the first with patches; group and channel norm; the median background;
the spatial latent. That splits its groups among the cells of the last features, cell by cell through one small Linear
each way, where a dense one puts a single large Linear between all features and all groups: small things in a picture
are found sooner.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mow.kernels import RoutePlan, batch_norm_relu
from mow.methods.mow.config_model import PerceptionConfig
from mow.nn.activation_checkpoint import Call, plain_call, recomputing
from mow.nn.modular import ModularLinear, for_matmul, uniform_parameter


@dataclass(frozen=True)
class Kernel:
    """Weights of one convolution of one module."""

    weight: Tensor  # [O, I, 4, 4], or [I, O, 4, 4] when transposed
    bias: Tensor | None  # [O]


@dataclass(frozen=True)
class Affine:
    """Weights of one row of a norm."""

    weight: Tensor  # [C]
    bias: Tensor  # [C]



class Group(NamedTuple):
    """Tasks that run through one convolution call: they share weights and normalisation statistics."""

    tasks: slice  # contiguous, because tasks are sorted by module
    module: int
    norm_row: int


def normalisation_groups(module_of_task: Sequence[int], norm: str) -> tuple[Group, ...]:
    """One group per task where each task has its own statistics, else one per module; tasks are sorted by module."""
    assert list(module_of_task) == sorted(module_of_task), f"tasks must be sorted by module, got {module_of_task}"
    if norm == "bn_per_task":
        return tuple(Group(slice(k, k + 1), module, k) for k, module in enumerate(module_of_task))
    first, count = module_of_task.index, module_of_task.count
    return tuple(Group(slice(first(m), first(m) + count(m)), m, m) for m in sorted(set(module_of_task)))


class Norm(nn.Module):
    """Base of norms with an affine per row, of a task or a module, and ReLU: [n, C, H, W] to the same shape."""

    def __init__(self, num_rows: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_rows, channels))
        self.bias = nn.Parameter(torch.zeros(num_rows, channels))

    def affines(self) -> list[Affine]:
        """Weight and bias of every row, taken apart at once as Conv.kernels does."""
        return list(map(Affine, self.weight.unbind(), self.bias.unbind()))


class BatchNorm(Norm):
    """Batch norm with statistics per row; those of the batch when training."""

    running_mean: Tensor
    running_var: Tensor
    num_batches: Tensor

    def __init__(self, num_rows: int, channels: int) -> None:
        super().__init__(num_rows, channels)
        self.register_buffer("running_mean", torch.zeros(num_rows, channels))
        self.register_buffer("running_var", torch.ones(num_rows, channels))
        self.register_buffer("num_batches", torch.zeros(num_rows, dtype=torch.long))
        self.sums: dict[int, Callable[[Tensor], Tensor]] = {}  # row -> sum over all processes that have frames of it

    def forward(self, x: Tensor, row: int, affine: Affine) -> Tensor:
        mean, var = self.running_mean[row], self.running_var[row]
        if not self.training:
            return batch_norm_relu(x, mean, var, affine.weight, affine.bias)
        if recomputing():  # counted already; the copies are dropped
            mean, var = mean.clone(), var.clone()
        else:
            self.num_batches[row].add_(1)
        if row in self.sums:
            return self._over_processes(x, mean, var, row, affine).relu_()
        return F.batch_norm(x, mean, var, affine.weight, affine.bias, True, momentum=0.1).relu_()

    def _over_processes(
        self, x: Tensor, running_mean: Tensor, running_var: Tensor, row: int, affine: Affine
    ) -> Tensor:
        """The same with the statistics of all frames, of which x [n, C, H, W] are some; means first, then variances."""
        frames, add = x.float(), self.sums[row]
        number = x.new_full((1,), x.numel() // x.shape[1], dtype=torch.float32)
        *sums, count = add(torch.cat([frames.sum(dim=(0, 2, 3)), number])).split([x.shape[1], 1])
        mean = sums[0] / count  # [C]
        centred = frames - mean.view(-1, 1, 1)
        var = add(centred.square().sum(dim=(0, 2, 3))) / count
        running_mean.lerp_(mean.detach(), 0.1)
        running_var.lerp_(var.detach() * count.detach() / (count.detach() - 1.0), 0.1)
        y = centred * ((var + 1e-5).rsqrt() * affine.weight).view(-1, 1, 1) + affine.bias.view(-1, 1, 1)
        return y.to(x.dtype)


class GroupNorm(Norm):
    """Group norm, 16 channels to a group once there are 32: needs no statistics of other frames."""

    def forward(self, x: Tensor, row: int, affine: Affine) -> Tensor:
        return F.group_norm(x, max(1, x.shape[1] // 16), affine.weight, affine.bias).relu_()


class ChannelNorm(Norm):
    """Layer norm over the channels of each place: no place depends on what is far from it. Source: DreamerV3."""

    def forward(self, x: Tensor, row: int, affine: Affine) -> Tensor:
        rows = x.permute(0, 2, 3, 1)  # [n, H, W, C], as convolutions of stored frames leave it in memory
        return F.layer_norm(rows, rows.shape[-1:], affine.weight, affine.bias).relu_().permute(0, 3, 1, 2)


class Conv(nn.Module):
    """Kernel 4, stacked on the module axis; halves (or, transposed, doubles) height and width.

    `patches`: stride 4 instead, so that the kernels do not overlap: a quarter of the height and width (or four times).
    """

    def __init__(
        self, num_modules: int, in_channels: int, out_channels: int, *, transposed: bool = False, bias: bool = False,
        patches: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.stride, self.padding = (4, 0) if patches else (2, 1)
        self.transposed = transposed
        shape = (in_channels, out_channels) if transposed else (out_channels, in_channels)
        # torch counts the fan-in of a transposed convolution by its output channels; kept, as STORM's layers do.
        fan_in = shape[1] * 16
        self.weight = uniform_parameter(num_modules, *shape, 4, 4, fan_in=fan_in)
        self.bias = uniform_parameter(num_modules, out_channels, fan_in=fan_in) if bias else None

    def kernels(self, *, converted: bool) -> list[Kernel]:
        """Weight and bias of every module, taken apart at once: each alone would have a gradient of the size of all.

        Args: converted: to the dtype of a convolution, all at once.
        """
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        if converted:
            weight, bias = for_matmul(weight), None if bias is None else for_matmul(bias)
        weights = weight.unbind()
        biases = [None] * len(weights) if bias is None else bias.unbind()
        return [Kernel(weight, bias) for weight, bias in zip(weights, biases, strict=True)]

    def forward(self, x: Tensor, kernel: Kernel) -> Tensor:
        """[n, I, H, W] -> [n, O, H/2, W/2], or [n, O, 2H, 2W] when transposed; 4 in place of 2 for patches."""
        if self.transposed and self.stride == 4:
            return _unfolded_patches(x, kernel.weight, kernel.bias)
        conv = F.conv_transpose2d if self.transposed else F.conv2d
        return conv(x, kernel.weight, kernel.bias, stride=self.stride, padding=self.padding)


def _affines_by_row(norms: Iterable[nn.Module]) -> list[tuple[Affine, ...]]:
    """Row of the norms -> its affine of every layer."""
    return list(zip(*(norm.affines() for norm in norms if isinstance(norm, Norm)), strict=True))


def _unfolded_patches(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """conv_transpose2d of stride 4, [n, I, H, W] -> [n, O, 4H, 4W]: no two kernels overlap, so it is one Linear.

    On one core it takes a fifth of the time that oneDNN's transposed convolution to three channels does.
    """
    patch = weight.permute(2, 3, 1, 0).flatten(0, 2)  # [4 * 4 * O, I]
    y = F.linear(x.permute(0, 2, 3, 1), patch, None if bias is None else bias.repeat(16))  # [n, H, W, 4 * 4 * O]
    y = y.unflatten(3, (4, 4, -1)).transpose(2, 3).flatten(3, 4).flatten(1, 2)  # [n, 4H, 4W, O]
    return y.permute(0, 3, 1, 2)


class ConvNet(nn.Module):
    """Convolutions with their norms, called once per group of tasks."""

    def __init__(self, config: PerceptionConfig, module_of_task: Sequence[int]) -> None:
        super().__init__()
        self.groups = normalisation_groups(module_of_task, config.norm)
        self.invoke: Call = plain_call
        self.side = config.side
        self.cells = config.side**2 if config.latent == "spatial" else 1  # places with groups of their own

    def split(self, rows: Tensor) -> tuple[Tensor, ...]:
        """[K, ...] group by group; slices, one by one, would have a gradient of the size of all each."""
        return rows.split([group.tasks.stop - group.tasks.start for group in self.groups])

    def kernels(self, layers: Iterable[nn.Module]) -> list[tuple[Kernel, ...]]:
        """Module -> its kernel of every layer; where groups share a module, their gradients must add up in float32."""
        converted = len({group.module for group in self.groups}) == len(self.groups) or not torch.is_grad_enabled()
        by_layer = [layer.kernels(converted=converted) for layer in layers if isinstance(layer, Conv)]
        return list(zip(*by_layer, strict=True))

    def _norms(
        self, config: PerceptionConfig, num_modules: int, num_tasks: int, channels: Sequence[int]
    ) -> nn.ModuleList:
        norm = {"group": GroupNorm, "channel": ChannelNorm}.get(config.norm, BatchNorm)
        return nn.ModuleList(norm(num_tasks if config.norm == "bn_per_task" else num_modules, c) for c in channels)


class Encoder(ConvNet):
    """q(z | o, e_k): frames to posterior logits."""

    def __init__(
        self, config: PerceptionConfig, num_modules: int, module_of_task: Sequence[int], embedding_size: int
    ) -> None:
        super().__init__(config, module_of_task)
        self.latent_shape = (config.groups, config.classes)
        self.convs = nn.ModuleList(
            Conv(num_modules, i, o, patches=layer == 0 and config.patches)
            for layer, (i, o) in enumerate(pairwise((3, *config.channels)))
        )
        self.norms = self._norms(config, num_modules, len(module_of_task), config.channels)
        feature_size, latent_size = config.channels[-1] * self.side**2 // self.cells, config.latent_size // self.cells
        self.posterior = ModularLinear(num_modules, feature_size, latent_size, embedding_size=embedding_size)
        with torch.no_grad():
            self.posterior.weight.mul_(config.posterior_gain)

    def forward(
        self, frame: Tensor, plan: RoutePlan, embedding: Tensor | None, background: Tensor | None = None
    ) -> Tensor:
        """uint8 frames [K, N, 64, 64, 3] less uint8 backgrounds [K, 64, 64, 3] -> posterior logits [K, N, S, C]."""
        feature = self.features(frame, background)  # [K, N, F]
        rows = feature.unflatten(2, (self.cells, -1)).flatten(1, 2)  # [K, N * cells, F / cells]
        logits = self.posterior(rows.unsqueeze(1), plan, embedding)  # [K, 1, N * cells, Z / cells]
        return logits.view(*feature.shape[:2], *self.latent_shape)

    def features(self, frame: Tensor, background: Tensor | None = None) -> Tensor:
        """Frames and backgrounds, as above -> convolution features [K, N, F], cell by cell if the latent is spatial."""
        by_module, by_row = self.kernels(self.convs), _affines_by_row(self.norms)
        return torch.cat([
            self.invoke(self._features_of, some, group, by_module[group.module], by_row[group.norm_row], background)
            for some, group in zip(self.split(frame), self.groups, strict=True)
        ])  # fmt: skip

    def _features_of(
        self, frame: Tensor, group: Group, kernels: Sequence[Kernel], affines: Sequence[Affine],
        background: Tensor | None,
    ) -> Tensor:  # fmt: skip
        # Height, width, colour as stored is channels_last to the convolution: no copy beyond the conversion.
        if background is None and torch.is_autocast_enabled(frame.device.type):
            seen = for_matmul(frame).div_(255.0)  # bfloat16 holds all of 0 to 255: same bits as by way of float32
        else:
            seen = frame.float().div_(255.0)
        if background is not None:
            seen.sub_(background[group.tasks].unsqueeze(1) / 255.0)
        x = seen.flatten(0, 1).permute(0, 3, 1, 2)  # [k * N, 3, 64, 64]
        for conv, kernel, norm, affine in zip(self.convs, kernels, self.norms, affines, strict=True):
            x = norm(conv(x, kernel), group.norm_row, affine)
        if self.cells > 1:
            x = x.permute(0, 2, 3, 1)  # as it lies in memory
        return x.flatten(1).unflatten(0, frame.shape[:2])  # [k, N, F]


class Decoder(ConvNet):
    """p(o | z, e_k): latents to frames."""

    def __init__(
        self, config: PerceptionConfig, num_modules: int, module_of_task: Sequence[int], embedding_size: int
    ) -> None:
        super().__init__(config, module_of_task)
        widths = config.channels[::-1]
        latent_size, feature_size = config.latent_size // self.cells, widths[0] * self.side**2 // self.cells
        self.input = ModularLinear(num_modules, latent_size, feature_size, bias=False, embedding_size=embedding_size)
        self.convs = nn.ModuleList(Conv(num_modules, i, o, transposed=True) for i, o in pairwise(widths))
        self.norms = self._norms(config, num_modules, len(module_of_task), widths)
        self.output = Conv(num_modules, widths[-1], 3, transposed=True, bias=True, patches=config.patches)

    def forward(
        self, latent: Tensor, plan: RoutePlan, embedding: Tensor | None, background: Tensor | None = None
    ) -> Tensor:
        """[K, N, Z] -> frames float [K, N, 64, 64, 3], where black is 0 and white is 1; uint8 backgrounds are added."""
        rows = latent.unflatten(2, (self.cells, -1)).flatten(1, 2)  # [K, N * cells, Z / cells]
        feature = self.input(rows.unsqueeze(1), plan, embedding).squeeze(1)  # [K, N * cells, F / cells]
        feature = feature.unflatten(1, (-1, self.cells)).flatten(2)  # [K, N, F], cell by cell if there are several
        by_module, by_row = self.kernels((*self.convs, self.output)), _affines_by_row(self.norms)
        frame = torch.cat([
            self.invoke(self._frames_of, some, group, by_module[group.module], by_row[group.norm_row])
            for some, group in zip(self.split(feature), self.groups, strict=True)
        ])  # fmt: skip
        return frame if background is None else frame + background.unsqueeze(1) / 255.0

    def _frames_of(
        self, feature: Tensor, group: Group, kernels: Sequence[Kernel], affines: Sequence[Affine]
    ) -> Tensor:
        x = feature.flatten(0, 1)
        if self.cells > 1:
            x = x.unflatten(1, (self.side, self.side, -1)).permute(0, 3, 1, 2)
        else:
            x = x.unflatten(1, (-1, self.side, self.side))  # [k * N, C, side, side]
        x = self.norms[0](x, group.norm_row, affines[0])
        for conv, kernel, norm, affine in zip(self.convs, kernels[:-1], list(self.norms)[1:], affines[1:], strict=True):
            x = norm(conv(x, kernel), group.norm_row, affine)
        x = self.output(x, kernels[-1])  # [k * N, 3, 64, 64]
        return x.permute(0, 2, 3, 1).unflatten(0, feature.shape[:2])
