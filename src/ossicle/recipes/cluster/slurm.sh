#!/usr/bin/env bash
#SBATCH --job-name=ossicle
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# Train on one or several machines of a SLURM cluster, one task per GPU:
#
#     sbatch [--nodes 2 ...] slurm.sh RECIPE [section.field=value ...]
#     bash slurm.sh --dry-run RECIPE [section.field=value ...]
#
# The arguments are those of `ossicle train`. Options of sbatch replace the lines above; --ntasks-per-node and
# --gpus-per-node must be equal. The environment in which Ossicle is installed must be active, and the working directory
# must be one that all machines share.
#
# Five minutes before the time limit SLURM sends USR1 to this script. Every process then ends after its step, with a
# checkpoint, and the job is queued again. It then continues with --resume. A run that fails is not queued again.
# --dry-run prints the options, the environment and the command, and starts nothing. Outside a job it assumes the
# options above and the addresses of this machine.
set -euo pipefail

dry_run=false
if [[ ${1-} == --dry-run ]]; then
    dry_run=true
    shift
fi
if (($# == 0)); then
    echo "slurm.sh: the recipe is missing: sbatch slurm.sh RECIPE [section.field=value ...]" >&2
    exit 2
fi
if [[ -z ${SLURM_JOB_ID-} ]] && ! $dry_run; then
    echo "slurm.sh: this is not a SLURM job: submit it with sbatch, or look at it with --dry-run" >&2
    exit 2
fi

nodes=${SLURM_JOB_NUM_NODES:-1}
tasks=${SLURM_NTASKS_PER_NODE:-4}
gpus=${SLURM_GPUS_ON_NODE:-$tasks}
if ((gpus != tasks)); then
    echo "slurm.sh: $tasks tasks and $gpus GPUs on each machine: give --ntasks-per-node and --gpus-per-node one number" >&2
    exit 2
fi
if [[ -n ${SLURM_JOB_NODELIST-} ]]; then
    hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
    MASTER_ADDR=${hosts%%$'\n'*} # the first line
else
    MASTER_ADDR=127.0.0.1
fi
MASTER_PORT=$((20000 + ${SLURM_JOB_ID:-0} % 20000)) # two jobs on one machine have two ports
WORLD_SIZE=$((nodes * tasks))
OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-8}
LOCAL_WORLD_SIZE=$tasks
export MASTER_ADDR MASTER_PORT WORLD_SIZE LOCAL_WORLD_SIZE OMP_NUM_THREADS

arguments=("$@")
if ((${SLURM_RESTART_COUNT:-0} > 0)); then
    arguments+=(--resume)
fi
# Each task learns its rank from SLURM. The steps of a job do not inherit --cpus-per-task.
command=(srun --nodes "$nodes" --ntasks "$WORLD_SIZE" --ntasks-per-node "$tasks" --cpus-per-task "$OMP_NUM_THREADS"
    --kill-on-bad-exit=1 bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec "$@"' ossicle
    python -m ossicle train "${arguments[@]}")
if $dry_run; then
    grep '^#SBATCH' "$0"
    for name in MASTER_ADDR MASTER_PORT WORLD_SIZE OMP_NUM_THREADS; do
        echo "$name=${!name}"
    done
    printf '%q ' "${command[@]}"
    echo
    exit
fi

near_limit=false
"${command[@]}" &
step=$!
# srun passes SIGTERM on to every task.
trap 'near_limit=true; kill -TERM "$step" 2>/dev/null || true' USR1
code=0
wait "$step" || code=$?
if $near_limit; then # the signal ended the first wait
    code=0
    wait "$step" || code=$?
fi
if $near_limit && ((code == 0)); then
    echo "slurm.sh: the time limit is near: the run has a checkpoint, and the job is queued again"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
