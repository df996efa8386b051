"""Arithmetic that is recorded computes what it did, each value once, and refuses what it cannot record."""

import numpy as np
import pytest

from helix_sim.core.numeric import chosen, larger
from helix_sim.core.recorded import Recorded, Tape, called_whole


def every_kind_of_arithmetic(a, b):
    few = np.minimum(np.ceil(a / np.array([2.0, 3.0, 8.0])) * b, 40.0).min(axis=0)
    rest = np.clip(np.sqrt(a) + np.cbrt(b), 1, 2.5) - np.log2(b) * np.expm1(-a) + np.log1p(a) ** 3
    flags = np.logical_and(a > 1, np.logical_or(b >= 2, a == 3)) * 2 | (a != b) * 1
    return few + rest + a**2 // b - a % b + np.floor(b / 2) + flags, (larger(a, b) < 4) & (a <= b), chosen(a > b, -a, b)


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (3.0, 2.0), (2.0, 7.0), (1000.0, 3.0), (0.25, 8.5)])
def test_a_function_of_a_tape_computes_what_was_recorded(a, b):
    tape = Tape()
    inputs = [tape.input(), tape.input()]
    found = tape.function(inputs, every_kind_of_arithmetic(*inputs))(a, b)
    assert found == pytest.approx(tuple(map(float, every_kind_of_arithmetic(a, b))), rel=1e-15)


def test_what_is_known_is_a_number():
    tape = Tape()
    x = tape.input()
    assert x * 0 == 0
    assert x * 1 is x
    assert x + 0 is x
    assert chosen(np.maximum(2, 3) > 2, x, 5) is x


def test_a_value_is_computed_once():
    tape = Tape()
    x = tape.input()
    assert x + 1 is x + 1


def test_a_question_about_a_value_is_refused():
    x = Tape().input()
    with pytest.raises(TypeError, match="call it whole"):
        bool(x > 1)
    with pytest.raises(TypeError):
        np.argmax(x)
    with pytest.raises(TypeError, match="call what needs it whole"):
        np.sin(x)


@called_whole
def halved_if_large(x, limits):
    return (x / 2, 1) if x > limits[0] else (x, 0)


def test_a_function_that_asks_is_called_whole():
    tape = Tape()
    x = tape.input()
    result = halved_if_large(x + 1, [10])
    assert isinstance(result, Recorded)
    function = tape.function([x], [result[0] * 3, result[1]])
    assert function(2.0) == (9.0, 0)
    assert function(99.0) == (150.0, 1)
    assert halved_if_large(100.0, [10]) == (50.0, 1)


def test_a_second_function_goes_on_where_the_first_ended():
    tape = Tape()
    x = tape.input()
    root = np.sqrt(x)
    first, second = [root * 2], [root + x]
    shared = tape.shared([x], first, second)
    assert len(shared) == 1
    *_, handed = tape.function([x], [*first, *shared])(9.0)
    assert tape.function([x, *shared], second)(9.0, handed) == (12.0,)
