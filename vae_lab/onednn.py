"""Matrix products by oneDNN, and where they are faster than those by MKL."""

import platform
from pathlib import Path

import torch
from torch import Tensor


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [N, I], w [O, I], b [O] -> x w^T + b [N, O]; not differentiable."""
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")


def _mkl_is_slow() -> bool:
    """Whether this is a CPU with AVX-512 on which MKL does not use it."""
    return (
        torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and vendor() not in ("", "GenuineIntel")
    )


def vendor(cpus: Path = Path("/proc/cpuinfo")) -> str:
    """The maker of an x86 CPU, as the CPU names it; empty where it is not known."""
    if not cpus.exists():
        return platform.processor().partition(", ")[2]  # Windows: "AMD64 Family 25, AuthenticAMD"
    with cpus.open() as file:  # which the system writes as it is read, anew for every core
        lines = (line.partition(":") for line in file)
        return next((value.strip() for name, _, value in lines if name.strip() == "vendor_id"), "")


MKL_IS_SLOW = _mkl_is_slow()
