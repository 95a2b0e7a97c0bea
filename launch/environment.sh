# shellcheck shell=bash
# Sourced by the launchers, from any directory: their messages, their dry run, this clone's virtual environment.
#
#   ensure_environment EXTRA      makes, repairs or updates .venv and installs sra_jax[EXTRA]; $python then runs it
#   run COMMAND...                does it; after --dry-run (dry_run=1) prints it; note says what else happens
#
# PYTHON names the interpreter to make .venv with, 3.11 or 3.12. Moves to the clone, $root.

[[ "${PYTHON:-}" != [!/]*/* ]] || PYTHON="$PWD/$PYTHON"
root="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
cd -- "$root" || exit 1
dry_run=''
python=.venv/bin/python
install_log=.venv/install.log

# On a CPU, XLA asks malloc for each step's temporaries: kept pages spare a third of the time of small steps.
export MALLOC_MMAP_THRESHOLD_="${MALLOC_MMAP_THRESHOLD_:-1000000000}" MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-2000000000}"

say() { echo "$*" >&2; }
note() { [[ -z "$dry_run" ]] || echo "# $*"; }
fail() { say "error: $*" && exit 1; }
refuse() { say "error: $* (see --help)" && exit 2; }

# The comment that opens the calling script is its help.
show_help() { awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "launch/${0##*/}"; }

# The words of a command as a shell would need them typed.
quoted() {
  local word line='' plain='^[A-Za-z0-9_./:=,@%+-]+$'
  for word; do
    [[ "$word" =~ $plain ]] || word="'${word//\'/\'\\\'\'}'"
    line+="${line:+ }$word"
  done
  echo "$line"
}

run() { if [[ -n "$dry_run" ]]; then quoted "$@"; else "$@"; fi; }
quietly() { if [[ -n "$dry_run" ]]; then quoted "$@"; else "$@" >>"$install_log" 2>&1 </dev/null; fi; }

# This clone as a tar stream, without what can be made again.
pack_clone() {
  COPYFILE_DISABLE=1 tar --exclude=./.git --exclude='./.venv*' --exclude=./runs --exclude=__pycache__ -cf - .
}

python_version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }
in_range() { [[ "$(python_version "$1")" =~ ^3\.1[12]$ ]]; }

# The first Python of a supported version that can make virtual environments. Asked for its version: a pyenv shim
# exists, and fails, for versions that are not there.
find_python() {
  local candidate crippled='' candidates=(python3.11 python3.12 python3)
  [[ -z "${PYTHON:-}" ]] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    in_range "$candidate" || continue
    "$candidate" -c 'import ensurepip, venv' 2>/dev/null && echo "$candidate" && return
    crippled="${crippled:-$candidate}"
  done
  [[ -z "$crippled" ]] ||
    fail "$crippled lacks ensurepip: apt-get install python$(python_version "$crippled")-venv, or set PYTHON to another"
  [[ -z "${PYTHON:-}" ]] || fail "PYTHON=$PYTHON is not a Python 3.11 or 3.12"
  fail "no Python 3.11 or 3.12 found: install one, or set PYTHON to it"
}

# .venv is whole: nothing was cut short in it, it runs, it has pip, and it is the Python that was asked for, if any was.
environment_works() {
  [[ ! -e .venv/unfinished ]] && in_range "$python" && "$python" -c 'import pip' 2>/dev/null &&
    [[ -z "${PYTHON:-}" || "$(python_version "$PYTHON")" == "$(python_version "$python")" ]]
}

# A failure of pip before it began to install leaves .venv as it was, so that it need not be made anew.
explain_pip() {
  grep -q '^Installing collected packages' "$install_log" || rm -f .venv/unfinished
  local unreachable='NewConnectionError|NameResolutionError|ConnectTimeout|ProxyError|Failed to establish'
  if grep -qE "$unreachable" "$install_log"; then
    fail "pip finds no package index: connect or set PIP_INDEX_URL to a mirror, and try again; see $root/$install_log"
  fi
  fail "pip failed: $(grep '^ERROR' "$install_log" | tail -n 1); see $root/$install_log"
}

ensure_environment() {
  local extra="$1" base wanted
  if ! environment_works; then
    if [[ -n "$dry_run" ]]; then
      base="$(find_python 2>/dev/null)" || base=python3.11
    else
      base="$(find_python)" || exit 1
      say "making .venv with $base"
    fi
    # Without pip it is there at once; whatever is cut short after that leaves the file `unfinished` behind.
    run "$base" -m venv --clear --without-pip .venv
    [[ -n "$dry_run" ]] || : >.venv/unfinished
    quietly "$python" -m ensurepip --default-pip || fail "cannot put pip into .venv; see $root/$install_log"
  fi

  # Every extra brings the core with it, so that any stamp answers for no extra.
  wanted="$(cat setup.py launch/constraints.txt | cksum) $root"
  ! grep -qsxF -- "$wanted" ".venv/installed${extra:+-$extra}"* || return 0
  if [[ -z "$dry_run" ]]; then
    say "installing sra_jax${extra:+[$extra]} into .venv, about a minute"
    : >.venv/unfinished
    : >"$install_log"
  fi
  quietly "$python" -m pip install --disable-pip-version-check \
    --constraint launch/constraints.txt --editable ".${extra:+[$extra]}" || explain_pip
  if [[ -z "$dry_run" ]]; then
    rm .venv/unfinished
    echo "$wanted" >".venv/installed${extra:+-$extra}"
  fi
}
