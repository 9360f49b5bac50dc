"""Models as they are written with equinox, flax and haiku, the state of an optimizer, and a small network."""

import dataclasses
import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import problems

N = 6


@functools.partial(jax.tree_util.register_dataclass, data_fields=("weight", "bias"), meta_fields=("activation",))
@dataclasses.dataclass
class Layer:
    weight: jax.Array
    bias: jax.Array
    activation: str = "tanh"

    def __call__(self, x):
        return getattr(jnp, self.activation)(self.weight @ x + self.bias)


@jax.tree_util.register_pytree_node_class
class Model:
    """A class with __call__ that flattens itself, with layers that are modules."""

    def __init__(self, layers, name):
        self.layers = layers
        self.name = name

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x

    def tree_flatten(self):
        return (self.layers,), self.name

    @classmethod
    def tree_unflatten(cls, name, children):
        return cls(*children, name)


def layers(rows=(4, N)):
    weights = [problems.normal((m, n), np.float32, m) / 3 for m, n in zip(rows, (N, 4), strict=True)]
    return [Layer(jnp.asarray(w), jnp.asarray(w[:, 0] * 0.3)) for w in weights]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Module:
    """As equinox has it: the activation is a leaf."""

    weight: object
    activation: object

    def __call__(self, x):
        return self.activation(self.weight * x)


class Moments(NamedTuple):
    """The state of an optimizer."""

    count: object
    mu: object


SHAPES = (64, 32, 10)


def network(activation, seed, args=False):
    """The loss of a small network on data of its own, as a fresh function that closes over them, and its weights."""
    inputs, targets = jnp.asarray(problems.normal((200, 64), np.float32, seed)), jnp.arange(200) % 10
    targets = jnp.roll(targets, seed)
    weights = [jnp.asarray(problems.normal(s, np.float32, seed) / 8) for s in itertools.pairwise(SHAPES)]

    def loss(weights, inputs, targets):
        outputs = activation(inputs @ weights[0]) @ weights[1]
        return jnp.mean(jax.nn.logsumexp(outputs, axis=1) - jnp.take_along_axis(outputs, targets[:, None], 1)[:, 0])

    if args:
        return loss, weights, (inputs, targets)
    return lambda weights: loss(weights, inputs, targets), weights
