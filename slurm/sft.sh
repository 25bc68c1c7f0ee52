#!/usr/bin/env bash
# Warm-up (SFT) of one role: one node of eight GPUs unless the configuration says otherwise, and no judge:
#
#   sbatch slurm/sft.sh -cn NAME [KEY=VALUE …]
#   bash slurm/sft.sh --submit …     the same, with partition and account from slurm/site.sh and node counts from the config
#   bash slurm/sft.sh --dry-run …    prints what would be submitted, the resolved configuration and the plan
#
#SBATCH --job-name=sft
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=08:00:00
#SBATCH --signal=B:USR1@900
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
home=${NEMO_MAGIC_HOME:-${SLURM_SUBMIT_DIR:-$(cd "$(dirname "$0")/.." && pwd)}}
[[ -f $home/slurm/lib.sh ]] || { echo "$0: no slurm/lib.sh in $home: submit from the checkout, or export NEMO_MAGIC_HOME" >&2; exit 2; }
# shellcheck source=slurm/lib.sh
source "$home/slurm/lib.sh"

parse "$@"
names_config "${args[@]}" || die "$MISCONFIGURED" "which warm-up? -cn NAME"
if [[ $mode != run ]]; then
    submit sft no "$@"
    exit
fi
listen
begin
plan sft "${args[@]}"
status=0
train sft "${args[@]}" || status=$?
finish "$status"
