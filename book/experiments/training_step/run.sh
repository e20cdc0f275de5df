#!/bin/sh
# Measure a training step on every choice of backends, on the GPU that is here.
cd "$(dirname "$0")/../../.." && exec python -m lab record training_step "$@"
