#!/bin/sh
# Measure the transposes that the chapter on the GPU shows, on the GPU that is here.
cd "$(dirname "$0")/../../.." && exec python -m lab record transpose "$@"
