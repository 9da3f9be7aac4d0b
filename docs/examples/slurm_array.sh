#!/usr/bin/env bash
# An archive as a Slurm array: a task for each shard, and a job that merges them.
#
#   sbatch --array=1-16 slurm_array.sh LIST RUN OUT
#   sbatch --dependency=afterany:JOB --wrap "aeflow report OUT"
#
# A task that was killed, preempted or out of time goes on where it was when it is given again, as Slurm does with
# --requeue. Without Slurm, SLURM_ARRAY_TASK_ID=1 SLURM_ARRAY_TASK_COUNT=1 runs the script in any shell.
#SBATCH --job-name=aeflow
#SBATCH --cpus-per-task=1
#SBATCH --mem=4G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

list=$1 model=$2 out=$3
shift 3 # what follows goes to aeflow, such as --outputs anomaly_mask

# an array may count from 0
shard=$((SLURM_ARRAY_TASK_ID - ${SLURM_ARRAY_TASK_MIN:-1} + 1))
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"

exec aeflow predict "$list" -m "$model" -o "$out" --shard "$shard/$SLURM_ARRAY_TASK_COUNT" --retry-failed "$@"
