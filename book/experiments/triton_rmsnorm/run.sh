#!/bin/sh
# Measure what is left of a faster RMSNorm in the model, on the GPU that is here.
cd "$(dirname "$0")/../../.." && exec python -m lab record triton_rmsnorm "$@"
