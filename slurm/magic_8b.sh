#!/usr/bin/env bash
# Trains a 7B to 14B attacker and defender on one node of eight GPUs (--submit -cn magic_14b: two), with the judge on its own
# node:
#
#   sbatch slurm/magic_8b.sh [-cn NAME] [KEY=VALUE …] [--judge -cn NAME KEY=VALUE …]
#   bash slurm/magic_8b.sh --submit …     the same, with partition and account from slurm/site.sh and node counts from the config
#   bash slurm/magic_8b.sh --dry-run …    prints what would be submitted, the resolved configuration and the plan
#
#SBATCH --job-name=magic_8b
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=1-00:00:00
#SBATCH --signal=B:USR1@900
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
#SBATCH hetjob
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=1-00:00:00
#SBATCH --requeue
set -euo pipefail
home=${NEMO_MAGIC_HOME:-${SLURM_SUBMIT_DIR:-$(cd "$(dirname "$0")/.." && pwd)}}
[[ -f $home/slurm/lib.sh ]] || { echo "$0: no slurm/lib.sh in $home: submit from the checkout, or export NEMO_MAGIC_HOME" >&2; exit 2; }
# shellcheck source=slurm/lib.sh
source "$home/slurm/lib.sh"

parse "$@"
names_config "${args[@]}" || args=(-cn magic_8b "${args[@]}")
if [[ $mode == run ]]; then attempt_with_judge train; else submit train yes "$@"; fi
