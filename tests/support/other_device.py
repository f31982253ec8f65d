"""Two devices that are not the CPU, on a machine that has no other: built with the machine's own compiler.

``load`` changes torch for the whole process: use it in a process of its own.
"""

from __future__ import annotations

import copy
import shutil
import subprocess
import types
from pathlib import Path

import torch
from torch import nn

SOURCE = Path(__file__).with_suffix(".cpp")


def build(folder: Path) -> Path | str:
    """Compile the devices: the library, or why there is none."""
    compiler = shutil.which("g++")
    if compiler is None:
        return "needs g++ to build a device that is not the CPU"
    include, library = Path(torch.__file__).parent / "include", folder / "other_device.so"
    command = [
        compiler, "-O0", "-shared", "-fPIC", "-std=c++20", f"-I{include}",
        f"-I{include}/torch/csrc/api/include", str(SOURCE), f"-L{include.parent / 'lib'}", "-ltorch_cpu", "-lc10",
        "-o", str(library),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        return f"torch {torch.__version__} and {compiler} build no device: {lines[0][:300]}"
    return library


def load(library: Path) -> None:
    """Let torch know the devices, as ``other:0`` and ``other:1``."""
    torch.utils.rename_privateuse1_backend("other")
    torch.ops.load_library(str(library))
    module = types.ModuleType("torch.other")
    module.is_available = module.is_initialized = lambda: True  # type: ignore[attr-defined]
    module.device_count = lambda: 2  # type: ignore[attr-defined]
    module.current_device = lambda: 0  # type: ignore[attr-defined]
    module._is_in_bad_fork = lambda: False  # type: ignore[attr-defined]
    module.manual_seed_all = lambda seed: None  # type: ignore[attr-defined]
    module.get_rng_state = lambda device=0: torch.empty(0)  # type: ignore[attr-defined]
    module.set_rng_state = lambda state, device=0: None  # type: ignore[attr-defined]
    module.get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]  # type: ignore[attr-defined]
    torch._register_device_module("other", module)
    torch.utils.generate_methods_for_privateuse1_backend()


def moved(model: nn.Module, to: str) -> nn.Module:
    """A copy on a device; weights that are tied stay so, which ``Module.to`` sees to for CUDA alone."""
    memo: dict[int, object] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        there = tensor.detach().to(to)
        memo[id(tensor)] = nn.Parameter(there, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else there
    return copy.deepcopy(model, memo)
