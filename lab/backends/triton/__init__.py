"""Triton kernels: compiled for the GPU that is there, or run by Triton's interpreter on a machine with none."""
