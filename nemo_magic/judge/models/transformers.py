"""A Hugging Face model in this process: for a guard small enough to live beside the judge, and for tests.

Questions that wait while a batch is decoded make up the next one: batches grow with the load, and none waits to fill.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_magic.actors.control_tokens import ControlTokens
from nemo_magic.judge.errors import GuardUnavailable
from nemo_magic.judge.models.base import Sent
from nemo_magic.judge.telemetry import NO_TELEMETRY, Telemetry


@dataclass
class _Waiting:
    sent: Sent
    max_tokens: int
    answer: asyncio.Future[str]


class TransformersModel:
    """The causal language model at ``path``, a folder or a name on the hub, on ``device``; of safetensors only.

    ``name`` is what verdicts call it, by default the path's last part. ``revision``: of the weights; by default a
    digest of the folder's files, or the commit on the hub. ``max_batch``: questions decoded at once. ``dtype``: torch's
    name of one, or ``auto`` for the checkpoint's own.

    Raises ValueError if ``max_batch`` is below 1.
    """

    def __init__(
        self,
        path: str,
        name: str | None = None,
        revision: str | None = None,
        device: str = "cpu",
        dtype: str = "auto",
        max_batch: int = 16,
    ) -> None:
        if max_batch < 1:
            raise ValueError(f"judge.guard_config.model.max_batch={max_batch} must be at least 1")
        self.telemetry: Telemetry = NO_TELEMETRY
        self.takes_schema = False
        self.name = name or Path(path).name
        self.revision = revision or "not loaded"
        self._path = path
        self._pinned = revision
        self._device = device
        self._dtype = dtype
        self._max_batch = max_batch
        self._waiting: deque[_Waiting] = deque()
        self._decoding: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="guard model")
        self._model: Any = None
        self._tokenizer: Any = None

    async def start(self) -> None:
        """Load the weights. Raises OSError or ValueError if there are none at the path."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._load)

    async def complete(self, sent: Sent, max_tokens: int, schema: Mapping[str, Any] | None = None) -> str:
        """The greedy continuation, whatever the ``schema``. Raises GuardUnavailable before ``start`` and once closed,
        ValueError for a text that is too long, and what transformers raises."""
        if self._model is None:
            raise GuardUnavailable("the guard's model is not loaded")
        waiting = _Waiting(sent, max_tokens, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._decoding is None or self._decoding.done():
            self._decoding = asyncio.create_task(self._decode_all())
        return await waiting.answer

    async def close(self) -> None:
        """Wait for the batch in progress; what still waits for one ends as GuardUnavailable."""
        # The batch under way is waited for: a thread cannot be interrupted.
        self._model = None
        while self._waiting:
            _fail(self._waiting.popleft(), GuardUnavailable("the guard's model is being closed"))
        if self._decoding is not None:
            await asyncio.gather(self._decoding, return_exceptions=True)
        self._thread.shutdown()

    async def _decode_all(self) -> None:
        """Decode batch after batch until no question waits."""
        await asyncio.sleep(0)  # questions that come together are decoded together
        loop = asyncio.get_running_loop()
        model = self._model
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(self._max_batch, len(self._waiting)))]
            batch = [waiting for waiting in batch if not waiting.answer.done()]  # its caller is gone
            if not batch:
                continue
            self.telemetry.observe("model_batch", len(batch), model=self.name)
            self.telemetry.observe("model_waiting", len(self._waiting), model=self.name)
            try:
                texts = await loop.run_in_executor(self._thread, self._texts, model, batch)
            except RuntimeError as error:  # closed meanwhile
                texts = [GuardUnavailable(str(error)) for _ in batch]
            for waiting, text in zip(batch, texts, strict=True):
                if isinstance(text, Exception):
                    _fail(waiting, text)
                elif not waiting.answer.done():
                    waiting.answer.set_result(text)

    def _texts(self, model: Any, batch: Sequence[_Waiting]) -> list[str | Exception]:
        """The continuation of each, in order. A text that cannot be asked fails alone."""
        results: list[str | Exception] = []
        rows: list[list[int]] = []
        for waiting in batch:
            try:
                rows.append(self._encode(model, waiting))
                results.append("")
            except Exception as error:
                results.append(error)
        valid = [number for number, result in enumerate(results) if not isinstance(result, Exception)]
        if not valid:
            return results
        try:
            texts = self._generate(model, rows, [batch[number].max_tokens for number in valid])
        except Exception as error:
            if len(valid) == 1:
                results[valid[0]] = error
                return results
            # One of them may be to blame: each is asked alone.
            return [result or self._texts(model, [batch[number]])[0] for number, result in enumerate(results)]
        for number, text in zip(valid, texts, strict=True):
            results[number] = text
        return results

    def _encode(self, model: Any, waiting: _Waiting) -> list[int]:
        from jinja2 import TemplateError

        if isinstance(waiting.sent, str):
            ids: list[int] = self._tokenizer(waiting.sent)["input_ids"]
        else:
            chat = [{"role": message.role, "content": message.content} for message in waiting.sent]
            try:
                ids = self._control.encode_chat(chat)
            except (TemplateError, TypeError, ValueError) as error:
                roles = ", ".join(dict.fromkeys(message.role for message in waiting.sent))
                raise ValueError(
                    f"the chat template of {self._path} takes no chat of the roles {roles}: {error}"
                ) from error
        room = getattr(model.config, "max_position_embeddings", None)
        if room is not None and len(ids) + waiting.max_tokens > room:
            raise ValueError(f"too long for {self.name}: {len(ids)} + {waiting.max_tokens} tokens, {room} fit")
        return ids

    def _generate(self, model: Any, rows: Sequence[list[int]], max_tokens: Sequence[int]) -> list[str]:
        padded = self._tokenizer.pad({"input_ids": list(rows)}, return_tensors="pt").to(model.device)
        width = padded["input_ids"].shape[1]
        output = model.generate(
            **padded,
            max_new_tokens=max(max_tokens),
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            repetition_penalty=1.0,
            pad_token_id=self._tokenizer.pad_token_id,
        )
        new = [ids[width : width + limit] for ids, limit in zip(output.tolist(), max_tokens, strict=True)]
        texts: list[str] = self._tokenizer.batch_decode(
            new, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return texts

    def _load(self) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self._path, padding_side="left", trust_remote_code=False)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        # It would advise to tokenize and pad in one call: what is too long has to be found before.
        tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True
        # Neither pickled weights nor the code that some checkpoints bring.
        model = AutoModelForCausalLM.from_pretrained(
            self._path, torch_dtype=self._dtype, use_safetensors=True, trust_remote_code=False
        )
        model = model.to(self._device).eval()
        folder = Path(self._path)
        if self._pinned is None:
            commit = getattr(model.config, "_commit_hash", None)
            self.revision = _digest(folder) if folder.is_dir() else str(commit)
        self._control = ControlTokens(tokenizer)
        self._tokenizer, self._model = tokenizer, model


def _fail(waiting: _Waiting, error: Exception) -> None:
    if not waiting.answer.done():
        waiting.answer.set_exception(error)


def _digest(folder: Path) -> str:
    """Of all files of a checkpoint, whatever the folder is called: equal digests decode alike."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder)}\n{path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:12]
