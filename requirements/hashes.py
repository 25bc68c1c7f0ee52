"""Writes hashes.txt: every line of cpu.txt and dev.txt with the SHA-256 of the file that pip takes for it.

    python requirements/hashes.py             after the lock was renewed, on Linux x86-64, Python 3.11
    python requirements/hashes.py current     resolves current.in and writes current.txt; `make lock` does both
    python requirements/hashes.py gpu         writes gpu_hashes.txt after gpu.txt was changed, on Linux x86-64

The hashes are those that the package index publishes. torch, NeMo, NeMo-Aligner and Megatron-core are not among them:
the Makefile pins them, and torch may be a local build.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path

HERE = Path(__file__).parent
LOCKS = ("cpu.txt", "dev.txt")
HEAD = "# cpu.txt and dev.txt with hashes: what `make venv` installs. Written by hashes.py; to renew: `make lock`.\n"
CURRENT_HEAD = (
    "# current.in, resolved: what `make venv-current` installs. Written by hashes.py; to renew: `make lock`.\n"
)
GPU_HEAD = "# gpu.txt with hashes: what the Dockerfile installs. Written by hashes.py; to renew: `hashes.py gpu`.\n"
# The image's Python and its C library; torch, TensorRT and what is compiled there is not in gpu.txt.
GPU_PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (35, 34, 31, 28, 27, 24, 17, 12, 5)] + ["linux_x86_64"]
# torch is in the Makefile. The others are for CUDA, break the CPU build, or are large and never imported here.
NOT_FOR_CURRENT = frozenset({"torch", "torchaudio", "torchcodec", "torchvision", "triton", "numba", "llvmlite"})


def main() -> None:
    """Ask pip what it would install, and write it down."""
    if sys.argv[1:] == ["current"]:
        write(ask("-r", str(HERE / "current.in")), HERE / "current.txt", CURRENT_HEAD, NOT_FOR_CURRENT)
    elif sys.argv[1:] == ["gpu"]:
        platforms = [word for name in GPU_PLATFORMS for word in ("--platform", name)]
        python = ["--python-version", "3.10", "--implementation", "cp", *platforms]
        with tempfile.TemporaryDirectory() as folder:  # pip takes other platforms for a folder only
            report = ask("--no-deps", "--target", folder, *python, "-r", str(HERE / "gpu.txt"))
        write(report, HERE / "gpu_hashes.txt", GPU_HEAD)
    else:
        files = [word for name in LOCKS for word in ("-r", str(HERE / name))]
        write(ask("--no-deps", *files), HERE / "hashes.txt", HEAD)


def ask(*words: str) -> dict:
    """pip's installation report."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        options = ["--quiet", "--dry-run", "--ignore-installed", "--report", str(report)]
        subprocess.run([sys.executable, "-m", "pip", "install", *options, *words], check=True)
        return json.loads(report.read_text(encoding="utf-8"))


def write(report: dict, file: Path, head: str, without: Collection[str] = ()) -> None:
    """Write ``file`` from pip's installation report."""
    lines = []
    for item in report["install"]:
        name, version = item["metadata"]["name"], item["metadata"]["version"]
        if name not in without:
            digest = item["download_info"]["archive_info"]["hashes"]["sha256"]
            lines.append(f"{name}=={version} --hash=sha256:{digest}\n")
    file.write_text(head + "".join(sorted(lines, key=str.lower)), encoding="utf-8")


if __name__ == "__main__":
    main()
