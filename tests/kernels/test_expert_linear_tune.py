"""The tuner: what it would time is legal, what it chooses follows from the times, what it writes can be read."""

import json
from collections import Counter
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import tune_expert_linear as tuner
from mow.kernels import tuned
from mow.kernels.tuned import BUCKETS, CLASSES, OPS, Tiling, load_table

FAST, SLOW = Tiling("packed", 64, 64, 64, 4, 3), Tiling("packed", 128, 128, 64, 8, 3)
NARROW, WIDE = (512, 512), (1024, 512)


@pytest.mark.parametrize("name", CLASSES)
def test_every_tiling_fits_its_class(name: str) -> None:
    for op in OPS:
        for bucket in BUCKETS:
            found = tuner.tilings(op, bucket, "16bit", name)
            assert 10 < len(found) == len(set(found)) < 100  # a choice, but no night's work
            for cut in found:
                assert tuner.shared_bytes(cut, op, bucket, "16bit") <= tuner.SHARED_KB[name] * 1024
                assert cut.implementation == "packed" or name == "sm_90"


def test_the_shipped_rows_are_among_what_is_timed() -> None:
    for name in CLASSES:
        for (op, precision, bucket, _, _), cut in load_table(name).items():
            if precision == "16bit" and op != "dw":
                assert cut in tuner.tilings(op, bucket, "16bit", name), (name, op, bucket, cut)


def test_dry_run_lists_tilings(capsys: pytest.CaptureFixture[str]) -> None:
    tuner.main(["--dry-run", "--class", "sm_90", "--op", "forward", "--rows", "0"])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("forward 16bit rows 0: ")
    assert int(printed[0].split()[-2]) == len(printed) - 1 > 10
    assert any("implementation='tma'" in line for line in printed)


@pytest.mark.skipif(torch.cuda.is_available(), reason="would time for minutes")
def test_without_a_gpu_it_says_what_it_can_do(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tuner.main([])
    assert "no GPU is visible: add --dry-run to list what would be timed" in capsys.readouterr().err


def test_one_row_serves_all_widths_where_none_gains_much() -> None:
    times = {NARROW: {FAST: 10.0, SLOW: 12.0}, WIDE: {FAST: 20.0, SLOW: 19.5}}
    rows = tuner.best_rows("dx", "16bit", 64, times, {})
    assert [(row["N"], row["K"], row["block_m"], row["implementation"]) for row in rows] == [(0, 0, 64, "packed")]


def test_a_width_that_gains_gets_its_own_row() -> None:
    times = {NARROW: {FAST: 10.0, SLOW: 20.0}, WIDE: {FAST: 20.0, SLOW: 18.0}}
    rows = tuner.best_rows("dx", "16bit", 64, times, {})
    assert [(row["N"], row["K"], row["block_m"]) for row in rows] == [(0, 0, 64), (1024, 512, 128)]


def test_cublas_is_taken_where_it_is_faster() -> None:
    times = {NARROW: {FAST: 10.0}, WIDE: {FAST: 20.0}}
    rows = tuner.best_rows("forward", "16bit", 0, times, {NARROW: 11.0, WIDE: 12.0})
    assert [(row["N"], row["implementation"]) for row in rows] == [(0, "bmm"), (512, "packed")]
    rows = tuner.best_rows("forward", "16bit", 0, times, {NARROW: 30.0, WIDE: 12.0})
    assert [(row["N"], row["implementation"]) for row in rows] == [(0, "packed"), (1024, "bmm")]


def test_what_it_writes_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = Path(tuned.__file__).parent / "tuned" / "sm_90.json"
    content = json.loads(shipped.read_text(encoding="utf-8"))
    (tmp_path / "tuned").mkdir()
    tuner.write_table(tmp_path / "tuned" / "own.json", {"evidence": content["evidence"]}, content["rows"])
    assert (tmp_path / "tuned" / "own.json").read_bytes() == shipped.read_bytes()
    monkeypatch.setattr(tuned, "__file__", str(tmp_path / "tuned.py"))
    assert load_table("own") == tuned._TABLES["sm_90"]


def test_what_was_timed_on_this_gpu_is_left_out() -> None:
    wanted: list[tuner.Key] = [("forward", "16bit", 64), ("dx", "16bit", 0)]
    table: dict[str, object] = {"gpu": "A", "timed": ["dx 16bit 0"]}
    assert tuner.untimed(wanted, table, "A") == wanted[:1]
    assert tuner.untimed(wanted, table, "B") == wanted  # another GPU of the class
    assert tuner.untimed(wanted, {}, "A") == wanted


def test_every_tiling_is_compiled_ahead_once(capsys: pytest.CaptureFixture[str]) -> None:
    ran: list[tuple[object, ...]] = []

    class Pool(Executor):
        """Runs nothing; the last share breaks."""

        def submit(self, function: Any, /, *arguments: Any, **_: Any) -> Future[Any]:
            assert function is tuner.run_once
            op, bucket, precision, width, cuts = arguments
            ran.extend((op, bucket, precision, width, cut) for cut in cuts)
            future: Future[Any] = Future()
            if width == tuner.WIDTHS[-1]:
                future.set_exception(RuntimeError("it broke"))
            else:
                future.set_result(None)
            return future

    tuner.compile_ahead(Pool(), 7, "dw", 512, "16bit", "sm_90")
    cuts = tuner.tilings("dw", 512, "16bit", "sm_90")
    wanted = [("dw", 512, "16bit", width, cut) for width in tuner.WIDTHS for cut in cuts]
    assert Counter(ran) == Counter(wanted)
    assert "ahead: RuntimeError: it broke" in capsys.readouterr().out
