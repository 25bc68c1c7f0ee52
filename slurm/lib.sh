# Shared by the scripts of this folder; sourced, never run. Usage: docs/cluster.md.
# shellcheck shell=bash
#
# One attempt of a run: plan (compose and check the configuration) → judge → training, monitored → end or requeue. Slurm's
# requeue starts the next attempt in the same job; the run resumes by itself (--resume auto is nemo-magic's default).
set -euo pipefail

SAVED=75 # nemo-magic: saved on request; the same command resumes
MISCONFIGURED=2

say() { printf '%s %s\n' "$(date +%H:%M:%S)" "$*"; }
die() { # status, message
    printf '%s: %s\n' "${SLURM_JOB_NAME:-$(basename "$0")}" "$2" >&2
    exit "$1"
}
quoted() { printf '%q ' "$@"; }

# --- the site's settings, explained in slurm/site.example.sh

PARTITION='' ACCOUNT='' QOS='' TIME_LIMIT='' SIGNAL_AHEAD=900 SBATCH_EXTRA=()
JUDGE_PARTITION='' JUDGE_NODES=1 JUDGE_SBATCH_EXTRA=()
MPI=pmix SRUN_EXTRA=() CONTAINER_IMAGE='' CONTAINER_MOUNTS='' PYTHON=python
JUDGE_ARGS=(-cn judge_qwen3guard) JUDGE_HOST=0.0.0.0 JUDGE_READY_WITHIN=1800 JUDGE_RESTARTS=3
GUARD_COMMAND='' GUARD_PORT=8000 GUARD_IMAGE=''
MAX_FAILURES=3 MAX_RESTARTS=100
JUDGE_FOLDER=${JUDGE_FOLDER:-}
setup() { :; }
node_address() { echo "$1"; }

# shellcheck disable=SC2154 # the script that sources this has set it
site=${NEMO_MAGIC_SITE:-$home/slurm/site.sh}
if [[ -f $site ]]; then
    # shellcheck source=slurm/site.example.sh
    source "$site"
elif [[ -n ${NEMO_MAGIC_SITE:-} ]]; then
    die "$MISCONFIGURED" "NEMO_MAGIC_SITE=$site: no such file"
fi

# --- arguments: Hydra's for nemo-magic, and after --judge those of the judge

mode=run args=() judge_args=()
parse() { # the script's arguments. A requeued run goes on from its newest checkpoint, whatever its first attempt did
    local to=args word before=''
    for word in "$@"; do
        if ((${SLURM_RESTART_COUNT:-0})) && [[ $to == args && ($word == --resume* || $before == --resume) ]]; then
            before=$word
            continue
        fi
        before=''
        case $word in
            --submit | --dry-run) mode=${word#--} ;;
            --judge) to=judge_args ;;
            *) if [[ $to == args ]]; then args+=("$word"); else judge_args+=("$word"); fi ;;
        esac
    done
    names_config "${judge_args[@]}" || judge_args=("${JUDGE_ARGS[@]}" "${judge_args[@]}")
    if [[ $mode == run && -z ${SLURM_JOB_ID:-} ]]; then
        die "$MISCONFIGURED" "this is no Slurm job: bash $0 --submit …, or --dry-run first"
    fi
}
names_config() { [[ " $* " =~ \ (-cn|--config-name)[\ =] ]]; }

nemo_magic=("$PYTHON" -m nemo_magic.cli)
# The judge's address is known once the job runs; until then the configuration is checked with this placeholder.
judge_elsewhere=(judge.launch=false 'judge.urls=["http://JUDGE_NODE:PORT"]' judge.token_env=NEMO_MAGIC_JUDGE_TOKEN)

# --- the configuration, as nemo-magic resolves it

resolved='' nodes='' devices='' run_dir=''
compose() { # nemo-magic's command and arguments. Sets the four variables above; $composer is the prefix of the command line
    [[ -n $resolved ]] || { resolved=$(mktemp) && trap 'rm -f "$resolved"' EXIT; }
    "${composer[@]}" "${nemo_magic[@]}" "$@" --print trainer.num_nodes,trainer.devices,exp_manager.explicit_log_dir \
        --dry-run >"$resolved" || die "$MISCONFIGURED" "$* cannot be run (see above)"
    nodes=$(value trainer.num_nodes) devices=$(value trainer.devices) run_dir=$(value exp_manager.explicit_log_dir)
    [[ -n $nodes && -n $devices && -n $run_dir ]] || die "$MISCONFIGURED" "nemo-magic did not say what $* takes (--print)"
    sed -i '/^trainer\.num_nodes=/d; /^trainer\.devices=/d; /^exp_manager\.explicit_log_dir=/d' "$resolved"
}
composer=()

value() { sed -n "s/^${1//./\\.}=//p" "$resolved" | head -n 1; } # key: what nemo-magic --print says of it

# --- submitting

prepare() { # prepares for submitting
    setup
    command -v "$PYTHON" >/dev/null || die "$MISCONFIGURED" "$PYTHON is not here: see PYTHON and setup in $site"
    export NEMO_MAGIC_HOME=$home
    [[ ! -f $site ]] || export NEMO_MAGIC_SITE=$site
}

options=()
ask_for() { # nodes, ranks per node, partition. Sets options to sbatch's options
    options=(--nodes="$1" --ntasks-per-node="$2")
    [[ -z $3 ]] || options+=(--partition="$3")
    [[ -z $ACCOUNT ]] || options+=(--account="$ACCOUNT")
    [[ -z $QOS ]] || options+=(--qos="$QOS")
    [[ -z $TIME_LIMIT ]] || options+=(--time="$TIME_LIMIT")
}

send() { # sbatch's arguments: printed, or submitted. Sets submitted to the job's number
    if [[ $mode == dry-run ]]; then
        printf '# Would be submitted:\n%s\n\n' "$(quoted sbatch "$@")"
        submitted=JOB
    else
        submitted=$(sbatch --parsable "$@")
        submitted=${submitted%%;*}
        echo "job $submitted"
    fi
}

show() { # nemo-magic's command and arguments: prints the composed configuration and the plan
    printf '# The resolved configuration (nemo-magic %s)\n' "$(quoted "$@")"
    cat "$resolved"
    if [[ $1 == train ]] && "${nemo_magic[@]}" plan --help >/dev/null 2>&1; then
        printf '\n# The plan (nemo-magic plan)\n'
        "${nemo_magic[@]}" plan "${@:2}" || echo "# nemo-magic plan ended with status $?"
    fi
}

submit() { # nemo-magic's command, whether the script needs judge nodes (yes or no), the script's arguments
    local command=$1 needs_judge=$2 script=$home/slurm/${0##*/} full_args=() first forwarded=() word
    shift 2
    prepare
    full_args=("$command" "${args[@]}")
    [[ $command == sft ]] || full_args+=("${judge_elsewhere[@]}")
    compose "${full_args[@]}"
    ask_for "$nodes" "$devices" "$PARTITION"
    first=("${options[@]}" "${SBATCH_EXTRA[@]}" --signal="B:USR1@$SIGNAL_AHEAD")
    if [[ $needs_judge == yes && -n $JUDGE_FOLDER ]]; then
        # A shared judge: this job needs no judge nodes.
        script=$(mktemp "${TMPDIR:-/tmp}/${0##*/}.XXXXXX")
        # shellcheck disable=SC2064 # expand these two now
        trap "rm -f $(quoted "$resolved" "$script")" EXIT
        sed '/^#SBATCH hetjob/,/^set /{/^#SBATCH/d}' "$home/slurm/${0##*/}" >"$script"
        first+=(--export="ALL,JUDGE_FOLDER=$JUDGE_FOLDER")
    elif [[ $needs_judge == yes ]]; then
        ask_for "$JUDGE_NODES" 1 "${JUDGE_PARTITION:-$PARTITION}"
        first+=(: "${options[@]}" "${JUDGE_SBATCH_EXTRA[@]}")
    fi
    for word in "$@"; do [[ $word == --submit || $word == --dry-run ]] || forwarded+=("$word"); done
    send "${first[@]}" "$script" "${forwarded[@]}"
    if [[ $mode == dry-run ]]; then
        printf '# %s\n' "$script"
        cat "$script"
        echo
        show "${full_args[@]}"
    fi
}

# --- inside the job: common parts of its steps

on_nodes=() logs=''
begin() { # sets step, the beginning of every srun; on_nodes, the options for the training nodes; job and attempt
    local output
    setup
    job=${SLURM_HET_JOB_ID:-$SLURM_JOB_ID}
    # In an array's last element SLURM_JOB_ID is the number of the whole array, so name the element explicitly.
    [[ -z ${SLURM_ARRAY_TASK_ID:-} ]] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    attempt=$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}
    # With --export=NONE the job's steps would not get these variables, and srun does not inherit the requested cores.
    export SLURM_EXPORT_ENV=ALL
    [[ -z ${SLURM_CPUS_PER_TASK:-} ]] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" CUDA_DEVICE_MAX_CONNECTIONS="${CUDA_DEVICE_MAX_CONNECTIONS:-1}"
    output=$(srun --mpi=list 2>&1) || true
    [[ $output =~ (^|[[:space:]])$MPI([[:space:]]|$) ]] ||
        die "$MISCONFIGURED" "MPI=$MPI is not what this Slurm has, see $site: ${output//$'\n'/ }"
    step=(srun --overlap "${SRUN_EXTRA[@]}")
    guard_step=("${step[@]}")
    output=$(srun --help 2>&1) || true
    if [[ $output == *--container-image* ]]; then
        contain step "$CONTAINER_IMAGE"
        contain guard_step "${GUARD_IMAGE:-$CONTAINER_IMAGE}"
    elif [[ -n $CONTAINER_IMAGE ]]; then
        say "srun has no --container-image (pyxis): $CONTAINER_IMAGE is not used, $PYTHON is the one of this environment"
    fi
    [[ -z ${SLURM_HET_SIZE:-} ]] || on_nodes=(--het-group=0)
    one_task=("${step[@]}" "${on_nodes[@]}" --mpi=none --nodes=1 --ntasks=1 --ntasks-per-node=1)
}

contain() { # name of an array to add to, image
    local -n to=$1
    [[ -n $2 ]] || return 0
    to+=(--container-image="$2" --container-mounts="${CONTAINER_MOUNTS:+$CONTAINER_MOUNTS,}$PWD:$PWD"
        --container-workdir="$PWD" --no-container-mount-home)
}

of_group() { # a Slurm variable, a component's number; without components the plain variable
    local name=$1_HET_GROUP_$2
    echo "${!name:-${!1}}"
}

hosts_of() { # name of an array to fill, a component's number
    mapfile -t "$1" < <(scontrol show hostnames "$(of_group SLURM_JOB_NODELIST "$2")")
}

plan() { # nemo-magic's command and arguments. Exits if the job's shape differs from the configuration
    local have tasks
    composer=("${one_task[@]}")
    compose "$@"
    have=$(of_group SLURM_JOB_NUM_NODES 0) tasks=$(of_group SLURM_NTASKS 0)
    if ((have != nodes || tasks != nodes * devices)); then
        die "$MISCONFIGURED" "the job has $have nodes and $tasks tasks, but trainer.num_nodes=$nodes × \
trainer.devices=$devices: bash slurm/….sh --submit asks for as many, or sbatch --nodes=$nodes --ntasks-per-node=$devices …"
    fi
    logs=$run_dir/logs/$attempt
    mkdir -p "$logs"
    grep '^# ' "$resolved" || true
}

# --- the judge

judge_pids=() judge_urls='' judge_started=0
find_judge() { # component. Sets the judge's address: the shared judge's if JUDGE_FOLDER is set, else on that component of the job
    export NEMO_MAGIC_JUDGE_TOKEN
    if [[ -n $JUDGE_FOLDER ]]; then
        wait_until "$JUDGE_READY_WITHIN" "the judge in JUDGE_FOLDER=$JUDGE_FOLDER" test -s "$JUDGE_FOLDER/url"
        NEMO_MAGIC_JUDGE_TOKEN=$(<"$JUDGE_FOLDER/token") judge_urls=$(<"$JUDGE_FOLDER/url")
        say "judge of $JUDGE_FOLDER: $judge_urls"
        return
    fi
    # Only in the environment of the job's steps: command lines are visible to every user.
    [[ -n ${NEMO_MAGIC_JUDGE_TOKEN:-} ]] || NEMO_MAGIC_JUDGE_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
    # Below the range of ephemeral ports.
    judge_port=$((20000 + SLURM_JOB_ID % 6000))
    local hosts host
    hosts_of hosts "$1"
    for host in "${hosts[@]}"; do judge_addresses+=("$(node_address "$host")"); done
    judge_urls=$(printf ',"http://%s:'"$judge_port"'"' "${judge_addresses[@]}")
    judge_urls="[${judge_urls:1}]"
    on_judge_nodes=(--mpi=none --nodes="${#hosts[@]}" --ntasks="${#hosts[@]}" --ntasks-per-node=1 --open-mode=append
        --kill-on-bad-exit=1) # if one ends, all end and are restarted
    [[ -z ${SLURM_HET_SIZE:-} ]] || on_judge_nodes+=(--het-group="$1")
}
judge_addresses=()

launch_judge() {
    local arguments=("${judge_args[@]}" "judge.server.host=$JUDGE_HOST" "judge.server.port=$judge_port"
        judge.token_env=NEMO_MAGIC_JUDGE_TOKEN)
    judge_pids=()
    if [[ -n $GUARD_COMMAND ]]; then
        "${guard_step[@]}" "${on_judge_nodes[@]}" --output="$logs/guard-%t.log" bash -c "$GUARD_COMMAND" 2>>"$logs/judge-srun.log" &
        judge_pids+=($!)
        arguments+=("judge.guard_config.model.urls=[http://127.0.0.1:$GUARD_PORT/v1]")
    fi
    "${step[@]}" "${on_judge_nodes[@]}" --output="$logs/judge-%t.log" "${nemo_magic[@]}" judge "${arguments[@]}" 2>>"$logs/judge-srun.log" &
    judge_pids+=($!)
    judge_started=$((judge_started + 1))
    say "judge at $judge_urls; its log is $logs/judge-0.log"
}

judge_is_ready() {
    local address
    for address in "${judge_addresses[@]}"; do
        # shellcheck disable=SC2016 # for the inner shell
        timeout 5 bash -c 'exec 3<>"/dev/tcp/$0/$1"; printf "GET /readyz HTTP/1.0\r\n\r\n" >&3; read -r _ status _ <&3; [[ $status == 200 ]]' \
            "$address" "$judge_port" 2>/dev/null || return 1
    done
}

judge_lives() {
    local pid
    for pid in "${judge_pids[@]}"; do kill -0 "$pid" 2>/dev/null || return 1; done
}

wait_for_judge() { wait_until "$JUDGE_READY_WITHIN" "the judge's /readyz (see $logs/judge-0.log)" judge_is_ready; }

wait_until() { # seconds, description, command. Ends the attempt on timeout, or if the judge ends meanwhile
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        [[ -z $save_requested && -z $terminating ]] || finish "$SAVED"
        if judge_lives && ((SECONDS < deadline)); then
            nap 1
            continue
        fi
        judge_lives || what="$what, which ended"
        [[ -z $logs ]] || tail -n 20 "$logs/judge-0.log" >&2 2>/dev/null || true
        finish 1 "waited for $what"
    done
}

stop_judge() {
    local pid
    for pid in "${judge_pids[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
    for pid in "${judge_pids[@]}"; do wait "$pid" 2>/dev/null || true; done
    judge_pids=()
}

restart_judge() { # the ranks wait for it for judge.give_up_after seconds, then save and end
    stop_judge
    if ((judge_started <= JUDGE_RESTARTS)); then
        say "the judge ended: it is started again ($judge_started of $JUDGE_RESTARTS)"
        launch_judge
    else
        say "the judge ended and has been started $judge_started times: the run saves and ends by itself"
    fi
}

# --- signals: USR1 warns of the time limit or of pre-emption, TERM means that Slurm ends the job

save_requested='' terminating='' training=''
listen() {
    trap 'save_requested=1; say "asked to end: the ranks save after the step under way"; pass_on' USR1
    trap 'terminating=1; pass_on' TERM
}
pass_on() { [[ -z $training ]] || kill -USR1 "$training" 2>/dev/null || true; } # srun signals every rank
nap() { sleep "$1" & wait $! 2>/dev/null || true; } # unlike a plain sleep, signals are handled at once

# --- training

train() { # nemo-magic's command and arguments
    local hosts tail_pid status=0
    hosts_of hosts 0
    export MASTER_ADDR MASTER_PORT NEMO_MAGIC_SAVED=$logs/saved
    MASTER_ADDR=$(node_address "${hosts[0]}")
    MASTER_PORT=$((26000 + (SLURM_JOB_ID * 7 + ${SLURM_RESTART_COUNT:-0}) % 6000))
    # torch 2.4's flight recorder of collectives, written on a timeout; newer releases accept these variables too.
    export TORCH_NCCL_TRACE_BUFFER_SIZE="${TORCH_NCCL_TRACE_BUFFER_SIZE:-2000}" TORCH_NCCL_DEBUG_INFO_TEMP_FILE=$logs/nccl_trace_rank_
    export TORCH_NCCL_DUMP_ON_TIMEOUT=1 TORCH_NCCL_ASYNC_ERROR_HANDLING=1 TORCH_NCCL_ENABLE_MONITORING=1
    export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"
    # The first rank that fails ends the others, after a pause in which they can log their own errors. A rank that saved must
    # not end the others: its status is recorded and becomes 0.
    # shellcheck disable=SC2016 # for the inner shell
    local rank='trap : USR1 TERM
        status=0
        "$@" || status=$?
        if ((status == '"$SAVED"')); then touch "$NEMO_MAGIC_SAVED" && exit 0; fi
        ((status == 0)) || sleep 5
        exit $status'
    "${step[@]}" "${on_nodes[@]}" --nodes="$nodes" --ntasks="$((nodes * devices))" --ntasks-per-node="$devices" \
        --mpi="$MPI" --kill-on-bad-exit=1 --output="$logs/rank-%4t.log" \
        bash -c "$rank" rank "${nemo_magic[@]}" "$@" 2>"$logs/srun.log" &
    training=$!
    tail --pid="$training" -n +1 -q -F "$logs/rank-0000.log" "$logs/srun.log" 2>/dev/null &
    tail_pid=$!
    [[ -z $save_requested && -z $terminating ]] || pass_on
    while kill -0 "$training" 2>/dev/null; do
        nap 1
        judge_lives || [[ -n $save_requested || -n $terminating ]] || ! kill -0 "$training" 2>/dev/null || restart_judge
    done
    wait "$training" || status=$?
    training=''
    wait "$tail_pid" || true # it prints the last lines
    return "$status"
}

# --- end or requeue

finish() { # status, and the reason if it was not printed yet. Requeues, or ends the job
    local status=$1
    stop_judge
    if [[ -n $terminating ]]; then
        say "Slurm ends this job; the run goes on from its last checkpoint when it is started again"
        exit 143
    fi
    [[ ! -e $logs/saved ]] || requeue "saved" 0
    ((status)) || exit 0
    if [[ -n $save_requested ]]; then
        ((SECONDS < 60)) || requeue "asked to end before there was anything to save" 0
        # Once is bad luck; if it happened every time, the job would requeue for ever.
        say "asked to end within a minute of its start: is SIGNAL_AHEAD=$SIGNAL_AHEAD less than the time limit?"
        fail "$SAVED"
    fi
    [[ -z ${2:-} ]] || say "$2"
    ((status != MISCONFIGURED)) || exit "$status"
    fail "$status"
}

fail() { # status. A new checkpoint resets the count of failures: a run that progresses may fail repeatedly
    local status=$1 failure_file=$run_dir/failures newest='' failures=0 before='' checkpoint
    say "the attempt ended with status $status; what its ranks said is in $logs"
    for checkpoint in "$run_dir"/checkpoints/step_*; do [[ ! -d $checkpoint ]] || newest=${checkpoint##*/}; done
    if [[ -f $failure_file ]]; then read -r before failures <"$failure_file"; fi
    [[ $before == "at:$newest" ]] || failures=0
    failures=$((failures + 1))
    echo "at:$newest $failures" >"$failure_file"
    timeout 300 "${one_task[@]}" "${nemo_magic[@]}" postmortem "$run_dir" || true
    if ((failures <= MAX_FAILURES)); then
        requeue "failure $failures of at most $MAX_FAILURES without a new checkpoint" "$status"
    fi
    say "given up after $failures failures without a new checkpoint (MAX_FAILURES=$MAX_FAILURES); submitted again, it goes \
on from ${newest:-the beginning}"
    exit "$status"
}

requeue() { # reason, exit status if requeueing fails
    local output
    output=$(scontrol -o show job "$job")
    if [[ ${output%%$'\n'*} != *JobState=RUNNING* ]]; then # cancelled, or requeued by someone else: leave it
        say "$1; Slurm ends this job"
        exit 143
    fi
    if ((${SLURM_RESTART_COUNT:-0} < MAX_RESTARTS)) && scontrol requeue "$job"; then
        say "$1: job $job is requeued and goes on"
        nap 60 # until Slurm ends this attempt
        exit 0
    fi
    say "$1, and job $job was not requeued (restarts: ${SLURM_RESTART_COUNT:-0}); submitted again, it goes on"
    exit $(($2 ? $2 : SAVED))
}

attempt_with_judge() { # nemo-magic's command. The whole job of a script with a judge
    local command=$1 status=0
    listen
    begin
    [[ -n ${SLURM_HET_SIZE:-} || -n $JUDGE_FOLDER ]] ||
        die "$MISCONFIGURED" "this job has no nodes for a judge, and JUDGE_FOLDER names none: see docs/cluster.md"
    plan "$command" "${args[@]}" "${judge_elsewhere[@]}"
    find_judge 1
    [[ -n $JUDGE_FOLDER ]] || { launch_judge && wait_for_judge; }
    train "$command" "${args[@]}" judge.launch=false "judge.urls=$judge_urls" judge.token_env=NEMO_MAGIC_JUDGE_TOKEN || status=$?
    finish "$status"
}
