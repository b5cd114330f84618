#!/usr/bin/env bash
# Train on all GPUs of this machine, or with several processes on its CPUs, by torchrun:
#
#     training/examples/launch_torchrun.sh DATASET --revision COMMIT --model PARENT --output FOLDER
#     NPROC=2 training/examples/launch_torchrun.sh ...    two processes, on CPUs too
#
# On several machines: the same command on each, with NNODES=how many and HEAD=the name of one of them, the same for all.
# What follows goes to stream_trainer.py; `--help` tells.
set -euo pipefail

NPROC=${NPROC:-gpu} # processes on this machine; gpu = one per GPU
NNODES=${NNODES:-1}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # threads of each process: with more, they take the cores from each other

if [ "$NNODES" -eq 1 ]; then
  meet=(--standalone) # at a free port
else
  meet=(--nnodes "$NNODES" --rdzv_backend c10d --rdzv_endpoint "$HEAD:${PORT:-29500}")
fi
exec torchrun "${meet[@]}" --nproc_per_node "$NPROC" "$(dirname "$0")/stream_trainer.py" "$@"
