#!/usr/bin/env bash
# Runs a roberta-flax command on all hosts of a TPU VM of Google Cloud, and again after each preemption until it is done.
#
#   examples/deploy/tpu_vm.sh create
#   examples/deploy/tpu_vm.sh run predict gs://bucket/texts.jsonl -o gs://bucket/labels.jsonl --model gs://bucket/mnli --distributed
#   examples/deploy/tpu_vm.sh run finetune gs://bucket/train.tsv --valid gs://bucket/dev.tsv --task rte -o gs://bucket/runs/rte
#   examples/deploy/tpu_vm.sh delete
#
# Run it in a checkout of the repository, whose package it installs on each host. `run` creates the VM where there is
# none, and creates it anew when it was preempted; the command then resumes from what it has written. A training run
# whose directory is a URL takes one host (such as v5litepod-8); jobs over files share all hosts with --distributed.

set -euo pipefail

name="${TPU_NAME:-roberta-flax}"
zone="${ZONE:-us-west4-a}"
type="${ACCELERATOR_TYPE:-v5litepod-8}"
version="${RUNTIME_VERSION:-v2-alpha-tpuv5-lite}"
spot="${SPOT:-1}" # 0 for a VM that is not preempted
extras="${EXTRAS:-tpu,gs,parquet,train}"
retry_seconds="${RETRY_SECONDS:-60}" # before another attempt, and before a failure is taken for one of the command

vm() { # a subcommand of gcloud for this VM
  gcloud compute tpus tpu-vm "$1" "${@:2}" --zone="$zone" --quiet
}

on_all_hosts() {
  vm ssh "$name" --worker=all --command="$1"
}

state() { # READY, PREEMPTED, CREATING, ..., or nothing if there is none
  vm describe "$name" --format='value(state)' 2>/dev/null || true
}

install() {
  local folder
  folder="$(mktemp -d)"
  python3 -m pip wheel --quiet --no-deps --wheel-dir "$folder" .
  vm scp "$folder"/*.whl constraints.txt "$name:" --worker=all
  rm -r "$folder"
  # The images have an older Python; uv brings one.
  on_all_hosts "set -e
    python3 -m pip install --quiet --user uv
    python3 -m uv venv --quiet --clear --python 3.11 \"\$HOME/venv\"
    python3 -m uv pip install --quiet --python \"\$HOME/venv/bin/python\" -c \"\$HOME/constraints.txt\" \\
      \"\$(ls \"\$HOME\"/roberta_flax-*.whl)[$extras]\""
}

create() {
  local options=(--accelerator-type="$type" --version="$version")
  if [[ "$spot" == 1 ]]; then
    options+=(--spot)
  fi
  if [[ -n "$(state)" ]]; then
    echo "there is a TPU VM $name already; run a command on it, or delete it" >&2
    return 1
  fi
  until vm create "$name" "${options[@]}"; do
    echo "no TPU VM yet; trying again in $retry_seconds seconds" >&2
    sleep "$retry_seconds"
    vm delete "$name" 2>/dev/null || true # what an attempt may have left
  done
  install
}

run() {
  local command
  command="$(printf '%q ' "$@")"
  while true; do
    if [[ "$(state)" != READY ]]; then
      if [[ -n "$(state)" ]]; then
        vm delete "$name"
      fi
      create
    fi
    local status=0
    on_all_hosts "\"\$HOME/venv/bin/roberta-flax\" $command" || status=$?
    if ((status == 0)); then
      return
    fi
    sleep "$retry_seconds" # until a preemption shows
    if [[ "$(state)" == READY ]]; then
      return "$status" # an error of the command itself
    fi
    echo "the TPU VM was preempted; creating it again to resume" >&2
  done
}

case "${1:-}" in
  create) create ;;
  run) run "${@:2}" ;;
  delete) vm delete "$name" ;;
  *)
    echo "usage: $0 create | run COMMAND [ARGUMENT ...] | delete" >&2
    exit 2
    ;;
esac
