"""The tests check the shapes and types that tensors are annotated with. This comes before any import of the package."""

from __future__ import annotations

from jaxtyping import install_import_hook

install_import_hook("nemo_magic.rl", "beartype.beartype")
