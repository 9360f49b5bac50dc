"""`check` finds nothing wrong: adjoints, linearity, claims, blocks, fresh products, derivatives by differences."""

from linops import check


def test_check(pair):
    check(pair[0], key=5).raise_if_failed()
