#!/bin/sh
# Measure the decode step on the GPU that is here, with the package as it was when the cache was one tensor.
set -e
cd "$(dirname "$0")/../../.."
here=$PWD/book/experiments/one_cache then=$(mktemp -d)
git worktree add --detach "$then" 0456b746164ec5c4212d39ac74a8fd154367ae40
trap 'git worktree remove --force "$then"' EXIT
cd "$then" && PYTHONPATH="$then" python -m lab record one_cache --output "$here" "$@"
