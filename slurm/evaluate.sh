#!/usr/bin/env bash
# Evaluates a defender on benchmarks: one node of eight GPUs unless the configuration says otherwise, and a judge node:
#
#   sbatch slurm/evaluate.sh -cn NAME [KEY=VALUE …] [--judge -cn NAME KEY=VALUE …]
#   bash slurm/evaluate.sh --submit …     the same, with partition and account from slurm/site.sh and node counts from the config
#   bash slurm/evaluate.sh --dry-run …    prints what would be submitted, the resolved configuration and the plan
#
#SBATCH --job-name=evaluate
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=08:00:00
#SBATCH --signal=B:USR1@900
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
#SBATCH hetjob
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=08:00:00
#SBATCH --requeue
set -euo pipefail
home=${NEMO_MAGIC_HOME:-${SLURM_SUBMIT_DIR:-$(cd "$(dirname "$0")/.." && pwd)}}
[[ -f $home/slurm/lib.sh ]] || { echo "$0: no slurm/lib.sh in $home: submit from the checkout, or export NEMO_MAGIC_HOME" >&2; exit 2; }
# shellcheck source=slurm/lib.sh
source "$home/slurm/lib.sh"

parse "$@"
names_config "${args[@]}" || die "$MISCONFIGURED" "what is to be evaluated? -cn NAME"
if [[ $mode == run ]]; then
    attempt_with_judge evaluate
else
    prepare
    "${nemo_magic[@]}" evaluate --help >/dev/null 2>&1 || die "$MISCONFIGURED" "the nemo-magic of $PYTHON has no command evaluate"
    submit evaluate yes "$@"
fi
