#!/usr/bin/env bash
# Train on all GPUs of this machine, by accelerate:
#
#     training/examples/launch_accelerate.sh DATASET --revision COMMIT --model PARENT --output FOLDER
#     NPROC=2 training/examples/launch_accelerate.sh ...    on two of its GPUs
#
# On several machines: the same command on each, with NNODES=how many, HEAD=the address of the first, and NODE=0 on the
# first, 1 on the next, ... What follows goes to stream_trainer.py; `--help` tells.
set -euo pipefail

GPUS=$(python -c "import torch; print(torch.cuda.device_count())")
NPROC=${NPROC:-$((GPUS > 0 ? GPUS : 1))} # processes on this machine
NNODES=${NNODES:-1}
TOTAL=$((NPROC * NNODES)) # accelerate counts the processes of all machines, torchrun those of one

several=()
if [ "$TOTAL" -gt 1 ]; then
  if [ "$GPUS" -eq 0 ]; then
    echo "error: on CPUs accelerate runs one process, whatever it is told; got NPROC=$NPROC and NNODES=$NNODES. Take" \
      "launch_torchrun.sh." >&2
    exit 2
  fi
  several=(--multi_gpu --machine_rank "${NODE:-0}" --main_process_port "${PORT:-29500}")
  if [ "$NNODES" -gt 1 ]; then several+=(--main_process_ip "$HEAD"); fi
fi
# What is not said would be taken from your `accelerate config`; the precision is stream_trainer.py's.
exec accelerate launch --num_processes "$TOTAL" --num_machines "$NNODES" "${several[@]}" --mixed_precision no \
  --dynamo_backend no "$(dirname "$0")/stream_trainer.py" "$@"
