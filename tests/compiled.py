"""Triton kernels compiled for a GPU that is not there: registers, spills, shared memory and machine code.

What a launch would specialise on must be told here, else what is compiled is not what would run: a stride of one is a
constant expression, and an integer that sixteen divides ends in ":16" ("i32:16"). Pointers count as sixteen-byte
aligned, as fresh tensors are.
"""

import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

triton: Any = pytest.importorskip("triton", reason="compiling kernels needs triton, which is not installed")

# Bytes of shared memory that one program may have, by compute capability.
SHARED_LIMIT = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}


@dataclass(frozen=True)
class Cubin:
    registers: int  # per thread
    stack_bytes: int  # per thread; registers spilled to memory, zero in a good kernel
    shared_bytes: int  # per program
    sass: str  # disassembly

    def count(self, instruction: str) -> int:
        """How often an instruction such as "HGMMA" or "LDG" stands in the code, whatever its suffixes."""
        return len(re.findall(rf"\b{instruction}\b", self.sass))

    def check_resources(self, cc: int) -> None:
        """Nothing spilled, and shared memory within what compute capability `cc` (80, 90, ...) has."""
        assert self.stack_bytes == 0, f"{self.stack_bytes} bytes of registers are spilled per thread"
        assert self.count("STL") == self.count("LDL") == 0, "local memory is used"
        assert self.shared_bytes <= SHARED_LIMIT[cc], f"{self.shared_bytes} bytes of shared memory"


def compile_cubin(
    kernel: Any,
    signature: Mapping[str, str],
    constexprs: Mapping[str, object],
    cc: int,
    num_warps: int,
    num_stages: int,
) -> Cubin:
    """Compile a @triton.jit function for compute capability `cc`, as 80 or 90, as its launch would.

    Args:
        signature: type of every argument that is not constant: "*bf16", "i32", "i32:16", "fp32",
            "tensordesc<bf16[1, 128, 64]>".
        constexprs: value of every constant argument.
    """
    # Imported here: this file must load, and skip, without triton.
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = list(kernel.arg_names)
    if set(names) != {*signature, *constexprs} or set(signature) & set(constexprs):
        wrong = sorted(set(names) ^ {*signature, *constexprs} | (set(signature) & set(constexprs)))
        raise ValueError(f"{wrong} of {kernel.__name__} must be in either signature or constexprs: see its arguments")
    types = {name: signature[name].removesuffix(":16") if name in signature else "constexpr" for name in names}
    aligned = [name for name, type in signature.items() if type.startswith("*") or type.endswith(":16")]
    attrs = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(fn=kernel, signature=types, constexprs=dict(constexprs), attrs=attrs)
    options = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", cc, 32), options=options)
    registers, stack_bytes, sass = _disassemble(compiled.asm["cubin"])
    return Cubin(registers, stack_bytes, compiled.metadata.shared, sass)


def _disassemble(cubin: bytes) -> tuple[int, int, str]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not os.access(tool, os.X_OK):
        pytest.skip(f"this triton comes without {tool.name}")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, sass = (
            subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True)
            for option in ("-res-usage", "-sass")
        )
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage.stdout + usage.stderr)
    assert found is not None, usage.stdout + usage.stderr
    return int(found[1]), int(found[2]), sass.stdout
