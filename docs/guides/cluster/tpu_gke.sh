#!/bin/bash
# Pre-trains on a slice of a GKE cluster, through xpk (`pip install xpk`):
#
#   export CLUSTER=pods NAME=vit TYPE=v5litepod-64
#   bash docs/guides/cluster/tpu_gke.sh --study=i1k-300ep --model=ViT_S16 \
#       --workdir=gs://BUCKET/run
#
# The arguments are those of recipes/pretrain.py. GKE starts the workload again
# after a preemption, and it goes on from the last checkpoint.
set -euo pipefail
: "${CLUSTER:?of xpk}" "${NAME:?of the workload}" "${TYPE:?as v5litepod-64}"
PACKAGE="${PACKAGE:-git+https://github.com/keras-augreg/keras_augreg}"

xpk workload create --cluster="$CLUSTER" --workload="$NAME" \
  --tpu-type="$TYPE" --max-restarts=100 --docker-image=python:3.12 \
  --command="pip install -q 'keras_augreg[jax,tpu,data,gcs] @ $PACKAGE' && \
python -m keras_augreg pretrain $(printf '%q ' "$@")"
