"""The page of a run, from its folder to what a reader sees."""

import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest

from mow import train
from mow.report.__main__ import main, write_report
from mow.report.data import Curve, Film, Metrics, ModelView, Report, RunData, Scores, Similarity
from mow.report.page import page, status
from mow.report.sections import smoothed
from tests.small import run_config
from tests.test_train import DUMMY

SECTIONS = (
    "scores", "returns", "losses", "agent", "films", "experts", "similarity", "time", "harmony", "config",
)  # fmt: skip
VOID = {"meta", "br", "img", "input", "link", "hr"}


class Reader(HTMLParser):
    """Checks that tags are closed in order; notes addresses, ids and what each section says."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.tags, self.pictures = [], [], set(), []
        self.sections, self.section = {}, None

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        found = dict(attributes)
        if tag == "img":
            self.pictures.append(found)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.section = found["id"]
            self.sections[self.section] = ""
        self.addresses += [found[name] for name in ("href", "src", "xlink:href", "action", "data") if name in found]

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "section":
            self.section = None

    def handle_data(self, text):
        if self.section:
            self.sections[self.section] += text


def read(text):
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    assert tuple(reader.sections) == SECTIONS
    # No request to the network, no script.
    inside = ("#", "data:image/png;base64,", "data:image/svg+xml;base64,")
    assert all(address.startswith(inside) for address in reader.addresses)
    assert not re.search(r"https?:|//cdn|@import|url\(", text)
    assert all(found["alt"] for found in reader.pictures)
    assert not reader.tags & {"script", "iframe", "object", "link", "form", "base"}
    assert not re.search(r"\b(nan|inf|None)\b", " ".join(reader.sections[name] for name in SECTIONS[:-1]))
    return reader


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run of seconds, finished and scored, whose learner has sorted its tasks."""
    folder = tmp_path_factory.mktemp("report") / "run"
    tasks = ["--tasks", "dummy:slide", "dummy:count-0", "dummy:count-1", "dummy:count-2"]
    settings = ["--clustering.num-modules", "2", "--insight-every", "2", "--evaluation-episodes", "2", "--seed", "2"]
    assert train.main(["quickstart", *DUMMY, *tasks, *settings, "--folder", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def made(run_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "page.html"
    before = {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()}
    assert main([str(run_folder), "--out", str(out), "--windows", "3", "--device", "cpu"]) == 0
    assert {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()} == before
    return out.read_text(encoding="utf-8")


@pytest.fixture
def copied(run_folder, tmp_path):
    return shutil.copytree(run_folder, tmp_path / "run")


def test_the_page_of_a_finished_run(made):
    said = read(made).sections
    assert "finished: 20 steps" in made
    for name in ("scores", "returns", "losses", "agent", "films", "experts", "similarity"):
        for task in ("dummy:slide", "dummy:count-0", "dummy:count-1", "dummy:count-2"):
            assert task in said[name], (name, task)
    assert 'alt="dummy:slide: return over environment steps"' in made
    assert 'alt="dummy:slide: loss, log scale over world-model updates"' in made
    assert "gradients of the tasks' losses" in said["similarity"]
    assert 'alt="Speed: updates/s over minutes since the start"' in made
    assert "Where the time went" in said["time"]
    assert "not logged" not in said["harmony"]
    assert 'alt="dummy:slide: 1 / sigma, log scale over world-model updates"' in made
    assert '"total_steps": 20' in said["config"]
    assert '"git_commit"' in said["config"]


def test_every_task_has_its_film(made):
    films = re.findall(r'<img class="film" src="data:image/png;base64,([^"]*)" alt="([^:]*:[^:]*):', made)
    assert sorted(task for _, task in films) == ["dummy:count-0", "dummy:count-1", "dummy:count-2", "dummy:slide"]
    assert made.count('alt="dummy:slide: squared error over steps ahead"') == 1
    assert "two real frames are seen" in made


def test_the_same_folder_gives_the_same_page(copied):
    first = write_report(copied, num_windows=1).read_text()
    assert (copied / "report.html").read_text() == first
    assert write_report(copied, num_windows=1).read_text() == first


def test_without_films(copied, capsys):
    assert main([str(copied), "--windows", "0"]) == 0
    said = read((copied / "report.html").read_text()).sections
    assert said["films"].strip().endswith("The film strips are switched off (--windows 0).")
    assert f"report: {copied / 'report.html'}" in capsys.readouterr().out


def test_an_unfinished_run_without_checkpoint_and_with_a_torn_line(copied, capsys):
    shutil.rmtree(copied / "checkpoints")
    (copied / "scores.json").unlink()
    (copied / "versions.json").unlink()
    path = copied / "metrics.jsonl"
    kept = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= 12]
    path.write_text("\n".join([*kept, '{"step": 13, "task": "dum']))
    assert main([str(copied)]) == 0
    text = (copied / "report.html").read_text()
    said = read(text).sections
    last = max(json.loads(line)["step"] for line in kept)
    assert f"stopped at step {last} of 20, or still running" in text
    assert "Lines of metrics.jsonl that cannot be read and are left out: 1." in text
    for name in ("films", "experts", "similarity"):
        assert "has no checkpoints/step_*.pt" in said[name]
    assert "it is scored when it ends" in said["scores"]
    assert "The run has none." in said["config"]
    out = capsys.readouterr().out
    assert "left out: 1" in out
    assert "Nothing of the model" in out


def test_a_run_that_has_just_begun(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(run_config())))
    said = read(write_report(tmp_path).read_text()).sections
    assert "No episode has ended." in said["returns"]
    assert "No update of the world model has been logged." in said["losses"]
    assert "No update of the agent has been logged." in said["agent"]
    assert "evaluation_episodes 0" in said["scores"]


def test_a_broken_checkpoint_leaves_the_rest_of_the_page(copied):
    (path,) = (copied / "checkpoints").glob("step_*.pt")
    path.write_bytes(b"what is this")
    said = read(write_report(copied).read_text()).sections
    assert "is damaged or cut short, or not a checkpoint" in said["films"]
    assert "dummy:slide" in said["returns"]


def mistake(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("mow report: ")
    return error.removeprefix("mow report: ")


def test_a_mistake_is_one_line_and_exit_2(run_folder, copied, capsys, tmp_path, monkeypatch):
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    assert mistake(capsys).startswith("the following arguments are required: RUN")
    assert mistake(capsys, tmp_path / "gone").startswith(f"no folder {tmp_path / 'gone'}: name a run folder")
    assert "config.json cannot be read (No such file" in mistake(capsys, empty)
    assert mistake(capsys, run_folder, "--windows", "-1").startswith("--windows must be 0 or more, got -1")
    assert "must be a .html in an existing folder" in mistake(capsys, run_folder, "--out", "nowhere/page.html")
    assert "must be a .html in an existing folder" in mistake(capsys, run_folder, "--out", "config.json")
    assert "unknown device 'tpu9'" in mistake(capsys, run_folder, "--device", "tpu9")
    assert "nowhere.pt cannot be read" in mistake(capsys, run_folder, "--checkpoint", "nowhere.pt")
    (copied / "report.html").mkdir()
    assert "name another place with --out" in mistake(capsys, copied, "--windows", "0")
    assert list(empty.iterdir()) == []


# Pages of records made up by hand ------------------------------------------------------------------------------------


def a_report(tmp_path, config=None, **metrics):
    run = RunData(tmp_path, config or run_config(), None, Metrics(**metrics), ())
    return Report(run, None, "Nothing of the model: none was asked for.")


def test_names_cannot_smuggle_anything_in(tmp_path):
    evil = '"><script>alert(1)</script><img src=x onerror=alert(1)>'
    config = dataclasses.replace(run_config(), tasks=(evil, "dummy:slide"), preset="<script>")
    points = Curve((1.0, 2.0), (1.0, 2.0), (1.0, 2.0))
    labels = {f"{name}/{evil}": points for name in ("loss/reward", "agent/entropy", "harmony/weight")}
    run = a_report(tmp_path / "<u>", config, episodes={evil: points}, curves=labels).run
    scores = Scores({evil: (0.0, 1.0, 0.0, 2.0, 0.5, 3)}, 0.5, None)
    run = dataclasses.replace(run, scores=scores, remarks=(evil,))
    run.folder.mkdir()
    for name in ("config.json", "versions.json"):
        (run.folder / name).write_text(evil)
    film = Film(b"", {"imagined": (0.5,), "reconstructed": (float("nan"),), "repeated": (0.0,)})
    model = ModelView(
        checkpoint=evil,
        step=3,
        tasks=(evil, "dummy:slide"),
        module_of_task=(0, 0),
        expert_share=np.eye(2),
        similarity=Similarity(evil, np.eye(2)),
        films={evil: film},
        no_films="",
    )
    for report in (Report(run, model, ""), Report(run, None, evil)):
        text = page(report)
        said = read(text)
        assert {name for attributes in said.pictures for name in attributes} == {"class", "src", "alt"}
        assert "<u>" not in text
        for name in SECTIONS:
            assert name == "time" or "<script>alert(1)" in said.sections[name]  # as words that are read


def test_a_film_whose_episodes_end_before_the_first_imagined_step(tmp_path):
    nothing = dict.fromkeys(("imagined", "reconstructed", "repeated"), (float("nan"),))
    view = ModelView("x.pt", 3, ("dummy:slide",), (0,), np.ones((1, 1)), None, {"dummy:slide": Film(b"", nothing)}, "")
    said = read(page(dataclasses.replace(a_report(tmp_path), model=view, no_model=""))).sections
    assert "Every episode ended before the first imagined step." in said["films"]


def test_the_mean_of_the_last_episodes_by_hand():
    series, window = smoothed(Curve(tuple(range(6)), (0.0,) * 6, (5.0, 0.0, 0.0, 0.0, 5.0, 10.0)))
    assert (window, series.x, series.y) == (5, (4, 5), pytest.approx([2.0, 3.0]))
    assert smoothed(Curve((1, 2), (0.0, 0.0), (1.0, 2.0)))[0].y == pytest.approx([1.5])


def test_time_split_and_weights_where_they_are_logged(tmp_path):
    def curve(*values):
        return Curve(tuple(range(len(values))), tuple(range(len(values))), values)

    curves = {"time/acting": curve(1.0, 2.0), "time/imagination": curve(3.0, 4.0)}
    curves["harmony/weight/dummy:slide"] = curve(0.5)
    said = read(page(a_report(tmp_path, curves=curves))).sections
    for shown in ("30 %", "70 %", "imagination", "seconds"):
        assert shown in said["time"]
    assert "waiting for replay" not in said["time"]
    assert "dummy:slide" in said["harmony"]
    assert "not logged" not in said["harmony"]


def test_other_weightings_have_no_harmony_weights(tmp_path):
    config = run_config(loss=dataclasses.replace(run_config().loss, weighting="uniform"))
    assert "loss.weighting is uniform" in read(page(a_report(tmp_path, config))).sections["harmony"]


@pytest.mark.parametrize(("seconds", "said"), [(3.2, "0:00:03"), (954.0, "0:15:54"), (None, "-")])
def test_the_time_in_the_head(tmp_path, seconds, said):
    assert f"<td>{said}</td></tr>" in page(a_report(tmp_path, seconds=seconds))


def test_a_task_without_an_episode_beside_one_with(tmp_path):
    said = read(page(a_report(tmp_path, episodes={"dummy:slide": Curve((1.0,), (0.0,), (2.0,))}))).sections
    assert said["returns"].count("No episode has ended.") == 2
    assert "last 1: 2.00" in said["returns"]


def test_status_by_hand(tmp_path):
    assert status(a_report(tmp_path, step=31)) == "stopped at step 31 of 32, or still running"
    assert status(a_report(tmp_path, step=32)) == "finished: 32 steps"


def test_the_model_view_is_the_learners(run_folder):
    """Against the checkpoint itself: modules, experts and cosines in the learner's order."""
    import torch

    from mow.methods.registry import read_config
    from mow.report.model import read_model

    config = read_config(run_folder / "config.json")
    (path,) = (run_folder / "checkpoints").glob("step_*.pt")
    content = torch.load(path, weights_only=True)
    view = read_model(run_folder, config, checkpoint=None, device="cpu", num_windows=0)
    kept = content["learner"]["grouping"]
    assert view.tasks == tuple(content["tasks"]) == tuple(config.tasks[k] for k in kept["order"])
    assert list(view.module_of_task) == kept["module_of_task"]
    assert view.expert_share.sum(axis=1) == pytest.approx(np.ones(4))
    assert ((view.expert_share > 0).sum(axis=1) == config.model.experts.experts_per_task).all()
    first, last = kept["order"][0], kept["order"][3]
    assert view.similarity.cosine[0, 3] == float(kept["similarity"][first, last])


def test_where_the_grouping_measured_nothing_the_embeddings_are_compared(tmp_path):
    from mow.methods.registry import read_config
    from mow.report.model import read_model

    folder = tmp_path / "run"
    words = ["--clustering.method", "random", "--evaluation-episodes", "0", "--folder", str(folder)]
    assert train.main(["quickstart", *DUMMY, *words]) == 0
    config = read_config(folder / "config.json")
    found = read_model(folder, config, checkpoint=None, device="cpu", num_windows=0).similarity
    assert found.of.startswith("learned task embeddings")
    assert found.cosine.diagonal() == pytest.approx(np.ones(2))
