#!/bin/sh
# Measure everything that the linear chapter shows, on the GPU that is here.
cd "$(dirname "$0")/../../.." && exec python -m lab record linear "$@"
