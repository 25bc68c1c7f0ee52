"""What the scripts of slurm/ would do, without a Slurm: what they submit, and how they call srun."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.zygote import environment

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parents[2]
SLURM = ROOT / "slurm"

# srun as far as the scripts know it: what it is told is written down, and what it is to start runs here. A judge is a
# server that is ready, ranks do nothing.
SRUN = """\
#!/usr/bin/env bash
case $* in
    --mpi=list) echo "MPI plugin types are... none pmix" ;;
    --help) echo "Usage: srun [OPTIONS] $PYXIS" ;;
    *)
        printf '%s\\n' "$*" >>"$TOLD"
        while [[ $1 == --* ]]; do shift; done
        all=$*
        case $all in
            *"nemo_magic.cli judge"*) port=${all##*judge.server.port=} && exec "$JUDGE_PYTHON" "$JUDGE" "${port%% *}" ;;
            *--dry-run) exec "$@" ;;
            *"rank "*) exit 0 ;;
            *) exec sleep 600 ;;
        esac ;;
esac
"""
JUDGE = """\
import http.server, sys
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Ready).serve_forever()
"""
SCONTROL = """\
#!/usr/bin/env bash
[[ "$1 $2" == "show hostnames" ]] && tr , '\\n' <<<"$3"
"""
HET_JOB = {
    "SLURM_JOB_ID": "41",
    "SLURM_HET_JOB_ID": "41",
    "SLURM_HET_SIZE": "2",
    "SLURM_JOB_NAME": "magic_8b",
    "SLURM_JOB_NODELIST_HET_GROUP_0": "a1,a2",
    "SLURM_JOB_NUM_NODES_HET_GROUP_0": "2",
    "SLURM_NTASKS_HET_GROUP_0": "4",
    "SLURM_JOB_NODELIST_HET_GROUP_1": "b1",
}
GAME = ["-cn", "magic_sandbox", "trainer.num_nodes=2", "trainer.devices=2"]


@dataclass(frozen=True)
class Desk:
    """A folder to work in, with commands of Slurm's names on the path and a site's file."""

    folder: Path

    def command(self, name: str, text: str) -> None:
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def run(self, script: str, *words: str, site: str = "", status: int = 0, **environ: str) -> str:
        """What a script prints; it must end with ``status``."""
        (self.folder / "site.sh").write_text(f"PYTHON={sys.executable}\n{site}\n")
        shell = {name: value for name, value in environment().items() if not name.startswith("SLURM_")}
        shell |= {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "NEMO_MAGIC_SITE": str(self.folder / "site.sh"),
        }
        shell |= {"NEMO_MAGIC_HOME": str(ROOT), "TOLD": str(self.folder / "told"), "JUDGE_PYTHON": sys.executable}
        shell |= {"JUDGE": str(self.folder / "judge.py"), "TMPDIR": str(self.folder), "PYXIS": ""}
        done = subprocess.run(
            ["bash", str(SLURM / script), *words],
            cwd=self.folder, env=shell | environ, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == status, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def told(self) -> list[str]:
        """What srun was told, line by line, with this machine's Python as ``python``."""
        words = (self.folder / "told").read_text().replace(sys.executable, "python")
        return [line for line in words.replace(str(self.folder), "DESK").splitlines() if line.startswith("--")]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    desk = Desk(tmp_path)
    desk.command("sbatch", f"#!/bin/sh\ntouch {tmp_path / 'submitted'}\necho 7\n")
    desk.command("srun", SRUN)
    desk.command("scontrol", SCONTROL)
    (tmp_path / "judge.py").write_text(JUDGE)
    (tmp_path / "tmp").mkdir()
    return desk


def test_a_dry_run_shows_script_configuration_and_plan_and_submits_nothing(desk: Desk) -> None:
    weights = ["actors.attacker.restore_from_path=/w/a", "actors.defender.restore_from_path=/w/d"]
    words = ["data.train_files=[/seeds.jsonl]", *weights, "game.max_steps=40"]
    site = "PARTITION=h100 ACCOUNT=safety TIME_LIMIT=12:00:00\nSBATCH_EXTRA=(--gpus-per-node=8)\nJUDGE_PARTITION=l40"
    said = desk.run("magic_70b.sh", "--dry-run", *words, site=site)
    assert said.splitlines()[1].startswith(
        "sbatch --nodes=8 --ntasks-per-node=8 --partition=h100 --account=safety --time=12:00:00 --gpus-per-node=8 "
        "--signal=B:USR1@900 : --nodes=1 --ntasks-per-node=1 --partition=l40 --account=safety --time=12:00:00 "
        f"{SLURM / 'magic_70b.sh'} data.train_files="
    )
    assert (SLURM / "magic_70b.sh").read_text() in said
    for line in ("name: magic_70b\n", "  max_steps: 40\n", "\n# world     64 ranks (8 × 8) = TP 8 × PP 4 × DP 2\n"):
        assert line in said
    assert "GPU-hours" in said
    assert not (desk.folder / "submitted").exists()


def test_the_other_backend_goes_through_the_same_script(desk: Desk) -> None:
    words = ["-cn", "magic_8b", "backend=megatron", "generation.engine=vllm", "data.train_files=[/seeds.jsonl]"]
    words += ["actors.attacker.restore_from_path=/w/a", "actors.defender.restore_from_path=/w/d"]
    text = desk.run("magic_8b.sh", "--dry-run", *words, site="CONTAINER_IMAGE=/images/current.sqsh\nMPI=none")
    assert "backend: megatron\n" in text
    # The plan is that backend's, whose Megatron-core this environment has not.
    assert "nemo-magic plan ended with status 2" in text
    assert not (desk.folder / "submitted").exists()


def test_a_misspelt_key_is_refused_before_anything_is_submitted(desk: Desk) -> None:
    said = desk.run("magic_8b.sh", "--submit", *GAME, "game.max_step=4", status=2)
    assert "game.max_steps" in said
    assert not (desk.folder / "submitted").exists()


def test_with_a_shared_judge_no_nodes_are_asked_for_one(desk: Desk) -> None:
    said = desk.run("magic_8b.sh", "--dry-run", *GAME, JUDGE_FOLDER="/shared/judge")
    assert "#SBATCH hetjob" not in said
    assert said.count("#SBATCH --nodes=1\n") == 1
    assert "--export=ALL\\,JUDGE_FOLDER=/shared/judge" in said.splitlines()[1]
    assert " : " not in said.splitlines()[1]
    assert not list((desk.folder / "tmp").glob("*magic_8b*"))


@pytest.mark.parametrize(
    "folder",
    [
        "runs/it's mine", 'runs/say "x"', "runs/" + "a long name with blanks " * 8 + "x", "runs/: # {x}", "runs/1.10",
        "runs/é–×", "runs/yes", "runs/a&b;c", "runs/$HOME", "1.10", "  two blanks before",
    ],
)  # fmt: skip
def test_a_run_s_folder_is_the_one_that_nemo_magic_says_whatever_its_name(desk: Desk, folder: str) -> None:
    override = "exp_manager.explicit_log_dir='{}'".format(folder.replace("'", "\\'"))
    script = f"""
        home={shlex.quote(str(ROOT))} PYTHON=python
        source "$home/slurm/lib.sh"
        nemo_magic=({shlex.quote(sys.executable)} -m nemo_magic.cli)
        compose sandbox -cn magic_sandbox {shlex.quote(override)}
        printf '%s|%s|%s' "$nodes" "$devices" "$run_dir"
        ! grep -q '^exp_manager.explicit_log_dir=' "$resolved"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=desk.folder, env=environment())
    assert (done.stdout, done.returncode) == (f"1|2|{folder}", 0), done.stderr


def test_a_sweep_of_which_one_line_is_wrong_is_not_submitted_at_all(desk: Desk) -> None:
    for lines, told in {
        "# two\nname=a grpo.kl_beta=0.01\n\nname=b grpo.kl_bet=0.02\n": "grpo.kl_beta",
        "name=a grpo.kl_beta=0.01\nname=a grpo.kl_beta=0.02\n": "writes to runs/a, as a line before it does",
        "name=a\nname=b trainer.devices=4\n": "wants 2 × 4 ranks, the lines before it 2 × 2",
    }.items():
        (desk.folder / "sweep.txt").write_text(lines)
        assert told in desk.run("sweep.sh", "--submit", "sweep.txt", *GAME, status=2)
    assert not (desk.folder / "submitted").exists()


def test_a_sweep_s_dry_run_shows_judge_array_and_table(desk: Desk) -> None:
    (desk.folder / "sweep.txt").write_text("name=a\nname=b grpo.kl_beta=0.02\n")
    said = desk.run("sweep.sh", "--dry-run", "--at-once=1", "sweep.txt", *GAME)
    judge, array, table = (line for line in said.splitlines() if line.startswith("sbatch "))
    assert f"JUDGE_FOLDER={desk.folder}/runs/sweeps/sweep/judge {SLURM}/judge.sh" in judge
    assert "--array=1-2%1 --dependency=after:JOB" in array
    assert "--dependency=afterany:JOB" in table
    assert "# === name=b grpo.kl_beta=0.02" in said
    assert "  kl_beta: 0.02\n" in said
    assert not (desk.folder / "submitted").exists()


def test_an_evaluation_without_the_command_says_so(desk: Desk) -> None:
    desk.command("old_python", '#!/bin/sh\necho "invalid choice: evaluate" >&2\nexit 2\n')
    site = f"PYTHON={desk.folder / 'bin/old_python'}"
    said = desk.run("evaluate.sh", "--submit", "-cn", "magic_8b", site=site, status=2)
    assert "has no command evaluate" in said
    assert not (desk.folder / "submitted").exists()


CONTAINED = (
    "--container-image=/images/magic.sqsh --container-mounts=/lustre:/lustre,DESK:DESK --container-workdir=DESK "
    "--no-container-mount-home"
)
SITE = """
CONTAINER_IMAGE=/images/magic.sqsh CONTAINER_MOUNTS=/lustre:/lustre GUARD_IMAGE=/images/vllm.sqsh JUDGE_HOST=127.0.0.1
GUARD_COMMAND='vllm serve Qwen/Qwen3Guard-Gen-8B --host 127.0.0.1 --port 8000'
node_address() { echo 127.0.0.1; }
"""


@pytest.mark.parametrize("restarts", ["0", "1"])
def test_a_requeued_run_goes_on_from_its_newest_checkpoint_whatever_it_was_told_at_first(
    desk: Desk, restarts: str
) -> None:
    job = {"SLURM_JOB_ID": "41", "SLURM_JOB_NODELIST": "a1", "SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS": "2"}
    words = ["-cn", "sft_sandbox_attacker", "--resume", "never", "sft.max_steps=1"]
    desk.run("sft.sh", *words, **job, SLURM_RESTART_COUNT=restarts)
    anew = "" if restarts == "1" else " --resume never"
    assert (desk.folder / "told").read_text().count(f"cli sft -cn sft_sandbox_attacker{anew} sft.max_steps=1") == 2


@pytest.mark.parametrize("pyxis", [True, False], ids=["pyxis", "bare"])
def test_steps_run_in_the_container_where_srun_can_do_that_and_bare_where_it_cannot(desk: Desk, pyxis: bool) -> None:
    helps = "--container-image=[USER@][REGISTRY#]IMAGE[:TAG]" if pyxis else ""
    said = desk.run("magic_8b.sh", *GAME, site=SITE, **HET_JOB, PYXIS=helps)
    plan, *beside, train = desk.told()
    judge, guard = sorted(beside, key=lambda line: "vllm serve" in line)  # they are started side by side
    inside, vllm = f" {CONTAINED}" * pyxis, f" {CONTAINED.replace('magic.sqsh', 'vllm.sqsh')}" * pyxis
    one = "--mpi=none --nodes=1 --ntasks=1 --ntasks-per-node=1"
    assert plan.startswith(
        f"--overlap{inside} --het-group=0 {one} python -m nemo_magic.cli train -cn magic_sandbox trainer.num_nodes=2"
    )
    there = f"{one} --open-mode=append --kill-on-bad-exit=1 --het-group=1"
    logs = "runs/magic_sandbox/logs/41.0"
    serve = "vllm serve Qwen/Qwen3Guard-Gen-8B --host 127.0.0.1 --port 8000"
    assert guard == f"--overlap{vllm} {there} --output={logs}/guard-%t.log bash -c {serve}"
    assert judge == (
        f"--overlap{inside} {there} --output={logs}/judge-%t.log python -m nemo_magic.cli judge -cn judge_qwen3guard "
        "judge.server.host=127.0.0.1 judge.server.port=20041 judge.token_env=NEMO_MAGIC_JUDGE_TOKEN "
        "judge.guard_config.model.urls=[http://127.0.0.1:8000/v1]"
    )
    assert train.startswith(
        f"--overlap{inside} --het-group=0 --nodes=2 --ntasks=4 --ntasks-per-node=2 --mpi=pmix --kill-on-bad-exit=1 "
        f"--output={logs}/rank-%4t.log bash -c trap"
    )
    assert ("srun has no --container-image (pyxis): /images/magic.sqsh is not used" in said) is not pyxis


@pytest.mark.parametrize("before", [None, 0o600, 0o644, 0o666])
def test_a_judge_s_token_is_kept_and_readable_for_nobody_else_whatever_is_there(desk: Desk, before: int | None) -> None:
    folder = desk.folder / "judge"
    folder.mkdir()
    reader = None
    if before is not None:
        (folder / "token").write_text("0123\n")
        (folder / "token").chmod(before)
        (folder / "token.partial").write_text("left over\n")
        (folder / "token.partial").chmod(before)
        reader = (folder / "token").open()
    job = {"SLURM_JOB_ID": "41", "SLURM_JOB_NAME": "judge", "SLURM_JOB_NODELIST": "b1", "JUDGE_FOLDER": str(folder)}
    # The judge ends at once: what is left is what it was started with.
    ended = SRUN.replace('exec "$JUDGE_PYTHON" "$JUDGE" "${port%% *}"', "exit 1").replace("exec sleep 600", "exit 1")
    desk.command("srun", ended)
    desk.run("judge.sh", site=SITE, status=1, **job)
    assert (folder / "token").stat().st_mode & 0o777 == 0o600
    token = (folder / "token").read_text()
    assert token == "0123\n" if before is not None else len(token) == 65
    assert not (folder / "token.partial").exists()
    if reader is not None:
        # Who had the file open before sees nothing that is written now.
        assert (folder / "token").stat().st_ino != os.fstat(reader.fileno()).st_ino
        reader.close()


def test_another_shape_than_the_configuration_s_is_refused_with_the_right_one(desk: Desk) -> None:
    said = desk.run("magic_8b.sh", "-cn", "magic_sandbox", "trainer.devices=4", **HET_JOB, status=2)
    assert "the job has 2 nodes and 4 tasks, but trainer.num_nodes=1 × trainer.devices=4" in said
    assert "sbatch --nodes=1 --ntasks-per-node=4" in said


def test_an_mpi_that_slurm_does_not_have_is_named(desk: Desk) -> None:
    assert "MPI=pmix_v9 is not what this Slurm has" in desk.run(
        "magic_8b.sh", *GAME, site="MPI=pmix_v9", **HET_JOB, status=2
    )
