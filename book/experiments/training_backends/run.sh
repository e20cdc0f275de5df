#!/bin/sh
# Train on every backend, and with five seeds on PyTorch, on the GPU that is here.
cd "$(dirname "$0")/../../.." && exec python -m lab record training_backends "$@"
