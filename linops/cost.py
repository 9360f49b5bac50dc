"""What a product costs: counted by XLA in its compiled program, and timed by what this machine reaches."""

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp

from linops.precision import real_dtype
from linops.products import array_product
from linops.program.staged import Flat

# Sizes of what is measured, once for each kind of device and dtype: rows of a matrix, numbers to copy.
ROWS = {"cpu": 1024}
COPIED = {"cpu": 2**24}
MANY = 4096, 2**27  # on accelerators
ROUNDS = 8

LOOPS = "while", "scan", "total_over_data"  # the last one is over chunks


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one product with a vector costs, on one of the devices that hold the operator; None where XLA says nothing.

    `flops` are additions and multiplications, `bytes_moved` what is read from memory and written there between fused
    operations, `bytes_residuals` the arrays that a linearization keeps, `bytes_temporary` what a product needs beside.
    `seconds` are those that such a product should take here, at best: the larger one of flops, at the rate of a matrix
    product, and of bytes, at that of an update in place, and a call. With `has_loops` XLA counts one round of each, so
    that all are lower bounds.

    Source: Williams, Waterman, Patterson, Roofline: an insightful visual performance model, CACM 52 (2009).
    """

    flops: float | None
    bytes_moved: float | None
    bytes_residuals: int
    bytes_temporary: int | None
    seconds: float | None
    has_loops: bool
    device: str

    def __repr__(self):
        least = "at least " * self.has_loops
        counts = (
            "a cost that XLA does not tell"
            if self.flops is None or self.bytes_moved is None
            else f"{least}{_scaled(self.flops)} flops, {_scaled(self.bytes_moved)}B read and written"
        )
        beside = "" if self.bytes_temporary is None else f", {_scaled(self.bytes_temporary)}B beside"
        takes = "" if self.seconds is None else f"; {least}{_scaled(self.seconds)}s on {self.device}"
        return f"one product: {counts}, {_scaled(self.bytes_residuals)}B of residuals kept{beside}{takes}"


def cost_of(A):
    """The Cost of an operator."""
    flat = Flat(linearized := A.linearize(), A._scope)
    v = jax.ShapeDtypeStruct((A.shape[1],), A.dtype)
    own = {*map(id, jax.tree.leaves(A))}
    residuals = sum(leaf.nbytes for leaf in jax.tree.leaves(linearized) if id(leaf) not in own)
    staged = flat.stage(array_product, v)
    device = min(_devices(A), key=lambda device: device.id)
    counts, memory = _analyzed(flat, staged, v)
    flops, moved = (counts.get(name) for name in ("flops", "bytes accessed"))
    known = flops is not None and moved is not None
    return Cost(
        flops=flops,
        bytes_moved=moved,
        bytes_residuals=residuals,
        bytes_temporary=getattr(memory, "temp_size_in_bytes", None),
        seconds=_measured(device, real_dtype(A.dtype)).seconds(flops, moved) if known else None,
        has_loops=any(equation.name in LOOPS for equation in staged.graph.walk()),
        device=device.device_kind,
    )


def _analyzed(flat, staged, v):
    """What XLA says of the compiled program, where it says anything, and there is one program."""
    if not hasattr(staged.run, "lower"):  # steps of the host, over batches
        return {}, None
    compiled = flat.lower(staged, v).compile()
    return compiled.cost_analysis() or {}, compiled.memory_analysis()


def _devices(A):
    arrays = (leaf for leaf in jax.tree.leaves(A) if isinstance(leaf, jax.Array))
    return {device for leaf in arrays for device in leaf.devices()} or {jax.devices()[0]}


@dataclasses.dataclass(frozen=True)
class _Machine:
    """What a device reaches: flops of a matrix product and bytes of a copy in a second, and the seconds of a call."""

    flops: float
    bytes: float
    call: float

    def seconds(self, flops, moved):
        return self.call + max(flops / self.flops, moved / self.bytes)


@functools.cache
def _measured(device, dtype):
    rows, copied = ROWS.get(device.platform, MANY[0]), COPIED.get(device.platform, MANY[1])
    with jax.default_device(device), jax.enable_x64(dtype.itemsize == 8):
        matrix, vector, number = (jnp.ones(shape, dtype) for shape in ((rows, rows), copied, 1))
        square = jax.jit(lambda M: jnp.matmul(M, M, precision="highest"))
        add = jax.jit(lambda v: v + 1, donate_argnums=0)  # in place: new memory costs more than to fill it
        call, copy = _least_seconds(add, number, 10 * ROUNDS), _least_seconds(add, vector, ROUNDS)
        product = _least_seconds(lambda _: square(matrix), None, ROUNDS)
    return _Machine(2 * rows**3 / product, 2 * vector.nbytes / copy, call)


def _least_seconds(f, x, rounds):
    """Of x to f(x), again and again."""
    x = jax.block_until_ready(f(x))
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        x = jax.block_until_ready(f(x))
        times.append(time.perf_counter() - start)
    return min(times)


def _scaled(number):
    """A number with the prefix of its thousands, such as "1.2 M"."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""), (1e-3, "m"), (1e-6, "u")):
        if number >= factor:
            return f"{number / factor:.3g} {prefix}"
    return f"{number:.3g} "
