#!/usr/bin/env bash
# A judge that several jobs share: its address and its token are in JUDGE_FOLDER, and whoever exports that asks it.
#
#   JUDGE_FOLDER=/shared/judge sbatch slurm/judge.sh [-cn NAME] [KEY=VALUE …]
#   JUDGE_FOLDER=/shared/judge bash slurm/judge.sh --submit|--dry-run …
#
#SBATCH --job-name=judge
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=7-00:00:00
#SBATCH --signal=B:USR1@60
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
home=${NEMO_MAGIC_HOME:-${SLURM_SUBMIT_DIR:-$(cd "$(dirname "$0")/.." && pwd)}}
[[ -f $home/slurm/lib.sh ]] || { echo "$0: no slurm/lib.sh in $home: submit from the checkout, or export NEMO_MAGIC_HOME" >&2; exit 2; }
# shellcheck source=slurm/lib.sh
source "$home/slurm/lib.sh"

folder=${JUDGE_FOLDER:-$PWD/runs/judge} JUDGE_FOLDER=''
parse "$@"
named "${words[@]}" || words=("${JUDGE_ARGS[@]}" "${words[@]}")
if [[ $mode != run ]]; then
    prepare
    compose judge "${words[@]}"
    ask_for "$JUDGE_NODES" 1 "${JUDGE_PARTITION:-$PARTITION}"
    send "${options[@]}" "${JUDGE_SBATCH_EXTRA[@]}" --export="ALL,JUDGE_FOLDER=$folder" "$home/slurm/judge.sh" "${words[@]}"
    [[ $mode == submit ]] || { cat "$home/slurm/judge.sh" && show judge "${words[@]}"; }
    exit
fi

judge_words=("${words[@]}") run_dir=$folder MAX_FAILURES=0
trap 'asked=1' USR1
trap 'ended=1' TERM
begin
logs=$folder/logs/$attempt
mkdir -p "$logs"
# The token stays what it was: whoever asks goes on where the judge comes back at its address.
[[ ! -s $folder/token ]] || NEMO_MAGIC_JUDGE_TOKEN=$(<"$folder/token")
find_judge 0
(umask 077 && printf '%s\n' "$NEMO_MAGIC_JUDGE_TOKEN" >"$folder/token")
trap 'rm -f "$folder/url"' EXIT
rm -f "$folder/url"
launch_judge
while true; do
    wait_for_judge
    printf '%s\n' "$judge_urls" >"$folder/url.partial" && mv "$folder/url.partial" "$folder/url"
    say "ready: $folder/url"
    while judge_lives && [[ -z $asked && -z $ended ]]; do nap 1; done
    if [[ -n $asked || -n $ended ]]; then
        stop_judge
        [[ -n $ended ]] || requeue "time is almost over" 0
        exit 143
    fi
    rm -f "$folder/url"
    tail -n 20 "$logs/judge-0.log" >&2
    ((judge_started <= JUDGE_RESTARTS)) || die 1 "the judge ended and has been started $judge_started times"
    mourn_judge
done
