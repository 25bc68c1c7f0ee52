"""Keys whose type is text keep their characters: ``name=1.10`` is no number, whatever YAML and Hydra take it for.

A scalar that both would read as a number or a flag, and whose spelling would be lost, is marked with its characters
while Hydra composes. Only then is the type of its key known, and the mark gives way to the characters or to the value.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from antlr4 import InputStream
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.grammar.gen.OverrideLexer import OverrideLexer
from hydra.plugins.config_source import ConfigResult
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader

from nemo_magic.config.schema import MagicConfig

SCHEME = "text"
_MARK = "\0"
"""Neither a command line nor a YAML file can hold it."""
_READ: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "bool": lambda text: text == "True"}
_SCALARS: dict[int, Callable[[str], Any]] = {
    OverrideLexer.INT: int,
    OverrideLexer.FLOAT: float,
    OverrideLexer.BOOL: lambda text: text.lower() == "true",
}
_STRUCTURE = {
    OverrideLexer.BRACKET_OPEN,
    OverrideLexer.BRACKET_CLOSE,
    OverrideLexer.BRACE_OPEN,
    OverrideLexer.BRACE_CLOSE,
    OverrideLexer.COMMA,
}


class TextKeepingSource(FileConfigSource):
    """Hydra's files with marked scalars, in a search path as ``text:///folder``."""

    @staticmethod
    def scheme() -> str:
        """The scheme of its search paths."""
        return SCHEME

    def load_config(self, config_path: str) -> ConfigResult:
        """As a file is loaded, but marked."""
        path = Path(self.path) / self._normalize_file_name(config_path)
        marked = read_yaml(path)
        if isinstance(marked, dict) and "defaults" in marked:
            # Names of files, which are texts.
            marked["defaults"] = with_types(marked["defaults"], str)
        return ConfigResult(
            provider=self.provider,
            path=f"{SCHEME}://{self.path}",
            config=OmegaConf.create({} if marked is None else marked),
            header=self._get_header_dict(path.read_text(encoding="utf-8")),
        )


def read_yaml(path: Path) -> Any:
    """A YAML file's content with marked scalars, for ``with_types``."""
    return yaml.load(path.read_text(encoding="utf-8"), _loader())


def marked_override(line: str) -> str:
    """``key=value`` of a command line with marked scalars in the value."""
    key, equals, value = line.partition("=")
    marked, end = "", 0
    for start, stop, scalar in _scalars(value):
        marked += value[end:start] + f"'{scalar}'"
        end = stop
    return f"{key}{equals}{marked}{value[end:]}"


def with_types(value: Any, hint: Any, name: str = "") -> Any:
    """``value`` with every mark replaced, by the type ``hint`` of where it stands: a text by its characters, anything
    else by the number or flag that they mean. Keys of mappings are texts.

    Below a mapping of any keys a value is a text if the schema's keys of its ``name`` are.
    """
    hint = _bare(hint)
    if hint is Any and name in text_names() and not isinstance(value, Mapping):
        hint = str
    if isinstance(value, str):
        return _unmarked(value, hint is str)
    if hint is str and isinstance(value, int | float):
        return str(value)  # as it was spelled, or it had been marked
    if isinstance(value, list):
        inner = next(iter(typing.get_args(hint)), Any) if typing.get_origin(hint) is list else hint
        return [with_types(one, inner, name) for one in value]
    if isinstance(value, Mapping):
        plain = {_unmarked(key, True) if isinstance(key, str) else key: one for key, one in value.items()}
        return {key: with_types(one, _below(hint, str(key)), str(key)) for key, one in plain.items()}
    return value


@cache
def text_names() -> frozenset[str]:
    """The last parts of keys that are texts wherever the schema has them, and the path of a model behind a guard."""
    leaves = list(_leaves(MagicConfig))
    return frozenset({"path", *(name for name, hint in leaves if hint is str)}) - {
        name for name, hint in leaves if hint is not str
    }


def _leaves(cls: type) -> Iterator[tuple[str, Any]]:
    for name, hint in _field_hints(cls).items():
        hint = _bare(hint)
        if is_dataclass(hint) and isinstance(hint, type):
            yield from _leaves(hint)
        elif typing.get_origin(hint) is list:
            yield name, _bare(typing.get_args(hint)[0])
        elif typing.get_origin(hint) is dict:
            inner = _bare(typing.get_args(hint)[1])
            if is_dataclass(inner) and isinstance(inner, type):
                yield from _leaves(inner)
        elif hint in (str, int, float, bool):
            yield name, hint


@cache
def _field_hints(cls: type) -> Mapping[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: field.metadata.get("part_of", hints[field.name]) for field in fields(cls)}


def _bare(hint: Any) -> Any:
    """Without None."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(part for part in typing.get_args(hint) if part is not type(None))
    return hint


def _below(hint: Any, name: str) -> Any:
    if is_dataclass(hint) and isinstance(hint, type):
        return _field_hints(hint).get(name, Any)
    if typing.get_origin(hint) is dict:
        return typing.get_args(hint)[1]
    return hint if hint is str else Any


def _marked(value: Any, characters: str) -> Any:
    """``value`` itself where its spelling in Python is the one in the file."""
    return value if str(value) == characters else _MARK.join(("", type(value).__name__, str(value), characters))


def _unmarked(text: str, is_text: bool) -> Any:
    if not text.startswith(_MARK):
        return text
    _, kind, value, characters = text.split(_MARK)
    return characters if is_text else _READ[kind](value)


@cache
def _loader() -> Any:
    class Loader(get_yaml_loader()):  # type: ignore[misc]
        pass

    for kind in _READ:
        construct = getattr(Loader, f"construct_yaml_{kind}")
        Loader.add_constructor(
            f"tag:yaml.org,2002:{kind}",
            lambda loader, node, construct=construct: _marked(construct(loader, node), node.value),
        )
    return Loader


def _scalars(value: str) -> Iterator[tuple[int, int, str]]:
    """(begin, end, mark) of each scalar to mark in the value of an override, which may be a list or a mapping."""
    lexer = OverrideLexer(InputStream(value))
    lexer.removeErrorListeners()
    lexer.mode(OverrideLexer.VALUE_MODE)
    tokens = lexer.getAllTokens()
    if any(token.type == OverrideLexer.POPEN for token in tokens):
        return  # a function, str(1.10), whose result is the value
    run: list[Any] = []
    depth = 0
    for token in [*tokens, None]:
        kind = None if token is None else token.type
        is_key = kind == OverrideLexer.COLON and depth > 0
        if kind is None or kind in _STRUCTURE or is_key:
            if len(run) == 1 and run[0].type in _SCALARS and not is_key:
                mark = _marked(_SCALARS[run[0].type](run[0].text), run[0].text)
                if isinstance(mark, str):
                    yield run[0].start, run[0].stop + 1, mark
            run = []
            depth += (kind == OverrideLexer.BRACE_OPEN) - (kind == OverrideLexer.BRACE_CLOSE)
        elif kind != OverrideLexer.WS:
            run.append(token)
