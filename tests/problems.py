"""Functions and points that the tests share, and their dense derivatives, made by JAX without linops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree


def normal(shape, dtype, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def tree_point(kind, dtype, seed=0):
    """A point of each kind of pytree, with 8 to 12 numbers."""
    return {
        "vector": normal(9, dtype, seed),
        "dict": {"w": normal((3, 3), dtype, seed), "b": normal(2, dtype, seed + 1)},
        "tuple": (normal(4, dtype, seed), normal((2, 2), dtype, seed + 1)),
        "nested": {"layers": [{"w": normal((2, 3), dtype, seed)}, (normal(2, dtype, seed + 1), None)]},
        "scalars": [normal((), dtype, seed), jnp.asarray(0.7, dtype), normal(6, dtype, seed + 1)],
        "empty": {"none": np.zeros((0, 3), dtype), "some": normal(8, dtype, seed)},
        "mixed": (normal(5, np.float16, seed), normal(6, dtype, seed + 1)),
    }[kind]


TREES = ["vector", "dict", "tuple", "nested", "scalars", "empty", "mixed"]
POINT = tree_point("dict", np.float32)
SIZE = 11  # of it


def values(x):
    """A nonlinear map from any such point to a tree of 7 values."""
    v = ravel_pytree(x)[0]
    return {"products": v[:5] * jnp.sin(v[1:6]), "sums": (jnp.sum(v**2), jnp.tanh(v[-1] * v[0]))}


def square(x):
    """A nonlinear map from a point to one like it."""
    v, unravel = ravel_pytree(x)
    return unravel(jnp.sin(v) + 0.3 * jnp.roll(v, 1) * v)


def scalar(x):
    v = ravel_pytree(x)[0]
    return jnp.sum(jnp.cos(v[:-1]) * v[1:] ** 2) + jnp.prod(v[:3])


def loss(z):
    v = ravel_pytree(z)[0]
    return jax.nn.logsumexp(v) + 0.5 * jnp.sum(v**2)


def jac(f, x):
    """The dense Jacobian of f on vectors, where JAX traces it."""
    v, unravel = ravel_pytree(x)
    return jax.jacfwd(lambda v: ravel_pytree(f(unravel(v)))[0], holomorphic=jnp.iscomplexobj(v))(v)


def hess(f, x):
    """The dense Hessian of a scalar f on vectors, where JAX traces it; a complex one of a holomorphic f."""
    v, unravel = ravel_pytree(x)
    return jax.hessian(lambda v: f(unravel(v)), holomorphic=jnp.iscomplexobj(v))(v)


def jac_of_pairs(f, x):
    """The dense Jacobian of f as a function of real and imaginary parts."""
    return jac(*real_view(f, x))


def hess_of_pairs(f, x):
    view, v = real_view(f, x)
    return hess(lambda v: view(v)[0], v)


def jacobian(f, x):
    """The dense Jacobian of f on vectors, in float64."""
    dense = _compiled(jac, f)(x)
    return np.asarray(dense, np.complex128 if np.iscomplexobj(dense) else np.float64)


def hessian(f, x):
    """The dense Hessian of a scalar f on vectors, in float64."""
    return np.asarray(_compiled(hess, f)(x), np.float64)


def _compiled(derivative, f):
    """Once for all tests, where f is one of the functions that they share."""
    if getattr(f, "__module__", None) == __name__ and f.__closure__ is None:
        return _shared(derivative, f)
    return jax.jit(functools.partial(derivative, f))


@functools.cache
def _shared(derivative, f):
    return jax.jit(functools.partial(derivative, f))


def complex_normal(shape, dtype, seed=0):
    """Complex numbers of the precision of a real dtype."""
    return normal(shape, dtype, seed) + normal(shape, dtype, seed + 100) * np.result_type(dtype, np.complex64).type(1j)


def holomorphic(z):
    """A holomorphic map from a tree with leaves "a" (3,) and "b" () to 4 values."""
    return {"s": jnp.sin(z["a"]) * z["b"], "p": jnp.prod(z["a"]) + jnp.exp(0.3 * z["b"])}


def phases(x):
    """A map from real to complex vectors."""
    return jnp.exp(1j * x[:4]) * x[1:5]


def conjugating(z):
    """A map of complex numbers whose derivative is only real-linear."""
    return {"c": jnp.conj(z["a"]) * z["b"], "m": jnp.abs(z["a"][:2]) ** 2}


def energy(y):
    """A real function of complex values, in one or more leaves."""
    return sum(jnp.sum(jnp.abs(leaf) ** 2 + 0.1 * jnp.abs(leaf) ** 4) for leaf in jax.tree.leaves(y))


def real_view(f, x):
    """The function f on the real vector [Re x, Im x], with the vector [Re f, Im f] for its value, and that of x."""
    leaves, treedef = jax.tree.flatten(x)
    complex_leaves = [leaf for leaf in leaves if np.iscomplexobj(leaf)]

    def stack(tree):
        leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree)]
        parts = [leaf.real for leaf in leaves] + [leaf.imag for leaf in leaves if jnp.iscomplexobj(leaf)]
        return jnp.concatenate([part.ravel() for part in parts])

    def view(v):
        sizes = [np.size(leaf) for leaf in leaves] + [np.size(leaf) for leaf in complex_leaves]
        parts = jnp.split(v, np.cumsum(sizes)[:-1])
        imaginary = iter(parts[len(leaves) :])
        tree = [
            (part + 1j * next(imaginary) if np.iscomplexobj(leaf) else part).reshape(np.shape(leaf))
            for part, leaf in zip(parts, leaves, strict=False)
        ]
        return stack(f(treedef.unflatten(tree)))

    return view, stack(x)
