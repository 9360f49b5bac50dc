"""Which functions of complex numbers have complex-linear derivatives, each in a disguise."""

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

import linops
from linops.program.jaxpr.linearity import is_complex_linear
from linops.program.jaxpr.rules import read

# Complex functions of which the derivative is only real-linear, each in a disguise.


def _through_a_reference(z):
    r = jax.new_ref(jnp.zeros_like(z))
    r[...] = jnp.conj(z)
    return r[...]


def _by_a_host_rule():
    @jax.custom_jvp
    def f(z):
        return jnp.conj(z)

    struct = jax.ShapeDtypeStruct((3,), np.complex64)
    f.defjvp(lambda primals, tangents: (f(*primals), jax.pure_callback(np.conj, struct, *tangents)))
    return f


def _solve(matvec, solve):
    return lambda b: jax.lax.custom_linear_solve(
        matvec, b, lambda _, b: solve(b), transpose_solve=lambda _, b: solve(b)
    )


REAL_LINEAR = {
    "conj": jnp.conj,
    "a solve with a conjugation": _solve(lambda z: z + 0.5 * jnp.conj(z), lambda b: (b - 0.5 * jnp.conj(b)) / 0.75),
    "linear_call": lambda z: jax.custom_derivatives.linear_call(
        lambda _, x: jnp.conj(x), lambda _, x: jnp.conj(x), (), z
    ),
    "a custom_jvp rule on the host": _by_a_host_rule(),
    "a reference": _through_a_reference,
    "real and imag": lambda z: z.real * 1j + z.imag,
    "abs in a scan": lambda z: jax.lax.scan(lambda c, x: (c + jnp.abs(x), c * x), 0j, z)[1],
    "conj in one branch": lambda z: jax.lax.cond(z[0].real > 9, jnp.conj, lambda z: z**2, z),
    "conj in a loop": lambda z: jax.lax.fori_loop(0, 2, lambda i, z: jnp.conj(z) * z, z),
    "angle": lambda z: jnp.exp(1j * jnp.angle(z)),
    "norm": lambda z: z / jnp.linalg.norm(z),
    "vdot": lambda z: jnp.vdot(z, z) * z,
    "bits": lambda z: jax.lax.complex(z.imag, z.real),
    "custom_vjp": lambda z: z * jax.nn.relu(z.real),
}


HOLOMORPHIC = {
    "solve": lambda z: jnp.linalg.solve(jnp.eye(3) * 4 + jnp.outer(z, z), z),
    "fft": lambda z: jnp.fft.fft(z) ** 2,
    "a scan": lambda z: jax.lax.scan(lambda c, x: (c * x, c + x), 1 + 0j, z)[1],
    "a branch by values": lambda z: jax.lax.cond(jnp.abs(z[0]) > 9, jnp.sin, jnp.exp, z),
    "checkpoint, jit, vmap": jax.checkpoint(jax.jit(jax.vmap(lambda z: jnp.sin(z) / z))),
    "gather and scatter": lambda z: jnp.zeros(4, z.dtype).at[jnp.array([0, 2, 0])].add(z[::-1] ** 2),
    "inv": lambda z: jnp.linalg.inv(jnp.eye(3) * 4 + jnp.outer(z, z)),
}


Z = problems.complex_normal(3, np.float32)


@pytest.mark.parametrize("name", REAL_LINEAR)
def test_real_linear_derivatives_are_realified(name):
    J = linops.Jacobian(REAL_LINEAR[name], Z)
    assert (J.dtype, J.shape) == (np.float32, (6, 6))
    product = jax.jit(lambda z, v: jax.jvp(REAL_LINEAR[name], (z,), (v,))[1])
    directions = problems.complex_normal((2, 3), np.float32, 7)
    for v in directions:
        try:
            expected = product(Z, v)
        except ValueError:
            return  # JAX itself cannot
        re, im = J.codomain.unravel(J @ np.asarray(J.domain.ravel(v)))
        np.testing.assert_allclose(re + 1j * im, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", HOLOMORPHIC)
def test_holomorphic_functions_have_complex_jacobians(name):
    f = HOLOMORPHIC[name]
    J = linops.Jacobian(f, Z)
    assert J.dtype == np.complex64
    v = problems.complex_normal(3, np.float32, 7)
    expected = jax.jit(lambda z, v: jax.jvp(f, (z,), (v,))[1])(Z, v)
    np.testing.assert_allclose(J @ v, np.ravel(expected), rtol=1e-4, atol=1e-5)
    w = problems.complex_normal(J.shape[0], np.float32, 8)
    np.testing.assert_allclose(np.vdot(w, J @ v), np.vdot(J.H @ w, v), rtol=1e-3, atol=1e-4)


def test_what_is_not_known_is_the_careful_case():
    flip = Primitive("flip_imaginary")
    flip.def_impl(jnp.conj)
    flip.def_abstract_eval(lambda aval: aval)
    mlir.register_lowering(flip, mlir.lower_fun(jnp.conj, multiple_results=False))
    ad.primitive_jvps[flip] = lambda p, t: (flip.bind(*p), flip.bind(*t))
    batching.primitive_batchers[flip] = lambda a, d: (flip.bind(*a), d[0])
    J = linops.Jacobian(lambda z: flip.bind(z), np.array([1 + 2j, 3 - 1j], np.complex64))
    assert J.shape == (4, 4)

    def draws(x):
        a, b = (jax.lax.rng_uniform(jnp.float32(0), jnp.float32(1), (3,)) for _ in range(2))
        return jnp.sum(x**2 * (a - b))

    assert (linops.Hessian(draws, np.ones(3, np.float32)) @ np.ones(3, np.float32)).any()


def test_real_values_beside_complex_ones_of_a_real_point():
    J = linops.Jacobian(lambda x: {"a": x**2, "b": 1j * jnp.sin(x)}, Z.real)
    D = np.concatenate([np.diag(2 * Z.real), 1j * np.diag(np.cos(Z.real))])
    assert J.dtype == J.codomain.dtypes[0] == J.codomain.dtypes[1] == np.complex64
    v, w = problems.complex_normal(3, np.float32, 7), problems.complex_normal(6, np.float32, 8)
    np.testing.assert_allclose(J @ v, D @ v, rtol=1e-5)
    np.testing.assert_allclose(J.H @ w, D.conj().T @ w, rtol=1e-5)


SOLVES = {  # of what divides, and what is divided
    "a quotient": lambda a, b: b / a,
    "a triangular system": lambda a, b: jax.lax.linalg.triangular_solve(jnp.diag(a), b[:, None], left_side=True),
    "a linear system": lambda a, b: _solve(lambda y: a * y, lambda b: b / a)(b),
}


@pytest.mark.parametrize("name", SOLVES)
def test_what_is_divided_is_linear_and_what_divides_is_not(name):
    solve = SOLVES[name]
    for product, expected in ((lambda z, v: solve(z, v), True), (lambda z, v: solve(v, z), False)):
        graph, _ = read(jax.make_jaxpr(product)(Z, Z), rules=False)
        assert is_complex_linear(graph, 1) == expected
