"""Arrays on a mesh, of automatic and of explicit axes: where plain JAX computes a product, so does the operator."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

DEVICES = 4
KINDS = ["Auto", "Explicit"]


def results(kind):
    environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES}"}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, kind], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout)


@pytest.mark.parametrize("kind", KINDS)
def test_products_on_a_mesh(kind):
    found = results(kind)
    assert found["tried"] > 200
    assert found["wrong"] == []


def main(kind):
    """Try each product of each operator inside and outside of the mesh's context; print what is wrong."""
    import contextlib

    import jax
    import jax.numpy as jnp
    from jax.sharding import AxisType, NamedSharding
    from jax.sharding import PartitionSpec as P

    import linops

    mesh = jax.make_mesh((DEVICES,), ("d",), axis_types=(AxisType[kind],))

    def put(a, *spec):
        return jax.device_put(a, NamedSharding(mesh, P(*spec)))

    def model(x, data):
        return jnp.tanh(data @ x)

    def loss(x, data):
        return jnp.sum(model(x, data) ** 2)

    rng = np.random.default_rng(0)
    D, x, v = (rng.normal(size=shape).astype(np.float32) for shape in ((8, 12), 12, 12))
    V = np.stack([v, -2 * v, v**2], axis=1)
    J, H = np.asarray(jax.jacobian(model)(x, D)), np.asarray(jax.hessian(loss)(x, D))
    dense = {"Hessian": H, "GaussNewton": J.T @ J, "Jacobian": J, "shifted": H + 2 * np.eye(12), "J.T @ J": J.T @ J}
    dense["sum"] = 5 * H
    made = {
        "Hessian": lambda x, data, **k: linops.Hessian(loss, x, args=(data,), **k),
        "GaussNewton": lambda x, data, **k: linops.GaussNewton(model, x, args=(data,), **k),
        "Jacobian": lambda x, data, **k: linops.Jacobian(lambda x: model(x, data), x, **k),
        "shifted": lambda x, data, **k: linops.Hessian(loss, x, args=(data,), **k) + 2 * linops.Identity(12),
        "J.T @ J": lambda x, data, **k: (lambda J: J.T @ J)(linops.Jacobian(model, x, args=(data,), **k)),
        "sum": lambda x, data, **k: sum(linops.Hessian(loss, x, args=(data,), **k) for _ in range(5)),
        "at": lambda x, data, **k: linops.Hessian(loss, x, args=(data,), **k).at(np.asarray(x)),
    }
    dense["at"] = H
    products = {
        "numpy": lambda A, D: (A @ v, D @ v),
        "device": lambda A, D: (A @ put(v), D @ v),
        "tree": lambda A, D: (A.mv(put(v)), D @ v),
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

    for name, make in made.items():
        for inside in (False, True):
            for linearize in (None, False):
                with within(inside):
                    A = make(put(x), put(D, "d", None), linearize=linearize)
                    for way, product in products.items():
                        label = f"{name}, {way}, mesh set {inside}, linearize={linearize}"
                        attempt(label, lambda A=A, product=product, name=name: product(A, dense[name]))
                attempt(f"{name} of mesh set {inside}, outside", lambda A=A, name=name: (A @ v, dense[name] @ v))
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
    print(json.dumps({"tried": tried, "wrong": wrong}))


if __name__ == "__main__":
    main(sys.argv[1])
