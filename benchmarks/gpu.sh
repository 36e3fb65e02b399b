#!/usr/bin/env bash
# Everything to be measured on an accelerator, in one call of ten minutes: the step (eager and
# compiled), end to end, scaling, the profiler's table and trace, CUDA graphs of the encoder.
#
#   bash benchmarks/gpu.sh OUT            on a machine with CUDA
#   bash benchmarks/gpu.sh OUT --smoke    the same calls with tiny sizes on a CPU
#
# Needs torch, lightning, pyarrow, numpy and matplotlib; neither h5py nor rasterio. Every part has a
# time limit of its own, so that one that fails or is slow leaves the others.
set -uo pipefail
out=${1:?where to write}
root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH="$root/src:$root/benchmarks${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-python3}
mkdir -p "$out"
if [ "${2:-}" = --smoke ]; then
  device=cpu size="--encoder nano --batch 2" rounds=1 steps=2 chips=8 workers=0 side=128 points=2
  compile="" precision=fp32 precisions=fp32 axes=modalities profiled=1
else
  device=cuda size="--encoder base --batch 256" rounds=20 steps=60 chips=8192 workers=8 side=8192
  points=6 compile="--compile" precision=bf16 precisions=fp32,bf16
  axes=modalities,visible,encoder profiled=5
fi
failed=0
part() {
  local limit=$1 name=$2
  shift 2
  echo "== $name"
  timeout "$limit" "$python" "$@" >"$out/$name.txt" 2>&1 || { echo "failed: $name"; failed=1; }
  tail -n 30 "$out/$name.txt"
}
cd "$root/benchmarks"
# shellcheck disable=SC2086
{
  part 150 step step.py --device $device $size --precision $precisions --rounds $rounds \
    --ceiling $side $compile --out "$out"
  part 120 end_to_end end_to_end.py --device $device $size --steps $steps --chips $chips \
    --workers $workers --precision $precisions $compile --no-naive --out "$out"
  part 60 profile profile_step.py --device $device $size --precision $precision \
    --steps $profiled --out "$out"
  part 90 graphs profile_step.py --device $device $size --precision $precision --graphs --out "$out"
  part 120 scaling scaling.py --device $device $size --precision $precision --rounds $rounds \
    --axes $axes --points $points --out "$out"
}
exit $failed
