#!/bin/bash
# Pre-trains on all hosts of a slice of Cloud TPU VMs:
#
#   export NAME=vit ZONE=us-west4-a TYPE=v5litepod-64
#   bash docs/guides/cluster/tpu_vm.sh --study=i1k-300ep --model=ViT_S16 \
#       --workdir=gs://BUCKET/run
#
# The arguments are those of recipes/pretrain.py. After a preemption, the same
# command makes another slice and goes on from the last checkpoint. The slice
# costs until `gcloud compute tpus tpu-vm delete "$NAME" --zone="$ZONE"`.
set -euo pipefail
: "${NAME:?a name for the slice}" "${ZONE:?}" "${TYPE:?such as v5litepod-64}"
# docs.cloud.google.com/tpu/docs/runtimes names the one for each generation.
VERSION="${VERSION:-v2-alpha-tpuv5-lite}"
PACKAGE="${PACKAGE:-git+https://github.com/keras-augreg/keras_augreg}"

tpu() { gcloud compute tpus tpu-vm "$1" "$NAME" --zone="$ZONE" "${@:2}"; }

state="$(tpu describe --format='value(state)' 2>/dev/null || true)"
if [ "$state" = PREEMPTED ]; then
  tpu delete --quiet
  state=
fi
if [ -z "$state" ]; then
  tpu create --accelerator-type="$TYPE" --version="$VERSION" --spot
fi
# The image's Python is 3.10, too old; uv fetches another.
tpu ssh --worker=all --command="pip install -q uv && \
python3 -m uv run --no-project --python=3.12 \
--with='keras_augreg[jax,tpu,data,gcs] @ $PACKAGE' \
python -m keras_augreg pretrain $(printf '%q ' "$@")"
