"""The backend ``megatron``: Megatron-core 0.16 alone."""
