"""CUDA C++ kernels, compiled at run time by NVRTC through `cuda.core`, and launched on torch's current stream."""
