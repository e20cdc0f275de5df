"""LLM Kernel Lab: the kernels of a large language model, from PyTorch through Triton to CUDA C++.

    from lab import get_op
    rmsnorm = get_op("rmsnorm", backend="triton")

On a machine with no GPU, importing `lab` switches Triton to its interpreter, so that every Triton kernel runs, slowly,
on CPU tensors. The switch is an environment variable that Triton reads when it is first imported: import `lab` first.
"""

import os
import sys

import torch

if not torch.cuda.is_available() and "triton" not in sys.modules:
    os.environ.setdefault("TRITON_INTERPRET", "1")

from lab import ops
from lab.backends.implementation import BackendUnavailable, trace
from lab.backends.registry import get_op, register_backend
from lab.check import check

__all__ = ["BackendUnavailable", "check", "get_op", "ops", "register_backend", "trace"]
__version__ = "0.1.0"
