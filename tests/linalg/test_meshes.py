"""Algorithms on eight devices, along both axes of a mesh: known values, and no leaf is gathered in any program."""

import pytest
from processes import in_subprocess

SCRIPT = r"""
import re, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import linops
from linops.linalg import cg, eigsh, expm_multiply, gmres, minres, svds
from linops.program.staged import Flat

compiled, moved = {}, set()

def call(self, function, *arguments):
    staged = self.stage(function, *arguments)
    inputs = (*staged.consts, *self.leaves, *arguments)
    with self.scope.entered():
        if staged.run not in compiled:
            compiled[staged.run] = staged.run.lower(*inputs).compile()
            text = compiled[staged.run].as_text()
            for shapes, kind in re.findall(r"= (.*?) (all-gather|all-to-all|collective-permute|all-reduce)", text):
                sizes = [np.prod([int(n) for n in dims.split(",") if n]) for dims in re.findall(r"\[(.*?)\]", shapes)]
                moved.update((kind, int(size)) for size in sizes)
        outputs = compiled[staged.run](*inputs)
    return staged.out_tree.unflatten([(inputs if passed else outputs)[i] for passed, i in staged.sources])

Flat.call = call
mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(getattr(AxisType, sys.argv[1]),) * 2)
sharding, rows = (NamedSharding(mesh, P(*axes)) for axes in (("data", "model"), (None, "data", "model")))
factors = jax.device_put((1 / np.arange(1, 3073, dtype=np.float32)).reshape(64, 48), sharding)
x = {"w": jax.device_put(np.ones((64, 48), np.float32), sharding)}

def energy(x, factors):
    return jnp.sum(factors * x["w"] ** 2) / 2

def model(x, factors):
    return {"w": factors * x["w"]}

options = {"k": 3, "tol": 1e-4, "ncv": 12, "trees": True}
H, J = linops.Hessian(energy, x, args=(factors,)), linops.Jacobian(model, x, args=(factors,))
w, v = eigsh(H, which="LA", **options)
u, s, right = svds(J, **options)
for values in (w, s):
    np.testing.assert_allclose(values, [1 / 3, 1 / 2, 1], rtol=1e-4)
for tree in (v, u, right):
    assert tree["w"].sharding.is_equivalent_to(rows, 3), tree["w"].sharding
    np.testing.assert_allclose(np.abs(tree["w"]).reshape(3, -1)[:, :3], np.eye(3)[::-1], atol=1e-2)

A, host = H + 1.0 * linops.Identity(H.domain), {"w": np.ones((64, 48), np.float32)}
found = {"cg": cg(A, x, x0=host)[0]}
if sys.argv[1] == "Explicit":  # where the type of an array says how it is laid
    nystrom = linops.precondition.nystrom(H, 1.0, 2, key=jax.random.key(0))
    found |= {"minres": minres(A, x, x0=host)[0], "gmres": gmres(A, x, x0=host, M=nystrom)[0]}
for name, tree in found.items():
    np.testing.assert_allclose(tree["w"], 1 / (1 + factors), rtol=1e-3, err_msg=name)
if sys.argv[1] == "Explicit":
    squares = lambda x: {"w": x["w"] ** 2 + x["w"] - factors}
    fit = linops.optimize.least_squares(squares, x, max_nfev=1, tr_solver="lsmr")
    assert fit.jac.shape == (3072, 3072)
found["newton_cg"] = linops.optimize.newton_cg(lambda x: jnp.sum(jnp.cosh(x["w"] - factors)), x).x
np.testing.assert_allclose(found["newton_cg"]["w"], factors, atol=1e-3)
for name, tree in found.items():
    assert tree["w"].sharding.is_equivalent_to(sharding, 2), (name, tree["w"].sharding)
assert {kind for kind, _ in moved} == {"all-reduce"}, moved
assert max(size for _, size in moved) < 100, f"each device has 384 numbers of a leaf: {moved}"

# A dense factor is on each device, and vectors are where they are given: both meet what lies along axes.
if sys.argv[1] == "Auto":
    sys.exit()
small = jax.device_put(np.arange(1, 33, dtype=np.float32).reshape(8, 4), NamedSharding(mesh, P(None, "model")))
D = linops.Diagonal({"w": small})
for method in ("dense", "lsmr"):
    product = linops.inverse(D, method).mv({"w": jnp.ones_like(small)})["w"]
    np.testing.assert_allclose(product, 1 / small, rtol=1e-3, err_msg=method)
    assert product.sharding.is_equivalent_to(small.sharding, 2), (method, product.sharding)
ones, entries = np.ones(32, np.float32), np.arange(1, 33)
np.testing.assert_allclose(gmres(D, ones, restart=32)[0], 1 / entries, rtol=1e-3)
np.testing.assert_allclose(expm_multiply(-0.1 * D, ones), np.exp(-0.1 * entries), rtol=1e-3, atol=1e-5)
np.testing.assert_allclose(linops.precondition.block_jacobi(D) @ (D @ jnp.asarray(ones)), ones, rtol=1e-3)
form = linops.estimate.quadratic_form(jnp.log, D, {"w": jnp.ones_like(small)})
np.testing.assert_allclose(form.value, np.sum(np.log(entries)), rtol=1e-3)
"""


@pytest.mark.parametrize("axes", ["Auto", "Explicit"])
def test_no_leaf_is_gathered(axes):
    in_subprocess("-c", SCRIPT, axes, XLA_FLAGS="--xla_force_host_platform_device_count=8")
