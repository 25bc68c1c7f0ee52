# Cluster-specific settings. Copy this file to slurm/site.sh (ignored by git) and keep what you need; NEMO_MAGIC_SITE names
# another file. Every script of this folder sources it, when submitting and inside the job.
# shellcheck shell=bash disable=SC2034

# --- options that --submit passes to sbatch. Plain `sbatch slurm/….sh` takes them from its command line or from
# SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_QOS.
PARTITION="batch"
ACCOUNT=
QOS=
TIME_LIMIT=1-00:00:00
# Seconds before the time limit at which the ranks are signalled to save: enough for one step and one checkpoint. Slurm may
# be a minute early.
SIGNAL_AHEAD=900
# e.g. --gpus-per-node=8 if --exclusive does not include the GPUs, --reservation=…
SBATCH_EXTRA=()
# The judge's nodes may be in another partition.
JUDGE_PARTITION=
JUDGE_NODES=1
JUDGE_SBATCH_EXTRA=()

# --- environment. With an image and pyxis in this Slurm, every step runs in the container; otherwise in this environment,
# which `setup` prepares. backend=megatron has an image of its own, docs/container.md's `current`.
CONTAINER_IMAGE=
# The folder of submission is mounted automatically; name other folders with weights, data and runs/ here.
CONTAINER_MOUNTS=/lustre:/lustre
# The interpreter, in the container and on the login node. --submit and --dry-run need one here, with `pip install -e .`;
# torch is not needed.
PYTHON=python
setup() {
    :
    # module load cuda; source /lustre/me/venv/bin/activate
}
# How srun starts ranks (srun --mpi=list). TensorRT-LLM needs pmix; none does where there is no TensorRT-LLM.
MPI=pmix
SRUN_EXTRA=()

# --- the judge: arguments of `nemo-magic judge`, unless those after --judge name a configuration.
JUDGE_ARGS=(-cn judge_qwen3guard)
# Started on every judge node beside the judge, which reaches it at this port. If empty, JUDGE_ARGS name the guard's server.
GUARD_COMMAND='vllm serve Qwen/Qwen3Guard-Gen-8B --host 127.0.0.1 --port 8000'
GUARD_PORT=8000
# The guard's image; empty: CONTAINER_IMAGE.
GUARD_IMAGE=
# The judge listens on all interfaces; clients need the job's token.
JUDGE_HOST=0.0.0.0
# Seconds until the judge must be ready; the guard loads its weights in that time.
JUDGE_READY_WITHIN=1800
# How often a judge that ends is restarted within an attempt.
JUDGE_RESTARTS=3

# --- how often a job requeues itself: after failures without a new checkpoint in between, and in total.
MAX_FAILURES=3
MAX_RESTARTS=100

# The address at which other nodes reach a node: its name, unless you use another network.
node_address() { echo "$1"; }

# --- environment of every step, e.g. export NCCL_SOCKET_IFNAME=ib0 NCCL_IB_HCA=mlx5 HF_HOME=/lustre/me/hf TMPDIR=/scratch
