"""How equations are read: open jaxprs among parameters, and places of scatters."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, mlir

import linops

X = np.array([0.1, 0.2, 0.3], np.float32)
V = np.array([1, -2, 0.5], np.float32)


def test_an_open_jaxpr_in_the_parameters_of_a_primitive():
    """As lineax has it: a function as a jaxpr, whose constants are inputs of the equation."""
    apply = Primitive("apply_open")
    apply.def_impl(lambda c, x, *, jaxpr: jax.extend.core.jaxpr_as_fun(_closed(jaxpr, c))(x)[0])
    apply.def_abstract_eval(lambda c, x, *, jaxpr: x)
    mlir.register_lowering(apply, mlir.lower_fun(apply.impl, multiple_results=False))
    ad.primitive_jvps[apply] = lambda p, t, **kw: (
        apply.bind(*p, **kw),
        jax.jvp(lambda x: apply.impl(p[0], x, **kw), p[1:], t[1:])[1],
    )

    def f(scale):
        jaxpr = jax.make_jaxpr(lambda c, x: jnp.sin(c * x))(X, X).jaxpr
        opened = jaxpr.replace(constvars=jaxpr.invars[:1], invars=jaxpr.invars[1:])
        return lambda x: apply.bind(scale, x, jaxpr=opened)

    for scale in (2 + X, 3 + X):
        J = linops.Jacobian(f(jnp.asarray(scale)), X)
        np.testing.assert_allclose(J @ V, scale * np.cos(scale * X) * V, rtol=1e-5)


def _closed(jaxpr, const):
    return jax.extend.core.ClosedJaxpr(jaxpr, [const])


def test_scatters_at_constant_places_are_code():
    places, values = jnp.array([0, 2]), jnp.array([1.0, 2.0])
    J = linops.Jacobian(lambda x: jnp.zeros(3).at[places].set(values) * x, X)
    assert sorted(leaf.size for leaf in jax.tree.leaves(J)) == [2, 3]
    labels = jnp.array([0, 2, 1])
    J = linops.Jacobian(lambda x: x[labels] ** 2, X)  # labels of a batch, say
    assert sorted(leaf.size for leaf in jax.tree.leaves(J)) == [3, 3]
