"""Digits and range that are lost are said: a warning where digits go, an error where a number becomes 0 or Inf."""

import decimal
import fractions
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import operators
import pytest
from scipy.optimize import least_squares, minimize
from scipy.sparse.linalg import cg, eigs, eigsh, expm_multiply, funm_multiply_krylov, lobpcg, svds

import linops
from linops.arrays import as_data

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


# Integers.

BIG = np.array([2**24 + 1, 1, -(2**24) - 1])


@pytest.mark.parametrize("on_device", [False, True])
def test_integers(on_device):
    A = linops.Jacobian(lambda x: x * 1.0, np.ones(3, np.float32))
    given = jnp.asarray(BIG) if on_device else BIG
    space = linops.Space.of(jnp.zeros(3))
    for use in (
        lambda v: A._replace() @ v,
        lambda v: A._replace() @ v[:, None],
        A.mv,
        A.at,
        space.ravel,
        space.unravel,
        linops.Diagonal,
        lambda v: linops.Matrix(v[:, None]),
    ):
        with pytest.warns(
            linops.PrecisionWarning, match="holds integers with more digits than float32, such as 16777217"
        ):
            use(given)
        use(given * 0 + 2**24)
        use(given - jnp.sign(given) if on_device else given - np.sign(given))


@pytest.mark.parametrize(
    ("dtype", "digits"), [("float16", 11), ("bfloat16", 8), ("float32", 24), ("float64", 53), ("complex64", 24)]
)
@pytest.mark.parametrize("integer", ["int16", "uint16", "int32", "int64", "uint64"])
def test_integers_are_judged_by_their_digits(dtype, digits, integer):
    A, info = eye(dtype), np.iinfo(integer)
    values = [2**k + d for k in range(1, 64) for d in (-1, 0, 1)] + [0, 1, info.max, info.min, info.min + 1]
    largest = int(float(jnp.finfo(dtype).max))
    for value in {v for v in values if info.min <= v <= info.max}:
        held = abs(value) <= largest and (value == 0 or abs(value) >> _zeros(value) < 2**digits)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                A._replace() @ np.array([value, 0], integer)
            except FloatingPointError:
                assert abs(value) > largest
        assert held == (not caught), (value, [str(w.message) for w in caught])


def _zeros(value):
    """How many zeros the binary digits of an integer end in."""
    return (abs(value) & -abs(value)).bit_length() - 1


# Leaves of mixed precision.


@pytest.mark.parametrize("name", operators.where(made_for="mixed precision"))
def test_the_dtype_is_the_least_precise_that_is_computed_in(x64, name):
    A, D = operators.build(name, np.float32)
    assert A.dtype == A.linearize().dtype == A.T.dtype == np.float32
    v = np.ones(A.shape[1]) + 1e-12
    with pytest.warns(linops.PrecisionWarning, match="is float64 and is narrowed to float32; build the operator at a"):
        assert (A @ v).dtype == np.float32
    np.testing.assert_allclose(A.toarray(), D, rtol=1e-6)
    assert A.toarray().dtype == (A @ v.astype(np.float32)).dtype == np.float32
    assert linops.check(A)


def test_spaces_of_mixed_precision(x64):
    """A vector of a Space holds all digits of its elements, and a leaf says which of a vector it does not hold."""
    x = {"a": np.array([1 / 3, 2.0]), "b": np.array([3.5], np.float32)}
    space = linops.Space.of(x)
    assert space.dtype == np.float64
    vector = np.asarray(space.ravel(x))
    np.testing.assert_array_equal(vector, [1 / 3, 2, 3.5])
    np.testing.assert_array_equal(space.unravel(vector)["a"], x["a"])
    D = linops.Jacobian(lambda x: x, x)
    for use in (space.unravel, D.at):
        use(vector)
        for lossy in (vector + 1e-12, jnp.asarray(vector) + 1e-12):
            with pytest.warns(linops.PrecisionWarning, match="the vector is float64 and is narrowed to float32"):
                use(lossy)
    space.leaves({"a": [0.1, 0.2], "b": [0.3]}) if space.treedef == jax.tree.structure(
        {"a": [0, 0], "b": [0]}
    ) else None


def test_trees_and_vectors_that_lose_digits():
    space = linops.Space.of({"a": jnp.zeros(2)})
    wide = {"a": np.full(2, 1 / 3)}
    with pytest.warns(linops.PrecisionWarning, match=r"the tree\['a'\] is float64 and is narrowed to float32"):
        space.ravel(wide)
    with pytest.warns(linops.PrecisionWarning, match="the vector is float64 and is narrowed to float32"):
        space.unravel(wide["a"])
    space.unravel(np.ones(2))  # of which nothing is lost
    with jax.enable_x64(True):
        A = linops.Matrix(np.eye(2, dtype=np.float32))
        with pytest.warns(linops.PrecisionWarning, match="the vector multiplied by .* is float64 and is narrowed"):
            jax.jit(lambda v: A @ v)(np.ones(2))


@pytest.mark.parametrize(("left", "right"), [("float16", "bfloat16"), ("bfloat16", "float16")])
def test_half_precisions_do_not_hold_each_other(left, right):
    words = "got bfloat16 and float16 in one operator, none of which holds the numbers of the others; expected dtypes"
    A, B = eye(left), eye(right)
    for combine in (
        lambda: A + B,
        lambda: A @ B,
        lambda: linops.Diagonal({"a": jnp.ones(1, left), "b": jnp.ones(1, right)}),
    ):
        with pytest.raises(TypeError, match=words):
            combine().dtype  # noqa: B018
    with pytest.warns(linops.PrecisionWarning, match=f"is {right} and is narrowed to {left}; build the operator at a"):
        A @ np.ones(2, right)


# Arguments and points.


def test_arguments_in_the_precision_of_the_space():
    with jax.enable_x64(True):
        space = linops.Space.of(jnp.ones(2))
    with space.scope():
        assert as_data(0.1, "args[0]").dtype == np.float64
        assert float(as_data(0.1, "args[0]")) == 0.1
        assert as_data(0.1j, "args[0]").dtype == np.complex128
        assert as_data(np.array([2**40]), "args[0]")[0] == 2**40
    assert as_data(0.1, "args[0]").weak_type
    for number, error in ((1e-50, ValueError), (1e50, OverflowError)):
        with pytest.raises(error, match=r"args\[0\] is 1e.50, (below|beyond)"):
            as_data(number, "args[0]")


def test_numbers_in_points():
    f = lambda x: x["a"] * x["b"]  # noqa: E731
    for number, error in ((1e-50, ValueError), (1e50, OverflowError), (np.float64(1e-50), ValueError)):
        with pytest.raises(error, match=r"x\['b'\] is 1e.50, (below|beyond)"):
            linops.Jacobian(f, {"a": np.ones(2, np.float32), "b": number})
    J = linops.Jacobian(f, {"a": np.ones(2, np.float32), "b": 0.1})
    with pytest.raises(ValueError, match=r"the tree\['b'\] is 1e-50, below"):
        J.mv({"a": np.ones(2, np.float32), "b": 1e-50})


# NaN in, NaN out.


def roots(x):
    return jnp.sqrt(x)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64"])
def test_nan_in_is_nan_out(bad, dtype):
    """A product is an error where a function made NaN of finite numbers, column by column, and nowhere else."""
    J = linops.Jacobian(lambda x: x**2, np.arange(1, 4, dtype=np.float32))
    v = np.array([1, bad, 1], dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", linops.PrecisionWarning)
        for A in (J, J.T, J.T @ J, linops.Hessian(lambda x: jnp.sum(x**3), np.ones(3, np.float32))):
            assert not np.isfinite(A @ v).all()
            assert not np.isfinite(A @ v[:, None]).all()
            block = A @ np.stack([np.ones(3, dtype), v], axis=1)
            assert np.isfinite(block).all(axis=0).tolist() == [True, False]
        S = linops.Jacobian(roots, np.array([1, 1, 0], np.float32))
        assert not np.isfinite(S @ v).all()
        for block in (np.ones((3, 1), dtype), np.stack([v, np.ones(3, dtype)], axis=1)):
            with pytest.raises(FloatingPointError, match="NaN or Inf: 1 of 3 rows, the first at"):
                S @ block


def test_solvers_that_make_nan_recover():
    """trust-krylov multiplies NaN below what rounding allows; it then goes on, and has the right x."""
    x0 = np.array([0.1, 0.2, 0.3], np.float32)
    f = lambda x: jnp.sum(jnp.cosh(x) * jnp.arange(1.0, 4.0))  # noqa: E731
    H = linops.Hessian(f, x0)
    fun = jax.jit(jax.value_and_grad(f))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = minimize(
            lambda x: tuple(np.asarray(part, np.float64) for part in fun(jnp.asarray(x, jnp.float32))),
            x0.astype(np.float64), jac=True, hess=H.at, method="trust-krylov", options={"gtol": 1e-15},
        )  # fmt: skip
    np.testing.assert_allclose(found.x, 0, atol=1e-3)


def test_vectors_that_overflow_are_to_blame():
    J = linops.Jacobian(lambda x: x, np.ones(3, np.float32))
    v = np.array([1, 1e300, 1])
    with pytest.warns(linops.PrecisionWarning):
        for given in (v, v[:, None], np.stack([v, v], 1)):
            with pytest.raises(
                FloatingPointError,
                match=r"the float64 array that <3x3 Jacobian.*> multiplies has entries beyond the largest",
            ):
                J @ given


# What SciPy is handed.


def cosh(n=40):
    return linops.Hessian(lambda x: jnp.sum(jnp.cosh(x) * jnp.arange(1.0, n + 1)), np.zeros(n, np.float32))


def test_calling_an_operator():
    H = cosh()
    for given in (np.ones(40, np.float32), jnp.ones(40), np.ones((2, 2, 40)), [1.0] * 40, H, 2.0, None):
        with pytest.raises(
            TypeError, match=r"(?s)was called with .*, expected a block of columns \(40, k\).*A\.at\(x\)"
        ):
            H(given)
    V = np.ones((40, 2), np.float32)
    np.testing.assert_array_equal(H(V), H @ V)
    assert isinstance(H(jnp.asarray(V)), jax.Array)
    with pytest.raises(TypeError, match=r"a product is A @ v.*hess=A\.at"):
        minimize(lambda x: float(np.sum(x**2)), np.ones(40), jac=lambda x: 2 * x, hess=H, method="trust-constr")
    with pytest.raises(TypeError, match=r"A\.at\(x\)"):
        least_squares(lambda x: x, np.ones(40), jac=linops.Jacobian(lambda x: x, np.ones(40, np.float32)))
    rng = np.random.default_rng(0)
    largest = lobpcg(H, rng.normal(size=(40, 2)).astype(np.float32), largest=True, maxiter=200, tol=1e-3)[0]
    np.testing.assert_allclose(largest, [40, 39], rtol=1e-3)


@pytest.mark.filterwarnings("ignore::linops.PrecisionWarning")
@pytest.mark.parametrize(
    "solve",
    [
        lambda H: eigs(H, k=2),
        lambda H: eigsh(H, k=2),
        lambda H: eigsh(H, k=2, sigma=1.0),
        lambda H: eigsh(H + 2 * H, k=2),
        lambda H: svds(H, k=2),
        lambda H: svds(H, k=2, solver="lobpcg"),
        lambda H: svds(H, k=2, solver="propack"),
        lambda H: funm_multiply_krylov(lambda A: A, H, np.ones(8)),
    ],
)
def test_bfloat16_where_scipy_needs_float32(solve):
    H = linops.Hessian(lambda w: jnp.sum(jnp.tanh(w) ** 2), jnp.full(8, 0.1, jnp.bfloat16))
    with pytest.raises(
        TypeError, match=r"got an operator with dtype=bfloat16, expected one in float32 or float64.*convert"
    ):
        solve(H)


@pytest.mark.filterwarnings("ignore::linops.PrecisionWarning")
def test_bfloat16_where_scipy_takes_it():
    H = linops.Hessian(lambda w: jnp.sum(jnp.cosh(w)), jnp.zeros(8, jnp.bfloat16))
    np.testing.assert_allclose(cg(H, np.ones(8))[0], np.ones(8), rtol=1e-2)
    np.testing.assert_allclose(expm_multiply(H, np.ones(8), traceA=8.0), np.full(8, np.e), rtol=2e-2)
    assert H.dtype == jnp.bfloat16


def test_sums_of_operators():
    x = np.array([0.1, 0.2, 0.3], np.float32)
    terms = [linops.Jacobian(lambda x, a: jnp.sin(a * x), x, args=(np.float32(a),)) for a in (1, 2, 3)]
    expected = sum(a * np.cos(a * x) for a in (1, 2, 3))
    np.testing.assert_allclose(sum(terms).diagonal(), expected, rtol=1e-5)
    assert sum(terms[:1]) is terms[0]
    for zero in (0.0, False, np.int64(0), np.zeros(())):
        with pytest.raises(TypeError, match="to add to an operator, expected an operator: write"):
            zero + terms[0]
