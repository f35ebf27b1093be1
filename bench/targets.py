"""What was wanted of a GPU before anything had run on one, as data, and how each number is found in a day's records.

A number that no record holds is not measured: None, never a guess. Of several shapes the worst counts.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Records = Mapping[str, Mapping[str, Any]]  # by step
Measure = Callable[[Records], float | None]

_EXPERT = ("ops-expert-tuned", "ops-expert")  # tuned where that is there
_LARGE, _SMALL = r"R1024\b", r"R(20|39|64)\b"


@dataclass(frozen=True)
class Target:
    """One number that was wanted.

    Args:
        what: for the table.
        sense: whether at least or at most `wanted` is wanted.
        unit: "x", "%", "s", "GB" or "/s"; shares are kept as fractions.
        source: why this much.
        steps: where it is measured, the first that has it counts.
    """

    what: str
    sense: Literal[">=", "<="]
    wanted: float
    unit: str
    source: str
    steps: tuple[str, ...]
    measure: Measure

    def met(self, value: float) -> bool:
        return value >= self.wanted if self.sense == ">=" else value <= self.wanted


def lines(records: Records, step: str) -> list[Mapping[str, Any]]:
    """Benchmarks of a step; none where it has not run."""
    result = records.get(step, {}).get("result")
    return result if isinstance(result, list) else []


def race(steps: Sequence[str], test: str, shape: str, read: Callable[[Mapping[str, Any]], float | None]) -> Measure:
    """The worst (least) of what `read` finds in the extra_info of benchmarks whose name and shape match."""

    def measure(records: Records) -> float | None:
        for step in steps:
            found = [
                number
                for line in lines(records, step)
                if re.fullmatch(test, f"{line['group']} {line['name'].split('[')[0]}")
                and re.search(shape, str(line["param"]))
                and (number := read(line["extra_info"])) is not None
            ]
            if found:
                return min(found)
        return None

    return measure


def against(peer: str) -> Callable[[Mapping[str, Any]], float | None]:
    def read(info: Mapping[str, Any]) -> float | None:
        found: float | None = info["peers"].get(peer, {}).get("speedup")
        return found

    return read


def share(name: str) -> Callable[[Mapping[str, Any]], float | None]:
    def read(info: Mapping[str, Any]) -> float | None:
        found: float | None = info.get(name)
        return found

    return read


def updates(records: Records, tasks: int) -> list[Mapping[str, Any]]:
    """extra_info of an update of the world model and of one of the agent; empty unless both were timed."""
    found = {
        line["name"].split("[")[0]: line["extra_info"]
        for step in ("update-26", "update-curve")
        for line in lines(records, step)
        if line["group"] == "train_step" and re.search(rf"\bK{tasks}\b", str(line["param"]))
    }
    wanted = ("test_world_model", "test_agent")
    return [found[name] for name in wanted] if all(name in found for name in wanted) else []


def seconds_of_both(records: Records) -> float | None:
    return _both_seconds(records, 26)


def _both_seconds(records: Records, tasks: int) -> float | None:
    found = updates(records, tasks)
    return sum(info["median_us"] for info in found) * 1e-6 if found else None


def rate_share(records: Records) -> float | None:
    """Of the matmul rate, over both updates."""
    found = updates(records, 26)
    if not found:
        return None
    rate = found[0]["ceilings"]["tflop_per_s"]
    return sum(info["tflop"] for info in found) / (sum(info["median_us"] for info in found) * 1e-6) / float(rate)


def both_against(peer: str, names: Iterable[int] = (0, 1)) -> Measure:
    def measure(records: Records) -> float | None:
        found = updates(records, 26)
        chosen = [found[i] for i in names] if found else []
        if not chosen or any(peer not in info["peers"] for info in chosen):
            return None
        theirs = sum(info["peers"][peer]["median_us"] for info in chosen)
        return float(theirs / sum(info["median_us"] for info in chosen))

    return measure


def growth(records: Records) -> float | None:
    many, few = _both_seconds(records, 50), _both_seconds(records, 26)
    return many / few if many and few else None


def hours_of_atari26(records: Records) -> float | None:
    from mow.methods.mow.presets import atari26

    found, config = updates(records, 26), atari26()
    if not found:
        return None
    counts = (config.world_model_updates, config.agent_updates)
    return sum(n * info["median_us"] * 1e-6 for n, info in zip(counts, found, strict=True)) / 3600


def field(step: str, *path: str) -> Measure:
    """A number in the JSON that a step wrote."""

    def measure(records: Records) -> float | None:
        found: Any = records.get(step, {}).get("result")
        for name in path:
            found = found.get(name) if isinstance(found, Mapping) else None
        return float(found) if isinstance(found, int | float) else None

    return measure


def memory_ratio(step: str) -> Measure:
    """Measured peak over the estimate."""

    def measure(records: Records) -> float | None:
        peak, estimate = field(step, "peak_gb")(records), field(step, "estimated_gb")(records)
        return peak / estimate if peak and estimate else None

    return measure


def robots_per_core(records: Records) -> float | None:
    """Rendered steps of all tasks per second and core."""
    found = [line["extra_info"] for line in lines(records, "egl") if line["group"] == "envs"]
    if not found:
        return None
    return float(found[0]["turn_steps"] / found[0]["median_us"] * 1e6 / found[0]["cores"])


_COMPILED = "the lean form, which torch.compile fuses nearly whole"
_BYTES = "an op of bytes should be bound by them"

TARGETS: tuple[Target, ...] = (
    Target("expert_linear, bias and activation, 1,024 rows, against bmm", ">=", 1.2, "x",
           "two passes over the output saved", _EXPERT,
           race(_EXPERT, "expert_linear test_forward", _LARGE, against("bmm"))),
    Target("the same against grouped_mm", ">=", 1.3, "x", "its gather of rows saved as well", _EXPERT,
           race(_EXPERT, "expert_linear test_forward", _LARGE, against("grouped_mm"))),
    Target("the matmul alone against bmm", ">=", 0.85, "x", "cuBLAS is hard to beat", _EXPERT,
           race(_EXPERT, "expert_linear test_matmul_alone", _LARGE, against("bmm"))),
    Target("gradient of the input against bmm", ">=", 1.1, "x", "no buffer per expert of a task", _EXPERT,
           race(_EXPERT, "expert_linear test_gradient_of_input", _LARGE, against("bmm"))),
    Target("gradient of the weight against bmm", ">=", 1.2, "x", "no index_add over tasks", _EXPERT,
           race(_EXPERT, "expert_linear test_gradient_of_weight", _LARGE, against("bmm"))),
    Target("expert_linear, 20 to 64 rows, against bmm", ">=", 2.0, "x", "a weight is read once, not once per task",
           _EXPERT, race(_EXPERT, "expert_linear test_forward", _SMALL, against("bmm"))),
    Target("the same against a loop over experts", ">=", 3.0, "x", "one launch instead of one per expert", _EXPERT,
           race(_EXPERT, "expert_linear test_forward", _SMALL, against("loop"))),
    Target("expert_linear, 1,024 rows, share of the floor", ">=", 0.6, "%", "arithmetic at the rate of a matmul",
           _EXPERT, race(_EXPERT, "expert_linear test_forward", _LARGE, share("floor_share"))),
    Target("expert_linear, 20 to 64 rows, share of the floor", ">=", 0.35, "%", "bytes at the rate of a copy", _EXPERT,
           race(_EXPERT, "expert_linear test_forward", _SMALL, share("floor_share"))),
    Target("sample_onehot against torch.distributions", ">=", 8.0, "x", "a dozen passes become one", ("ops-latents",),
           race(("ops-latents",), "sample_onehot test_.*", "N26624", against("distributions"))),
    Target("sample_onehot against torch.compile", ">=", 1.2, "x", _COMPILED, ("ops-latents",),
           race(("ops-latents",), "sample_onehot test_.*", "N26624", against("lean, compiled"))),
    Target("sample_onehot, share of the copy", ">=", 0.7, "%", _BYTES, ("ops-latents",),
           race(("ops-latents",), "sample_onehot test_.*", "N26624", share("copy_share"))),
    Target("categorical_kl against torch.distributions", ">=", 8.0, "x", "both ways in one pass", ("ops-latents",),
           race(("ops-latents",), "categorical_kl test_.*", "N26624", against("distributions"))),
    Target("categorical_kl against torch.compile", ">=", 1.2, "x", _COMPILED, ("ops-latents",),
           race(("ops-latents",), "categorical_kl test_.*", "N26624", against("lean, compiled"))),
    Target("categorical_kl, share of the copy", ">=", 0.7, "%", _BYTES, ("ops-latents",),
           race(("ops-latents",), "categorical_kl test_.*", "N26624", share("copy_share"))),
    Target("two_hot_loss against a dense target", ">=", 10.0, "x", "no dense target is written", ("ops-latents",),
           race(("ops-latents",), "two_hot test_loss", "452608", against("dense target"))),
    Target("decode_attention against torch.cat", ">=", 2.5, "x", "a cache that grows is copied at every step",
           ("ops-rollout",), race(("ops-rollout",), "decode_attention test_step", "B1024", against("torch.cat"))),
    Target("decode_attention against slices", ">=", 1.3, "x", "the append is in the same launch", ("ops-rollout",),
           race(("ops-rollout",), "decode_attention test_step", "B1024", against("slices"))),
    Target("gather_frames, share of the copy", ">=", 0.7, "%", _BYTES, ("ops-frames",),
           race(("ops-frames",), "gather_frames test_windows", "K26", share("copy_share"))),
    Target("replay on the GPU, share of the copy", ">=", 0.7, "%", _BYTES, ("ops-frames",),
           race(("ops-frames",), "replay test_windows_on_the_gpu", "", share("copy_share"))),
    Target("atari26, both updates, share of the matmul rate", ">=", 0.35, "%", "what well-kept training reaches",
           ("update-26",), rate_share),
    Target("atari26, both updates", "<=", 0.19, "s", "51.8 TFLOP at that share of 790 TFLOP/s", ("update-26",),
           seconds_of_both),
    Target("atari26, the updates of a whole run, hours", "<=", 6.0, "h", "a night", ("update-26",), hours_of_atari26),
    Target("against 26 updates of one task", ">=", 4.0, "x", "what a user runs today", ("update-26",),
           both_against("K updates of one task")),
    Target("against plain ops", ">=", 2.0, "x", "what the kernels are for", ("update-26",), both_against("plain ops")),
    Target("world model against torch.compile", ">=", 1.3, "x", "what anyone has for a line", ("update-26",),
           both_against("compiled", (0,))),
    Target("50 tasks against 26", "<=", 1.1 * 50 / 26, "x", "in proportion, and a tenth", ("update-curve", "update-26"),
           growth),
    Target("peak of memory against the estimate", "<=", 1.15, "x", "what the estimate claims", ("profile",),
           memory_ratio("profile")),
    Target("the same, light batches in four parts", "<=", 1.15, "x", "what the estimate claims", ("profile-light",),
           memory_ratio("profile-light")),
    Target("quickstart, mean normalised score", ">=", 0.9, "", "what it has on a CPU", ("quickstart",),
           field("quickstart", "mean_normalised")),
    Target("quickstart, seconds", "<=", 600.0, "s", "ten minutes", ("quickstart",),
           field("quickstart", "wall_seconds")),
    Target("Meta-World, rendered steps per second and core", ">=", 130.0, "/s", "what a CPU does with Mesa", ("egl",),
           robots_per_core),
)  # fmt: skip
