"""Lower bounds of the time of an op: the arithmetic and the bytes that its shapes cannot do without.

Every tensor is read or written once, from and to the memory of the device; what is kept for a backward pass counts
where that pass reads it. floor = max(flops / measured matmul rate, bytes / measured copy rate).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Ceilings:
    """Measured rates of the device: flops of a large matmul, bytes of a large copy, both per second."""

    flops_per_second: float
    bytes_per_second: float


@dataclass(frozen=True)
class Work:
    flops: float
    bytes: float

    def floor_seconds(self, ceilings: Ceilings) -> float:
        return max(self.flops / ceilings.flops_per_second, self.bytes / ceilings.bytes_per_second)


class Shape:
    """Sizes of a benchmark, printed as K26 J2 R1024."""

    def __str__(self) -> str:
        return " ".join(f"{name}{size}" for name, size in vars(self).items())


@dataclass(frozen=True)
class ExpertShape(Shape):
    """One layer of K tasks with J of E experts each: R rows per task, I inputs, N outputs; all slots read one input."""

    K: int
    J: int
    E: int
    R: int
    I: int  # noqa: E741
    N: int


@dataclass(frozen=True)
class LatentShape(Shape):
    """N states of S categoricals with C classes."""

    N: int
    S: int
    C: int


@dataclass(frozen=True)
class DecodeShape(Shape):
    """One new token for K x J x B sequences with heads of size d, after `position` cached ones."""

    K: int
    J: int
    B: int
    heads: int
    d: int
    position: int


def expert_linear(shape: ExpertShape, itemsize: int) -> Work:
    """Forward: the input once per task, every weight in use once, the output; biases are left out.

    The gradient of the input reads the output's gradient and the weights, that of the weights input and the output's
    gradient: the same sizes.
    """
    used = min(shape.E, shape.K * shape.J)
    inputs, weights = shape.K * shape.R * shape.I, used * shape.I * shape.N
    outputs = shape.K * shape.J * shape.R * shape.N
    return Work(2.0 * outputs * shape.I, itemsize * (inputs + weights + outputs))


def sample_onehot(shape: LatentShape, itemsize: int) -> Work:
    """Reads logits, writes a float32 one-hot and a byte per categorical."""
    groups = shape.N * shape.S
    return Work(0.0, groups * shape.C * (itemsize + 4) + groups)


def sample_onehot_training(shape: LatentShape, itemsize: int) -> Work:
    """The draw, then its backward: reads logits and float32 gradient, writes the gradient of the logits."""
    elements = shape.N * shape.S * shape.C
    return Work(0.0, sample_onehot(shape, itemsize).bytes + elements * (itemsize + 4 + itemsize))


def categorical_kl_training(shape: LatentShape, itemsize: int) -> Work:
    """Forward reads two grids of logits and writes two float32 per state; backward reads both and writes two more."""
    elements = shape.N * shape.S * shape.C
    return Work(0.0, 6 * elements * itemsize + 2 * 2 * 4 * shape.N)


def two_hot_loss_training(num_rows: int, num_bins: int, itemsize: int) -> Work:
    """Forward reads logits and target, writes the loss; backward reads logits, target and gradient, writes logits'."""
    return Work(0.0, 3 * num_rows * num_bins * itemsize + (2 + 2) * 4 * num_rows)


def two_hot_decode(num_rows: int, num_bins: int, itemsize: int) -> Work:
    """Reads logits, writes float32."""
    return Work(0.0, num_rows * num_bins * itemsize + 4 * num_rows)


def lambda_return(num_rows: int, num_steps: int, itemsize: int) -> Work:
    """Reads reward, continuation and value (one step more), writes float32 returns."""
    return Work(0.0, num_rows * ((3 * num_steps + 1) * itemsize + 4 * num_steps))


def read_and_write(numbers: int, inputs: int, itemsize: int) -> Work:
    """Reads so many inputs of `numbers` entries, writes one such output; vectors beside them count nothing."""
    return Work(0.0, numbers * (inputs + 1) * itemsize)


def decode_attention(shape: DecodeShape, itemsize: int) -> Work:
    """Reads the cached keys and values, query, key and value; writes the new rows and the output; a byte per mask."""
    rows = shape.K * shape.J * shape.B * shape.heads
    numbers = rows * shape.d * (2 * shape.position + 3 + 2 + 1)
    mask = shape.K * shape.B * (shape.position + 1)
    return Work(4.0 * rows * shape.d * (shape.position + 1), itemsize * numbers + mask)
