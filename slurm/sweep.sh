#!/usr/bin/env bash
# Runs every line of a file of overrides as one job array with a shared judge, and collects the results in one table:
#
#   bash slurm/sweep.sh --submit  [--at-once=N] [--into=FOLDER] FILE [-cn NAME] [KEY=VALUE …] [--judge -cn NAME KEY=VALUE …]
#   bash slurm/sweep.sh --dry-run …    prints what would be submitted
#
# e.g. Table 5 of the paper: bash slurm/sweep.sh --submit slurm/sweeps/table5.txt -cn magic_8b data.train_files=[…] …
# It submits the judge (unless JUDGE_FOLDER names one), the array, and a job that writes the table when all runs have ended.
#
#SBATCH --job-name=sweep
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=1-00:00:00
#SBATCH --signal=B:USR1@900
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log
set -euo pipefail
home=${NEMO_MAGIC_HOME:-${SLURM_SUBMIT_DIR:-$(cd "$(dirname "$0")/.." && pwd)}}
[[ -f $home/slurm/lib.sh ]] || { echo "$0: no slurm/lib.sh in $home: submit from the checkout, or export NEMO_MAGIC_HOME" >&2; exit 2; }
# shellcheck source=slurm/lib.sh
source "$home/slurm/lib.sh"

parse "$@"
at_once='' folder='' gather=''
while [[ ${args[0]-} == --* && ${args[0]} != --config-name* ]]; do
    case ${args[0]} in
        --at-once=*) at_once=%${args[0]#*=} ;;
        --into=*) folder=${args[0]#*=} ;;
        --gather | --gather=*) gather=${args[0]} ;; # internal: the last job of a sweep
        *) die "$MISCONFIGURED" "unknown option ${args[0]}" ;;
    esac
    args=("${args[@]:1}")
done

if [[ -n $gather ]]; then
    # However this ends, the sweep's own judge is no longer needed.
    [[ $gather == --gather ]] || trap 'scancel --quiet "${gather#*=}"' EXIT
    begin
    mapfile -t runs <"$folder/runs"
    "${one_task[@]}" "${nemo_magic[@]}" sweep-table "${runs[@]}" --into "$folder"
    exit
fi

file=${args[0]-} args=("${args[@]:1}")
[[ -f $file ]] || die "$MISCONFIGURED" "which variants? First comes a file with one line of overrides each; '$file' is none"
mapfile -t variants < <(grep -v '^[[:space:]]*\(#\|$\)' "$file")
names_config "${args[@]}" || args=(-cn magic_8b "${args[@]}")

variant() { # number from 0. Sets full_args to the arguments of nemo-magic train
    local own
    read -ra own <<<"${variants[$1]}"
    full_args=("${args[@]}" "${own[@]}")
}

if [[ $mode == run ]]; then
    variant $((SLURM_ARRAY_TASK_ID - 1))
    args=("${full_args[@]}")
    attempt_with_judge train
fi

# --- submitting: every line is composed first, so that a misspelt key fails now and not in the queue

prepare
folder=$(realpath -m "${folder:-runs/sweeps/$(basename "$file" .txt)}")
shape='' runs=()
for number in "${!variants[@]}"; do
    variant "$number"
    compose train "${full_args[@]}" "${judge_elsewhere[@]}"
    [[ -z $shape || $shape == "$nodes × $devices" ]] || die "$MISCONFIGURED" \
        "$file: '${variants[number]}' wants $nodes × $devices ranks, the lines before it $shape; elements of an array are alike"
    shape="$nodes × $devices"
    for before in "${runs[@]}"; do
        [[ $before != "$run_dir" ]] || die "$MISCONFIGURED" \
            "$file: '${variants[number]}' writes to $run_dir, as a line before it does: give it a name=…"
    done
    runs+=("$run_dir")
    [[ $mode == submit ]] || { echo "# === ${variants[number]}" && show train "${full_args[@]}" "${judge_elsewhere[@]}" && echo; }
done
if [[ $mode == submit ]]; then
    mkdir -p "$folder"
    printf '%s\n' "${variants[@]}" >"$folder/variants.txt"
    printf '%s\n' "${runs[@]}" >"$folder/runs"
fi

first=() gather=--gather
if [[ -z $JUDGE_FOLDER ]]; then
    ask_for "$JUDGE_NODES" 1 "${JUDGE_PARTITION:-$PARTITION}"
    send "${options[@]}" "${JUDGE_SBATCH_EXTRA[@]}" --export="ALL,JUDGE_FOLDER=$folder/judge" "$home/slurm/judge.sh" "${judge_args[@]}"
    first=(--dependency="after:$submitted") gather=--gather=$submitted
fi
ask_for "$nodes" "$devices" "$PARTITION"
send "${options[@]}" "${SBATCH_EXTRA[@]}" --signal="B:USR1@$SIGNAL_AHEAD" --array="1-${#variants[@]}$at_once" "${first[@]}" \
    --export="ALL,JUDGE_FOLDER=${JUDGE_FOLDER:-$folder/judge}" "$home/slurm/sweep.sh" "$folder/variants.txt" "${args[@]}"
ask_for 1 1 "$PARTITION"
send "${options[@]}" "${SBATCH_EXTRA[@]}" --time=30 --job-name=sweep-table --output=%x-%j.log --dependency="afterany:$submitted" \
    --wrap="$(quoted bash "$home/slurm/sweep.sh" --into="$folder" "$gather")"
if [[ $mode == submit ]]; then
    echo "the table will be $folder/table.md"
else
    printf '# %s\n' "$home/slurm/sweep.sh"
    cat "$home/slurm/sweep.sh"
fi
