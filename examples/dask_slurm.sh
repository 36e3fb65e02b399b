#!/bin/bash
# Map many scenes on several nodes with SLURM and Dask: a scheduler on the first node, and a worker
# of one core for each task. Adapt the header and the last command, then
#
#     sbatch examples/dask_slurm.sh
#
# Submitted again after an interruption, the command goes on where it was.
#SBATCH --job-name=multimae-eo-scenes
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=16
#SBATCH --cpus-per-task=1
#SBATCH --mem-per-cpu=4G
#SBATCH --time=08:00:00
set -euo pipefail

export OMP_NUM_THREADS=1
folder=$(mktemp -d -p "$PWD" dask.XXXXXX)   # on storage that all nodes share
trap 'kill $(jobs -p); rm -rf "$folder"' EXIT

dask scheduler --scheduler-file "$folder/scheduler.json" &
while [ ! -s "$folder/scheduler.json" ]; do sleep 1; done
srun dask worker --scheduler-file "$folder/scheduler.json" --nthreads 1 --local-directory "${TMPDIR:-/tmp}" &

multimae-eo predict --model runs/map/model --scene "scenes/*.yaml" --out "maps/{scene}.tif" \
    --dask "$folder/scheduler.json"
