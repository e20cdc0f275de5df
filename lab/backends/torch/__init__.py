"""The baseline: PyTorch's own best way to run each operator."""
