"""check: it passes what is right, and finds each planted fault by the check that names it, and by no other."""

import jax
import jax.numpy as jnp
import numpy as np
import operators
import problems
import pytest
import scipy.sparse
from scipy.sparse.linalg import LinearOperator, aslinearoperator

import linops
from linops import check

X = problems.tree_point("dict", np.float32)
M = problems.normal((6, 6), np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", list(operators.ZOO))
def test_the_zoo_passes(name, dtype):
    with jax.enable_x64(dtype == np.float64):
        A, _ = operators.build(name, dtype)
        check(A, key=5).raise_if_failed()


@pytest.mark.parametrize("key", range(5))
def test_any_key_passes(key):
    check(linops.GaussNewton(problems.values, X, problems.loss), key=jax.random.key(key)).raise_if_failed()
    check(linops.Hessian(lambda x: jnp.sum(jax.nn.relu(x["w"] @ M[:3])), X), key=key).raise_if_failed()


def test_float64_operators_pass_where_it_is_off():
    with jax.enable_x64(True):
        A = linops.Hessian(problems.scalar, problems.tree_point("dict", np.float64))
    report = check(A)
    report.raise_if_failed()
    assert max(finding.tolerance for finding in report.findings) < 1e-6


@pytest.mark.parametrize(
    "A",
    [
        aslinearoperator(M),
        aslinearoperator(M.astype(np.complex128) * 1j),
        aslinearoperator(np.arange(12).reshape(3, 4)),
        aslinearoperator(scipy.sparse.eye(5, 3)),
        aslinearoperator(M) + linops.Matrix(M),
        linops.Identity(7),
        linops.Identity(0),
        linops.Diagonal(np.zeros(3, np.float16)),
        LinearOperator((6, 6), matvec=lambda v: M @ v, dtype=np.float32),
    ],
    ids=lambda A: repr(A),
)
def test_other_operators_pass(A):
    check(A).raise_if_failed()


def test_cancellation_is_no_fault():
    J = linops.Jacobian(problems.square, X)
    check(J + 1e6 * linops.Identity(11) - 1e6 * linops.Identity(11)).raise_if_failed()


def assert_finds(A, name, match, **options):
    """One check fails, with words that match; those that presuppose it are not made."""
    report = check(A, **options)
    assert not report
    assert [finding.name for finding in report.failed] == [name], str(report)
    with pytest.raises(AssertionError, match="(?s)is not what it claims.*FAILS.*" + match):
        report.raise_if_failed()


# Faults of operators.


class Faulty(linops.Operator):
    """M v, as a base of what is wrong in one way."""

    array: jax.Array

    domain = codomain = property(lambda self: linops.Space.flat(6, np.float32))

    def _mv(self, v):
        return self.array @ v


def test_wrong_adjoint():
    class Wrong(Faulty):
        def _mv_transposed(self, w):
            return 1.01 * self.array.T @ w

    report = check(Wrong(M))
    assert {finding.name for finding in report.failed} == {"adjoint", "transpose"}
    assert "<w, A v> and <Aᴴ w, v> differ; look at rmatvec and _mv_transposed" in str(report)
    assert "wᵀ A v and (Aᵀ w)ᵀ v differ; look at A.T" in str(report)
    bare = LinearOperator((6, 6), matvec=lambda v: M @ v, rmatvec=lambda w: M @ w, dtype=np.float32)
    assert {finding.name for finding in check(bare).failed} == {"adjoint", "transpose"}


def test_wrong_transpose():
    class Wrong(Faulty):
        T = property(lambda self: self)

        def adjoint(self):
            return linops.Operator._transposed(self)

        H = property(adjoint)

    assert_finds(Wrong(M), "transpose", "look at A.T")


def test_claimed_symmetry():
    class Wrong(Faulty):
        symmetric = True

    class WrongHessian(linops.Hessian):
        def _linear(self):
            return linops.Hessian._linear(self)._replace(function=jax.tree_util.Partial(skewed))

    def skewed(v):
        return {"w": v["w"], "b": v["b"] + v["w"][0, :2]}

    class Hermitian(Faulty):
        hermitian = True

    assert_finds(Wrong(M), "symmetric", "A claims to be symmetric.*make that claim False")
    assert_finds(Hermitian(M), "symmetric", "A claims to be hermitian.*make that claim False")
    WrongHessian.__init__ = linops.Hessian.__init__
    report = check(WrongHessian(lambda x: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(x)) / 2, X))
    assert {finding.name for finding in report.failed} == {"symmetric", "derivative"}  # it is no Hessian either


def test_complex_symmetry():
    class Wrong(Faulty):
        symmetric = True
        domain = codomain = property(lambda self: linops.Space.flat(6, np.complex64))

    hermitian = (M + M.T) + 1j * (M - M.T)
    assert_finds(Wrong(hermitian), "symmetric", "A claims to be symmetric")


def test_nonlinear():
    class Wrong(Faulty):
        def _mv(self, v):
            return self.array @ jnp.sin(v)

    class Affine(Faulty):
        def _mv(self, v):
            return self.array @ v + 1

    for A in (Wrong(M), Affine(M), LinearOperator((6, 6), matvec=lambda v: v * np.abs(v), dtype=np.float64)):
        assert_finds(A, "linear", "A is not linear, or computes with fewer digits than float")


def test_fewer_digits_than_claimed():
    A = LinearOperator((6, 6), matvec=lambda v: (M @ v.astype(np.float32)).astype(float), dtype=np.float64)
    assert_finds(A, "linear", "computes with fewer digits than float64")


def test_real_linear_only():
    class Wrong(Faulty):
        domain = codomain = property(lambda self: linops.Space.flat(6, np.complex64))

        def _mv(self, v):
            return self.array @ jnp.conj(v)

        def _mv_transposed(self, w):
            return self.array.T @ w

    assert_finds(
        Wrong(M), "complex-linear", "A .i v. and i A v differ; A is linear over the reals only: make it a real"
    )


def test_wrong_dtype(x64):
    class Wrong(Faulty):
        dtype = np.dtype(np.float64)

    assert_finds(Wrong(M), "dtype", "A.dtype claims float64, but the domain holds float32: claim that, or convert x")
    A = LinearOperator((6, 6), matvec=lambda v: (2 * v).astype(np.float32), dtype=np.float64)
    report = check(A, rtol=1e-5)
    assert [finding.name for finding in report.failed] == ["dtype"]
    assert "A v has dtype float32, expected float64, which A.dtype claims" in str(report)


def test_positive_semidefinite():
    class Claims(linops.Operator):
        entries: jax.Array

        symmetric = hermitian = positive_semidefinite = True
        domain = codomain = property(lambda self: linops.Space.flat(self.entries.size, self.entries.dtype))

        def _mv(self, v):
            return self.entries * v

    d = np.linspace(0, 1, 300, dtype=np.float32)
    assert check(Claims(d))
    d[17] = -0.5
    assert_finds(Claims(d), "positive semidefinite", "claims to be positive semidefinite, and has an eigenvalue.*-0.5")


def test_what_is_claimed_to_be_positive_semidefinite():
    made = {
        linops.GaussNewton(problems.values, X): True,
        linops.GaussNewton(problems.values, X, problems.loss): None,
        linops.JacobianGram(problems.values, X): True,
        linops.JacobianGram(problems.values, X, X): None,
    }
    for A, holds in made.items():
        assert {f.name: f.holds for f in check(A).findings}["positive semidefinite"] is holds


def test_blocks():
    class Wrong(LinearOperator):
        def __init__(self):
            super().__init__(np.float32, (6, 6))

        def _matvec(self, v):
            return M @ v

        def _rmatvec(self, w):
            return M.T @ w

        def _matmat(self, V):
            return (M @ V)[:, ::-1]

    assert_finds(Wrong(), "blocks", "A V and its columns A v differ; look at matmat")


def test_device():
    class Wrong(Faulty):
        def mv(self, v):
            return 2 * super().mv(v)

    class Host(Faulty):
        def matmul(self, other):
            return np.asarray(linops.Operator.__matmul__(self, other))

        __matmul__ = matmul

    assert_finds(Wrong(M), "device", r"A.mv\(tree\) and A v differ; look at mv")
    report = check(Host(M))
    assert {"device"} <= {f.name for f in report.failed} <= {"device", "fresh"}
    assert "numpy.ndarray'>, expected a jax.Array" in str(report)


# Products and memory.


def _reused():
    buffer = np.empty(6, np.float32)
    return lambda v: np.matmul(M, v.reshape(-1), out=buffer)


def _overwriting(v):
    product = M @ v
    v[:] = 0
    return product


def _read_only(v):
    product = M @ v
    product.flags.writeable = False
    return product


@pytest.mark.parametrize(
    ("matvec", "name", "match"),
    [
        (
            _reused(),
            "fresh",
            "A v is memory that A uses again: overwritten, the next product changes it; return a copy",
        ),
        (_overwriting, "deterministic", "A v, computed twice, is not the same"),
        (_read_only, "fresh", "A v is read-only, and solvers write to it; return np.array"),
    ],
)
def test_memory(matvec, name, match):
    report = check(LinearOperator((6, 6), matvec=matvec, rmatvec=lambda w: M.T @ w, dtype=np.float32))
    assert [finding.name for finding in report.failed] == [name]
    assert match in str(report)


def test_product_that_is_its_vector():
    A = LinearOperator((6, 6), matvec=lambda v: v, rmatvec=lambda v: +v, dtype=np.float32)
    assert_finds(A, "fresh", "A v shares memory with its vector; return a copy")


def test_block_that_is_changed():
    class Wrong(LinearOperator):
        def __init__(self):
            super().__init__(np.float32, (6, 6))

        def _matvec(self, v):
            return M @ v

        def _rmatvec(self, w):
            return M.T @ w

        def _matmat(self, V):
            product = M @ V
            V[:] = 0
            return product

    assert_finds(Wrong(), "fresh", "A V changed its vector; work on a copy")


def test_product_of_another_kind():
    class Wrong(linops.Matrix):
        def __matmul__(self, v):
            return jnp.asarray(super().__matmul__(v))

        __init__ = linops.Matrix.__init__

    assert_finds(Wrong(M), "fresh", r"A v is ArrayImpl of shape \(6,\), expected NumPy, \(6,\)")


# Faults of functions.


@jax.custom_jvp
def wrong_rule(x):
    return jnp.sin(x)


wrong_rule.defjvp(lambda x, v: (jnp.sin(x[0]), 1.1 * jnp.cos(x[0]) * v[0]))


@pytest.mark.parametrize(
    "make",
    [
        lambda: linops.Jacobian(wrong_rule, X["b"]),
        lambda: linops.Jacobian(wrong_rule, X["b"]).T @ linops.Matrix(M[:2, :2]),
        lambda: linops.GaussNewton(wrong_rule, X["b"]),
        lambda: linops.GaussNewton(lambda x: x * x, X["b"], lambda z: jnp.sum(wrong_rule(z))),
        lambda: linops.JacobianGram(wrong_rule, X["b"]),
        lambda: linops.JacobianGram(wrong_rule, X["b"], X["b"]),
        lambda: linops.Hessian(lambda x: jnp.sum(wrong_rule(x)), X["b"]),
        lambda: linops.Hessian(wrong_rule, X["b"], weights=X["b"]),
        lambda: linops.Jacobian(wrong_rule, X["b"].astype(np.complex64) * (1 + 1j)),
        lambda: (
            linops.Jacobian(lambda z: wrong_rule(jnp.conj(z)), X["b"] * (1 + 1j).astype(np.complex64))
            if False
            else linops.Jacobian(lambda z: jnp.abs(wrong_rule(z.real)), X["b"].astype(np.complex64))
        ),
    ],
)
def test_wrong_derivative(make):
    assert_finds(make(), "derivative", "is not the slope of .* by central differences: look at custom derivative rules")


def test_wrong_composition():
    class Forgetful(linops.GaussNewton):
        __init__ = linops.GaussNewton.__init__

        def _expand(self):
            return self._replace(loss=None)._original()

        def _original(self):
            return linops.GaussNewton._expand(self)

    assert_finds(Forgetful(problems.values, X, problems.loss), "derivative", "<w, A v> and <J w, H J v> of .*Forgetful")

    class Same(linops.JacobianGram):
        __init__ = linops.JacobianGram.__init__

        def _expand(self):
            return linops.JacobianGram._expand(self._replace(x2=self.x))

    other = problems.tree_point("dict", np.float32, seed=7)
    report = check(Same(problems.values, X, other))
    assert "<w, A v> and <J1ᴴ w, J2ᴴ v> of" in str(report)


def test_function_that_ends_near_the_point():
    x = np.array([1.0, 0.0], np.float32)
    A = linops.Jacobian(lambda x: jnp.where(jnp.all(x == jnp.array([1, 0])), 1, jnp.nan) * x, x)
    report = check(A)
    assert report
    assert "f is not finite near x, so it has no differences" in str(report)


def noise(x):
    return x * np.random.default_rng().normal()


def test_random_numbers_while_tracing():
    match = "f.x. differs once f is traced again: f draws random numbers.*pass them through args="
    assert_finds(linops.Jacobian(noise, X["b"]), "deterministic", match)  # found by its name
    f = lambda x: noise(x)  # noqa: E731
    assert check(linops.Jacobian(f, X["b"]))
    assert_finds(linops.Jacobian(f, X["b"]), "deterministic", match, f=f)
    assert_finds(linops.Jacobian(f, X["b"] * np.complex64(1j)), "deterministic", match, f=f)
    assert check(linops.Jacobian(problems.values, X), f=problems.values)
    z = {"a": problems.complex_normal(3, np.float32), "b": problems.complex_normal((), np.float32)}
    assert check(linops.Jacobian(problems.conjugating, z), f=problems.conjugating)


def test_callback_with_state():
    rng = np.random.default_rng(0)

    def f(x):
        factor = jax.pure_callback(lambda: np.float32(rng.normal()), jax.ShapeDtypeStruct((), np.float32))
        return x * factor

    match = "f.x., computed twice, differs: f has a callback with state"
    assert_finds(linops.Jacobian(f, X["b"]), "deterministic", match)


def test_product_with_state():
    rng = np.random.default_rng(0)
    A = LinearOperator((6, 6), matvec=lambda v: v * rng.normal(), dtype=np.float64)
    assert_finds(A, "deterministic", "A v, computed twice, is not the same to the last bit.*random numbers, callbacks")


def test_nan_is_named_by_its_leaf():
    def f(x):
        return {"fine": jnp.sum(x["w"]), "roots": jnp.sqrt(x["b"])}

    x = {"w": X["w"], "b": np.array([1.0, 0.0], np.float32)}
    raised = r"raised FloatingPointError: a product with .* has NaN or Inf.*the first at \['roots'\]\[1\]"
    assert_finds(linops.Jacobian(f, x), "finite", raised)
    unchecked = linops.Jacobian(f, x, check_finite=False)
    assert_finds(unchecked, "finite", r"A v has NaN or Inf in 1 of 3 entries, the first at \['roots'\]\[1\]")
    x["b"][1] = -1
    assert_finds(
        linops.Jacobian(f, x), "finite", r"f\(x\) has NaN or Inf in 1 of 3 entries, the first at \['roots'\]\[1\]"
    )
    x["b"][1] = np.nan
    assert_finds(linops.Jacobian(f, x), "finite", r"x has NaN or Inf in 1 of 11 entries, the first at \['b'\]\[1\]")
    assert "presupposes: finite" in str(check(linops.Jacobian(f, x)))


def test_missing_rules_are_no_fault():
    def loop(x):
        return jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, jnp.sin(s[1])), (0, x))[1]

    report = check(linops.Jacobian(loop, X["b"]))
    assert report
    assert "a product with a derivative needs reverse-mode differentiation" in str(report)
    report = check(LinearOperator((6, 6), matvec=lambda v: M @ v, dtype=np.float32))
    assert report
    assert "not implemented" in str(report)


def test_report():
    report = check(linops.Matrix(M))
    assert repr(report) == str(report)
    assert str(report).splitlines()[0] == "<6x6 Matrix with dtype=float32>: 9 checks hold, 0 fail, 4 not made"
    assert not check(linops.Matrix(M), rtol=1e-12)
    assert check(linops.Matrix(M), samples=1)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        (lambda: (M,), TypeError, "check got ndarray, expected an operator .* wrap an array in linops.Matrix"),
        (lambda: (linops.Matrix(M), noise), TypeError, "check got f= with .*Matrix.*, expected an operator made of f"),
    ],
)
def test_bad_arguments(arguments, error, match):
    A, *f = arguments()
    with pytest.raises(error, match=match):
        check(A, f=f[0] if f else None)


def test_bad_samples():
    with pytest.raises(ValueError, match="check got samples=0, expected at least one random vector"):
        check(linops.Matrix(M), samples=0)


def test_bad_shapes():
    A = linops.Matrix(M)
    object.__setattr__(A, "shape", (2, 6, 6))
    with pytest.raises(ValueError, match=r"check got an operator of shape \(2, 6, 6\), expected one matrix"):
        check(A)


def test_inside_of_jit():
    with pytest.raises(TypeError, match="belongs to a jit, vmap or grad in progress; expected arrays: check outside"):
        jax.jit(lambda M: bool(check(linops.Matrix(M))))(M)
