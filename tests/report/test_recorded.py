"""Reports on runs from recorded episodes: the data, scores side by side, diagnostics of a world model of states."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from mow import train
from mow.methods.bc.config import BcConfig
from mow.methods.pwm.config import PwmConfig
from mow.offline.collect import collect
from mow.offline.files import StoredTask, read_episodes, read_manifest
from mow.report import sections
from mow.report.__main__ import main
from mow.report.data import Curve, Metrics, Report, RunData, Scores
from mow.report.html import digits
from mow.report.page import page, sections_of, status
from mow.report.recorded import columns, side_by_side

TASKS = ("vec:lq", "vec:reach")
SHORT = ["--tasks", *TASKS, "--updates", "4", "--log-every", "2", "--hidden", "8", "--evaluation-episodes", "2",
         "--env.num-workers", "0", "--device", "cpu"]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and two seeds of cloning, `0` and `1`."""
    folder = tmp_path_factory.mktemp("recorded")
    collect(TASKS, folder / "data", 20, "random", seed=0, workers=0)
    for seed in ("0", "1"):
        words = [*SHORT, "--data", str(folder / "data"), "--best", "0.5", "--seed", seed, "--no-report"]
        assert train.main(["bc", *words, "--folder", str(folder / seed)]) == 0
    return folder


def test_a_run_that_ends_prints_its_page(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert train.main(["bc", *SHORT, "--data", str(runs / "data"), "--folder", str(folder)]) == 0
    assert f"look: {folder / 'report.html'}" in capsys.readouterr().out
    text = (folder / "report.html").read_text()
    assert "finished: 4 updates" in text
    assert 'alt="loss/policy: value over updates"' in text
    assert "return over environment steps" not in text, "a run that never acts has no learning curve"


def test_the_data_and_the_seeds_side_by_side(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert main([str(runs / "0"), "--beside", str(runs / "1"), "--out", str(out)]) == 0
    text = out.read_text()
    assert "this run: cloning of the best 50 %, 2 seeds" in text
    assert "Not from the same episodes" not in text
    task = read_manifest(runs / "data")["vec:lq"]
    best = np.sort(read_episodes(runs / "data", task)["episode_return"])[-2:].mean()  # the tenth of 20
    for number in (digits(value) for value in (*task.returns, best)):
        assert f"<td>{number}</td>" in text
    returns = [json.loads((runs / seed / "scores.json").read_text())["tasks"]["vec:lq"]["agent"] for seed in "01"]
    assert f"<td>{digits(np.mean(returns))} ± {digits(np.std(returns))} (" in text
    for title in ("mean of the tasks", *TASKS):
        assert f'alt="{title}: normalised return of the data and of runs"' in text


def test_without_its_data_a_run_still_has_its_scores(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    config = json.loads((runs / "0" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "data": str(tmp_path / "gone")}))
    (folder / "scores.json").write_bytes((runs / "0" / "scores.json").read_bytes())
    assert main([str(folder)]) == 0
    text = (folder / "report.html").read_text()
    assert "They cannot be read, or are not collected yet." in text
    assert "gone holds no recorded episodes" in text
    assert "this run: cloning of the best 50 %" in text
    assert "stopped at update 0 of 4, or still running" in text


def test_what_cannot_stand_beside_a_run_is_one_line(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((runs / "0" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    for words, why in (
        ([str(runs / "0"), "--beside", str(tmp_path)], "has no scores of vec:lq, vec:reach: leave it out"),
        ([str(runs / "0"), "--beside", str(tmp_path / "gone")], "no folder"),
        ([str(runs / "0"), "--checkpoint", "x.pt"], "a page on bc needs none"),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert why in error
        assert error.count("\n") == 1
    (tmp_path / "scores.json").write_bytes((runs / "0" / "scores.json").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({**config, "env": {**config["env"], "dmc_repeat": 4}}))
    assert main([str(runs / "0"), "--beside", str(tmp_path)]) == 2
    assert "has another protocol" in capsys.readouterr().err


# Records made up by hand ---------------------------------------------------------------------------------------------


def cloned(folder: str, mean: float, **fields: object) -> RunData:
    config = BcConfig(preset="bc", tasks=TASKS, total_steps=0, folder=folder, **fields)  # type: ignore[arg-type]
    scores = Scores({"vec:lq": (0.0, mean, 1.0, 9.0, 0.5, 2)}, None, None)
    return RunData(Path(folder), config, scores, Metrics(), ())


def test_columns_by_hand() -> None:
    stored = StoredTask("vec:lq", 2, 1, "states", returns=(1.0, 2.0, 3.0))
    own = replace(cloned("own", 7.0, best=0.2), episodes={"vec:lq": (stored, 2.5)})
    beside = (cloned("a", 4.0, seed=1), cloned("b", 6.0, seed=2), cloned("c", 5.0, lr=1.0), cloned("d", 8.0, best=0.2))
    assert columns(Report(own, None, "", beside)) == {
        "data, all episodes": {"vec:lq": [2.0], "vec:reach": []},
        "data, best 10 %": {"vec:lq": [2.5], "vec:reach": []},
        "cloning, a, 2 seeds": {"vec:lq": [4.0, 6.0], "vec:reach": []},
        "cloning, c": {"vec:lq": [5.0], "vec:reach": []},
        "this run: cloning of the best 20 %, 2 seeds": {"vec:lq": [7.0, 8.0], "vec:reach": []},
    }


def test_tasks_without_references_are_shown_in_their_own_units() -> None:
    config = BcConfig(preset="bc", tasks=("dummy:a",), total_steps=0)
    run = RunData(Path("x"), config, Scores({"dummy:a": (None, 3.0, 1.0, None, None, 2)}, None, None), Metrics(), ())
    other = replace(run, folder=Path("y"), episodes={"dummy:a": (StoredTask("dummy:a", 2, 1, "states"), 0.0)})
    assert "Not from the same episodes as this run: y." in side_by_side(Report(run, None, "", (other,)))
    text = side_by_side(Report(run, None, ""))
    assert "<td>3.00</td>" in text
    assert 'alt="dummy:a: return of the data and of runs"' in text
    assert "mean of the tasks" not in text


def a_world_model(tasks: tuple[str, ...]) -> Report:
    names = ("insight/rollout_error_1", "insight/rollout_error_4", "insight/rank", "loss/critic")
    curves = {f"{name}/{task}": Curve((0.0, 0.0), (5.0, 10.0), (4.0 + k, 0.25 + k))
              for k, task in enumerate(tasks) for name in names}  # fmt: skip
    config = PwmConfig(preset="pwm_vec", tasks=tasks, total_steps=0, data="gone")
    return Report(RunData(Path("x"), config, None, Metrics(curves=curves, updates=10), ()), None, "")


def test_the_world_model_of_states_has_curves_and_last_values() -> None:
    report = a_world_model(TASKS)
    text = page(report)
    assert [anchor for anchor, *_ in sections_of(report)] == [
        "scores", "beside", "data", "metrics", "rollouts", "time", "config",
    ]  # fmt: skip
    assert "<tr><td>vec:lq</td><td>0.25</td><td>0.25</td><td>0.25</td><td>0.25</td></tr>" in text
    assert "error at 4</th><th>rank</th><th>critic loss" in text
    assert 'alt="vec:reach: relative error, log scale over updates"' in text
    assert status(report) == "stopped at update 10 of 20,000, or still running"
    assert asdict(report.run.config)["schedule"]["pretrain_updates"] == 10_000


def test_many_tasks_are_drawn_as_mean_highest_and_lowest(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(sections, "chart", lambda *what, **_: drawn.append(what) or "")
    sections.panel(a_world_model(tuple(f"dummy:{k}" for k in range(7))), "loss/critic")
    ((_, _, _, series),) = drawn
    assert [(one.style, list(one.x), list(one.y)) for one in series] == [
        ("s1", [5.0, 10.0], [7.0, 3.25]), ("s2", [5.0, 10.0], [10.0, 6.25]), ("s3", [5.0, 10.0], [4.0, 0.25]),
    ]  # fmt: skip
