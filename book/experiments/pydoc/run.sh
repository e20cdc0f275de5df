#!/bin/sh
# Train the small model on the GPU that is here.
cd "$(dirname "$0")/../../.." && exec python -m lab record pydoc "$@"
