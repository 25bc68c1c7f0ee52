"""The rules of the game: values and pure functions. No torch, no NeMo, no network."""
