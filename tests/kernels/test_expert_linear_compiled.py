"""Every row of the tuned tables compiled for the GPU it is meant for: no spills, enough shared memory, matrix units."""

from collections.abc import Iterator

import pytest

from mow.kernels.tuned import CLASSES, UNALIGNED_TILING, Precision, Tiling, load_table
from tests.compiled import Cubin, compile_cubin

pytest.importorskip("triton", reason="compiling kernels needs triton, which is not installed")

from mow.kernels import expert_linear_grads as grads
from mow.kernels import expert_linear_kernels as kernels
from mow.kernels.expert_linear_launch import CAST_IN_KERNEL_ROWS, stages_asked

# The GPUs of each class; the generic table must fit the smallest, whatever its generation.
CAPABILITIES = {"sm_80": (80,), "sm_86": (86, 89), "sm_90": (90,), "generic": (86, 100, 120)}
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
                    in_kernel = precision == "16bit" and 0 < bucket <= CAST_IN_KERNEL_ROWS and op != "dw"
                    for wide in (False, True) if in_kernel else (False,):
                        case = (kind, precision, cut, wide, cc)
                        if case not in seen:
                            seen.add(case)
                            yield case


def compile_case(kernel: str, precision: Precision, cut: Tiling, wide: bool, cc: int) -> Cubin:
    """The program for a layer of usual sizes: K and N multiples of 16 and of the blocks, every epilogue but rare ones."""
    number = "bf16" if precision == "16bit" else "fp32"
    blocks = {"BLOCK_M": cut.block_m, "BLOCK_N": cut.block_n, "BLOCK_K": cut.block_k}
    exact = {"PRECISION": "tf32" if precision == "tf32" else "ieee", "UPCAST": False}
    pointers = {"x_ptr": f"*{number}", "w_ptr": "*fp32" if wide else f"*{number}", "y_ptr": f"*{number}"}
    plan = {"member_ptr": "*i32", "offset_ptr": "*i32"}
    terms = {"bias_ptr": "*fp32", "task_bias_ptr": "*fp32"}
    sizes = {"num_slots": "i32", "num_rows": "i32", "N": "i32:16", "K": "i32:16"}
    x_strides = dict.fromkeys(("x_stride_task", "x_stride_slot", "x_stride_row"), "i32:16")
    dy_strides = dict.fromkeys(("dy_stride_task", "dy_stride_slot", "dy_stride_row"), "i32:16")
    w_strides = dict.fromkeys(("w_stride_e", "w_stride_n"), "i32:16")

    def built(function: object, signature: dict[str, str], constexprs: dict[str, object]) -> Cubin:
        stages = stages_asked(cut, index_in_loop=kernel in ("dx_shared_tma", "dw"))  # as the launch does
        return compile_cubin(function, signature, constexprs, cc, cut.num_warps, stages)

    if kernel in ("packed", "dx"):
        w_inner = {"packed": "w_stride_k", "dx": "w_stride_n"}[kernel]
        strides = {name: "i32:16" for name in ("w_stride_e", "w_stride_n", "w_stride_k") if name != w_inner}
        absent: dict[str, object] = dict.fromkeys(("residual_ptr", "pre_ptr"))
        absent |= dict.fromkeys((f"residual_stride_{axis}" for axis in ("task", "slot", "row")), 0)
        if kernel == "dx":
            absent |= dict.fromkeys(terms)
        return built(
            kernels.packed_kernel,
            pointers | plan | sizes | {"num_experts": "i32"} | x_strides | strides | (terms if kernel == "packed" else {}),
            absent | exact | blocks | {
                w_inner: 1, "ACTIVATION": "silu" if kernel == "packed" else "none", "EVEN_K": True, "EXPERTS": 16,
            },
        )  # fmt: skip
    if kernel == "dx_shared":
        return built(
            kernels.dx_shared_kernel,
            {"dy_ptr": f"*{number}", "w_ptr": pointers["w_ptr"], "dx_ptr": f"*{number}", "route_ptr": "*i64"}
            | sizes | dy_strides | w_strides,
            exact | blocks | {"w_stride_k": 1, "EVEN_N": True},
        )  # fmt: skip
    if kernel == "dw":
        return built(
            grads.dw_kernel,
            {"dy_ptr": f"*{number}", "x_ptr": f"*{number}", "dw_ptr": "*fp32", "partial_ptr": "*fp32"}
            | plan | sizes | {"num_experts": "i32", "rows_per_chunk": "i32"} | dy_strides | x_strides,
            exact | blocks | {"WHOLE_TILES": True, "EXPERTS": 16},
        )  # fmt: skip
    forward, summed = kernel == "tma", kernel == "dx_shared_tma"
    of_x, of_y = f"1, 1, {cut.block_m}, {cut.block_k}", f"1, 1, {cut.block_m}, {cut.block_n}"
    of_w = f"1, {cut.block_n}, {cut.block_k}" if forward else f"1, {cut.block_k}, {cut.block_n}"
    return built(
        kernels.tma_kernel,
        {"x_desc": f"tensordesc<bf16[{of_x}]>", "w_desc": f"tensordesc<bf16[{of_w}]>",
         "y_desc": f"tensordesc<bf16[{of_y}]>", "route_ptr": "*i64", "num_groups": "i32"}
        | sizes | (terms if forward else {}),
        {"pre_desc": None, "residual_desc": None} | ({} if forward else dict.fromkeys(terms)) | blocks | {
            "ACTIVATION": "silu" if forward else "none", "SUM_SLOTS": summed, "SHARED_INPUT": False,
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
