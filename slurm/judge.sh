#!/usr/bin/env bash
# A judge that several jobs share. Its address and its token are in JUDGE_FOLDER; jobs that export JUDGE_FOLDER use it.
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
names_config "${args[@]}" || args=("${JUDGE_ARGS[@]}" "${args[@]}")
if [[ $mode != run ]]; then
    prepare
    compose judge "${args[@]}"
    ask_for "$JUDGE_NODES" 1 "${JUDGE_PARTITION:-$PARTITION}"
    send "${options[@]}" "${JUDGE_SBATCH_EXTRA[@]}" --export="ALL,JUDGE_FOLDER=$folder" "$home/slurm/judge.sh" "${args[@]}"
    [[ $mode == submit ]] || { cat "$home/slurm/judge.sh" && show judge "${args[@]}"; }
    exit
fi

judge_args=("${args[@]}") run_dir=$folder MAX_FAILURES=0
trap 'save_requested=1' USR1
trap 'terminating=1' TERM
begin
logs=$folder/logs/$attempt
mkdir -p "$logs"
# Keep the token: clients continue if the judge restarts at the same address.
[[ ! -s $folder/token ]] || NEMO_MAGIC_JUDGE_TOKEN=$(<"$folder/token")
find_judge 0
# Anew: a file that is there keeps its mode, and who has opened it could read on.
rm -f "$folder/token.partial"
(umask 077 && printf '%s\n' "$NEMO_MAGIC_JUDGE_TOKEN" >"$folder/token.partial") && mv -f "$folder/token.partial" "$folder/token"
trap 'rm -f "$folder/url"' EXIT
rm -f "$folder/url"
launch_judge
while true; do
    wait_for_judge
    printf '%s\n' "$judge_urls" >"$folder/url.partial" && mv "$folder/url.partial" "$folder/url"
    say "ready: $folder/url"
    while judge_lives && [[ -z $save_requested && -z $terminating ]]; do nap 1; done
    if [[ -n $save_requested || -n $terminating ]]; then
        stop_judge
        [[ -n $terminating ]] || requeue "time is almost over" 0
        exit 143
    fi
    rm -f "$folder/url"
    tail -n 20 "$logs/judge-0.log" >&2
    ((judge_started <= JUDGE_RESTARTS)) || die 1 "the judge ended and has been started $judge_started times"
    restart_judge
done
