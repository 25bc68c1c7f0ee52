"""The mathematics of GRPO on tensors. No NeMo, no Megatron."""
