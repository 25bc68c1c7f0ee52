"""Writes hashes.txt: every line of cpu.txt and dev.txt with the SHA-256 of the file that pip takes for it.

    python requirements/hashes.py     after the lock was renewed (`make lock` does it), on Linux x86-64, Python 3.11

The hashes are those that the package index publishes. torch, NeMo, NeMo-Aligner and Megatron-core are not among them:
the Makefile pins them, and torch may be a local build.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
LOCKS = ("cpu.txt", "dev.txt")


def main() -> None:
    """Ask pip what it would install, and write it down."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        words = ["--quiet", "--dry-run", "--ignore-installed", "--no-deps", "--report", str(report)]
        files = [word for name in LOCKS for word in ("-r", str(HERE / name))]
        subprocess.run([sys.executable, "-m", "pip", "install", *words, *files], check=True)
        write(json.loads(report.read_text(encoding="utf-8")))


def write(report: dict) -> None:
    """Write hashes.txt from pip's installation report."""
    lines = []
    for item in report["install"]:
        digest = item["download_info"]["archive_info"]["hashes"]["sha256"]
        lines.append(f"{item['metadata']['name']}=={item['metadata']['version']} --hash=sha256:{digest}\n")
    head = (
        "# cpu.txt and dev.txt with hashes: what `make venv` installs. Written by hashes.py; to renew: `make lock`.\n"
    )
    (HERE / "hashes.txt").write_text(head + "".join(sorted(lines, key=str.lower)), encoding="utf-8")


if __name__ == "__main__":
    main()
