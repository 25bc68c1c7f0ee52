"""A random model small enough for a test, once for transformers and once for llama.cpp: the same weights and tokens.

``python tiny_checkpoint.py serve FILE NAME PORT [embeddings]`` serves the second with llama.cpp's own server and prints
its address.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|begin|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
# As byte-level tokenizers write a space, a line's end and what can be printed.
ALPHABET = ("Ġ", "Ċ", *(chr(code) for code in range(33, 127)))
MERGES = (("t", "h"), ("th", "e"), ("i", "n"), ("Ġ", "t"), ("a", "n"), ("e", "r"), ("o", "u"), ("Ġ", "a"))
CONTEXT = 256
LAYERS, WIDTH, HEADS, INNER = 2, 64, 4, 128


def make(
    folder: Path,
    seed: int = 0,
    alphabet: Sequence[str] = ALPHABET,
    merges: Sequence[tuple[str, str]] = MERGES,
    rows: int = 0,
    loud: Sequence[str] = (),
    heads: int = HEADS,
    context: int = CONTEXT,
) -> tuple[Path, Path]:
    """Writes the checkpoint; the folder that transformers loads, and the file that llama.cpp loads.

    ``rows``: the vocabulary is filled up to so many words with some that are never said. ``loud``: words that are said
    more than the others. ``heads`` of attention; ``context``: positions.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = [*SPECIAL, *alphabet, *(left + right for left, right in merges)]
    said = len(words)
    words += [f"spare{n}" for n in range(rows - said)]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing("<|begin|> $A", special_tokens=[("<|begin|>", 0)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|begin|>", eos_token="<|end|>", pad_token="<|end|>"
    )
    fast.chat_template = TEMPLATE
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=heads,
        max_position_embeddings=context,
        initializer_range=0.5,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    model.lm_head.weight.data[said:] = 0.0
    model.lm_head.weight.data[[words.index(word) for word in loud]] *= 2.0
    fast.save_pretrained(folder / "hf")
    model.save_pretrained(folder / "hf")
    _write_gguf(folder / "tiny.gguf", model.state_dict(), words, merges, config)
    return folder / "hf", folder / "tiny.gguf"


def _write_gguf(path, weights, words, merges, config) -> None:  # type: ignore[no-untyped-def]
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(WIDTH // config.num_attention_heads)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(words)
    special = [gguf.TokenType.CONTROL] * len(SPECIAL)
    writer.add_token_types(special + [gguf.TokenType.NORMAL] * (len(words) - len(SPECIAL)))
    writer.add_token_merges([f"{left} {right}" for left, right in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(True)
    writer.add_chat_template(TEMPLATE)

    def add(name, key, heads=0):  # type: ignore[no-untyped-def]
        weight = weights[key].float().numpy()
        if heads:  # llama.cpp rotates neighbours, transformers the two halves
            rows, columns = weight.shape
            weight = weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
        writer.add_tensor(name, weight)

    add("token_embd.weight", "model.embed_tokens.weight")
    add("output_norm.weight", "model.norm.weight")
    add("output.weight", "lm_head.weight")
    for i in range(LAYERS):
        block, layer = f"blk.{i}", f"model.layers.{i}"
        add(f"{block}.attn_norm.weight", f"{layer}.input_layernorm.weight")
        add(f"{block}.ffn_norm.weight", f"{layer}.post_attention_layernorm.weight")
        add(f"{block}.attn_q.weight", f"{layer}.self_attn.q_proj.weight", config.num_attention_heads)
        add(f"{block}.attn_k.weight", f"{layer}.self_attn.k_proj.weight", config.num_attention_heads)
        add(f"{block}.attn_v.weight", f"{layer}.self_attn.v_proj.weight")
        add(f"{block}.attn_output.weight", f"{layer}.self_attn.o_proj.weight")
        for ours, theirs in (("gate", "gate"), ("up", "up"), ("down", "down")):
            add(f"{block}.ffn_{ours}.weight", f"{layer}.mlp.{theirs}_proj.weight")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def serve(file: str, name: str, port: str, mode: str = "completions") -> None:
    """Until standard input ends. ``mode``: ``completions``, or ``embeddings`` (the mean over a text's tokens)."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = file
    params.model_alias = {name}
    params.port = int(port)
    params.n_ctx = CONTEXT * 4
    params.n_parallel = 4
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    params.n_threads_http = 16  # each keeps a connection
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32  # as transformers keeps them
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.warmup = False
    params.ui = False
    params.prefill_assistant = False
    if mode == "embeddings":
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(*sys.argv[2:])
    else:
        print(*make(Path(sys.argv[2])))
