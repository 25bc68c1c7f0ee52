"""nemo-magic: co-evolving attacker–defender training (MAGIC, arXiv 2602.01539) on NeMo-Aligner and Megatron-core."""

import os

__version__ = "0.1.0"

# numpy's OpenBLAS starts its threads when it is imported. Nothing here multiplies large matrices with it, and a process
# with threads cannot fork ranks.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
