"""Configuration dataclasses whose fields say which values they take::

    @dataclass
    class SFTConfig(CheckedConfig):
        KEY = "sft"

        role: Annotated[str, OneOf("attacker", "defender")] = "attacker"
        max_steps: PositiveInt = 300

OmegaConf and Hydra see the bare types. A check of several fields goes into ``__post_init__``, after that of the base.
"""

from __future__ import annotations

import math
import operator
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt, Interval


@dataclass(frozen=True, init=False)
class OneOf:
    """A field takes one of these words."""

    choices: tuple[str, ...]

    def __init__(self, *choices: str) -> None:
        object.__setattr__(self, "choices", choices)


PositiveInt = Annotated[int, Ge(1)]
NonNegativeInt = Annotated[int, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
NonNegativeFloat = Annotated[float, Ge(0)]
Fraction = Annotated[float, Interval(ge=0, le=1)]
FiniteFloat = Annotated[float, Interval(gt=-math.inf, lt=math.inf)]
FinitePositiveFloat = Annotated[float, Interval(gt=0, lt=math.inf)]
FiniteNonNegativeFloat = Annotated[float, Interval(ge=0, lt=math.inf)]

FLOAT32_MAX = (2 - 2**-23) * 2.0**127
"""The largest number that a tensor of single precision holds: torch refuses a larger one, or makes it infinite."""
PositiveFloat32 = Annotated[float, Interval(gt=0, le=FLOAT32_MAX)]
NonNegativeFloat32 = Annotated[float, Interval(ge=0, le=FLOAT32_MAX)]


class CheckedConfig:
    """Base of a configuration dataclass: every field is checked against its annotation (``OneOf``, ``Ge``, ``Gt``,
    ``Interval``) when an object is made. None passes where the type allows it.

    Raises:
        ValueError: a value is not allowed; the message has its key, the value, and what is allowed.
    """

    KEY: ClassVar[str] = ""
    """Where the fields are in the configuration, e.g. ``game.schedule``."""

    def __post_init__(self) -> None:
        cls: Any = type(self)
        for name, rule, nullable in _rules(cls):
            value = getattr(self, name)
            if (value is None and nullable) or _allows(rule, value):
                continue
            key = f"{self.KEY}.{name}" if self.KEY else name
            raise ValueError(f"{key}={value!r} must be {_text(rule)}{', or null' if nullable else ''}")


Rule = Ge | Gt | Interval | OneOf
_COMPARISONS = {"ge": operator.ge, "gt": operator.gt, "le": operator.le, "lt": operator.lt}


@cache
def _rules(cls: Any) -> tuple[tuple[str, Rule, bool], ...]:
    """Field, rule, and whether the field may be None, of all fields of a dataclass that have a rule."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return tuple(
        (field.name, rule, type(None) in typing.get_args(hints[field.name]))
        for field in fields(cls)
        for rule in _metadata(hints[field.name])
    )


def _metadata(hint: Any) -> Iterator[Rule]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        for part in typing.get_args(hint):
            yield from _metadata(part)
    elif typing.get_origin(hint) is Annotated:
        yield from (one for one in hint.__metadata__ if isinstance(one, Rule))


def _allows(rule: Rule, value: Any) -> bool:
    if isinstance(rule, OneOf):
        return value in rule.choices
    # Asked in this way, NaN is within no bounds.
    bounds: list[tuple[Any, Any]] = [(compare, getattr(rule, name, None)) for name, compare in _COMPARISONS.items()]
    return all(compare(value, bound) for compare, bound in bounds if bound is not None)


def _text(rule: Rule) -> str:
    if isinstance(rule, OneOf):
        return f"one of: {', '.join(rule.choices)}"
    if isinstance(rule, Ge):
        return f"at least {rule.ge}"
    if isinstance(rule, Gt):
        return f"greater than {rule.gt}"
    if rule.le == FLOAT32_MAX:
        low = f"greater than {rule.gt}" if rule.ge is None else f"at least {rule.ge}"
        return f"{low} and at most {FLOAT32_MAX:.3g}, the largest number of float32"
    if rule.ge is not None and rule.le is not None:
        return f"between {rule.ge} and {rule.le}"
    if rule.lt == math.inf:
        low = "" if rule.gt == -math.inf else f" greater than {rule.gt}" if rule.ge is None else f", at least {rule.ge}"
        return f"a finite number{low}"
    low = f"above {rule.gt}" if rule.ge is None else f"at least {rule.ge}"
    return f"{low} and {f'below {rule.lt}' if rule.le is None else f'at most {rule.le}'}"
