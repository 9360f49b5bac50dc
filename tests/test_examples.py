"""Every example runs, and what it says is so: its `check` is handed what its `main` returns."""

import importlib.util
import inspect
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


def test_there_are_examples():
    assert EXAMPLES


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path, tmp_path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    assert example.__doc__
    if "plot" in inspect.signature(example.main).parameters:
        picture = tmp_path / "picture.png"
        result = example.main(plot=picture)
        assert picture.stat().st_size > 0
    else:
        result = example.main()
    example.check(result)
