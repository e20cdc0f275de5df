#!/bin/sh
# Measure what PyTorch does by itself with a language model, on the GPU that is here.
cd "$(dirname "$0")/../../.." && exec python -m lab record baseline_torch "$@"
