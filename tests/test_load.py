"""A trained agent from Python: acting, and its world model as an environment."""

import inspect
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

import mow
from mow import train
from mow.envs.vector import make_vector
from mow.kernels import PhiloxState
from mow.methods.mow.acting import ActingMemory
from mow.runs.restore import find_run, newest_checkpoint, restore
from tests.test_train import DUMMY

README = Path(__file__).resolve().parents[1] / "README.md"
TASKS = ("tiny:catch", "tiny:slide", "dummy:count-0", "dummy:count-1")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("load") / "run"
    tasks = ["--tasks", *TASKS, "--clustering.method", "random", "--clustering.num-modules", "2"]
    # The mean over symexp(bins) of a reward head that has hardly learnt magnifies a rounding of 1e-8 to 1.
    settings = ["--seed", "2", "--evaluation-episodes", "0", "--folder", str(folder),
                "--model.two-hot-form", "symexp_of_mean"]  # fmt: skip
    assert train.main(["quickstart", *DUMMY, *tasks, *settings]) == 0
    # This order is not its own inverse, so that a mix-up of the two directions would show below.
    sorted_tasks = torch.load(newest_checkpoint(folder), weights_only=True)["tasks"]
    assert sorted_tasks == [TASKS[0], TASKS[3], TASKS[1], TASKS[2]]
    return folder


@pytest.fixture
def agent(run_folder):
    return mow.load(run_folder, device="cpu")


def test_importing_mow_loads_nothing_heavy():
    program = "import mow, sys; assert mow.load; assert not {'torch', 'numpy', 'gymnasium'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_example_runs(run_folder, capsys):
    """The indented part of what mow.load says of itself, on a run that is here."""
    lines = inspect.getdoc(mow.load).splitlines()
    example = [line for line in lines[1 : lines.index("Args:")] if line.startswith("    ") or not line]
    program = textwrap.dedent("\n".join(example)).strip()
    assert len([line for line in program.splitlines() if line]) == 10
    assert f"```python\n{program}\n```" in README.read_text(encoding="utf-8")
    told = program.replace("runs/quickstart-20270101-120000-seed0", str(run_folder))
    assert told != program
    exec(compile(told, "the example", "exec"), {})
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2
    assert said[0].startswith("<GymnasiumEnv tiny:catch>: ")
    assert said[1].startswith("<ImaginedEnv tiny:catch>: ")


def frames(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


def reference_actions(run_folder, task, seen, seed):
    """What the memory that training acts with draws for one task, every task shown the same frame: [T, A]."""
    run = find_run(run_folder)
    with make_vector(TASKS, seed=0, num_workers=0, options={}) as envs:
        learner, _ = restore(run.checkpoint, run.config, envs, torch.device("cpu"))
        k = [spec.name for spec in envs.specs].index(task)
        layout = envs.layout
    learner.world_model.eval()
    memory, rng = ActingMemory(run.config.schedule.acting_context), PhiloxState.from_seed(seed, "cpu")
    found = []
    for t, frame in enumerate(seen):
        frame = torch.from_numpy(frame).expand(4, 64, 64, 3)
        args = (learner.world_model, learner.agent, learner.routing(), frame, torch.full((4,), t == 0), rng)
        memory.record(memory.act(*args))
        found.append(layout.decode(k, memory._tokens[-1][1][k, 0, 0].numpy()))
    return found


@pytest.mark.parametrize("task", TASKS)
def test_it_acts_as_in_training(task, run_folder):
    # More frames than the memory holds.
    seen = frames(12)
    agent = mow.load(run_folder, device="cpu", seed=5)
    acted = [agent.act(frame, task) for frame in seen]
    expected = reference_actions(run_folder, task, seen, seed=5)
    assert all(np.array_equal(a, b) for a, b in zip(acted, expected, strict=True))
    assert len({str(action) for action in acted}) > 1
    if task == "tiny:slide":
        assert acted[0].dtype == np.float32
    else:
        assert isinstance(acted[0], int)


def test_side_by_side(agent):
    assert agent.act(frames(4), "tiny:catch").shape == (4,)
    assert agent.act(frames(4), "tiny:slide").shape == (4, 1)
    assert agent.act(frames(1), "dummy:count-0").shape == (1,)
    with pytest.raises(ValueError, match="4 episodes are being played, got 3 frames: call reset first"):
        agent.act(frames(3), "tiny:catch")
    agent.reset("tiny:catch")
    assert agent.act(frames(3), "tiny:catch").shape == (3,)
    with pytest.raises(ValueError, match="4 episodes"):  # the other task goes on
        agent.act(frames(3), "tiny:slide")
    agent.reset()
    assert agent.act(frames(3), "tiny:slide").shape == (3, 1)


def test_memory_ends_with_the_episode(agent, monkeypatch):
    told = []
    act = ActingMemory.act
    monkeypatch.setattr(ActingMemory, "act", lambda self, *args: told.append(args[4].tolist()) or act(self, *args))
    for reset_before in (False, False, True, False):
        if reset_before:
            agent.reset("tiny:catch")
        agent.act(frames(2), "tiny:catch")
    first, later = [[True] * 2] * 4, [[False] * 2] * 4
    assert told == [first, later, first, later]


@pytest.mark.parametrize(
    "obs", [np.zeros((64, 64, 3)), np.zeros((3, 64, 64), np.uint8), np.zeros((2, 2, 64, 64, 3), np.uint8)]
)
def test_other_observations_are_refused(obs, agent):
    with pytest.raises(ValueError, match=r"obs must be uint8 \[64, 64, 3\] or \[B, 64, 64, 3\], got "):
        agent.act(obs, "tiny:catch")


@pytest.mark.parametrize("method", ["act", "reset", "real", "imagine"])
def test_other_tasks_are_refused(method, agent):
    arguments = (frames(1)[0], "tiny:cach") if method == "act" else ("tiny:cach",)
    with pytest.raises(ValueError, match="'tiny:cach' is no task of this run: did you mean tiny:catch"):
        getattr(agent, method)(*arguments)


@pytest.mark.parametrize("task", TASKS)
def test_an_imagined_task_is_an_environment(task, agent):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on spaces
        check_env(agent.imagine(task))


def test_it_opens_with_a_real_frame_and_goes_on_imagined(agent):
    dream, real = agent.imagine("tiny:catch", max_steps=3), agent.real("tiny:catch")
    firsts = {real.reset(seed=seed)[0].tobytes() for seed in range(40)}
    frame, _ = dream.reset(seed=4)
    assert frame.tobytes() in firsts
    with pytest.raises(ValueError, match="got action 3, expected one of Discrete"):
        dream.step(3)
    steps = [dream.step(1)]
    while not (steps[-1][2] or steps[-1][3]):
        steps.append(dream.step(1))
    assert len(steps) <= 3
    seen, reward, terminated, truncated, info = steps[-1]
    assert (seen.shape, seen.dtype) == ((64, 64, 3), np.uint8)
    assert seen.tobytes() not in firsts
    assert isinstance(reward, float)
    assert terminated == (info["termination_prob"] > 0.5)
    assert terminated != truncated
    assert np.array_equal(dream.render(), seen)
    with pytest.raises(RuntimeError, match="no episode is running: call reset first"):
        dream.step(1)


def test_a_given_first_frame(agent):
    dream = agent.imagine("tiny:slide")
    with pytest.raises(RuntimeError, match="call reset first"):
        dream.render()
    given = frames(1)[0]
    seen, _ = dream.reset(seed=1, options={"frame": given})
    assert np.array_equal(seen, given)
    after = dream.step(np.zeros(1, np.float32))
    assert not np.array_equal(after[0], given)
    dream.reset(seed=1, options={"frame": given})
    assert np.array_equal(dream.step(np.zeros(1, np.float32))[0], after[0])
    dream.reset(seed=1)  # another frame, another dream
    assert not np.array_equal(dream.step(np.zeros(1, np.float32))[0], after[0])
    with pytest.raises(ValueError, match="the frame must be uint8"):
        dream.reset(options={"frame": given / 255})
    with pytest.raises(ValueError, match="unknown options start: there is only frame"):
        dream.reset(options={"start": given})


def test_imagined_steps_are_those_of_foresight(run_folder, agent):
    """The same start, actions and draws through the open-loop rollout that the film uses."""
    from mow.batch import TransitionBatch
    from mow.evaluate.open_loop import predict_open_loop

    dream = agent.imagine("tiny:slide", max_steps=4)
    given = frames(1)[0]
    dream.reset(seed=1, options={"frame": given})
    second = int(np.random.default_rng(1).integers(2**31, size=2)[1])
    steps = []
    for x in (0.5, -1.0, 0.25):
        steps.append(dream.step(np.full(1, x, np.float32)))
        if steps[-1][2]:  # imagined to have ended
            break
    tasks = agent._imagined
    k, size = [spec.name for spec in tasks.specs].index("tiny:slide"), tasks.layout.size
    vectors = [torch.from_numpy(tasks.to_vector(k, np.float32(x))) for x in (0.5, -1.0, 0.25)]
    action = torch.stack(vectors).expand(4, 1, 3, size)
    none = torch.zeros(4, 1, 1, dtype=torch.bool)
    frame = torch.from_numpy(given).expand(4, 1, 1, 64, 64, 3)
    context = TransitionBatch(frame, action[:, :, :1], torch.zeros(4, 1, 1), none, none, ~none, none)
    found = predict_open_loop(
        tasks.model, context, action[:, :, 1:], tasks.routing, PhiloxState.from_seed(second, "cpu"),
        temperature=agent.config.imagination.temperature,
    )  # fmt: skip
    for t, (seen, reward, terminated, _, _) in enumerate(steps):
        # One level of 255 is what rounding may change, and 1e-5 what sums in another order may.
        assert np.abs(255 * found.frame[k, 0, t].numpy().clip(0, 1) - seen).max() <= 0.51
        assert reward == pytest.approx(float(found.reward[k, 0, t]), abs=1e-5)
        assert terminated == bool(found.terminated[k, 0, t])


def test_only_legal_actions_are_counted(run_folder, agent):
    tasks = agent._imagined
    k = [spec.name for spec in tasks.specs].index("dummy:count-0")
    legal = np.flatnonzero(tasks.specs[k].legal)
    assert agent.imagine("dummy:count-0").action_space.n == len(legal)
    for number, native in enumerate(legal):
        vector = tasks.to_vector(k, number)
        assert vector.sum() == vector[native] == 1.0
        assert tasks.to_native(k, vector) == number


def test_what_cannot_be_loaded(run_folder, tmp_path):
    with pytest.raises(ValueError, match=r"gone is no run: name a run folder"):
        mow.load(tmp_path / "gone")
    with pytest.raises(ValueError, match="unknown device 'tpu9'"):
        mow.load(run_folder, device="tpu9")
    with pytest.raises(ValueError, match="max_steps must be 1 or more, got 0"):
        mow.load(run_folder).imagine("tiny:catch", max_steps=0)
    assert mow.load(newest_checkpoint(run_folder)).step == 20
