"""The residual add fused into RMSNorm: the kernels of `rmsnorm.py` in their ADD form, rung by rung."""

from lab.backends.rows import fuse_add
from lab.backends.triton import rmsnorm

LADDER = [fuse_add(rung) for rung in rmsnorm.LADDER]
