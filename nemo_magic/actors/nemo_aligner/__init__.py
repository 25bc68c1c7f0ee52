"""The backend ``nemo_aligner``: NeMo-Aligner 0.7's actors on NeMo 2.1 and Megatron-core 0.10."""
