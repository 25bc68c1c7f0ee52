"""A Megatron actor behind an OpenAI-compatible HTTP server (docs/serve.md)."""
