#!/usr/bin/env bash
# Train on one machine with torchrun, one process per GPU:
#
#     bash torchrun.sh [--dry-run] RECIPE [section.field=value ...] [--resume]
#
# The arguments after --dry-run are those of `ossicle train`. Environment:
#     PROCESSES        number of processes (default: the number of GPUs; without a GPU it must be set)
#     OMP_NUM_THREADS  threads of each process (default: the CPUs divided by the processes)
# --dry-run prints the environment and the command, and starts nothing.
# Ctrl-C or SIGTERM ends the run with a checkpoint. torchrun kills processes that have not ended after 30 seconds.
set -euo pipefail

dry_run=false
if [[ ${1-} == --dry-run ]]; then
    dry_run=true
    shift
fi
if (($# == 0)); then
    echo "torchrun.sh: the recipe is missing: bash torchrun.sh [--dry-run] RECIPE [section.field=value ...]" >&2
    exit 2
fi

gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l) || true
processes=${PROCESSES:-$gpus}
if ! [[ $processes =~ ^[1-9][0-9]*$ ]]; then
    echo "torchrun.sh: PROCESSES is '$processes': set it to the number of processes (no GPU was found)" >&2
    exit 2
fi
cpus=$(getconf _NPROCESSORS_ONLN)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cpus > processes ? cpus / processes : 1))}

command=(torchrun --standalone --nnodes 1 --nproc_per_node "$processes" -m ossicle train "$@")
if $dry_run; then
    echo "OMP_NUM_THREADS=$OMP_NUM_THREADS"
    printf '%q ' "${command[@]}"
    echo
    exit
fi
exec "${command[@]}"
