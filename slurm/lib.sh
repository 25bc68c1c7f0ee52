# Shared by the scripts of this folder; sourced, never run. docs/cluster.md says how they are used.
# shellcheck shell=bash
#
# One attempt of a run is: plan (compose and check the configuration) → judge → training, watched → what next. Slurm's
# requeue makes attempts follow each other in one job; the run resumes by itself (--resume auto is nemo-magic's default).
set -euo pipefail

SAVED=75 # nemo-magic: asked to end, has saved, goes on with the same command
MISCONFIGURED=2

say() { printf '%s %s\n' "$(date +%H:%M:%S)" "$*"; }
die() { # status, message
    printf '%s: %s\n' "$(basename "$0")" "$2" >&2
    exit "$1"
}

# --- the site

PARTITION='' ACCOUNT='' QOS='' TIME_LIMIT='' JUDGE_PARTITION='' JUDGE_NODES=1 SIGNAL_AHEAD=900
SBATCH_EXTRA=() JUDGE_SBATCH_EXTRA=() SRUN_EXTRA=()
MPI=pmix CONTAINER_IMAGE='' CONTAINER_MOUNTS='' SCRATCH='' PYTHON=python
JUDGE_ARGS=(-cn judge_qwen3guard) JUDGE_PORT='' JUDGE_READY_WITHIN=1800 JUDGE_RESTARTS=3
GUARD_COMMAND='' GUARD_PORT=8000
MAX_FAILURES=3 MAX_RESTARTS=100
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

mode=run training_words=() judge_words=() run_dir='' job='' logs=''
parse() { # default configuration, the script's own words
    local default=$1 to=training word
    shift
    for word in "$@"; do
        case $word in
            --submit | --dry-run) mode=${word#--} ;;
            --judge) to=judge ;;
            *) if [[ $to == training ]]; then training_words+=("$word"); else judge_words+=("$word"); fi ;;
        esac
    done
    [[ " ${training_words[*]-} " =~ \ (-cn|--config-name)[\ =] ]] || training_words=(-cn "$default" "${training_words[@]}")
    ((${#judge_words[@]})) || judge_words=("${JUDGE_ARGS[@]}")
    [[ " ${judge_words[*]} " =~ \ (-cn|--config-name)[\ =] ]] || judge_words=("${JUDGE_ARGS[@]}" "${judge_words[@]}")
    if [[ $mode == run && -z ${SLURM_JOB_ID:-} ]]; then
        die "$MISCONFIGURED" "this is no Slurm job: sbatch $0 …, or bash $0 --submit … (with the site's file), or --dry-run"
    fi
}

nemo_magic=("$PYTHON" -m nemo_magic.cli)

value() { # file of a resolved configuration, section, key
    awk -v section="$2:" -v key="  $3: " '
        /^[^ ]/ { inside = ($0 == section) }
        inside && index($0, key) == 1 { print substr($0, length(key) + 1); exit }' "$1" | tr -d "'\""
}

# --- submitting: what sbatch is told, from the site's file and the configuration

submit() { # nemo-magic's command, whether with judge nodes, the script's own words
    local command=$1 judged=$2 script resolved nodes devices first=() words=()
    shift 2
    script=$(realpath "$0")
    setup
    command -v "$PYTHON" >/dev/null || die "$MISCONFIGURED" "$PYTHON is not here, see PYTHON and setup in $site"
    resolved=$(mktemp)
    words=("${training_words[@]}")
    [[ $command == sft ]] || words+=(judge.launch=false 'judge.urls=["http://judge:1"]')
    "${nemo_magic[@]}" "$command" "${words[@]}" --dry-run >"$resolved" || { rm -f "$resolved"; exit "$MISCONFIGURED"; }
    nodes=$(value "$resolved" trainer num_nodes) devices=$(value "$resolved" trainer devices)
    first=(--nodes="$nodes" --ntasks-per-node="$devices" --signal="B:USR1@$SIGNAL_AHEAD")
    site_options first "$PARTITION"
    first+=("${SBATCH_EXTRA[@]}")
    if [[ $judged == yes ]]; then
        first+=(: --nodes="$JUDGE_NODES")
        site_options first "${JUDGE_PARTITION:-$PARTITION}"
        first+=("${JUDGE_SBATCH_EXTRA[@]}")
    fi
    local kept=() word
    for word in "$@"; do [[ $word == --submit || $word == --dry-run ]] || kept+=("$word"); done
    if [[ $mode == dry-run ]]; then
        printf '# Would be submitted:\n%s\n\n# %s\n' "$(quoted sbatch "${SUBMIT_EXTRA[@]}" "${first[@]}" "$script" "${kept[@]}")" "$script"
        cat "$script"
        printf '\n# The resolved configuration, and what it will do (%s %s)\n' "$command" "${training_words[*]}"
        cat "$resolved"
        rm -f "$resolved"
        if [[ $command == train ]] && "${nemo_magic[@]}" plan --help >/dev/null 2>&1; then
            printf '\n# The plan: memory, seconds, GPU-hours\n'
            "${nemo_magic[@]}" plan "${words[@]}" || true
        fi
        return
    fi
    rm -f "$resolved"
    export NEMO_MAGIC_HOME=$home NEMO_MAGIC_SITE=$site
    [[ -f $site ]] || unset NEMO_MAGIC_SITE
    sbatch "${SUBMIT_EXTRA[@]}" "${first[@]}" "$script" "${kept[@]}"
}
SUBMIT_EXTRA=()

site_options() { # name of an array to add to, partition
    local -n options=$1
    [[ -z $2 ]] || options+=(--partition="$2")
    [[ -z $ACCOUNT ]] || options+=(--account="$ACCOUNT")
    [[ -z $QOS ]] || options+=(--qos="$QOS")
    [[ -z $TIME_LIMIT ]] || options+=(--time="$TIME_LIMIT")
}

quoted() { printf '%q ' "$@"; }

# --- running: steps of the job

steps_run_in() { # what every step needs; sets step, the beginning of every srun
    setup
    job=${SLURM_HET_JOB_ID:-$SLURM_JOB_ID}
    attempt=$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}
    # A job submitted with --export=NONE would hide all this from its steps.
    export SLURM_EXPORT_ENV=ALL OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" CUDA_DEVICE_MAX_CONNECTIONS="${CUDA_DEVICE_MAX_CONNECTIONS:-1}"
    [[ -z $SCRATCH ]] || export TMPDIR=$SCRATCH
    local known
    known=$(srun --mpi=list 2>&1)
    grep -qw -- "$MPI" <<<"$known" || die "$MISCONFIGURED" "MPI=$MPI is not what this Slurm has, see $site: ${known//$'\n'/ }"
    step=(srun --overlap "${SRUN_EXTRA[@]}")
    if [[ -n $CONTAINER_IMAGE ]]; then
        if srun --help 2>&1 | grep -q -- --container-image; then
            step+=(--container-image="$CONTAINER_IMAGE" --container-mounts="${CONTAINER_MOUNTS:+$CONTAINER_MOUNTS,}$PWD" --container-workdir="$PWD" --no-container-mount-home)
        else
            say "srun has no --container-image (pyxis): $CONTAINER_IMAGE is not used, $PYTHON is the one of this environment"
        fi
    fi
    in_group() { [[ ${SLURM_HET_SIZE:-1} -gt 1 ]] && echo "--het-group=$1" || echo --nodes="$2"; }
}

of_group() { # a Slurm variable, a component's number
    local name=$1_HET_GROUP_$2
    echo "${!name:-${!1}}"
}

plan() { # nemo-magic's command, its words. Sets run_dir and logs; stops where the job is not what the configuration asks for
    local command=$1 nodes devices have tasks resolved
    shift
    resolved=$(mktemp)
    local status=0
    "${step[@]}" "$(in_group 0 1)" --nodes=1 --ntasks=1 --ntasks-per-node=1 "${nemo_magic[@]}" "$command" "$@" --dry-run >"$resolved" || status=$?
    ((status == 0)) || die "$MISCONFIGURED" "the configuration cannot be run (see above)"
    nodes=$(value "$resolved" trainer num_nodes) devices=$(value "$resolved" trainer devices)
    run_dir=$(value "$resolved" exp_manager explicit_log_dir)
    have=$(of_group SLURM_JOB_NUM_NODES 0) tasks=$(of_group SLURM_NTASKS 0)
    if ((have != nodes || tasks != nodes * devices)); then
        die "$MISCONFIGURED" "the job has $have nodes and $tasks tasks, but trainer.num_nodes=$nodes × trainer.devices=$devices: sbatch --nodes=$nodes --ntasks-per-node=$devices $(basename "$0") …, or bash $(basename "$0") --submit, which asks for as many"
    fi
    logs=$run_dir/logs/$attempt
    mkdir -p "$logs"
    grep '^# ' "$resolved" || true
    rm -f "$resolved"
}

first_address() { node_address "$(scontrol show hostnames "$1" | head -n 1)"; }

# --- the judge

judge_pids=() judge_urls='' judge_hosts=() judge_started=0
find_judge() { # where it is, or will be: component 1, or beside the training; somebody else's where JUDGE_FOLDER is set
    export NEMO_MAGIC_JUDGE_TOKEN
    if [[ -n ${JUDGE_FOLDER:-} ]]; then
        wait_until "$JUDGE_READY_WITHIN" "$JUDGE_FOLDER/url" test -s "$JUDGE_FOLDER/url"
        NEMO_MAGIC_JUDGE_TOKEN=$(<"$JUDGE_FOLDER/token") judge_urls=$(<"$JUDGE_FOLDER/url")
        return
    fi
    # In the environment of the job's steps and nowhere else: a command line is for everyone to see.
    NEMO_MAGIC_JUDGE_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
    judge_port=${JUDGE_PORT:-$((40000 + SLURM_JOB_ID % 10000))}
    local nodes node group=0
    if [[ ${SLURM_HET_SIZE:-1} -gt 1 ]]; then group=1; fi
    mapfile -t nodes < <(scontrol show hostnames "$(of_group SLURM_JOB_NODELIST $group)")
    if ((group == 0)) && [[ $1 == beside ]]; then nodes=("${nodes[0]}"); fi
    for node in "${nodes[@]}"; do judge_hosts+=("$(node_address "$node")"); done
    judge_urls=$(printf ',"http://%s:'"$judge_port"'"' "${judge_hosts[@]}")
    judge_urls="[${judge_urls:1}]"
    judge_step=("${step[@]}" --mpi=none --ntasks="${#nodes[@]}" --ntasks-per-node=1 --nodes="${#nodes[@]}" --open-mode=append)
    if ((group)); then judge_step+=(--het-group=1); else judge_step+=(--nodelist="$(IFS=,; echo "${nodes[*]}")"); fi
}

launch_judge() {
    local words=("${judge_words[@]}" judge.server.host=0.0.0.0 "judge.server.port=$judge_port" judge.token_env=NEMO_MAGIC_JUDGE_TOKEN)
    judge_pids=()
    if [[ -n $GUARD_COMMAND ]]; then
        "${judge_step[@]}" --output="$logs/guard-%t.log" bash -c "$GUARD_COMMAND" &
        judge_pids+=($!)
        words+=("judge.guard_config.model.urls=[http://127.0.0.1:$GUARD_PORT/v1]")
    fi
    "${judge_step[@]}" --output="$logs/judge-%t.log" "${nemo_magic[@]}" judge "${words[@]}" &
    judge_pids+=($!)
    judge_started=$((judge_started + 1))
    say "judge on ${judge_hosts[*]}, port $judge_port; its log is $logs/judge-0.log"
}

judge_is_ready() {
    local host
    for host in "${judge_hosts[@]}"; do
        # shellcheck disable=SC2016 # for the inner shell
        timeout 5 bash -c 'exec 3<>"/dev/tcp/$0/$1"; printf "GET /readyz HTTP/1.0\r\n\r\n" >&3; read -r _ status _ <&3; [[ $status == 200 ]]' \
            "$host" "$judge_port" 2>/dev/null || return 1
    done
}

judge_lives() {
    local pid
    for pid in "${judge_pids[@]}"; do kill -0 "$pid" 2>/dev/null || return 1; done
}

wait_for_judge() {
    [[ -n ${JUDGE_FOLDER:-} ]] || wait_until "$JUDGE_READY_WITHIN" "the judge's /readyz (see $logs/judge-0.log)" judge_is_ready
}

wait_until() { # seconds, what, command. Ends the attempt when the time is over, or when the judge ends meanwhile
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        [[ -z $asked && -z $ended ]] || return 0
        if ! judge_lives; then what="$what: it ended"; elif ((SECONDS < deadline)); then nap 1 && continue; fi
        [[ -z $logs ]] || tail -n 20 "$logs"/judge-0.log >&2 2>/dev/null || true
        finish 1 "waited for $what"
    done
}

stop_judge() {
    local pid
    for pid in "${judge_pids[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
    for pid in "${judge_pids[@]}"; do wait "$pid" 2>/dev/null || true; done
    judge_pids=()
}

# --- signals: USR1 is the time limit's or the pre-emption's warning, TERM is Slurm ending the job by itself

asked='' ended='' training=''
listen() {
    trap 'asked=1; say "asked to end: the ranks save after the step under way"; pass_on' USR1
    trap 'ended=1; pass_on' TERM
}
pass_on() { [[ -z $training ]] || kill -USR1 "$training" 2>/dev/null || true; } # srun tells every rank
nap() { sleep "$1" & wait $! 2>/dev/null || true; } # unlike a plain sleep, lets a signal be heard at once

# --- training

train() { # nemo-magic's command, its words
    local command=$1
    shift
    export MASTER_ADDR MASTER_PORT NEMO_MAGIC_SAVED=$logs/saved NEMO_MAGIC_ATTEMPT=$attempt
    MASTER_ADDR=$(first_address "$(of_group SLURM_JOB_NODELIST 0)")
    MASTER_PORT=$((20000 + (SLURM_JOB_ID * 13 + ${SLURM_RESTART_COUNT:-0}) % 20000))
    # What torch 2.4 keeps of its collectives, and writes down when one times out; newer releases understand these too.
    export TORCH_NCCL_TRACE_BUFFER_SIZE="${TORCH_NCCL_TRACE_BUFFER_SIZE:-2000}" TORCH_NCCL_DEBUG_INFO_TEMP_FILE=$logs/nccl_trace_rank_
    export TORCH_NCCL_DUMP_ON_TIMEOUT=1 TORCH_NCCL_ASYNC_ERROR_HANDLING=1 TORCH_NCCL_ENABLE_MONITORING=1
    export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"
    local words=("$command" "$@") nodes devices log=$logs/rank-0000.log
    nodes=$(of_group SLURM_JOB_NUM_NODES 0)
    devices=$(($(of_group SLURM_NTASKS 0) / nodes))
    # The first rank that fails ends the others; one that has saved must not, so its status is noted and becomes 0.
    # shellcheck disable=SC2016 # for the inner shell
    "${step[@]}" "$(in_group 0 "$nodes")" --nodes="$nodes" --ntasks="$((nodes * devices))" --ntasks-per-node="$devices" \
        --mpi="$MPI" --kill-on-bad-exit=1 --output="$logs/rank-%4t.log" \
        bash -c 'trap : USR1 TERM; status=0; "$@" || status=$?; if ((status == '"$SAVED"')); then touch "$NEMO_MAGIC_SAVED"; status=0; fi; exit $status' \
        rank "${nemo_magic[@]}" "${words[@]}" &
    training=$!
    touch "$log"
    tail -n +1 -F "$log" 2>/dev/null &
    local shown=$!
    [[ -z $asked ]] || pass_on
    while kill -0 "$training" 2>/dev/null; do
        nap 1
        if ! judge_lives && [[ -z $asked && -z $ended ]] && kill -0 "$training" 2>/dev/null; then
            mourn_judge
        fi
    done
    local status=0
    wait "$training" || status=$?
    training=''
    sleep 1 # what rank 0 said last is being shown
    kill "$shown" 2>/dev/null || true
    return "$status"
}

mourn_judge() { # the judge ended: the ranks wait for it for judge.give_up_after seconds, then save and end
    stop_judge
    if ((judge_started <= JUDGE_RESTARTS)); then
        say "the judge ended: starting it again ($judge_started of $JUDGE_RESTARTS)"
        launch_judge
    else
        say "the judge ended and has been started $judge_started times: the run saves and ends by itself"
    fi
}

# --- what next

finish() { # status, and why where nobody has said. Requeues, or ends the job
    local status=$1
    stop_judge
    if [[ -n $ended ]]; then
        say "Slurm ends this job; the run goes on from its last checkpoint when it is started again"
        exit 143
    fi
    [[ ! -e $logs/saved ]] || requeue "saved" 0
    ((status)) || exit 0
    [[ -z $asked ]] || requeue "asked to end before there was anything to save" 0
    [[ -z ${2:-} ]] || say "$2"
    ((status != MISCONFIGURED)) || exit "$status"
    say "the attempt ended with status $status; what its ranks said is in $logs"
    timeout 300 "${step[@]}" "$(in_group 0 1)" --nodes=1 --ntasks=1 --ntasks-per-node=1 "${nemo_magic[@]}" postmortem "$run_dir" || true
    # Failures are counted since the last step forward: a run that gets on may fail again, one that does not is given up.
    local counted=$run_dir/failures newest='' failures=0 before=''
    newest=$(find "$run_dir/checkpoints" -maxdepth 1 -name 'step_*' -printf '%f\n' 2>/dev/null | sort | tail -n 1)
    if [[ -f $counted ]]; then read -r before failures <"$counted"; fi
    if [[ $before != "at:$newest" ]]; then failures=0; fi
    failures=$((failures + 1))
    echo "at:$newest $failures" >"$counted"
    if ((failures <= MAX_FAILURES)); then
        requeue "failure $failures of at most $MAX_FAILURES without a new checkpoint" "$status"
    fi
    say "$failures failures without a new checkpoint (MAX_FAILURES=$MAX_FAILURES): given up. The same sbatch command goes on from ${newest:-the beginning}"
    exit "$status"
}

requeue() { # why, status where it cannot be
    local state
    state=$(scontrol -o show job "$job" | head -n 1 | grep -o 'JobState=[A-Z_]*')
    if [[ $state != JobState=RUNNING ]]; then # cancelled, or requeued by somebody else: theirs to decide
        say "$1; $state"
        exit 143
    fi
    if ((${SLURM_RESTART_COUNT:-0} < MAX_RESTARTS)) && scontrol requeue "$job"; then
        say "$1: job $job is requeued, and goes on from its last checkpoint"
        nap 60 # until Slurm ends this attempt
        exit 0
    fi
    say "$1, and job $job was not requeued (restarts: ${SLURM_RESTART_COUNT:-0}): the same sbatch command goes on"
    exit $(($2 ? $2 : SAVED))
}

attempt_with_judge() { # the whole of a job that plays the game
    listen
    steps_run_in
    find_judge beside
    local status=0 words=("${training_words[@]}" judge.launch=false "judge.urls=$judge_urls" judge.token_env=NEMO_MAGIC_JUDGE_TOKEN)
    plan train "${words[@]}"
    [[ -n ${JUDGE_FOLDER:-} ]] || launch_judge
    wait_for_judge
    [[ -z $asked && -z $ended ]] || finish "$SAVED"
    train train "${words[@]}" || status=$?
    finish "$status"
}
