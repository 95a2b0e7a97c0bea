#!/usr/bin/env bash
# Train, sample, score and probe a small SiT with Self-Representation Alignment on handwritten digits: minutes on two cores.
#
# usage: bash launch/quickstart.sh [--fresh] [--dry-run]
#
#   bash launch/quickstart.sh             set up, train, sample, evaluate, probe; run again, it goes on where it stopped
#   bash launch/quickstart.sh --fresh     delete runs/digits first
#   bash launch/quickstart.sh --dry-run   print the commands and run none
#
# $PYTHON names the Python (3.11 or 3.12) to make .venv with. Everything it makes lies in .venv and runs/digits.

set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

fresh=''
for argument; do
  case "$argument" in
    -h | --help) show_help && exit ;;
    --dry-run) dry_run=1 ;;
    --fresh) fresh=1 ;;
    *) refuse "unknown argument: $argument" ;;
  esac
done

ensure_environment ''
[[ -z "$fresh" ]] || run rm -rf runs/digits
run "$python" -m sra_jax train --config=configs/digits.py --workdir=runs/digits
run "$python" -m sra_jax sample --workdir=runs/digits --out=runs/digits/samples.npz --grid=runs/digits/samples.png \
  --num=1000 --seed=0
run "$python" -m sra_jax evaluate --samples=runs/digits/samples.npz --reference=embedded:digits
run "$python" -m sra_jax probe --workdir=runs/digits
[[ -z "$dry_run" ]] || exit 0

echo
echo "Pictures:"
find runs/digits -name '*.png' | sort | while read -r picture; do echo "  $root/$picture"; done
echo "Curves: $root/.venv/bin/tensorboard --logdir=$root/runs/digits"
