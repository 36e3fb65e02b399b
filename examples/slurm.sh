#!/usr/bin/env bash
#SBATCH --job-name=multimae-eo
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
# Pre-training under SLURM, a task per GPU:
#
#   sbatch examples/slurm.sh STORE RUN [--a.b value …]
#
# Two minutes before the end, and when preempted, the run saves, exits with 0 and is queued again
# until its model is written; see docs/distributed.md.
set -euo pipefail
data=$1 out=$2
shift 2
# A signal to this shell must not end it before the tasks have saved: they get it, too.
trap '' TERM
srun multimae-eo pretrain --recipe "${RECIPE:-paper-mmearth64}" --data "$data" --out "$out" \
  --run.nodes "$SLURM_NNODES" --run.devices 4 --run.strategy "${STRATEGY:-ddp}" \
  --run.checkpoint_steps 500 "$@"
if [ ! -f "$out/model/config.json" ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
