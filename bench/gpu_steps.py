"""What is to be measured on a GPU, in order: the steps of `python -m bench.gpu_day`, as data.

A command is a tuple of words. {out} becomes the folder of results and {wheels} that of --wheels; `python` becomes the
interpreter that runs. Every step has two commands: the real one, and a rehearsal that takes the same way through the
same modules at a size that a CPU finishes in seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Command = tuple[str, ...]

# Warnings of another version of Python or of a library are no reason to measure nothing.
_GPU_TESTS: Command = (
    "python",
    "-m",
    "pytest",
    "-m",
    "gpu",
    "-W",
    "default",
    "--continue-on-collection-errors",
    "-rfE",
)
_BENCH: Command = ("python", "-m", "bench", "-W", "default", "-k")
_TUNE: Command = ("python", "-m", "bench.tune_expert_linear", "--missing", "--jobs", "12")
_UPDATE: Command = ("python", "-m", "bench.one_update")
_TRAIN: Command = ("python", "-m", "mow.train")

_KERNELS = ("expert_linear", "latents", "decode_attention", "gather_frames")
_KERNEL_TESTS = {name: f"tests/kernels/test_{name}_gpu.py" for name in _KERNELS}

# One case of each kernel, forward, backward and decoding, at sizes that leave tiles half empty.
_SMALL_CASES = (
    "test_values_and_gradients and odd and not odd_long and float32 or test_one_expert_with_all_tasks"
    " or test_strided_inputs_and_gradients or test_lambda_return_matches_float64 and shape1 or test_strided_tokens"
    " or test_every_byte and triton or test_gather_cuda_equals_the_reference"
)

# Runs that a CPU ends within seconds; every phase is in them.
_TINY_MODEL: Command = (
    "--model.width", "16", "--model.num-heads", "2", "--model.feedforward", "16",
    "--model.perception.channels", "2", "2", "2", "2", "--model.perception.groups", "4",
    "--model.perception.classes", "4", "--model.perception.latent", "dense", "--model.prior", "dense",
    "--batch.length", "4", "--batch.num-sequences", "1", "--imagination.num-sequences", "2",
    "--imagination.horizon", "2", "--clustering.num-batches", "2", "--clustering.restarts", "2",
    "--schedule.agent-every", "4", "--schedule.acting-context", "3", "--actor-critic.rollout-parts", "2",
    "--device", "cpu",
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One thing to measure.

    Args:
        rehearsal: the same on a CPU, small.
        limit_s: the most that it may take; it is stopped then.
        least_s: what must be left of the call's time for it to be started at all.
        look: what its numbers should show.
        needs: what the machine must have: cuda, wheels, a program as program:NAME, a module as module:NAME, something
            that an earlier step leaves as file:PATTERN in the folder of results. A rehearsal asks for
            modules and files alone.
        kind: how what it writes is read: "json" one object, "lines" one object per line.
        result: the file, in the folder of results; empty: there is none but the output.
        again: the command that goes on with what an earlier, interrupted attempt left.
        again_if: pattern in the folder of results that matches something where `again` can go on.
        scratch: folder there that a fresh start removes.
        after: a step whose later run makes this one's numbers old, so that it runs again.
        leaves_s: what it leaves of the call's time to the steps behind it.
        env: variables of the process.
    """

    name: str
    command: Command
    rehearsal: Command
    limit_s: float
    least_s: float
    look: str
    needs: tuple[str, ...] = ("cuda",)
    kind: str = "json"
    result: str = ""
    again: Command = ()
    again_if: str = ""
    scratch: str = ""
    after: str = ""
    leaves_s: float = 0.0
    env: Mapping[str, str] = field(default_factory=dict)


def tests(name: str, limit_s: float, look: str, *words: str) -> Step:
    # On a CPU all are skipped: the rehearsal shows that each is found and that every module loads.
    return Step(name, (*_GPU_TESTS, *words), (*_GPU_TESTS, *words), limit_s, 60, look)


def sanitized(tool: str, look: str) -> Step:
    words = (*_GPU_TESTS, *_KERNEL_TESTS.values(), "tests/replay/test_sampler.py", "-k", _SMALL_CASES)
    watched = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9", "--print-limit", "20", *words)
    return Step(
        f"sanitizer-{tool}",
        watched,
        words,
        300,
        120,
        look,
        needs=("cuda", "program:compute-sanitizer"),
        # Without torch's cache of memory every tensor has its own bounds, which is what is to be watched.
        env={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
    )


def benchmark(name: str, which: str, limit_s: float, look: str, *, small: str = "", **more: Any) -> Step:
    """What is done is kept line by line and not done again, so a benchmark that is stopped goes on where it was."""
    result = f"{name}.jsonl"

    def command(expression: str) -> Command:
        return (*_BENCH, expression, "--keep", f"{{out}}/{result}")

    return Step(name, command(which), command(small or which), limit_s, 60, look, kind="lines", result=result, **more)


def tune(op: str, limit_s: float, *rows: str) -> Step:
    words = (*_TUNE, "--op", op, "--rows", *rows)
    look = f"which tiling of {op} is fastest; kernels/tuned/<class>.json is to be committed"
    return Step(f"tune-{op}", words, (*words, "--class", "sm_90", "--dry-run"), limit_s, 60, look)


def update(name: str, *words: str, rehearsed: Command = (), look: str) -> Step:
    result = f"{name}.json"
    small = (*_UPDATE, "--preset", "quickstart", "--tasks", "2", "--rounds", "1", "--json", f"{{out}}/{result}")
    real = (*_UPDATE, "--preset", "atari26", "--tasks", "26", *words, "--json", f"{{out}}/{result}")
    return Step(name, real, (*small, *rehearsed), 240, 60, look, result=result)


def training(name: str, words: Command, small: Command, limit_s: float, look: str, needs: Command, **more: Any) -> Step:
    """A run of mow.train that goes on from its checkpoint where it was stopped; a rehearsal has the tiny model."""
    folder = f"runs/{name}"
    ending = ("--folder", f"{{out}}/{folder}")
    return Step(
        name,
        (*_TRAIN, *words, "--device", "cuda", *ending),
        (*_TRAIN, *words[:1], *_TINY_MODEL, *small, *ending),
        limit_s,
        60,
        look,
        needs,
        result=f"{folder}/scores.json",
        again=(*_TRAIN, "--resume", f"{{out}}/{folder}"),
        again_if=f"{folder}/checkpoints/step_*.pt",
        scratch=folder,
        **more,
    )


_ATARI = ("cuda", "module:ale_py", "module:gymnasium", "module:tyro")
_RUN4 = "{out}/runs/atari4"

STEPS: tuple[Step, ...] = (
    Step(
        "install",
        ("python", "-m", "bench.wheels", "install", "{wheels}"),
        ("python", "-m", "bench.wheels", "install", "{out}", "--dry-run"),
        240,
        30,
        "the extension is compiled with its CUDA part; nothing installed changes version",
        needs=("wheels",),
    ),
    Step(
        "doctor",
        ("python", "-m", "mow.cli.doctor"),
        ("python", "-m", "mow.cli.doctor"),
        180,
        30,
        "which GPU, driver, libraries and simulators there are",
        needs=(),
    ),
    # 1. Right before fast.
    tests(
        "tests-expert",
        400,
        "expert_linear against float64, in CUDA graphs, compiled",
        _KERNEL_TESTS["expert_linear"],
    ),
    tests("tests-latents", 300, "draws, KL, two-hot, returns: the same", _KERNEL_TESTS["latents"]),
    tests(
        "tests-rollout",
        300,
        "decode attention and the gather of frames: the same",
        _KERNEL_TESTS["decode_attention"],
        _KERNEL_TESTS["gather_frames"],
    ),
    tests(
        "tests-rest",
        300,
        "the CUDA replay gather on a second stream; no update waits for the device; the clock",
        "tests/replay/test_buffer.py",
        "tests/replay/test_prefetch.py",
        "tests/replay/test_sampler.py",
        "tests/engine/test_no_waiting.py",
        "tests/methods/mow/test_cuda_graph.py",
        "tests/test_bench.py",
    ),
    sanitized("memcheck", "no access out of bounds in one small case of each kernel"),
    sanitized("racecheck", "no race in shared memory in the same cases"),
    # 2. Ceilings, noise, the ops beside their peers, before and after tuning.
    Step(
        "ceilings",
        ("python", "-m", "bench.ceilings", "--json", "{out}/ceilings.json"),
        ("python", "-m", "bench.ceilings", "--json", "{out}/ceilings.json"),
        90,
        20,
        "what a copy and a matmul reach here, each measured twice: the difference is noise",
        result="ceilings.json",
    ),
    benchmark(
        "ops-latents", "sample_onehot or categorical_kl or two_hot", 300, "8x eager, 1.2x compiled, 70 % of the copy"
    ),
    benchmark("ops-rollout", "decode_attention or lambda_return", 240, "decode attention 2.5x torch.cat, 1.3x slices"),
    benchmark(
        "ops-frames",
        "gather_frames or replay and gpu",
        240,
        "the gather reaches 70 % of the copy",
        small="gather_frames",
    ),
    benchmark("ops-expert", "expert_linear", 300, "1.2x bmm, 1.3x grouped_mm; shares of the floor, before tuning"),
    tune("forward", 400, "64", "0", "32", "128", "512"),
    tune("dx", 200, "0", "512"),
    tune("dw", 200, "0", "512"),
    benchmark("ops-expert-tuned", "expert_linear", 300, "the same, after tuning", after="tune-forward"),
    # 3. Whole updates at the reference size.
    benchmark(
        "update-26",
        "(train_step or imagination) and K26",
        400,
        "35 % of the matmul rate, 4x, 2x and 1.3x",
        small="(train_step or imagination) and K1",
    ),
    update("profile", look="where the time of an update goes; its peak of memory beside the estimate"),
    update(
        "profile-light",
        "--batching",
        "light",
        "--task-groups",
        "4",
        rehearsed=("--task-groups", "2"),
        look="the same for a card of 24 GB",
    ),
    benchmark(
        "update-curve",
        "(train_step or imagination) and not K26",
        600,
        "what K = 1 to 50 tasks cost",
        small="imagination and K2",
    ),
    Step(
        "plan",
        ("python", "-m", "mow.train", "atari26", "--dry-run", "--device", "cuda"),
        ("python", "-m", "mow.train", "quickstart", *_TINY_MODEL, "--dry-run"),
        120,
        30,
        "whether atari26 fits, and the hours from updates that are timed",
        needs=_ATARI,
    ),
    # 4. Learning.
    training(
        "quickstart",
        ("quickstart",),
        ("--total-steps", "40", "--evaluation-episodes", "1"),
        900,
        "the scores of the CPU, in how many seconds",
        ("cuda", "module:tyro", "module:gymnasium"),
    ),
    training(
        "storm",
        ("storm", "--total-steps", "400", "--evaluation-episodes", "0"),
        ("--total-steps", "24", "--evaluation-episodes", "0"),
        240,
        "the single-task baseline runs under bf16: updates per second",
        _ATARI,
    ),
    benchmark(
        "egl",
        "envs and robots and mt10",
        240,
        "rendered steps per second of Meta-World by EGL",
        needs=("cuda", "module:metaworld", "module:mujoco"),
        env={"MUJOCO_GL": "egl"},
    ),
    # As long as the time allows: last, since it takes all that is left.
    training(
        "atari4",
        ("atari4", "--checkpoint-every", "500", "--keep-checkpoints", "1"),
        ("--total-steps", "24", "--evaluation-episodes", "0"),
        7200,
        "curves of four games; seconds per step",
        _ATARI,
        leaves_s=200.0,
    ),
    Step(
        "atari4-scores",
        ("python", "-m", "mow.evaluate", _RUN4, "--episodes", "3", "--device", "cuda"),
        ("python", "-m", "mow.evaluate", _RUN4, "--episodes", "1", "--device", "cpu"),
        400,
        90,
        "scores beside random play and the published methods",
        needs=(*_ATARI, "file:runs/atari4/checkpoints/step_*.pt"),
        result="runs/atari4/evaluation.json",
        after="atari4",
    ),
    Step(
        "atari4-report",
        ("python", "-m", "mow.report", _RUN4, "--device", "cuda"),
        ("python", "-m", "mow.report", _RUN4, "--windows", "1", "--device", "cpu"),
        200,
        60,
        "curves, real and imagined frames of four games on one page",
        needs=(*_ATARI, "file:runs/atari4/checkpoints/step_*.pt"),
        after="atari4",
    ),
)
