"""What tests of Triton kernels share: a process with Triton's interpreter, and compiling for GPUs without one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in Triton's interpreter, in a process of its own")
compiled = pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
ROUNDING = 3e-7  # of a float32 sum, relative to the sum of what is added, and of x0_hat


def run_interpreted(file: str) -> None:
    """Run a file of tests again where Triton interprets; it reads TRITON_INTERPRET when it is imported."""
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", file]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def assembler(kernel: Any, config: dict[str, int | bool], warps: int, capability: int, types: dict[str, str]) -> tuple[str, str]:
    """The kernel for a GPU of this compute capability: as PTX, and what it takes of the GPU.

    Args:
        types: of the arguments, where not i32. Pointers, and numbers whose type is "row", are multiples of 16.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = list(kernel.arg_names)
    types = {name: "constexpr" if name in config else types.get(name, "i32") for name in names}
    aligned = {
        (place,): [["tt.divisibility", 16]] for place, name in enumerate(names) if types[name][0] == "*" or types[name] == "row"
    }
    signature = {name: "i32" if kind == "row" else kind for name, kind in types.items()}
    made = triton.compile(
        ASTSource(kernel, signature, config, aligned), target=GPUTarget("cuda", capability, 32), options={"num_warps": warps}
    )
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    binary = Path(os.environ["TRITON_CACHE_DIR"]) / "kernel.cubin"
    binary.write_bytes(made.asm["cubin"])
    usage = subprocess.run([tool, "--dump-resource-usage", binary], capture_output=True, text=True, check=True).stdout
    return made.asm["ptx"], usage
