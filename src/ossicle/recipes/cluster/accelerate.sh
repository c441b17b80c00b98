#!/usr/bin/env bash
# Train on one machine with `accelerate launch`, one process per GPU:
#
#     bash accelerate.sh [--dry-run] RECIPE [section.field=value ...] [--resume]
#
# The arguments after --dry-run are those of `ossicle train`. Environment:
#     PROCESSES        number of processes (default: the number of GPUs)
#     OMP_NUM_THREADS  threads of each process (default: the CPUs divided by the processes)
# --dry-run prints the environment and the command, and starts nothing.
# The precision is that of the recipe (train.precision). Settings of `accelerate config` that are not given here still
# apply. On a machine without a GPU accelerate starts a single process: use torchrun.sh.
set -euo pipefail

dry_run=false
if [[ ${1-} == --dry-run ]]; then
    dry_run=true
    shift
fi
if (($# == 0)); then
    echo "accelerate.sh: the recipe is missing: bash accelerate.sh [--dry-run] RECIPE [section.field=value ...]" >&2
    exit 2
fi

gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l) || true
if ((gpus == 0)) && ! $dry_run; then
    echo "accelerate.sh: no GPU was found: use torchrun.sh with PROCESSES=2 and train.cpu=true" >&2
    exit 2
fi
processes=${PROCESSES:-$gpus}
if ! [[ $processes =~ ^[1-9][0-9]*$ ]]; then
    echo "accelerate.sh: PROCESSES is '$processes': set it to the number of processes (no GPU was found)" >&2
    exit 2
fi
cpus=$(getconf _NPROCESSORS_ONLN)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cpus > processes ? cpus / processes : 1))}

command=(accelerate launch --num_processes "$processes" --num_machines 1 --mixed_precision no --dynamo_backend no)
if ((processes > 1)); then
    command+=(--multi_gpu)
fi
command+=(--module ossicle train "$@")
if $dry_run; then
    echo "OMP_NUM_THREADS=$OMP_NUM_THREADS"
    printf '%q ' "${command[@]}"
    echo
    exit
fi
exec "${command[@]}"
