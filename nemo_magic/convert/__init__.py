"""Published checkpoints to Megatron's format and back, streamed; ``nemo-magic convert``.

Why there is a mapping here: the importers that come with NeMo 2.1 (``nemo.collections.llm``) write NeMo 2's own layout,
which NeMo-Aligner's actors do not read, and build the whole model in memory, twice. The scripts that wrote what actors
do read (``scripts/checkpoint_converters``) are not part of the installed package, and hold a model twice as well. This
package reads one tensor at a time, writes Megatron-core's ``torch_dist`` format through torch's own checkpoint writer,
and needs neither Megatron nor NeMo, so that it runs on any machine with torch.
"""
