"""What is measured: functions of JAX, the same in torch, and the operators that one writes by hand."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.sparse.linalg import LinearOperator

import linops

LAYERS = {2_410: (64, 32, 10), 85_002: (64, 256, 256, 10), 1_126_410: (64, 1024, 1024, 10)}


def normal(size, seed=1):
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


def _device_normal(size, seed=0):
    return jnp.asarray(normal(size, seed))


def handwritten(n, matvec):
    """What a careful user writes: float32 said, products made writable."""
    return LinearOperator((n, n), matvec=lambda v: np.array(matvec(v.reshape(-1))), dtype=np.float32)


def tanh_network(weights, inputs):
    *hidden, (W, b) = weights
    h = inputs
    for V, c in hidden:
        h = jnp.tanh(h @ V + c)
    return h @ W + b


def digits(layers, seed=0, copies=1):
    """A tanh network on scikit-learn's digits: `model(weights)`, the mean cross-entropy of its outputs, weights."""
    from sklearn.datasets import load_digits

    inputs, labels = load_digits(return_X_y=True)
    inputs = jnp.asarray(np.tile(inputs / 16, (copies, 1)), jnp.float32)
    labels = jnp.asarray(np.tile(labels, copies))
    rng = np.random.default_rng(seed)
    weights = [
        (jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]), jnp.float32), jnp.zeros(shape[1]))
        for shape in itertools.pairwise(layers)
    ]

    def model(weights):
        return tanh_network(weights, inputs)

    def loss(outputs):
        return jnp.mean(jax.nn.logsumexp(outputs, axis=1) - jnp.take_along_axis(outputs, labels[:, None], 1)[:, 0])

    return model, loss, weights


def flat(model, loss, weights):
    """The loss and the model as functions of one vector, and that vector."""
    point, unravel = ravel_pytree(weights)
    return lambda x: loss(model(unravel(x))), lambda x: model(unravel(x)), point


def hessian(n, seed=0, copies=1):
    """Linops' Hessian of the digits network of that size, the loss as a function of one vector, the vector, weights."""
    model, loss, weights = digits(LAYERS[n], seed, copies)
    scalar, _, point = flat(model, loss, weights)
    return linops.Hessian(lambda weights: loss(model(weights)), weights), scalar, point, weights


def hessian_vector(f):
    return lambda x, v: jax.jvp(jax.grad(f), (x,), (v,))[1]


def gauss_newton_vector(model, loss):
    def product(x, v):
        outputs, pushed = jax.jvp(model, (x,), (v,))
        curved = jax.jvp(jax.grad(loss), (outputs,), (pushed,))[1]
        return jax.vjp(model, x)[1](curved)[0]

    return product


def torch_digits(layers, weights):
    """The same network in torch: the model, its loss, its parameters and the data."""
    import torch
    from sklearn.datasets import load_digits

    inputs, labels = load_digits(return_X_y=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    linear = [torch.nn.Linear(m, n, device=device) for m, n in itertools.pairwise(layers)]
    with torch.no_grad():
        for layer, (W, b) in zip(linear, weights, strict=True):
            layer.weight.copy_(torch.from_numpy(np.array(W).T.copy()))
            layer.bias.copy_(torch.from_numpy(np.array(b)))
    modules = [module for layer in linear for module in (layer, torch.nn.Tanh())][:-1]
    model = torch.nn.Sequential(*modules)
    data = [(torch.as_tensor(inputs / 16, dtype=torch.float32, device=device), torch.as_tensor(labels, device=device))]
    return model, torch.nn.CrossEntropyLoss(), list(model.parameters()), data


def curvlinops(kind, layers, weights):
    """The operator of curvlinops, "Hessian" or "GGN"."""
    import curvlinops

    model, loss, parameters, data = torch_digits(layers, weights)
    return getattr(curvlinops, f"{kind}LinearOperator")(model, loss, parameters, data, check_deterministic=False)


def orders(weights):
    """Vectors in torch's order of parameters, which transposes the matrices; and back."""
    sizes = np.cumsum([leaf.size for leaf in jax.tree.leaves(weights)])[:-1]
    shapes = [leaf.shape for leaf in jax.tree.leaves(weights)]

    def transposed(v, shapes):
        parts = np.split(np.asarray(v), sizes)
        return np.concatenate([part.reshape(shape).T.ravel() for part, shape in zip(parts, shapes, strict=True)])

    return lambda v: transposed(v, shapes), lambda v: transposed(v, [shape[::-1] for shape in shapes])


def reaction_diffusion(u):
    """The residual of -u'' + u^3 on a square grid, with five points: much to read and write, little to compute."""
    padded = jnp.pad(u, 1)
    neighbors = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    return 4 * u - neighbors + u**3


def rosenbrock():
    return lambda x: jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2), _device_normal(10**6)


def elementwise():
    return lambda x: jnp.sum(jnp.exp(jnp.sin(x)) * jnp.tanh(x) * jnp.cos(x**2)), _device_normal(10**6)


def energy_on_a_grid():
    return lambda u: jnp.sum(reaction_diffusion(u) ** 2), _device_normal((1_000, 1_000))


def stencil_of_13_points():
    """The residual of a nonlinear equation of fourth order on a grid: some 60 operations for a number."""
    u = 0.1 * _device_normal((500, 500))

    def loss(u):
        at = functools.partial(_shifted, u)
        crosses, corners = at(-1, 0) + at(1, 0) + at(0, -1) + at(0, 1), at(-1, -1) + at(-1, 1) + at(1, -1) + at(1, 1)
        linear = 20 * at(0, 0) - 8 * crosses + 2 * corners + at(-2, 0) + at(2, 0) + at(0, -2) + at(0, 2)
        return jnp.sum((linear + 125 * _advection(at)) ** 2)

    return loss, u


def advection_on_a_grid():
    """The Jacobian of u and its Laplacian on a grid, of Arakawa: few operations for a number, of many neighbors."""
    return lambda u: jnp.sum(_advection(functools.partial(_shifted, u)) ** 2), 0.1 * _device_normal((1_000, 1_000))


def _shifted(u, i, j):
    return u[2 + i : u.shape[0] - 2 + i, 2 + j : u.shape[1] - 2 + j]


def _advection(at):
    corners = at(-1, -1) - at(1, -1), at(-1, 1) - at(1, 1), at(-1, -1) - at(-1, 1), at(1, -1) - at(1, 1)
    down = at(-2, 0) - at(2, 0) - 4 * (at(-1, 0) - at(1, 0)) + corners[0] + corners[1]
    right = at(0, -2) - at(0, 2) - 4 * (at(0, -1) - at(0, 1)) + corners[2] + corners[3]
    return (at(0, 1) - at(0, -1)) * down - (at(1, 0) - at(-1, 0)) * right


def logistic_regression():
    X, y = _device_normal((20_000, 300)), _device_normal(20_000, 1) > 0
    return lambda w: jnp.mean(jnp.logaddexp(0, X @ w) - y * (X @ w)), 0.01 * _device_normal(300, 2)


def convolutions():
    images = _device_normal((128, 16, 16, 1))
    sizes = (3, 3, 1, 16), (3, 3, 16, 16), (16, 10)
    weights = [_device_normal(size, seed) / np.sqrt(np.prod(size[:-1])) for seed, size in enumerate(sizes)]

    def loss(weights):
        *kernels, last = weights
        h = images
        for kernel in kernels:
            layout = ("NHWC", "HWIO", "NHWC")
            h = jnp.tanh(jax.lax.conv_general_dilated(h, kernel, (1, 1), "SAME", dimension_numbers=layout))
        return jnp.mean(jax.nn.logsumexp(h.mean((1, 2)) @ last, axis=1))

    return loss, weights


def recurrent():
    inputs = _device_normal((40, 64, 16))
    weights = [0.2 * _device_normal((16, 64)), 0.1 * _device_normal((64, 64), 1), _device_normal(64, 2)]

    def loss(weights):
        A, B, c = weights
        h, _ = jax.lax.scan(lambda h, x: (jnp.tanh(x @ A + h @ B), None), jnp.zeros((64, 64)), inputs)
        return jnp.mean((h @ c) ** 2)

    return loss, weights


def attention():
    tokens = _device_normal((16, 64, 32))

    def loss(weights):
        queries, keys, values, out = (tokens @ W for W in weights)
        scores = queries @ keys.swapaxes(1, 2) / np.sqrt(32)
        return jnp.mean((tokens + (jax.nn.softmax(scores, axis=-1) @ values) * out) ** 2)

    return loss, [0.2 * _device_normal((32, 32), seed) for seed in range(4)]


def _pooled(operation, start):
    """A small network of convolutions and pooling."""
    images, layout = _device_normal((8, 28, 28, 1)), ("NHWC", "HWIO", "NHWC")
    sizes = (3, 3, 1, 8), (3, 3, 8, 16), (7 * 7 * 16, 10)
    weights = [_device_normal(size, seed) / np.sqrt(np.prod(size[:-1])) for seed, size in enumerate(sizes)]

    def loss(weights):
        *kernels, last = weights
        h = images
        for kernel in kernels:
            h = jnp.tanh(jax.lax.conv_general_dilated(h, kernel, (1, 1), "SAME", dimension_numbers=layout))
            h = jax.lax.reduce_window(h, start, operation, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        return jnp.mean(jax.nn.logsumexp(h.reshape(8, -1) @ last, axis=1))

    return loss, weights


def max_pooling():
    return _pooled(jax.lax.max, -np.inf)


def average_pooling():
    return _pooled(jax.lax.add, 0.0)


def fourier_transform(size=2_048):
    return lambda x: jnp.sum(jnp.abs(jnp.fft.fft(jnp.sin(x))) ** 3), _device_normal(size)


def triangular_solve():
    L = jnp.tril(_device_normal((200, 200)) / 20) + 2 * jnp.eye(200)
    solve = functools.partial(jax.scipy.linalg.solve_triangular, lower=True)
    return lambda x: jnp.sum(solve(L + jnp.diag(x**2), jnp.sin(x)) ** 2), _device_normal(200)


def gathers(size=2_000):
    places = np.random.default_rng(0).integers(0, size, (2, 10 * size))
    return lambda x: jnp.sum(jnp.sin(x[places[0]] * x[places[1]])), _device_normal(size)


def sorting(size=2_000):
    weights = jnp.linspace(0, 1, size)
    return lambda x: jnp.sum(weights * jnp.sort(x * jnp.sin(x)) ** 2), _device_normal(size)


def large(make):
    """A problem of vectors, of so many numbers that a product takes long beside its call."""
    sized = functools.partial(make, size=100_000)
    sized.__name__ = make.__name__
    return sized


# Functions of all kinds: what is bound by memory, by arithmetic, by transcendental functions, with loops.
KINDS = [
    rosenbrock, elementwise, energy_on_a_grid, stencil_of_13_points, advection_on_a_grid, logistic_regression,
    convolutions, recurrent, attention, max_pooling, average_pooling, large(fourier_transform), triangular_solve,
    large(gathers), large(sorting),
]  # fmt: skip

# Functions of which columns share more or less in a block.
SHARING = [max_pooling, average_pooling, fourier_transform, triangular_solve, recurrent, gathers, sorting]
