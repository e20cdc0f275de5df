#!/bin/sh
# Measure what goes wrong in measuring, on the GPU that is here.
cd "$(dirname "$0")/../../.." && exec python -m lab record timing "$@"
