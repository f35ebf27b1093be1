"""The tables are complete and legal, say where they come from, and are found by device, dtype and size."""

import json
from pathlib import Path

import pytest
import torch

from mow.kernels import tuned
from mow.kernels.tuned import BUCKETS, CLASSES, OPS, PRECISIONS, Tiling, bucket_of, class_of, load_table, precision_of

FOLDER = Path(tuned.__file__).parent / "tuned"


@pytest.mark.parametrize("name", CLASSES)
def test_table(name: str) -> None:
    table = load_table(name)
    assert {(op, precision, bucket, 0, 0) for op in OPS for precision in PRECISIONS for bucket in BUCKETS} <= set(table)
    for (op, precision, bucket, _, _), cut in table.items():
        assert bucket in BUCKETS
        assert all(n >= 16 and n & (n - 1) == 0 for n in (cut.block_m, cut.block_n, cut.block_k)), cut
        assert cut.num_warps in (4, 8)
        assert cut.implementation in ("packed", "tma", "bmm")
        # The copy engine is that of 9.0, and its kernel takes 16-bit operands; only the door can hand over to cuBLAS.
        assert cut.implementation != "tma" or (name == "sm_90" and precision == "16bit" and op != "dw"), cut
        assert cut.implementation != "bmm" or op == "forward", cut


@pytest.mark.parametrize("name", CLASSES)
def test_table_says_where_it_comes_from(name: str) -> None:
    content = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    assert "No row was timed" in content["evidence"] or content["gpu"], "a GPU's name, or that none has timed it"


def test_no_table_without_a_class() -> None:
    assert sorted(path.stem for path in FOLDER.iterdir()) == sorted(CLASSES)


def test_class_of() -> None:
    names = {(8, 0): "sm_80", (8, 6): "sm_86", (8, 9): "sm_86", (9, 0): "sm_90", (10, 0): "generic", (12, 0): "generic"}
    assert {capability: class_of(*capability) for capability in names} == names


def test_bucket_of() -> None:
    assert [bucket_of(n) for n in (1, 32, 33, 64, 128, 129, 512, 513, 10**6)] == [32, 32, 64, 64, 128, 512, 512, 0, 0]


def test_precision_of() -> None:
    assert precision_of(torch.bfloat16) == precision_of(torch.float16) == "16bit"
    assert precision_of(torch.float32) == "fp32"
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        assert precision_of(torch.float32) == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_a_row_for_the_very_size_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Tiling("bmm", 16, 16, 16, 4, 1)
    table = load_table("sm_90") | {("forward", "16bit", 64, 1024, 512): own}
    monkeypatch.setattr(tuned, "_TABLES", {"sm_90": table})
    monkeypatch.setattr(tuned, "_ask_device", lambda _: "sm_90")
    device = torch.device("cuda", 0)
    assert tuned.tiling("forward", device, torch.bfloat16, 39, 1024, 512) == own
    assert tuned.tiling("forward", device, torch.bfloat16, 39, 512, 1024) == table["forward", "16bit", 64, 0, 0]
    assert tuned.tiling("forward", device, torch.bfloat16, 20, 1024, 512) == table["forward", "16bit", 32, 0, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[1:], r"tuned/odd.json lacks a row for forward, 16bit, 32 rows, N = K = 0"),
        (lambda rows: [*rows, rows[0]], r"tuned/odd.json has two rows for \('forward', '16bit', 32, 0, 0\): keep one"),
    ],
)
def test_bad_table(change, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    content = json.loads((FOLDER / "sm_80.json").read_text(encoding="utf-8"))
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "odd.json").write_text(json.dumps({"rows": change(content["rows"])}), encoding="utf-8")
    monkeypatch.setattr(tuned, "__file__", str(tmp_path / "tuned.py"))
    with pytest.raises(ValueError, match=message):
        load_table("odd")


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_lookup_leaves_one_graph_under_compile(dynamic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuned, "_ask_device", lambda _: "sm_90")
    torch.compiler.reset()

    def looked_up(x: torch.Tensor) -> torch.Tensor:
        cut = tuned.tiling("forward", torch.device("cuda", 0), torch.bfloat16, x.shape[0], 1024, 512)
        return x + {"packed": 1, "tma": 2, "bmm": 3}[cut.implementation]

    compiled = torch.compile(looked_up, backend="eager", fullgraph=True, dynamic=dynamic)
    for num_rows in (39, 1024, 40):
        x = torch.zeros(num_rows)
        assert torch.equal(compiled(x), looked_up(x))
