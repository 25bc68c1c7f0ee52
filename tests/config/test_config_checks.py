"""A configuration dataclass checks its fields by their annotations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import pytest
from annotated_types import Interval
from omegaconf import OmegaConf

from nemo_magic.config_checks import (
    CheckedConfig,
    FiniteFloat,
    FiniteNonNegativeFloat,
    FinitePositiveFloat,
    Fraction,
    NonNegativeInt,
    OneOf,
    PositiveFloat,
    PositiveInt,
)


@dataclass
class Options(CheckedConfig):
    KEY: ClassVar[str] = "some.options"

    way: Annotated[str, OneOf("up", "down")] = "up"
    steps: PositiveInt = 1
    rest: NonNegativeInt = 0
    rate: PositiveFloat = 0.1
    share: Fraction = 1.0
    reached: Annotated[float, Interval(gt=0, le=1)] = 1.0
    slack: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    bound: FiniteFloat = 0.0
    weight: FiniteNonNegativeFloat = 0.0
    threshold: FinitePositiveFloat = 1.0
    limit: PositiveInt | None = None
    mode: Annotated[str, OneOf("fast")] | None = None
    text: str = ""


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"way": "left"}, "some.options.way='left' must be one of: up, down"),
        ({"steps": 0}, "some.options.steps=0 must be at least 1"),
        ({"rest": -1}, "some.options.rest=-1 must be at least 0"),
        ({"rate": 0.0}, "some.options.rate=0.0 must be greater than 0"),
        ({"rate": math.nan}, "some.options.rate=nan must be greater than 0"),
        ({"share": 1.1}, "some.options.share=1.1 must be between 0 and 1"),
        ({"reached": 0.0}, "some.options.reached=0.0 must be above 0 and at most 1"),
        ({"slack": 1.0}, "some.options.slack=1.0 must be at least 0 and below 1"),
        ({"bound": math.nan}, "some.options.bound=nan must be a finite number"),
        ({"bound": -math.inf}, "some.options.bound=-inf must be a finite number"),
        ({"weight": -1.0}, "some.options.weight=-1.0 must be a finite number, at least 0"),
        ({"threshold": math.inf}, "some.options.threshold=inf must be a finite number greater than 0"),
        ({"limit": 0}, "some.options.limit=0 must be at least 1, or null"),
        ({"mode": "slow"}, "some.options.mode='slow' must be one of: fast, or null"),
    ],
)
def test_a_value_that_is_not_allowed_is_named_with_its_key_and_what_is_allowed(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match="must be") as caught:
        Options(**values)
    assert str(caught.value) == message


def test_what_is_allowed_passes_and_omegaconf_sees_the_bare_types() -> None:
    own = Options(way="down", steps=3, share=0.0, reached=1.0, slack=0.0, bound=-5.0, limit=2, mode="fast")
    merged = OmegaConf.merge(OmegaConf.structured(Options), {"limit": "7", "rate": 2})
    assert OmegaConf.to_object(merged) == Options(limit=7, rate=2.0)
    assert own.limit == 2
    with pytest.raises(ValueError, match=r"some\.options\.steps=0 must be at least 1"):
        OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Options), {"steps": 0}))
