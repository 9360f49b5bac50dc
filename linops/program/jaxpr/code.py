"""Objects of linops among the parameters of an equation: code, that compares by value."""


class Code:
    """A hashable object without arrays; `opaque` where it holds objects of a user."""

    opaque = False
