"""Each validator takes what its rule allows and refuses everything else in one line."""

from fractions import Fraction

import numpy as np
import pytest
from torch import nn

from saccade.common.checks import (
    check_choice,
    check_count,
    check_fraction,
    check_model,
    check_not_negative,
    check_number,
    check_place,
    check_positive,
    check_share,
    check_switch,
)

NAN = float("nan")


@pytest.mark.parametrize(
    ("check", "arguments", "message"),
    [
        (check_number, (True,), "x must be a number, got True: give a number."),
        (check_number, ("1",), "x must be a number, got '1': give a number."),
        (check_share, (1.1,), "x must be between 0 and 1, got 1.1: give a share, for example 0.9 for 90 %."),
        (check_share, (NAN,), "x must be between 0 and 1, got nan: give a share, for example 0.9 for 90 %."),
        (check_share, (None,), "x must be a number, got None: give a number."),
        (check_fraction, (0,), "x must be above 0 and below 1, got 0: give a fraction, for example 0.1."),
        (check_fraction, (1.0,), "x must be above 0 and below 1, got 1.0: give a fraction, for example 0.1."),
        (check_fraction, (NAN,), "x must be above 0 and below 1, got nan: give a fraction, for example 0.1."),
        (check_not_negative, (-0.1,), "x must be at least 0, got -0.1: give a number that is not negative."),
        (check_not_negative, (NAN,), "x must be at least 0, got nan: give a number that is not negative."),
        (check_positive, (0,), "x must be above 0, got 0: give a positive number."),
        (check_positive, (NAN,), "x must be above 0, got nan: give a positive number."),
        (check_positive, (False,), "x must be a number, got False: give a number."),
        (check_count, (0,), "x must be at least 1, got 0: raise it."),
        (check_count, (1, 2, "take two"), "x must be at least 2, got 1: take two."),
        (check_count, (1.0,), "x must be a whole number, got 1.0: give a whole number."),
        (check_count, (True,), "x must be a whole number, got True: give a whole number."),
        (check_choice, ("d", "abc"), "x must be a, b or c, got 'd': choose one of these."),
        (check_choice, (2, [1]), "x must be 1, got 2: choose one of these."),
        (check_switch, ("no",), "x must be true or false, got 'no': write true or false without quotes."),
        (check_switch, (1,), "x must be true or false, got 1: write true or false without quotes."),
        (check_model, (3,), "x must be a path, a hub id or a loaded model, got 3: give one of these."),
        (
            check_place,
            ("runs/none/model",),
            "x must be an existing path, got runs/none/model: name an existing folder, or first run the command that"
            " writes it.",
        ),
    ],
)
def test_refused(check, arguments, message):
    with pytest.raises(ValueError) as error:
        check("x", *arguments)
    assert str(error.value) == message


def test_taken(tmp_path):
    for number in (-1, 0.5, np.float32(2), Fraction(1, 3)):
        check_number("x", number)
    for share in (0, 1, 0.25):
        check_share("x", share)
    check_fraction("x", 1e-30)
    check_positive("x", 1e-30)
    check_not_negative("x", 0)
    check_count("x", np.int64(1))
    check_count("x", 0, 0)
    check_choice("x", "b", ("a", "b"))
    check_switch("x", False)
    check_model("x", "a/b")
    check_model("x", nn.Identity())
    check_place("x", "owner/name")
    check_place("x", str(tmp_path))
