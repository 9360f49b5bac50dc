"""`check` passes what is right, and finds each planted fault by the check that names it, and by no other."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
import scipy.sparse
from faults import FAULTS, POINT, M, X, Z, jacobian_of_roots, noise
from scipy.sparse.linalg import LinearOperator, aslinearoperator

import linops
from linops import check


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
        1j * linops.Matrix(jnp.asarray(M, jnp.bfloat16)),
        LinearOperator((6, 6), matvec=lambda v: M @ v, dtype=np.float32),
    ],
    ids=lambda A: repr(A),
)
def test_other_operators_pass(A):
    check(A).raise_if_failed()


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_found(name):
    planted = FAULTS[name]
    report = planted.report()
    assert not report
    assert {finding.name for finding in report.failed} == planted.found_by, str(report)
    with pytest.raises(AssertionError, match="(?s)is not what it claims.*FAILS.*" + planted.words):
        report.raise_if_failed()


def table():
    """Each fault, what found it, and the words of the first finding."""
    yield from ("| planted | found by | in the words |", "| --- | --- | --- |")
    for name, planted in FAULTS.items():
        failed = planted.report().failed
        words = failed[0].note.replace("|", "\\|")
        yield f"| {name} | {', '.join(finding.name for finding in failed)} | {words} |"


def test_what_presupposes_a_failed_check_is_not_made():
    report = check(jacobian_of_roots(np.nan))
    assert "presupposes: finite" in str(report)
    assert {finding.holds for finding in report.findings[2:]} == {None}


def test_functions_given_as_f_pass():
    assert check(linops.Jacobian(problems.values, X), f=problems.values)
    assert check(linops.Jacobian(problems.conjugating, Z), f=problems.conjugating)


def test_another_function_given_as_f():
    J = linops.Jacobian(problems.values, X)
    assert "(or f= is another function)" in str(check(J, f=lambda x: jax.tree.map(jnp.cos, problems.values(x))))
    assert "f= is not the function that A was made of" in str(check(J, f=lambda x: x["b"]))


def test_report():
    report = check(linops.Matrix(M))
    assert repr(report) == str(report)
    assert str(report).splitlines()[0] == "<6x6 Matrix with dtype=float32>: 9 checks hold, 0 fail, 5 not made"
    assert "not a mean or sum over data" in str(report)
    assert not check(linops.Matrix(M), rtol=1e-12)
    assert check(linops.Matrix(M), samples=1)
    assert str(report).splitlines()[-1] == f"  noise of products {report.noise:.1e} (eps 1.2e-07)"


@pytest.mark.parametrize(
    ("A", "least", "most"),
    [
        (linops.Matrix(M), 1e-8, 1e-6),
        (linops.Matrix(M + 1j * M), 1e-8, 1e-6),
        (linops.Jacobian(lambda x: jnp.sin(1e4 * x), POINT), 1e-5, 1e-1),
        (linops.Jacobian(lambda x: jax.lax.while_loop(lambda x: x[0] < 1, jnp.exp, x), POINT), 1e-8, 1e-6),
        (aslinearoperator(M), 1e-8, 1e-6),
        (aslinearoperator(M.astype(np.float64)), 1e-17, 1e-14),
        (LinearOperator((6, 6), matvec=lambda v: (M @ v).astype(np.float16).astype(float), dtype=float), 1e-5, 1e-2),
        (linops.Identity(7), 0, 0),
    ],
    ids=lambda value: repr(value),
)
def test_noise_of_products(A, least, most):
    report = check(A)
    assert least <= report.noise <= most
    assert report.eps in (np.finfo(np.float32).eps, np.finfo(float).eps)


def test_noise_of_what_depends_on_settings():
    """A user's product is traced for double precision as it is for its own, where random numbers would be others."""

    class Drawn(linops.Operator):
        scale: jax.Array
        domain = codomain = property(lambda self: linops.Space.flat(6, np.float32))

        def _mv(self, v):
            return self.scale * jax.random.normal(jax.random.key(0), v.shape) * v

    assert check(Drawn(jnp.float32(2))).noise < 1e-6


def test_noise_where_products_fail():
    assert np.isnan(check(jacobian_of_roots(0)).noise)


@pytest.mark.parametrize(
    ("A", "options", "error", "match"),
    [
        (M, {}, TypeError, "check got ndarray, expected an operator .* wrap an array in linops.Matrix"),
        (types.SimpleNamespace(shape=(3, 3), matvec=None), {}, TypeError, "pass scipy.sparse.linalg.aslinearoperator"),
        (
            linops.Matrix(M),
            {"f": noise},
            TypeError,
            "check got f= with .*Matrix.*, expected an operator made of f",
        ),
        (linops.Matrix(M), {"samples": 0}, ValueError, "check got samples=0, expected a number of random vectors"),
        (linops.Matrix(M), {"samples": 2.5}, ValueError, "check got samples=2.5, expected a number of random vectors"),
        (linops.Matrix(M), {"key": "a"}, TypeError, "check got key='a', expected an integer or a key of jax.random"),
    ],
)
def test_bad_arguments(A, options, error, match):
    with pytest.raises(error, match=match):
        check(A, **options)


def test_bad_shapes():
    A = linops.Matrix(M)
    object.__setattr__(A, "shape", (2, 6, 6))
    with pytest.raises(ValueError, match=r"check got an operator of shape \(2, 6, 6\), expected one matrix"):
        check(A)


def test_inside_of_jit():
    with pytest.raises(TypeError, match="belongs to a jit, vmap or grad in progress; expected arrays: check outside"):
        jax.jit(lambda M: bool(check(linops.Matrix(M))))(M)
