"""`eigsh` and `svds` on eight devices: known values, and no leaf is gathered in any program that runs."""

import pytest
from processes import in_subprocess

SCRIPT = r"""
import re, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import linops
from linops.linalg import eigsh, svds
from linops.program.staged import Flat

compiled, moved = {}, set()

def call(self, function, *arguments):
    staged = self.stage(function, *arguments)
    inputs = (*staged.consts, *self.leaves, *arguments)
    with self.scope.entered():
        if staged not in compiled:
            compiled[staged] = staged.run.lower(*inputs).compile()
            text = compiled[staged].as_text()
            for shapes, kind in re.findall(r"= (.*?) (all-gather|all-to-all|collective-permute|all-reduce)", text):
                sizes = [np.prod([int(n) for n in dims.split(",") if n]) for dims in re.findall(r"\[(.*?)\]", shapes)]
                moved.update((kind, int(size)) for size in sizes)
        outputs = compiled[staged](*inputs)
    return staged.out_tree.unflatten([(inputs if passed else outputs)[i] for passed, i in staged.sources])

Flat.call = call
mesh = jax.make_mesh((8,), ("d",), axis_types=(getattr(AxisType, sys.argv[1]),))
sharding, rows = (NamedSharding(mesh, P(*axes)) for axes in (("d", None), (None, "d", None)))
factors = jax.device_put((1 / np.arange(1, 3073, dtype=np.float32)).reshape(64, 48), sharding)
x = {"w": jax.device_put(np.ones((64, 48), np.float32), sharding)}

def energy(x, factors):
    return jnp.sum(factors * x["w"] ** 2) / 2

def model(x, factors):
    return {"w": factors * x["w"]}

options = {"k": 3, "tol": 1e-4, "ncv": 12, "trees": True}
w, v = eigsh(linops.Hessian(energy, x, args=(factors,)), which="LA", **options)
u, s, right = svds(linops.Jacobian(model, x, args=(factors,)), **options)
for values in (w, s):
    np.testing.assert_allclose(values, [1 / 3, 1 / 2, 1], rtol=1e-4)
for tree in (v, u, right):
    assert tree["w"].sharding.is_equivalent_to(rows, 3), tree["w"].sharding
    np.testing.assert_allclose(np.abs(tree["w"]).reshape(3, -1)[:, :3], np.eye(3)[::-1], atol=1e-2)
assert {kind for kind, _ in moved} == {"all-reduce"}, moved
assert max(size for _, size in moved) < 100, f"each device has 384 numbers of a leaf: {moved}"
"""


@pytest.mark.parametrize("axes", ["Auto", "Explicit"])
def test_no_leaf_is_gathered(axes):
    in_subprocess("-c", SCRIPT, axes, XLA_FLAGS="--xla_force_host_platform_device_count=8")
