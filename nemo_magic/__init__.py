"""nemo-magic: co-evolving attacker–defender training (MAGIC, arXiv 2602.01539) on NeMo-Aligner and Megatron-core."""

__version__ = "0.1.0"
