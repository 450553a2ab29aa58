#!/usr/bin/env bash
# Train by torchrun on two SLURM nodes of eight devices each; the global batches are the same as with one rank.
#
#     sbatch pipelines/cluster/train_on_two_nodes.sh
#
# SHARDS is a path or a URL that every node reads (each node downloads the shards of a URL once). RUN is a folder that
# all nodes see. Submitted again, the job resumes from the last checkpoint. SLURM's signal before the time limit makes
# it save one.
#SBATCH --job-name=lmk-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
set -euo pipefail
: "${SHARDS:=s3://mine/shards}" "${RUN:=/nfs/runs/b0}" "${PROCESSES_PER_NODE:=8}" "${PORT:=29500}"
: "${OPTIONS:=--batch-size 1024 --lr 1.2e-3 --head-lr 1.2e-2}"
resume=""
[ -e "$RUN/checkpoints/last.pt" ] && resume="--resume"

# OPTIONS is several words. The learning rates are the defaults times sqrt(1024 / 64) (docs/training.md).
# shellcheck disable=SC2086
srun torchrun --nnodes "${SLURM_NNODES:-2}" --nproc-per-node "$PROCESSES_PER_NODE" \
    --rdzv-backend c10d --rdzv-endpoint "$(hostname):$PORT" --rdzv-id "${SLURM_JOB_ID:-lmk}" \
    --no-python lmk-train --shards "$SHARDS" --out "$RUN" $OPTIONS $resume
