"""Bad input: each a clear error that says what was got, what was expected and what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from operators.derivatives import only_reverse

import linops

X = np.arange(1, 5, dtype=np.float32)


def vector_valued(x):
    return jnp.sin(x)


def scalar(x):
    return jnp.sum(jnp.sin(x))


def test_not_scalar():
    with pytest.raises(
        TypeError, match=r"Hessian got f with values of shapes \[\(4,\)\], expected a scalar.*weights=w"
    ):
        linops.Hessian(vector_valued, X)
    with pytest.raises(TypeError, match=r"GaussNewton got a loss with values of shapes \[\(4,\)\], expected a scalar"):
        linops.GaussNewton(vector_valued, X, lambda z: z)


@pytest.mark.parametrize("x", [{"a": X, "n": np.arange(3)}, {"a": X, "n": 3}, {"a": X, "n": np.array([True])}])
def test_integer_or_boolean_leaves(x):
    with pytest.raises(TypeError, match=r"x\['n'\] has dtype (int32|bool), expected floating point.*astype.*args="):
        linops.Jacobian(lambda x: x["a"], x)


def test_integer_values():
    with pytest.raises(TypeError, match=r"the value of f\[1\] has dtype int32, expected floating point"):
        linops.Jacobian(lambda x: (x, jnp.argmax(x)), X)


def test_no_arrays():
    with pytest.raises(TypeError, match=r"x holds no arrays: got {}, expected a pytree with at least one array"):
        linops.Jacobian(vector_valued, {})
    with pytest.raises(TypeError, match=r"x is 'text'; expected an array or a number"):
        linops.Jacobian(vector_valued, "text")


def test_functions_that_are_not_callable():
    with pytest.raises(TypeError, match=r"f is 2.0, expected a callable"):
        linops.Jacobian(2.0, X)
    with pytest.raises(TypeError, match=r"loss is 2.0, expected a callable"):
        linops.GaussNewton(vector_valued, X, 2.0)


def test_wrong_vector_length():
    J = linops.Jacobian(vector_valued, X)
    for v in (
        np.ones(5, np.float32),
        jnp.ones(5),
        np.ones((3, 2), np.float32),
        jnp.ones((3, 2)),
        np.float32([[1] * 4]),
    ):
        with pytest.raises(ValueError, match=r"got an array of shape \(.*\), expected"):
            J @ v
    with pytest.raises(ValueError, match=r"Jacobian.* got an array of shape \(5,\), expected \(4,\)"):
        jax.jit(lambda v: J @ v)(np.ones(5, np.float32))
    with pytest.raises(ValueError, match=r"got an array of shape \(2, 5\), expected \(4,\), \(4, 1\) or \(\.\.\., 4\)"):
        J.matvec(np.ones((2, 5)))
    with pytest.raises(ValueError, match=r"got an array of shape \(4,\), expected a block \(4, k\)"):
        J.matmat(X)


def test_wrong_tree():
    J = linops.Jacobian(lambda x: x["a"] * x["b"], {"a": X, "b": np.float32(2)})
    for tree in ({"a": X}, {"a": X, "b": X}, X):
        with pytest.raises(
            ValueError, match=r"got a pytree of structure .* and shapes .*, expected one like the point's"
        ):
            J.mv(tree)
    with pytest.raises(ValueError, match=r"expected one like the point's"):
        J.at({"a": X[:2], "b": 1.0})
    with pytest.raises(TypeError, match=r"the tree\['b'\] has dtype complex64, expected float32"):
        J.mv({"a": X, "b": np.complex64(2)})
    with pytest.raises(ValueError, match=r"got an array of shape \(3,\), expected a vector of shape \(5,\)"):
        J.domain.unravel(jnp.ones(3))


@pytest.mark.parametrize("value", [np.ones(3), 1.5, [1, 2]])
def test_values_that_are_not_jax(value):
    with pytest.raises(
        TypeError, match=r"f returned (ndarray|float|int).*, expected jax.Array: compute it with jax.numpy"
    ):
        linops.Jacobian(lambda x: value, X)


@pytest.mark.parametrize(
    "f", [lambda x: np.sin(x), lambda x: x if x[0] > 0 else -x, lambda x: x * float(x[0]), lambda x: x[: int(x[0])]]
)
def test_functions_that_leave_jax(f):
    with pytest.raises(
        TypeError, match=r"f could not be traced.*expected a function of jax.numpy operations: use jax.numpy"
    ):
        linops.Jacobian(f, X)


@pytest.mark.parametrize("make", [linops.Jacobian, lambda f, x: linops.Hessian(lambda x: jnp.sum(f(x)), x)])
def test_nan_in_a_product(make):
    A = make(lambda x: jnp.sqrt(x), {"a": X, "b": np.float32([1, 0])}["b"])
    with pytest.raises(
        FloatingPointError,
        match=r"a product with <2x2 (Jacobian|Hessian).*has NaN or Inf: 1 of 2 rows.*check_finite=False",
    ):
        A @ np.ones(2, np.float32)
    with pytest.raises(FloatingPointError, match=r"NaN or Inf"):
        A @ np.ones((2, 3), np.float32)
    with pytest.raises(FloatingPointError, match=r"the diagonal of .* has NaN or Inf"):
        A.diagonal()


def test_nan_names_the_leaf_and_can_be_allowed():
    x = {"a": X, "b": {"c": np.float32([[1, 2], [3, 0]])}}

    def f(x):
        return {"a": x["a"], "b": {"c": jnp.sqrt(x["b"]["c"])}}

    v = np.ones(8, np.float32)
    with pytest.raises(FloatingPointError, match=r"1 of 8 rows, the first at \['b'\]\['c'\]\[1, 1\]"):
        linops.Jacobian(f, x) @ v
    assert np.isinf(linops.Jacobian(f, x, check_finite=False) @ v).sum() == 1
    assert np.isnan(linops.Jacobian(vector_valued, X) @ np.float32([1, 2, np.nan, 4])).any()  # NaN in is NaN out


def test_leaked_tracer():
    leaked = []

    @jax.jit
    def leak(x):
        leaked.append(x)
        return x

    leak(jnp.ones(4))
    with pytest.raises(
        TypeError,
        match=r"an array that f closes over is a traced value that has left the jit, vmap or grad.*expected an array",
    ):
        linops.Jacobian(lambda x: x * leaked[0], X)


def test_dense_forms_inside_jit():
    for method in ("toarray", "diagonal"):
        with pytest.raises(TypeError, match=rf"{method}\(\) was called on an operator that belongs to a jit"):
            jax.jit(lambda x, method=method: getattr(linops.Jacobian(vector_valued, x), method)())(X)


def test_no_forward_rule():
    callback = lambda x: jax.pure_callback(np.sin, jax.ShapeDtypeStruct((4,), np.float32), x)  # noqa: E731
    with pytest.raises(TypeError, match=r"needs forward-mode differentiation.*expected jax.custom_jvp rules"):
        linops.Jacobian(callback, X) @ X
    with pytest.raises(TypeError, match=r"needs forward-mode differentiation"):
        linops.Jacobian(callback, X, linearize=False) @ X

    @jax.custom_vjp
    def clipped(x):
        return x

    clipped.defvjp(lambda x: (x, None), lambda _, w: (jnp.clip(w, -1, 1),))
    J = linops.Jacobian(clipped, X)  # a backward pass that is not linear, which check finds, has a slope at 0
    np.testing.assert_array_equal(J @ X, X)
    np.testing.assert_array_equal(J.T @ X, np.clip(X, -1, 1))
    assert not linops.check(J)
    assert np.allclose(linops.Jacobian(only_reverse, X) @ X, np.cos(X) * X)


def test_no_reverse_rule():
    def f(x):
        return jax.lax.while_loop(lambda x: x[0] < 100, lambda x: x * x[0] + 1, x)

    J = linops.Jacobian(f, X)
    np.testing.assert_allclose(J @ X, jax.jvp(f, (X,), (X,))[1], rtol=1e-5)
    with pytest.raises(
        TypeError, match=r"a product with a derivative needs reverse-mode differentiation.*rather than while_loop"
    ):
        J.T @ X
    with pytest.raises(TypeError, match=r"needs reverse-mode differentiation"):
        linops.Hessian(lambda x: jnp.sum(f(x)), X) @ X


def test_errors_within_a_custom_rule_are_its_own():
    @jax.custom_jvp
    def f(x):
        return x

    f.defjvp(lambda primals, tangents: (primals[0], tangents[0] @ jnp.ones((3, 3))))
    with pytest.raises(TypeError, match=r"^(?!a product with a derivative).*contracting dimensions"):
        linops.Jacobian(f, X) @ X


@pytest.mark.parametrize("combine", [lambda c, A: c * A, lambda c, A: A * c, lambda c, A: A / c])
def test_scalars(combine):
    A = linops.Matrix(np.eye(2, dtype=np.float32))
    with pytest.raises(TypeError, match=r"got a int, 1000.* expected a number; Python said: int too large"):
        combine(10**400, A)
    with pytest.raises(ValueError, match="a scalar has masked entries, expected numbers in all"):
        combine(np.ma.array(3.0, mask=True), A)
    with pytest.raises(TypeError, match=r"got np.timedelta64\(3,.s.\) of dtype timedelta64.s., expected a number"):
        combine(np.timedelta64(3, "s"), A)


def test_complex_examples_in_batches():
    for batched in (linops.batch_jacobian, linops.batch_hessian):
        with pytest.raises(TypeError, match="X holds complex numbers, expected real ones; give f the pair of real and"):
            batched(jnp.sum, np.ones((3, 2), np.complex64))


def test_complex_values_where_real_ones_are_needed():
    with pytest.raises(TypeError, match="Hessian got f with complex values that is not holomorphic, expected real"):
        linops.Hessian(lambda z: jnp.vdot(z, z), X * np.complex64(1j))

    @jax.custom_jvp
    def f(z):
        return jnp.sum(z**2)

    f.defjvp(lambda primals, tangents: (f(*primals), 2 * jnp.sum(jnp.conj(primals[0]) * tangents[0])))
    with pytest.raises(TypeError, match="holomorphic by its first derivative and not by its second, expected both"):
        linops.Hessian(f, X * np.complex64(1j))
    with pytest.raises(
        TypeError, match=r"Hessian got f with complex values of a real point, expected real values; take"
    ):
        linops.Hessian(lambda x: jnp.sum(jnp.exp(1j * x)), X)
    with pytest.raises(
        TypeError, match=r"GaussNewton got a loss with complex values, expected real ones; take the real"
    ):
        linops.GaussNewton(vector_valued, X, lambda z: jnp.sum(1j * z))


def test_float64_input_without_x64():
    v = np.ones(4)
    with pytest.warns(
        linops.PrecisionWarning, match=r"x is float64 and is narrowed to float32; call jax.config.update"
    ) as record:
        J = linops.Jacobian(vector_valued, v)
    assert [warning.filename for warning in record] == [__file__]
    with pytest.warns(linops.PrecisionWarning, match=r"the vector multiplied by <4x4 Jacobian.* is float64") as record:
        for _ in range(3):
            product = J @ v
    assert len(record) == 1
    assert product.dtype == J.dtype == np.float32
    with pytest.warns(linops.PrecisionWarning, match=r"args\[0\] is float64 and is narrowed"):
        linops.Jacobian(lambda x, a: x * a, X, args=(v,))


def test_float64_vector_with_x64(x64):
    J = linops.Jacobian(vector_valued, X)
    with pytest.warns(linops.PrecisionWarning, match=r"build the operator at a float64 point"):
        assert (J @ np.ones(4)).dtype == np.float32


def test_vectors_that_are_not_numbers():
    J = linops.Jacobian(vector_valued, X)
    with pytest.raises(TypeError, match=r"got an array of dtype object, expected numbers"):
        J @ np.array([1, None, 2, 3], object)
    with pytest.raises(TypeError, match=r"got an array of dtype <U1, expected numbers"):
        J @ np.array(list("abcd"))


def test_masked_arrays():
    J = linops.Jacobian(vector_valued, X)
    hidden = np.ma.array(X, mask=[0, 1, 0, 0])
    for use in (lambda: J @ hidden, lambda: J.mv(hidden), lambda: J.at(hidden), lambda: linops.Diagonal(hidden)):
        with pytest.raises(ValueError, match=r"has masked entries, expected numbers in all; fill them"):
            use()
    np.testing.assert_array_equal(J @ np.ma.array(X), J @ X)


def test_integers_that_would_wrap():
    assert linops.Matrix(np.eye(1, dtype=np.float32)).mv(np.array([2**40])) == 2.0**40
    with pytest.raises(
        ValueError, match=r"args\[0\] holds integers beyond int32, expected ones within; convert it to floating"
    ):
        linops.Jacobian(lambda x, n: x * n, X, args=(np.array(2**40),))


def test_algebra():
    J = linops.Jacobian(lambda x: x[:3] * x[1:], X)
    H = linops.Hessian(scalar, X)
    with pytest.raises(ValueError, match=r"<3x4 Jacobian.* \+ <4x4 Hessian.*: expected operators of one shape"):
        J + H
    with pytest.raises(ValueError, match=r"<3x4 Jacobian.* @ <3x4 Jacobian.*: expected as many rows on the right"):
        J @ J
    with pytest.raises(ValueError, match=r"\*\* 2: expected a square operator"):
        J**2
    for power in (-1, 0.5):
        with pytest.raises(ValueError, match=r"expected an integer power >= 0; for inverses, use scipy"):
            H**power
    with pytest.raises(ValueError, match=r"expected a scalar; to solve a system, use scipy"):
        H / H
    for product in (lambda: H @ 2, lambda: 2 @ H):
        with pytest.raises(ValueError, match=r"a scalar cannot be an operand of @; use \* instead"):
            product()
    for add in (lambda: H + np.eye(4), lambda: np.eye(4) + H, lambda: H - 1.0, lambda: 1 - H, lambda: H + jnp.eye(4)):
        with pytest.raises(TypeError, match=r"to add to an operator, expected an operator: write linops.Matrix\(M\)"):
            add()
    with pytest.raises(TypeError, match=r"unsupported operand"):
        H + None


def test_custom_vmap_is_not_linearized():
    @jax.custom_batching.custom_vmap
    def f(x):
        return jnp.sin(x)

    f.def_vmap(lambda size, batched, x: (jnp.sin(x), True))
    J = linops.Jacobian(f, X)
    for multiply in (J.matvec, J.rmatvec, lambda v: J.matmat(v[:, None]), J.mv):
        with pytest.raises(
            TypeError, match=r"one that can be linearized, as .*custom_vmap cannot; pass linearize=False"
        ):
            multiply(X)
    J = linops.Jacobian(f, X, linearize=False)
    np.testing.assert_allclose(J @ X, np.cos(X) * X, rtol=1e-5)
    np.testing.assert_allclose(J.toarray(), np.diag(np.cos(X)), rtol=1e-5)
    assert "pass linearize=False" in str(linops.check(linops.Jacobian(f, X)))
    assert linops.check(J)


def test_explicit_operators():
    with pytest.raises(ValueError, match=r"Matrix got an array of shape \(4,\), expected \(m, n\)"):
        linops.Matrix(X)
    with pytest.raises(TypeError, match=r"Matrix got a sparse csr_array, expected a dense array: combine the sparse"):
        linops.Matrix(scipy.sparse.csr_array(np.eye(3)))
    with pytest.raises(
        ValueError, match=r"Diagonal got an array of shape \(2, 2\), expected a vector.*Matrix takes a matrix"
    ):
        linops.Diagonal(np.eye(2))
    for n in (2.5, -1, True, "a"):
        with pytest.raises(TypeError, match=r"Identity got .*, expected a number of rows >= 0 or a linops.Space"):
            linops.Identity(n)


def test_batches():
    for batch in (np.float32(1), {"a": np.ones((3, 2), np.float32), "b": np.ones(2, np.float32)}, {}):
        with pytest.raises(ValueError, match=r"X has leaves of shapes .*, expected arrays with a common leading axis"):
            linops.batch_jacobian(lambda x: x, batch)
