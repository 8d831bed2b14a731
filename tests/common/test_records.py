"""Settings become values that JSON can represent; decimals become exact fractions."""

from dataclasses import dataclass, field
from fractions import Fraction

import pytest
from torch import nn

from saccade.common.decimals import as_written
from saccade.common.records import plain


@dataclass
class Inner:
    rate: float = 0.5
    hidden: int = field(default=3, init=False)


class Named(nn.Module):
    name_or_path = "owner/model"


def test_plain_values() -> None:
    value = {"a": (1, {2}), 3: Inner(), "model": Named(), "other": nn.ReLU(), "none": None, "flag": True}
    assert plain(value) == {
        "a": [1, [2]],
        "3": {"rate": 0.5},
        "model": "Named(owner/model)",
        "other": "ReLU",
        "none": None,
        "flag": True,
    }


@pytest.mark.parametrize(("value", "fraction"), [(0.9, Fraction(9, 10)), (2, Fraction(2)), (1e-3, Fraction(1, 1000))])
def test_decimals_are_exact(value: float, fraction: Fraction) -> None:
    assert as_written(value) == fraction
