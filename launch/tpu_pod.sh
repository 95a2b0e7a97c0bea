#!/usr/bin/env bash
# Train on a TPU pod slice: find or request it, copy this clone to every worker, train, restart after preemption.
#
# usage: bash launch/tpu_pod.sh [run|log|status|delete] [FLAG...]
#
#   bash launch/tpu_pod.sh --dry-run
#   bash launch/tpu_pod.sh --name=xl --type=v5litepod-256 --spot --workdir=gs://BUCKET/xl --config.mesh.fsdp=16
#   bash launch/tpu_pod.sh log --name=xl
#   bash launch/tpu_pod.sh delete --name=xl
#
#   run       the default. Ctrl-C leaves the workers training; `run` again makes them save, updates the code and resumes
#   log       follow worker 0
#   status    the state of the VM, or of the request for it
#   delete    the VM and the request
#
#   --name=NAME        of the VM and of the request for it     sra
#   --zone=ZONE                                                us-west4-a
#   --project=PROJECT                                          gcloud's own
#   --type=TYPE        accelerator type                        v5litepod-16
#   --runtime=VERSION  runtime version of that type            v2-alpha-tpuv5-lite
#   --spot             cheaper, preemptible                    on demand
#   --config=FILE:ARG  and --config.FIELD=VALUE, as for train  configs/sit_sra.py:XL/2
#   --workdir=DIR      gs://BUCKET/RUN, seen by every worker   must be given
#   --restarts=N       at most, of whatever cause              1000
#   --dry-run          print the commands and run none
#
# The default of --zone is $SRA_ZONE if that is set, and so for every flag but --dry-run (SRA_SPOT=1).
# Exit code: that of the training.

set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

verb=run
name="${SRA_NAME:-sra}"
zone="${SRA_ZONE:-us-west4-a}"
project="${SRA_PROJECT:-}"
type="${SRA_TYPE:-v5litepod-16}"
runtime="${SRA_RUNTIME:-v2-alpha-tpuv5-lite}"
spot="${SRA_SPOT:-}"
config="${SRA_CONFIG:-configs/sit_sra.py:XL/2}"
workdir="${SRA_WORKDIR:-}"
restarts="${SRA_RESTARTS:-1000}"
overrides=()
for argument; do
  case "$argument" in
    run | log | status | delete | worker) verb="$argument" ;;
    --name=*) name="${argument#*=}" ;;
    --zone=*) zone="${argument#*=}" ;;
    --project=*) project="${argument#*=}" ;;
    --type=*) type="${argument#*=}" ;;
    --runtime=*) runtime="${argument#*=}" ;;
    --spot) spot=1 ;;
    --config=*) config="${argument#*=}" ;;
    --config.*=*) overrides+=("$argument") ;;
    --workdir=*) workdir="${argument#*=}" ;;
    --restarts=*) restarts="${argument#*=}" ;;
    --dry-run) dry_run=1 ;;
    -h | --help) show_help && exit ;;
    *) refuse "unknown argument: $argument" ;;
  esac
done
[[ -z "$dry_run" || -n "$workdir" ]] || workdir=gs://BUCKET/RUN
if [[ "$verb" == run ]]; then
  [[ "$workdir" == gs://* ]] || refuse "--workdir must be given, as gs://BUCKET/RUN: the workers share no other disk"
  [[ "$restarts" =~ ^[0-9]+$ ]] || refuse "--restarts is not a number: $restarts"
fi
train_flags=("--config=$config" "--workdir=$workdir" ${overrides[@]+"${overrides[@]}"})
[[ -n "$dry_run" || "$verb" == worker ]] || command -v gcloud >/dev/null || fail "gcloud is not installed"

on_tpu() { # GROUP VERB ARGUMENT...
  run gcloud compute tpus "$@" "--zone=$zone" ${project:+"--project=$project"}
}

on_workers() { # WORKER COMMAND
  on_tpu tpu-vm ssh "$name" "--worker=$1" "--command=$2"
}

# The VM's own word (READY, PREEMPTED, ...), or that of the request for it, or nothing if there is neither.
vm_state() {
  on_tpu tpu-vm describe "$name" '--format=value(state)' 2>/dev/null ||
    on_tpu queued-resources describe "$name" '--format=value(state.state)' 2>/dev/null || true
}

request_vm() {
  on_tpu queued-resources create "$name" "--node-id=$name" "--accelerator-type=$type" "--runtime-version=$runtime" \
    ${spot:+--spot}
}

delete_vm() {
  on_tpu queued-resources delete "$name" --force --quiet || on_tpu tpu-vm delete "$name" --quiet
}

await_vm() {
  note "unless $name is there already"
  [[ -z "$dry_run" ]] || { request_vm && return; }
  local state last=none
  while true; do
    state="$(vm_state)"
    [[ "$state" == "$last" ]] || say "$name: ${state:-not there, requesting it}"
    last="$state"
    case "$state" in
      READY) return ;;
      '') request_vm ;;
      PREEMPTED | TERMINATED | SUSPENDED) delete_vm ;; # a preempted TPU VM never comes back
      FAILED | STOPPED) fail "$name is $state: delete it (bash launch/tpu_pod.sh delete --name=$name) and try again" ;;
      *) sleep 30 ;;
    esac
  done
}

# A training that is still at work saves and ends; then the clone replaces the one it used, but for .venv.
# shellcheck disable=SC2016  # expanded on the worker
replace_code='
if kill -TERM "$(cat sra_jax.pid)"; then while kill -0 "$(cat sra_jax.pid)"; do sleep 1; done; fi 2>/dev/null
mkdir -p sra_jax && find sra_jax -mindepth 1 -maxdepth 1 ! -name .venv -exec rm -rf {} + &&
  tar -xf sra_jax.tar -C sra_jax'

copy_code() {
  local archive="runs/$name.tar"
  note "this clone is packed into $archive"
  if [[ -z "$dry_run" ]]; then
    mkdir -p runs
    pack_clone >"$archive"
  fi
  on_tpu tpu-vm scp "$archive" "$name:sra_jax.tar" --worker=all && on_workers all "$replace_code"
}

train() { on_workers all "bash sra_jax/launch/tpu_pod.sh worker $(quoted "${train_flags[@]}")"; }

run_to_the_end() {
  local attempt code
  for ((attempt = 0; attempt <= restarts; attempt++)); do
    await_vm
    code=0
    { copy_code && train; } || code=$?
    note "again from the top after exit code 75 (preempted, saved), a lost connection or the loss of the VM"
    case "$code" in
      0) return ;;
      75) say "preempted, saved: starting again" ;;
      255) say "connection lost: starting again" ;;
      *)
        sleep 30 # the state lags behind the preemption
        [[ "$(vm_state)" != READY ]] || exit "$code"
        say "the VM is gone: starting again"
        ;;
    esac
  done
  fail "gave up after $restarts restarts"
}

# What `run` starts on each worker. The training outlives a lost connection; the next `run` finds it by its process id.
work() {
  local log="$HOME/sra_jax.log" lines job
  if ! environment_works && ! (find_python >/dev/null 2>&1); then
    # TPU VM images carry Python 3.10.
    curl -LsSf https://astral.sh/uv/install.sh | sh >/dev/null
    "$HOME/.local/bin/uv" python install --quiet 3.12
    PYTHON="$("$HOME/.local/bin/uv" python find 3.12)"
  fi
  ensure_environment tpu
  touch "$log"
  lines="$(wc -l <"$log")"
  PYTHONUNBUFFERED=1 "$python" -m sra_jax train "${train_flags[@]}" >>"$log" 2>&1 </dev/null &
  job=$!
  echo "$job" >"$HOME/sra_jax.pid"
  tail -n "+$((lines + 1))" --pid="$job" -F "$log" 2>/dev/null &
  wait "$job"
}

case "$verb" in
  run) run_to_the_end ;;
  log) on_workers 0 'tail -n 200 -F sra_jax.log' ;;
  status) if [[ -n "$dry_run" ]]; then vm_state; else echo "$name: $(vm_state)"; fi ;;
  delete) delete_vm ;;
  worker) work ;;
esac
