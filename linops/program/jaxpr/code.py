"""Objects of linops among the parameters of an equation: code, that compares by value."""

from linops.program.jaxpr.private import keep_weakly


class Code:
    """A hashable object without arrays; `opaque` where it holds objects of a user."""

    opaque = False

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        keep_weakly(cls)
