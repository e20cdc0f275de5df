"""What the launchers of kernels on rows share."""

import torch

VECTOR_BYTES = 16  # the widest load of one thread


def vector_width(*tensors: torch.Tensor) -> int:
    """Elements to a load: 16 bytes' worth if every row of every tensor starts on a 16-byte boundary, else 1."""
    size = tensors[0].element_size()
    for tensor in tensors:
        pitch = tensor.stride(0) if tensor.dim() > 1 and tensor.shape[0] > 1 else 0
        if tensor.data_ptr() % VECTOR_BYTES or tensor.shape[-1] * size % VECTOR_BYTES or pitch * size % VECTOR_BYTES:
            return 1
    return VECTOR_BYTES // size


def next_power_of_2(n: int) -> int:
    """The smallest power of 2 that is at least n; 1 for 0."""
    return 1 << max(n - 1, 0).bit_length()
