# What differs between clusters. Copy it to slurm/site.sh (git ignores that) and keep what you need; NEMO_MAGIC_SITE names
# another file. Read by every script of this folder, when submitting and inside the job.
# shellcheck shell=bash disable=SC2034

# --- asked of sbatch by --submit. Plain `sbatch slurm/….sh` takes them from its command line or from SBATCH_PARTITION,
# SBATCH_ACCOUNT, SBATCH_QOS.
PARTITION="batch"
ACCOUNT=
QOS=
TIME_LIMIT=1-00:00:00
# Seconds before the time limit at which the ranks are asked to save: room for one step and one checkpoint. Slurm may be a
# minute early.
SIGNAL_AHEAD=900
# e.g. --gpus-per-node=8 where --exclusive does not bring the GPUs along, --reservation=…
SBATCH_EXTRA=()
# The judge's nodes may be others.
JUDGE_PARTITION=
JUDGE_NODES=1
JUDGE_SBATCH_EXTRA=()

# --- where it runs. With an image, and pyxis in this Slurm, every step runs in the container; otherwise in this
# environment, which `setup` prepares.
CONTAINER_IMAGE=
# The folder that was submitted from is mounted by itself; weights, data and runs/ elsewhere have to be named.
CONTAINER_MOUNTS=/lustre:/lustre
# In the container and here; --submit and --dry-run need one here, with `pip install -e .` and without torch.
PYTHON=python
setup() {
    :
    # module load cuda; source /lustre/me/venv/bin/activate
}
# How srun starts ranks (srun --mpi=list). TensorRT-LLM wants pmix.
MPI=pmix
SRUN_EXTRA=()

# --- the judge: what `nemo-magic judge` is told where the script's words after --judge do not name a configuration.
JUDGE_ARGS=(-cn judge_qwen3guard)
# Started on every judge node beside the judge, and asked at this port; empty: JUDGE_ARGS say which server is asked.
GUARD_COMMAND='vllm serve Qwen/Qwen3Guard-Gen-8B --host 127.0.0.1 --port 8000'
GUARD_PORT=8000
# The image it runs in; empty: the same as everything else.
GUARD_IMAGE=
# Where the judge listens: everywhere, for whoever knows the job's token.
JUDGE_HOST=0.0.0.0
# Seconds until it must be ready: the guard loads its weights meanwhile.
JUDGE_READY_WITHIN=1800
# How often a judge that ends is started again within an attempt.
JUDGE_RESTARTS=3

# --- how often a job requeues itself: after failures without a new checkpoint between them, and in all.
MAX_FAILURES=3
MAX_RESTARTS=100

# Under which address other nodes reach a node; its name, unless another network is meant.
node_address() { echo "$1"; }

# --- what every step inherits, e.g. export NCCL_SOCKET_IFNAME=ib0 NCCL_IB_HCA=mlx5 HF_HOME=/lustre/me/hf TMPDIR=/scratch
