"""Every row of the tuned tables compiled for the GPU it is meant for: no spills, enough shared memory, matrix units."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from mow.kernels.tuned import CLASSES, ODD_TILING, POINTER_TILING, Precision, Tiling, load_table
from tests.compiled import Cubin, compile_cubin

pytest.importorskip("triton", reason="compiling kernels needs triton, which is not installed")

from mow.kernels import expert_linear_grads as grads
from mow.kernels import expert_linear_kernels as kernels
from mow.kernels import expert_linear_launch as launch

# The GPUs of each class; the generic table must fit the smallest, whatever its generation.
CAPABILITIES = {"sm_80": (80,), "sm_86": (86,), "sm_90": (90,), "generic": (86, 120)}
# Instructions of the matrix units, by capability: warp-wide, warpgroup-wide (9.0), and that of the tensor memory.
MATRIX = ("HMMA", "HGMMA", "UTCHMMA")

Case = tuple[str, Precision, Tiling, bool, int]  # kernel, precision, tiling, float32 weight, capability


def cases() -> Iterator[Case]:
    """All different programs that the tables ask for."""
    seen = set()
    for name in CLASSES:
        for (op, precision, bucket, _, _), cut in load_table(name).items():
            for cc in CAPABILITIES[name]:
                kernel = {"packed": "packed", "bmm": "packed", "tma": "tma"}[cut.implementation]
                of_op = {
                    "forward": [kernel],
                    "dx": ["dx_tma", "dx_shared_tma"] if kernel == "tma" else ["dx", "dx_shared"],
                    "dw": ["dw"],
                }
                for kind in of_op[op]:
                    # A float32 weight is rounded within the kernel where rows are few.
                    in_kernel = precision == "16bit" and 0 < bucket <= launch.CAST_IN_KERNEL_ROWS and op != "dw"
                    for wide in (False, True) if in_kernel else (False,):
                        case = (kind, precision, cut, wide, cc)
                        if case not in seen:
                            seen.add(case)
                            yield case


def compile_case(
    kernel: str, precision: Precision, cut: Tiling, wide: bool, cc: int, *, everything: bool = False, even: bool = True
) -> Cubin:
    """The program for a layer with both biases and an activation.

    Args:
        wide: the weight is float32, the input not.
        everything: with a residual too, and what the activation saw kept for the gradient.
        even: sizes are multiples of the blocks; the sizes that are summed over are always multiples of 16.
    """
    number = "bf16" if precision == "16bit" else "fp32"
    blocks = {"BLOCK_M": cut.block_m, "BLOCK_N": cut.block_n, "BLOCK_K": cut.block_k}
    exact = {"PRECISION": "tf32" if precision == "tf32" else "ieee", "UPCAST": False}
    pointers = {"x_ptr": f"*{number}", "w_ptr": "*fp32" if wide else f"*{number}", "y_ptr": f"*{number}"}
    plan = {"member_ptr": "*i32", "offset_ptr": "*i32"}
    terms = {"bias_ptr": "*fp32", "task_bias_ptr": "*fp32"}
    sizes = {"num_slots": "i32", "num_rows": "i32", "N": "i32:16", "K": "i32:16"}
    x_strides, dy_strides, residual_strides = (
        dict.fromkeys((f"{name}_stride_{axis}" for axis in ("task", "slot", "row")), "i32:16")
        for name in ("x", "dy", "residual")
    )
    activation = "gelu" if everything else "silu"

    def built(function: object, signature: dict[str, str], constexprs: dict[str, object]) -> Cubin:
        stages = launch.stages_asked(cut, index_in_loop=kernel in ("dx_shared_tma", "dw"))  # as the launch does
        return compile_cubin(function, signature, constexprs, cc, cut.num_warps, stages)

    if kernel in ("packed", "dx"):
        w_inner = {"packed": "w_stride_k", "dx": "w_stride_n"}[kernel]
        strides = {name: "i32:16" for name in ("w_stride_e", "w_stride_n", "w_stride_k") if name != w_inner}
        present = pointers | plan | sizes | {"num_experts": "i32"} | x_strides | strides
        absent: dict[str, object] = {}
        if everything:
            present |= {"residual_ptr": f"*{number}", "pre_ptr": f"*{number}"} | residual_strides
        else:
            absent |= dict.fromkeys(("residual_ptr", "pre_ptr")) | dict.fromkeys(residual_strides, 0)
        if kernel == "packed":
            present |= terms | {"N": "i32:16" if even else "i32"}
        else:
            absent |= dict.fromkeys(terms)
        absent |= {"ACTIVATION": activation if kernel == "packed" else "none"}
        return built(
            kernels.packed_kernel, present, absent | exact | blocks | {w_inner: 1, "EVEN_K": even, "EXPERTS": 16}
        )
    if kernel == "dx_shared":
        return built(
            kernels.dx_shared_kernel,
            {"dy_ptr": f"*{number}", "w_ptr": pointers["w_ptr"], "dx_ptr": f"*{number}", "route_ptr": "*i64"}
            | sizes | dy_strides | {"w_stride_e": "i32:16", "w_stride_n": "i32:16"},
            exact | blocks | {"w_stride_k": 1, "EVEN_N": even},
        )  # fmt: skip
    if kernel == "dw":
        return built(
            grads.dw_kernel,
            {"dy_ptr": f"*{number}", "x_ptr": f"*{number}", "dw_ptr": "*fp32", "partial_ptr": "*fp32"}
            | plan | sizes | {"num_experts": "i32", "rows_per_chunk": "i32"} | dy_strides | x_strides,
            exact | blocks | {"WHOLE_TILES": even, "EXPERTS": 16},
        )  # fmt: skip
    forward, summed = kernel == "tma", kernel == "dx_shared_tma"
    of_x, of_y = f"1, 1, {cut.block_m}, {cut.block_k}", f"1, 1, {cut.block_m}, {cut.block_n}"
    of_w = f"1, {cut.block_n}, {cut.block_k}" if forward else f"1, {cut.block_k}, {cut.block_n}"
    return built(
        kernels.tma_kernel,
        {"x_desc": f"tensordesc<bf16[{of_x}]>", "w_desc": f"tensordesc<bf16[{of_w}]>",
         "y_desc": f"tensordesc<bf16[{of_y}]>"}
        | ({"pre_desc": f"tensordesc<bf16[{of_y}]>"} if everything else {})
        | {"route_ptr": "*i64", "num_groups": "i32"}
        | sizes | (terms if forward else {}),
        ({} if everything else {"pre_desc": None})
        | ({} if forward else dict.fromkeys(terms)) | blocks | {
            "ACTIVATION": activation if forward else "none", "SUM_SLOTS": summed, "SHARED_INPUT": False,
            "TRANSPOSED": not forward, "PROGRAMS": 132, "UPCAST": False,
        },
    )  # fmt: skip


def check(case: Case) -> Cubin:
    kernel, precision, cut, _, cc = case
    cubin = compile_case(*case)
    cubin.check_resources(cc)
    if precision != "fp32":
        assert any(cubin.count(instruction) for instruction in MATRIX), "no matrix instruction"
    if cc == 90 and precision == "16bit" and cut.block_m >= 64:
        assert cubin.count("HGMMA"), "the warpgroup's matrix instruction takes tiles of 64 rows"
    if kernel.endswith("tma"):
        assert cubin.count("UTMALDG"), "tiles do not come by the copy engine"
    else:
        assert not cubin.count("LDG.E.U16"), "16-bit numbers are loaded one by one"
    return cubin


# One of each kind, with the tiles that most need registers and shared memory; the rest takes minutes.
FEW = {("packed", 64, 64), ("packed", 64, 128), ("dx_shared", 64, 64), ("dw", 128, 128), ("tma", 128, 256)}
FEW |= {("dx_tma", 128, 256), ("dx_shared_tma", 128, 256)}


def is_one_of_few(case: Case) -> bool:
    kernel, precision, cut, wide, cc = case
    shape = (kernel, cut.block_m, cut.block_n)
    return precision == "16bit" and cc in (80, 90) and shape in FEW and wide == (shape == ("packed", 64, 128))


ALL = list(cases())


def name_of(case: Case) -> str:
    kernel, precision, cut, wide, cc = case
    blocks = f"{cut.block_m}x{cut.block_n}x{cut.block_k}-w{cut.num_warps}-s{cut.num_stages}"
    return f"{kernel}-{precision}-{blocks}{'-wide' if wide else ''}-sm_{cc}"


@pytest.mark.parametrize("case", [case for case in ALL if is_one_of_few(case)], ids=name_of)
def test_largest_programs(case: Case) -> None:
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in ALL if not is_one_of_few(case)], ids=name_of)
def test_every_row_of_the_tables(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("cc", [80, 90])
def test_odd_outputs_do_not_spill(cc: int) -> None:
    compile_case("packed", "16bit", ODD_TILING, False, cc, everything=True, even=False).check_resources(cc)


@pytest.mark.parametrize("cc", [80, 90])
def test_a_residual_and_what_is_kept_do_not_spill(cc: int) -> None:
    compile_case("packed", "16bit", POINTER_TILING, False, cc, everything=True).check_resources(cc)


def test_what_the_copy_engine_keeps_does_not_spill() -> None:
    for (op, precision, *_), cut in load_table("sm_90").items():
        if (op, precision, cut.implementation) == ("forward", "16bit", "tma"):
            kept = replace(cut, block_n=min(cut.block_n, 128))  # as the launch does
            compile_case("tma", "16bit", kept, False, 90, everything=True).check_resources(90)


@pytest.mark.parametrize("cc", [80, 90])
def test_sums_read_and_write_whole_vectors(cc: int) -> None:
    rows, columns = launch._SUM_TILE
    strides = dict.fromkeys(("dy_stride_task", "dy_stride_slot", "dy_stride_row"), "i32:16")
    cubin = compile_cubin(
        grads.pre_grad_kernel,
        {"dy_ptr": "*bf16", "pre_ptr": "*bf16", "dpre_ptr": "*bf16", "partial_ptr": "*fp32", "num_slots": "i32",
         "num_rows": "i32", "N": "i32:16", "rows_per_chunk": "i32:16", "num_chunks": "i32"} | strides,
        {"ACTIVATION": "gelu", "BLOCK_R": rows, "BLOCK_N": columns}, cc, 4, 3,
    )  # fmt: skip
    cubin.check_resources(cc)
    assert "LDG.E.128" in cubin.sass
    assert "STG.E.128" in cubin.sass
    assert not cubin.count("LDG.E.U16")


def test_the_check_sees_spills() -> None:
    cubin = compile_case("tma", "16bit", Tiling("tma", 128, 256, 64, 8, 3), False, 90, everything=True)
    with pytest.raises(AssertionError, match="bytes of registers are spilled per thread"):
        cubin.check_resources(90)
