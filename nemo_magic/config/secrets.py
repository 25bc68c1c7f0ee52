"""What of a configuration does not leave the process: passwords in urls, values of the environment, secret keys.

Whatever is saved, printed or sent (config.yaml, ``--dry-run``, checkpoints, wandb) goes through ``masked``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_magic.net.endpoint import MASK

if TYPE_CHECKING:
    from nemo_magic.config.schema import MagicConfig

_USER = re.compile(r"(?P<scheme>\b[a-zA-Z][\w+.-]*://)[^/?#\s'\"]*@")
_QUERY = re.compile(
    r"(?P<name>[?&][\w.-]*(?:key|token|secret|password|passwd|signature|sig|auth)=)[^&#\s'\"]+", re.IGNORECASE
)
_SECRET_KEY = re.compile(
    r"(^|[_-])(password|passwd|secret|api[_-]?key|token|authorization|credentials?)$", re.IGNORECASE
)


class EnvironmentText(str):
    """A text that came from the environment. ``written``: the reference that stood in its place."""

    written: str

    def __new__(cls, value: str, written: str) -> EnvironmentText:
        """``value`` as any text, and where it came from."""
        text = super().__new__(cls, value)
        text.written = written
        return text

    def __deepcopy__(self, memo: object) -> EnvironmentText:
        return self

    def __reduce__(self) -> tuple[type[EnvironmentText], tuple[str, str]]:
        return EnvironmentText, (str(self), self.written)


def mark_environment(value: Any, raw: Mapping[Any, Any]) -> Any:
    """``value`` with every text that came from the environment as an ``EnvironmentText``; dataclasses are changed.

    A path stays as it is: other programs read it in a run's folder. So do the keys of a model and of the trainer, which
    NeMo gets.

    Args:
        raw: the same configuration before interpolation; only what it holds is looked at.
    """
    raw = {name: one for name, one in raw.items() if name not in ("model", "trainer")}
    if isinstance(actors := raw.get("actors"), Mapping):
        raw["actors"] = {
            role: {name: one for name, one in actor.items() if name != "model"}
            for role, actor in actors.items()
            if isinstance(actor, Mapping)
        }
    secrets = [text for text, written in _pairs(value, raw) if "oc.env" in written and not _is_path(text)]
    return _marked(value, raw, [secret for secret in secrets if secret])


def masked(cfg: MagicConfig | Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as plain mappings, with nothing secret in it.

    A text of the environment becomes the reference that it came from, so that the same configuration composes again.
    """
    plain: Mapping[str, Any] = cfg if isinstance(cfg, Mapping) else asdict(cfg)
    found: dict[str, Any] = _masked(plain)
    return found


def mask_text(text: str, cfg: MagicConfig | None = None) -> str:
    """``text`` without passwords in urls, and without what ``cfg`` has from the environment."""
    for value in texts_in(asdict(cfg)) if cfg is not None else ():
        if isinstance(value, EnvironmentText):
            text = text.replace(str(value), value.written)
    return _QUERY.sub(rf"\g<name>{MASK}", _USER.sub(rf"\g<scheme>{MASK}@", text))


def _masked(value: Any, key: str = "") -> Any:
    if isinstance(value, Mapping):
        return {name: _masked(one, str(name)) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(one, key) for one in value]
    if isinstance(value, EnvironmentText):
        return mask_text(value.written)
    if isinstance(value, str):
        return MASK if value and _SECRET_KEY.search(key) else mask_text(value)
    return value


def texts_in(value: Any) -> Iterator[str]:
    """All texts of nested mappings and lists, in order; keys are none."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from texts_in(one)


def _pairs(value: Any, raw: Any) -> Iterator[tuple[str, str]]:
    """(text, what stood in its place) of every text that was interpolated."""
    if isinstance(raw, str):
        if "${" in raw and isinstance(value, str):
            yield value, raw
        return
    for name, one in _items(raw):
        yield from _pairs(_get(value, name), one)


def _marked(value: Any, raw: Any, secrets: list[str]) -> Any:
    if isinstance(raw, str):
        is_secret = "${" in raw and isinstance(value, str) and any(secret in value for secret in secrets)
        return EnvironmentText(value, raw) if is_secret and not _is_path(value) else value
    for name, one in _items(raw):
        now = _get(value, name)
        if (new := _marked(now, one, secrets)) is not now:
            if is_dataclass(value):
                object.__setattr__(value, name, new)
            else:
                value[name] = new
    return value


def _items(raw: Any) -> list[tuple[Any, Any]]:
    if isinstance(raw, Mapping):
        return list(raw.items())
    return list(enumerate(raw)) if isinstance(raw, list) else []


def _get(value: Any, name: Any) -> Any:
    if is_dataclass(value):
        return getattr(value, name, None) if name in {one.name for one in fields(value)} else None
    if isinstance(value, Mapping):
        return value.get(name)
    return value[name] if isinstance(value, list) and isinstance(name, int) and name < len(value) else None


def _is_path(text: str) -> bool:
    path = Path(text)
    try:
        return Path(*path.parts[:2]).exists() if path.is_absolute() else path.exists()
    except (OSError, ValueError):
        return False
