#!/bin/bash
# Pre-trains on all GPUs of several nodes, with one process for each GPU:
#
#   sbatch docs/guides/cluster/slurm.sh --study=i1k-300ep --model=ViT_S16 \
#       --workdir=/shared/run
#
# The arguments are those of recipes/pretrain.py; KERAS_BACKEND=torch before
# `sbatch` chooses PyTorch. Five minutes before its time is up, or when it is
# preempted, the run saves a checkpoint and is queued again, to go on from it.
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@300
set -euo pipefail
export KERAS_BACKEND="${KERAS_BACKEND:-jax}"

launch=(srun)
if [ "$KERAS_BACKEND" = torch ]; then
  # What `torchrun` sets, from what SLURM sets.
  MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)"
  export MASTER_ADDR MASTER_PORT=29500
  launch=(srun bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID \
    WORLD_SIZE=$SLURM_NTASKS exec "$@"' task)
fi

again=
trap 'again=yes; kill -TERM "$run"' TERM
"${launch[@]}" python recipes/pretrain.py "$@" &
run=$!
status=0
wait "$run" || status=$?
if [ -n "$again" ]; then
  # The signal ended the first `wait`; this one is for the checkpoint.
  wait "$run" || status=$?
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
