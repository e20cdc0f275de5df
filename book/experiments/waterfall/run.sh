#!/bin/sh
# Measure what a faster kernel brings in a layer, a block, a model and a training step, on the GPU that is here.
cd "$(dirname "$0")/../../.." && exec python -m lab record waterfall "$@"
