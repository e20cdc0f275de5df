"""CUDA C++ kernels, compiled at run time by NVRTC and launched on torch's current stream, both through `cuda.core`."""
