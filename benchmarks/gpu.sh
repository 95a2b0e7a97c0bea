#!/usr/bin/env bash
# Measure this project on the GPU of this machine, in one call of eight minutes: exactness, speed, a PyTorch peer, learning.
#
# usage: bash benchmarks/gpu.sh [--parts=check,train,...] [--minutes=8] [--out=FOLDER] [--tiny] [--peer=FOLDER]
#
# benchmarks/gpu.py does the work and explains the flags: bash benchmarks/gpu.sh --help.
# Needs jax, flax, optax and numpy; PyTorch for the peer. $PYTHON names the Python to use (default: the one of .venv,
# otherwise python3).

set -euo pipefail

here="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
python="$here/../.venv/bin/python"
[[ -x "$python" ]] || python=python3
exec "${PYTHON:-$python}" -u "$here/gpu.py" "$@"
