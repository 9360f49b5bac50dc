"""Every error says what a test expects it to say."""

import ast
import re
from pathlib import Path

import pytest

import linops

LENGTH = 18  # so many characters in a row, of what a message says in any case, have to be in a string of a test


def sources(folder):
    return [(path, ast.parse(path.read_text())) for path in sorted(Path(folder).rglob("*.py"))]


def literals(node):
    """The parts of the strings below a node that do not depend on values."""
    return [part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)]


def raised(tree):
    """What a module raises, and what its functions return that make messages."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            yield node.exc
        if isinstance(node, ast.FunctionDef) and node.name.endswith("_message"):
            yield from (statement.value for statement in ast.walk(node) if isinstance(statement, ast.Return))


def grams(texts):
    return {text[i : i + LENGTH] for text in texts for i in range(len(text) - LENGTH + 1)}


MESSAGES = {
    f"{path.name}:{node.lineno}": literals(node)
    for path, tree in sources(Path(linops.__file__).parent)
    for node in raised(tree)
    if grams(literals(node))
}
EXPECTED = grams(
    part.replace("\\", "")
    for path, tree in sources(Path(__file__).parent)
    for text in literals(tree)
    for part in re.split(r"\.\*|\.\.\.|\n", text)
)


def test_there_are_messages():
    assert len(MESSAGES) > 50


@pytest.mark.parametrize("where", MESSAGES)
def test_the_words_are_in_a_test(where):
    assert grams(MESSAGES[where]) & EXPECTED, f"no test expects the words of the error at {where}: add one that does"
