"""The only reader of JAX's insides: how it writes down what a function computes, and how that is evaluated again.

`graph` is what is read, `primitives` what is known of single operations, `rules` how custom derivative rules are
traced, `evaluate` how a graph is run, `structure` when two are the same.
"""
