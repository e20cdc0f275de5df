"""What every Triton launcher asks: can it run here, and which dtype to accumulate in."""

import torch
import triton
import triton.language as tl

from lab.backends.hardware import gpu_of

INTERPRETED = triton.knobs.runtime.interpret  # as Triton reads TRITON_INTERPRET: "1", "true", "on" and the like


def unavailable(device: torch.device) -> str | None:
    """Why Triton kernels cannot run on `device`, or None."""
    if device.type == "cuda" and INTERPRETED:
        return "TRITON_INTERPRET=1 is set, so Triton interprets kernels on the CPU; unset it and start Python again"
    if device.type == "cpu" and not INTERPRETED:
        why = "this process compiles Triton for the GPU" if torch.cuda.is_available() else "Triton was imported first"
        return f"CPU tensors need Triton's interpreter, and {why}; set TRITON_INTERPRET=1, or import lab first"
    if device.type not in ("cpu", "cuda", "meta"):
        return f"Triton kernels here run on cuda tensors, not on {device.type}"
    return None


def refuses_dtype(x: torch.Tensor, *_) -> str | None:
    """bfloat16 where it gives garbage (the interpreter) or does not exist (before Ampere)."""
    if x.dtype != torch.bfloat16:
        return None
    if x.device.type == "cpu":
        return "x is bfloat16, which Triton's interpreter computes wrongly; expected float16, float32 or float64 there"
    if gpu_of(x.device).capability < (8, 0):
        return f"x is bfloat16, which {gpu_of(x.device).name} lacks; expected float16 or float32"
    return None


def refuses_longer_rows(columns: int):
    """An `Implementation.refuses` for rungs that hold a row in registers."""

    def refuses(x: torch.Tensor, *_) -> str | None:
        if x.shape[-1] > columns:
            return f"a row of {x.shape[-1]} columns does not fit registers; expected at most {columns}"
        return refuses_dtype(x)

    return refuses


def accumulator(dtype: torch.dtype) -> tl.dtype:
    """float64 stays float64; everything else is accumulated in float32."""
    return tl.float64 if dtype == torch.float64 else tl.float32
