#!/bin/sh
# Measure what is left of another linear in the model, on the GPU that is here.
cd "$(dirname "$0")/../../.." && exec python -m lab record replace_linear "$@"
