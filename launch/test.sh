#!/usr/bin/env bash
# Run the tests, in a virtual environment that this script makes and keeps up to date.
#
# usage: bash launch/test.sh [--dry-run] [PYTEST_ARGUMENT...]
#
#   bash launch/test.sh                       the default suite
#   bash launch/test.sh -m slow               the tests that take minutes
#   bash launch/test.sh tests/launch -k help  some of them (paths start at the clone)
#
# $PYTHON names the Python (3.11 or 3.12) to make .venv with. --dry-run prints the commands and runs none.

set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

case "${1:-}" in
  -h | --help) show_help && exit ;;
  --dry-run) dry_run=1 && shift ;;
esac

ensure_environment test
# Two at a time, each file in one process, in the order that tests/conftest.py gives them: most of the
# time goes to compilation, which takes one core.
run "$python" -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder "$@"
