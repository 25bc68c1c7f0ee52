"""The format of Hugging Face checkpoints: ``config.json`` and the names of tensors, and what of Megatron's they are.

Whole checkpoints are converted by ``nemo_magic.convert``; engines get an actor's weights under these names.
"""
