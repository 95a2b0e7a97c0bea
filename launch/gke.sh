#!/usr/bin/env bash
# Train on GKE TPU slices as a JobSet (version 0.6 or later in the cluster), restarted by the cluster after preemption.
#
# usage: bash launch/gke.sh [run|image|log|status|delete] [FLAG...]
#
#   bash launch/gke.sh --dry-run
#   bash launch/gke.sh image --image=REGION-docker.pkg.dev/PROJECT/REPOSITORY/sra_jax
#   bash launch/gke.sh --image=... --topology=16x16 --spot --workdir=gs://BUCKET/xl --config.mesh.fsdp=16
#   bash launch/gke.sh log
#   bash launch/gke.sh delete
#
#   run       the default: apply the manifest that --dry-run prints
#   image     build a container of this clone and push it
#   log       follow process 0
#   status    the JobSet and its pods
#   delete    both
#
#   --name=NAME            of the JobSet                           sra
#   --namespace=NAMESPACE                                          kubectl's own
#   --image=IMAGE          holds sra_jax[tpu]; made by `image`     must be given
#   --accelerator=LABEL    cloud.google.com/gke-tpu-accelerator    tpu-v5-lite-podslice
#   --topology=AxB[xC]     chips of one slice                      4x4
#   --chips=N              chips of one node                       4
#   --slices=N                                                     1
#   --spot                 nodes that are cheaper, preemptible     on demand
#   --account=NAME         Kubernetes account with access to gs:// default
#   --config=FILE:ARG      and --config.FIELD=VALUE, as for train  configs/sit_sra.py:XL/2
#   --workdir=DIR          gs://BUCKET/RUN, seen by every pod      must be given
#   --restarts=N           after failures; preemptions are free    3
#   --dry-run              print the commands and the manifest, run none
#
# The default of --image is $SRA_IMAGE if that is set, and so for every flag but --dry-run (SRA_SPOT=1).

set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

verb=run
name="${SRA_NAME:-sra}"
namespace="${SRA_NAMESPACE:-}"
image="${SRA_IMAGE:-}"
accelerator="${SRA_ACCELERATOR:-tpu-v5-lite-podslice}"
topology="${SRA_TOPOLOGY:-4x4}"
chips="${SRA_CHIPS:-4}"
slices="${SRA_SLICES:-1}"
spot="${SRA_SPOT:-}"
account="${SRA_ACCOUNT:-default}"
config="${SRA_CONFIG:-configs/sit_sra.py:XL/2}"
workdir="${SRA_WORKDIR:-}"
restarts="${SRA_RESTARTS:-3}"
overrides=()
for argument; do
  case "$argument" in
    run | image | log | status | delete) verb="$argument" ;;
    --name=*) name="${argument#*=}" ;;
    --namespace=*) namespace="${argument#*=}" ;;
    --image=*) image="${argument#*=}" ;;
    --accelerator=*) accelerator="${argument#*=}" ;;
    --topology=*) topology="${argument#*=}" ;;
    --chips=*) chips="${argument#*=}" ;;
    --slices=*) slices="${argument#*=}" ;;
    --spot) spot=1 ;;
    --account=*) account="${argument#*=}" ;;
    --config=*) config="${argument#*=}" ;;
    --config.*=*) overrides+=("$argument") ;;
    --workdir=*) workdir="${argument#*=}" ;;
    --restarts=*) restarts="${argument#*=}" ;;
    --dry-run) dry_run=1 ;;
    -h | --help) show_help && exit ;;
    *) refuse "unknown argument: $argument" ;;
  esac
done
if [[ -n "$dry_run" ]]; then
  image="${image:-IMAGE}"
  workdir="${workdir:-gs://BUCKET/RUN}"
fi
[[ "$topology" =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] || refuse "--topology is not AxB or AxBxC: $topology"
for number in "$chips" "$slices"; do
  [[ "$number" =~ ^[1-9][0-9]*$ ]] || refuse "not a positive number: $number"
done
[[ "$restarts" =~ ^[0-9]+$ ]] || refuse "--restarts is not a number: $restarts"
((${topology//x/*} % chips == 0)) || refuse "topology $topology does not divide into nodes of $chips chips"
nodes=$((${topology//x/*} / chips))
[[ ! "$verb" =~ ^(run|image)$ || -n "$image" ]] || refuse "--image must be given: bash launch/gke.sh image makes one"
[[ "$verb" != run || "$workdir" == gs://* ]] || refuse "--workdir must be given, as gs://BUCKET/RUN"

tool=kubectl
[[ "$verb" != image ]] || tool=docker
[[ -n "$dry_run" ]] || command -v "$tool" >/dev/null || fail "$tool is not installed"

on_cluster() { run kubectl ${namespace:+"--namespace=$namespace"} "$@"; }

# A word as a YAML string.
yaml() {
  local word="${1//\\/\\\\}"
  echo "\"${word//\"/\\\"}\""
}

manifest() {
  cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $(yaml "$name")
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool  # one slice, one node pool
spec:
  failurePolicy:
    maxRestarts: $restarts
    rules:  # a job that failed by its own podFailurePolicy was preempted: start again, free of charge
    - action: RestartJobSetAndIgnoreMaxRestarts
      onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
  - name: slice
    replicas: $slices
    template:
      spec:
        parallelism: $nodes
        completions: $nodes
        backoffLimit: 0
        podFailurePolicy:
          rules:
          - action: FailJob
            onExitCodes: {containerName: train, operator: In, values: [75]}  # preempted, saved
          - action: FailJob
            onPodConditions: [{type: DisruptionTarget, status: "True"}]  # the node was taken away
        template:
          spec:
            restartPolicy: Never
            serviceAccountName: $(yaml "$account")
            terminationGracePeriodSeconds: 60  # at most, to save after SIGTERM
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: $(yaml "$accelerator")
              cloud.google.com/gke-tpu-topology: $(yaml "$topology")
YAML
  [[ -z "$spot" ]] || cat <<YAML
              cloud.google.com/gke-spot: "true"
            tolerations:
            - {key: cloud.google.com/gke-spot, operator: Equal, value: "true", effect: NoSchedule}
YAML
  cat <<YAML
            containers:
            - name: train
              image: $(yaml "$image")
              command: [python, -m, sra_jax, train]
              args:
YAML
  local flag
  for flag in "--config=$config" "--workdir=$workdir" ${overrides[@]+"${overrides[@]}"}; do
    echo "              - $(yaml "$flag")"
  done
  cat <<YAML
              env:
              - {name: PYTHONUNBUFFERED, value: "1"}
              ports: [{containerPort: 8471}, {containerPort: 8080}]  # between the hosts of a slice; between slices
              resources:
                limits: {google.com/tpu: $chips}
YAML
}

build_image() {
  run docker build --tag "$image" - < <([[ -n "$dry_run" ]] || pack_image)
  run docker push "$image"
}

# The clone and a Dockerfile, as the tar stream that `docker build -` reads.
pack_image() {
  local context
  context="$(mktemp -d)"
  pack_clone | tar -xf - -C "$context"
  cat >"$context/Dockerfile" <<'DOCKERFILE'
FROM python:3.12-slim
WORKDIR /sra_jax
COPY . .
RUN pip install --no-cache-dir --constraint launch/constraints.txt --editable '.[tpu]'
DOCKERFILE
  tar -cf - -C "$context" .
  rm -rf "$context"
}

case "$verb" in
  run)
    if [[ -n "$dry_run" ]]; then
      on_cluster apply --filename=-
      manifest
    else
      manifest | on_cluster apply --filename=-
    fi
    ;;
  image) build_image ;;
  log)
    first=jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0
    on_cluster logs --follow --tail=200 "--selector=jobset.sigs.k8s.io/jobset-name=$name,$first"
    ;;
  status)
    on_cluster get jobset "$name"
    on_cluster get pods "--selector=jobset.sigs.k8s.io/jobset-name=$name" --output=wide
    ;;
  delete) on_cluster delete jobset "$name" ;;
esac
