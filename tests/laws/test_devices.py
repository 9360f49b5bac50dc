"""On a mesh, of automatic and of explicit axes, and on two devices: what plain JAX computes, so does the operator."""

import contextlib
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import operators
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from processes import in_subprocess

import linops


def test_two_devices():
    in_subprocess(
        "-c",
        """
import pickle
import jax, jax.numpy as jnp, numpy as np, problems, linops
first, second = jax.devices()
x = problems.tree_point("dict", np.float32)
D, v = problems.jacobian(problems.values, x), np.ones(11, np.float32)
def right(A, device):
    w = A @ jnp.asarray(v)
    np.testing.assert_allclose(w, D @ v, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(A @ v, D @ v, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(A.T @ np.ones(7, np.float32), D.T @ np.ones(7), rtol=1e-4, atol=1e-4)
    assert w.devices() == {device}, (w.devices(), device)
with jax.default_device(second):
    J = linops.Jacobian(problems.values, x)
    right(J, second)
    right(J.at(x), second)
    right(pickle.loads(pickle.dumps(J)), second)
for placed in (J, linops.Jacobian(problems.values, jax.device_put(x, second))):  # committed, or made elsewhere
    np.testing.assert_allclose(placed @ v, D @ v, rtol=1e-4, atol=1e-5)
right(linops.Jacobian(problems.values, jax.device_put(x, second)), second)
right(linops.Jacobian(problems.values, x), first)
""",
        XLA_FLAGS="--xla_force_host_platform_device_count=2",
    )


DEVICES = 4
KINDS = ["Auto", "Explicit"]


@pytest.mark.parametrize("kind", KINDS)
def test_products_on_a_mesh(kind):
    flags = f"--xla_force_host_platform_device_count={DEVICES}"
    found = json.loads(in_subprocess("-W", "ignore", __file__, kind, XLA_FLAGS=flags))
    assert found["tried"] > 100
    assert found["wrong"] == []


def main(kind):
    """Try each product of each operator inside and outside of the mesh's context; print what is wrong."""
    mesh = jax.make_mesh((DEVICES,), ("d",), axis_types=(AxisType[kind],))

    def put(a, *spec):
        return jax.device_put(a, NamedSharding(mesh, P(*spec)))

    names = operators.where(made_for="devices")
    x, data = operators.arguments(names[0], np.float32)
    v = np.random.default_rng(2).normal(size=12).astype(np.float32)
    V = np.stack([v, -2 * v, v**2], axis=1)
    products = {
        "numpy": lambda A, D: (A @ v, D @ v),
        "device": lambda A, D: (A @ put(v), D @ v),
        "tree": lambda A, D: (jax.tree.leaves(A.mv(A.domain.treedef.unflatten([put(v)])))[0], D @ v),
        "block": lambda A, D: (A @ V, D @ V),
        "transpose": lambda A, D: (A.T @ np.ones(len(D), np.float32), D.T @ np.ones(len(D))),
        "toarray": lambda A, D: (A.toarray(), D),
        "diagonal": lambda A, D: (A.diagonal(), np.diag(D)),
        "jit": lambda A, D: (jax.jit(lambda A, v: A @ v)(A, put(v)), D @ v),
    }
    wrong, tried = [], 0

    def attempt(label, thunk):
        nonlocal tried
        tried += 1
        try:
            got, expected = thunk()
            if not np.allclose(got, expected, rtol=1e-4, atol=1e-4):
                wrong.append(f"{label}: off by {np.abs(got - expected).max():.1e}")
        except Exception as error:
            wrong.append(f"{label}: {type(error).__name__} {str(error).splitlines()[0][:100]}")

    def within(inside):
        return jax.set_mesh(mesh) if inside else contextlib.nullcontext()

    for name in names:
        D = operators.dense(name, np.float32)
        for inside in (False, True):
            linearize = None if inside == (kind == "Explicit") else False  # of both kinds of axes each pair once
            with within(inside):
                A = operators.make(name, put(x), put(data, "d", None), linearize=linearize)
                for way, product in products.items():
                    label = f"{name}, {way}, mesh set {inside}, linearize={linearize}"
                    attempt(label, lambda A=A, D=D, product=product: product(A, D))
            attempt(f"{name} of mesh set {inside}, outside", lambda A=A, D=D: (A @ v, D @ v))
    for inside in (False, True):
        with within(inside):
            J = linops.Jacobian(lambda x: jnp.sin(x) * x, put(x, "d"))
            w = J @ put(v, "d")
            attempt("sharded point", lambda J=J: (J @ put(v, "d"), (np.cos(x) * x + np.sin(x)) * v))
            attempt("sharding of the result", lambda w=w: (w.sharding.spec == P("d"), True))
            made_inside = linops.Jacobian(lambda x: jnp.sin(x) * x, x), linops.Diagonal(jnp.asarray(x))
            made_inside[1] @ v
        attempt("made inside, outside", lambda A=made_inside[0]: (A @ v, (np.cos(x) * x + np.sin(x)) * v))
        attempt("multiplied inside, outside", lambda A=made_inside[1]: (A.toarray(), np.diag(x)))
    sine, spread = lambda x: jnp.sin(x) * x, NamedSharding(mesh, P("d"))
    loop = lambda x: jax.lax.fori_loop(0, 3, lambda _, y: jnp.sin(y) * x, x)  # noqa: E731
    laid = {  # what tells where arrays lie: a function of a point that is spread out, or that spreads its values
        "Auto": {"a jitted function with a place": (jax.jit(sine, out_shardings=spread), sine, P())},
        "Explicit": {
            "a map over devices": (jax.shard_map(sine, mesh=mesh, out_specs=P("d")), sine, P("d")),
            "a loop": (loop, loop, P("d")),
            "linear": (lambda x: 2 * x, lambda x: 2 * x, P("d")),
        },
    }[kind]
    for name, (f, plain, spec) in laid.items():
        with jax.set_mesh(mesh):
            J, D = linops.Jacobian(f, jax.device_put(x, NamedSharding(mesh, spec))), jax.jit(jax.jacobian(plain))(x)
            w = J @ put(v)
        attempt(name, lambda w=w, D=D: (w, D @ v))
        attempt(f"where the product of {name} lies", lambda w=w: (w.sharding.spec == P("d"), True))
    print(json.dumps({"tried": tried, "wrong": wrong}))


if __name__ == "__main__":
    main(sys.argv[1])
