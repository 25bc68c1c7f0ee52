#!/usr/bin/env bash
# Warm-up of one role, on one node of eight GPUs unless the configuration says otherwise. It needs no judge, and begins anew
# when it is interrupted:
#
#   sbatch slurm/sft.sh -cn NAME [KEY=VALUE …]
#   bash slurm/sft.sh --submit …     the same with partition, account and node counts of slurm/site.sh and the config
#   bash slurm/sft.sh --dry-run …    shows what that would submit, the resolved configuration and the plan
#
#SBATCH --job-name=sft
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
home=${NEMO_MAGIC_HOME:-${SLURM_SUBMIT_DIR:-$(cd "$(dirname "$0")/.." && pwd)}}
[[ -f $home/slurm/lib.sh ]] || { echo "$0: no slurm/lib.sh in $home: submit from the checkout, or export NEMO_MAGIC_HOME" >&2; exit 2; }
# shellcheck source=slurm/lib.sh
source "$home/slurm/lib.sh"

parse "$@"
named "${words[@]}" || die "$MISCONFIGURED" "which warm-up? -cn NAME"
if [[ $mode != run ]]; then
    submit sft no "$@"
    exit
fi
MAX_FAILURES=0 # there is no checkpoint that a second attempt would go on from
listen
begin
plan sft "${words[@]}"
status=0
train sft "${words[@]}" || status=$?
finish "$status"
