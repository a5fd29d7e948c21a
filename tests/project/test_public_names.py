"""What a user imports says in its docstring what it takes, what it returns and what it raises."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from importlib.resources import files

import pytest
from torch import Tensor

import kdcache

MODULES = sorted({getattr(kdcache, name).__module__ for name in kdcache.__all__})
LOSSES = ["kdcache.losses.terms", "kdcache.losses.pixels", "kdcache.losses.target"]
IMPERATIVE = re.compile(r"(Add|Build|Compute|Copy|Count|Make|Open|Read|Return|Serve|Take|Use)\b")
EXACT = re.compile(r"\[[A-Z0-9a-z_, *+.]+\]|scalar|\bu?int\d+|\bfloat\d+|\bKH?W?\b")


def list_public() -> Iterator[tuple[str, object]]:
    """Every public function and class of the modules behind `kdcache.__all__`, and their methods.

    A class stands for its `__init__`, too: its docstring has the arguments.
    """
    for module in map(import_module, dict.fromkeys([*MODULES, *LOSSES])):
        for name, value in vars(module).items():
            if name[0] != "_" and getattr(value, "__module__", "") == module.__name__:
                yield f"{module.__name__}.{name}", value
                for inside, method in vars(value).items() if inspect.isclass(value) else ():
                    if inside[0] != "_" and is_function(method):
                        yield f"{module.__name__}.{name}.{inside}", method


def is_function(value: object) -> bool:
    """A method of any kind or a property, but not a default of a dataclass."""
    return inspect.isfunction(unwrap(value))


def unwrap(value: object) -> object:
    """The plain function of a property, a class method or a decorated function."""
    for name in ("fget", "func", "__func__"):
        value = getattr(value, name, None) or value
    return inspect.unwrap(value)


def find_gaps(value: object) -> list[str]:
    """What a docstring lacks, by name of what should be stated."""
    text = inspect.getdoc(value) or ""
    if not text:
        return ["a docstring"]
    function = value.__init__ if inspect.isclass(value) else unwrap(value)
    if not inspect.isfunction(function) or hasattr(value, "__dataclass_fields__"):
        return []
    parameters = inspect.signature(function).parameters
    gaps = [word for word in parameters if word != "self" and not re.search(rf"\b{word}\b", text)]
    if raises(function) and "Raise" not in text:
        gaps.append("Raises")
    if not inspect.isclass(value):
        gaps += find_gaps_of_result(str(inspect.signature(function).return_annotation), text)
    return gaps


def find_gaps_of_result(annotation: str, text: str) -> list[str]:
    """Returns is needed if the first sentence is an order; tensors need a shape or a dtype."""
    if annotation == "None":
        return []
    gaps = ["Returns"] if IMPERATIVE.match(text) and "Returns" not in text else []
    return gaps + (["shape or dtype"] if "Tensor" in annotation and not EXACT.search(text) else [])


def raises(function: object) -> bool:
    """Whether the body raises, itself or by a `check_` function."""
    tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(function)))
    names = (ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call))
    return any(isinstance(node, ast.Raise) for node in ast.walk(tree)) or any(
        name.split(".")[-1].startswith("check_") for name in names
    )


PUBLIC = dict(list_public())


def test_a_type_checker_uses_the_types_of_the_package():
    assert files("kdcache").joinpath("py.typed").is_file()


@pytest.mark.nightly
def test_the_types_of_public_names_fit():
    """As in `make lint`, with the settings of pyproject.toml."""
    from mypy import api

    out, err, code = api.run([])
    assert code == 0, out + err


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_says_what_it_takes_returns_and_raises(name: str):
    gaps = find_gaps(PUBLIC[name])
    assert not gaps, f"{name}: its docstring does not state {', '.join(gaps)}"


def test_every_exported_name_is_looked_at():
    homes = {f"{getattr(kdcache, name).__module__}.{name}" for name in kdcache.__all__}
    assert homes <= set(PUBLIC)


def wrong(x_NK: Tensor, *, scale: float) -> Tensor:
    """Compute a thing."""
    if scale < 0:
        raise ValueError
    return x_NK * scale


def test_what_is_left_out_is_found():
    assert find_gaps(wrong) == ["x_NK", "scale", "Raises", "Returns", "shape or dtype"]
