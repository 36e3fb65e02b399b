#!/usr/bin/env bash
# Pre-training on one machine or several with torchrun. On every machine:
#
#   NODES=2 GPUS=8 HEAD=first-machine:29500 bash examples/torchrun.sh STORE RUN [--a.b value …]
#
# Run it again with the same RUN to resume; see docs/distributed.md.
set -euo pipefail
data=$1 out=$2
shift 2
exec torchrun --nnodes "${NODES:-1}" --nproc-per-node "${GPUS:-1}" \
  --rdzv-backend c10d --rdzv-endpoint "${HEAD:-localhost:29500}" \
  -m multimae_eo.cli pretrain --recipe "${RECIPE:-paper-mmearth64}" --data "$data" --out "$out" \
  --run.nodes "${NODES:-1}" --run.devices "${GPUS:-1}" --run.strategy "${STRATEGY:-ddp}" \
  --run.checkpoint_steps 500 "$@"
