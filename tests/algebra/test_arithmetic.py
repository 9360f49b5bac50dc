"""Scalars: copied, held in full, or refused where a number would become 0 or Inf; operands that do not fit."""

import decimal
import fractions

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from copies import ones
from problems import POINT

import linops

FOUR = np.arange(1, 5, dtype=np.float32)


def scalar(x):
    return jnp.sum(jnp.sin(x))


@pytest.mark.parametrize("combine", [lambda c, A: c * A, lambda c, A: A * c, lambda c, A: A / c])
def test_scalars_that_are_no_numbers(combine):
    A = linops.Matrix(np.eye(2, dtype=np.float32))
    with pytest.raises(TypeError, match=r"got a int, 1000.* expected a number; Python said: int too large"):
        combine(10**400, A)
    with pytest.raises(ValueError, match="a scalar has masked entries, expected numbers in all"):
        combine(np.ma.array(3.0, mask=True), A)
    with pytest.raises(TypeError, match=r"got np.timedelta64\(3,.s.\) of dtype timedelta64.s., expected a number"):
        combine(np.timedelta64(3, "s"), A)


def test_algebra():
    J = linops.Jacobian(lambda x: x[:3] * x[1:], FOUR)
    H = linops.Hessian(scalar, FOUR)
    with pytest.raises(ValueError, match=r"<3x4 Jacobian.* \+ <4x4 Hessian.*: expected operators of one shape"):
        J + H
    with pytest.raises(ValueError, match=r"<3x4 Jacobian.* @ <3x4 Jacobian.*: expected as many rows on the right"):
        J @ J
    with pytest.raises(ValueError, match=r"\*\* 2: expected a square operator"):
        J**2
    for power in (-1, 0.5):
        with pytest.raises(ValueError, match=r"expected an integer power >= 0; for inverses, use linops"):
            H**power
    with pytest.raises(ValueError, match=r"expected a scalar; to solve a system, use linops"):
        H / H
    for product in (lambda: H @ 2, lambda: 2 @ H):
        with pytest.raises(ValueError, match=r"a scalar cannot be an operand of @; use \* instead"):
            product()
    for add in (lambda: H + np.eye(4), lambda: np.eye(4) + H, lambda: H - 1.0, lambda: 1 - H, lambda: H + jnp.eye(4)):
        with pytest.raises(TypeError, match=r"to add to an operator, expected an operator: write linops.Matrix\(M\)"):
            add()
    with pytest.raises(TypeError, match=r"unsupported operand"):
        H + None


SCALARS = {  # scalar, dtype of the operator, and what comes of it: held, an error, or a warning
    "too small": (1e-50, "float32", ValueError),
    "too small, NumPy": (np.float64(1e-50), "float32", ValueError),
    "too small, an array": (np.array(1e-50), "float32", ValueError),
    "subnormal": (1e-40, "float32", ValueError),
    "subnormal in float16": (1e-5, "float16", ValueError),
    "subnormal in bfloat16": (1e-39, "bfloat16", ValueError),
    "subnormal in float64": (1e-310, "float64", ValueError),
    "fraction, too small": (fractions.Fraction(1, 10**60), "float32", ValueError),
    "fraction, too small for double": (fractions.Fraction(1, 10**400), "float64", ValueError),
    "decimal, too small for double": (decimal.Decimal("1e-400"), "float64", ValueError),
    "too large": (1e40, "float32", OverflowError),
    "too large for float16": (1e5, "float16", OverflowError),
    "integer, too large": (10**40, "float32", OverflowError),
    "decimal, too large for double": (decimal.Decimal("1e400"), "float64", OverflowError),
    "complex, too small": (1e-50j, "float32", ValueError),
    "complex, too large": (1e40 + 1j, "complex64", OverflowError),
    "complex, a part too small": (1 + 1e-50j, "float32", "of which one part is too small for complex64 and is lost"),
    "integer, more digits": (16777217, "float32", "an integer with more digits than float32, which rounds it"),
    "integer, more digits, NumPy": (np.int64(16777217), "float32", "an integer with more digits than float32"),
    "integer, more digits than double": (2**53 + 1, "float64", "an integer with more digits than float64"),
    "rounded": (0.1, "float32", None),
    "rounded, NumPy": (np.float64(0.1), "float32", None),
    "integer": (2**100, "float32", None),
    "smallest normal": (2.0**-126, "float32", None),
    "complex": (1 + 2j, "float32", None),
    "zero": (0, "float32", None),
    "infinite": (np.inf, "float32", None),
    "NaN": (np.nan, "float32", None),
}


WORDS = {
    ValueError: "below the smallest normal .* most devices take it for 0",
    OverflowError: "is .*, beyond the largest",
}


def eye(dtype):
    with jax.enable_x64(dtype in ("float64", "complex128")):
        return linops.Matrix(jnp.eye(2, dtype=dtype))


@pytest.mark.parametrize("name", SCALARS)
def test_scalars(name):
    scalar, dtype, outcome = SCALARS[name]
    A = eye(dtype)
    for scale in (lambda: scalar * A, lambda: A * scalar, lambda: scalar * linops.Identity(2) + A):
        if outcome in WORDS:
            with pytest.raises(outcome, match=WORDS[outcome]):
                scale()
        elif isinstance(outcome, str) and scale.__code__.co_consts != (None, 2):
            with pytest.warns(linops.PrecisionWarning, match=outcome) as record:
                scale()
            assert [warning.filename for warning in record] == [__file__]
        elif outcome is None:
            np.testing.assert_allclose(scale().domain.size, 2)


def test_products_by_scalars_that_take_their_dtype_late():
    """Identity(n) alone computes in JAX's default float."""
    tiny = 1e-50 * linops.Identity(2)
    for use in (lambda: tiny @ np.ones(2), tiny.toarray, lambda: tiny.mv(np.ones(2, np.float32)), tiny.diagonal):
        with pytest.raises(ValueError, match="below the smallest normal float32"):
            use()
    with jax.enable_x64(True):
        np.testing.assert_array_equal((1e-50 * linops.Identity(2)).toarray(), 1e-50 * np.eye(2))
        x = jnp.ones(2)
    A = linops.Jacobian(lambda x: x * 1e30, x) @ linops.Identity(2) + tiny  # in float64, where it is off
    np.testing.assert_allclose(A @ np.ones(2), [1e30, 1e30])


@pytest.mark.parametrize(
    ("divisor", "dtype", "error", "words"),
    [
        (1e40, "float32", ValueError, "below the smallest normal"),
        (jnp.float32(1e38), "float32", ValueError, "below the smallest normal"),
        (1e-40, "float32", OverflowError, "beyond the largest float32"),
        (10**310, "float64", TypeError, "expected a number; Python said: int too large"),
        (5e-324, "float64", ValueError, "below the smallest normal float64"),
        (0, "float32", ZeroDivisionError, "to divide an operator by; expected a number further from 0"),
    ],
)
def test_divisors(divisor, dtype, error, words):
    with pytest.raises(error, match=words):
        eye(dtype) / divisor
    assert not (eye(dtype) / np.inf @ np.ones(2, dtype)).any()


def test_nested_scalars():
    A = eye("float32")
    for inner, outer in ((1e-30, 1e-30), (1e-30j, 1e-30), (1e30, 1e30)):
        with pytest.warns(linops.PrecisionWarning, match="scalars of an operator make 1e.*together, which .* does not"):
            outer * (inner * A)
    np.testing.assert_allclose((1e30 * (1e-30 * A)).toarray(), np.eye(2), rtol=1e-6)
    jax.jit(lambda c: (c * (c * A)) @ jnp.ones(2))(1e-30)  # where nothing is known


def test_wider_scalars_on_the_device():
    with jax.enable_x64(True):
        scalar = jnp.float64(1e-50)
        with pytest.raises(ValueError, match="below the smallest normal float32"):
            scalar * eye("float32")
        assert (scalar * eye("float64")).toarray()[0, 0] == 1e-50


def test_division_in_double_precision(x64):
    A = linops.Matrix(np.eye(1)) / np.float32(3)
    assert (A @ np.ones(1))[0] == 1 / 3
    assert (linops.Matrix(np.eye(1)) / 3j @ np.ones(1))[0] == 1 / 3j


def test_scalars_are_copied():
    scalar = np.array(2.0)
    M = linops.Matrix(np.eye(2, dtype=np.float32))
    scaled = [scalar * linops.Identity(2), scalar * M, linops.Identity(2) / scalar]
    scalar[...] = 5
    for A, expected in zip(scaled, (2, 2, 0.5), strict=True):
        np.testing.assert_array_equal(A @ np.ones(2, np.float32), [expected, expected])


def test_scalars_of_other_kinds():
    A = linops.Matrix(np.eye(1, dtype=np.float32))
    third = fractions.Fraction(1, 3)
    for B in (third * A, A * third, A / 3, decimal.Decimal("0.25") * A * third * 4, A / np.longdouble(3)):
        np.testing.assert_allclose(B.toarray(), 1 / 3, rtol=1e-6)
    assert ((2**100) * A).toarray() == 2.0**100
    with pytest.warns(linops.PrecisionWarning, match="an integer with more digits than float32"):
        assert ((10**30) * A).toarray() == np.float32(1e30)


# Settings of JAX.


def test_strict_promotion_to_complex_numbers():
    H = linops.Hessian(problems.scalar, POINT)
    expected = 1j * (H @ ones(H))
    with jax.numpy_dtype_promotion("strict"):
        np.testing.assert_allclose((1j * H) @ ones(H), expected, rtol=1e-5)
        np.testing.assert_allclose(H @ (1j * ones(H)), expected, rtol=1e-5)


@pytest.mark.parametrize("c", [np.float32(3), np.float16(3)])
def test_division_by_a_narrow_scalar(c):
    with jax.enable_x64(True):
        np.testing.assert_allclose((linops.Matrix(np.eye(1)) / c).toarray(), 1 / 3, rtol=1e-12)
