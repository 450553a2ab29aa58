#!/usr/bin/env bash
# The build on a SLURM cluster: one Dask scheduler, workers on every node, the same bytes as on one machine.
#
#     sbatch pipelines/cluster/build_on_dask.sh
#
# IMAGES, LABELS and OUT lie where every node sees them under the same path, or are URLs. Run it again after an
# interruption: it goes on. Workers need `pip install '.[dask]'` in the clone, no torch.
#SBATCH --job-name=lmk-build
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --time=04:00:00
set -euo pipefail
: "${IMAGES:=/nfs/glr/train}" "${LABELS:=/nfs/glr/train.csv}" "${OUT:=/nfs/glr/shards}" "${MIN_SAMPLES:=6}"
: "${PORT:=8786}" "${WORKERS_PER_NODE:=${SLURM_CPUS_PER_TASK:-32}}"
address="tcp://$(hostname):$PORT"

dask scheduler --port "$PORT" --no-dashboard &
scheduler=$!
# Pillow holds Python's lock for part of its work: one thread a worker, as many workers as cores.
srun dask worker "$address" --nworkers "$WORKERS_PER_NODE" --nthreads 1 --no-dashboard &
workers=$!
trap 'kill $workers $scheduler 2>/dev/null || true; wait' EXIT

lmk-shard build --scheduler "$address" \
    --images "$IMAGES" --labels "$LABELS" --out "$OUT" --min-samples "$MIN_SAMPLES"
lmk-shard verify "$OUT"
