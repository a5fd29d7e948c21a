"""The rule of `make lint` on calls that only one module may make finds them, and them alone."""

import ast

import pytest

from tests.architecture import ROOT, find_files
from tests.support.dangers import ALLOWED, RULES, find_dangers

EXAMPLES = {
    "Image.open": ["Image.open(path)", "Image.open(io.BytesIO(data))", "PIL.Image.open(path)"],
    "torch.load": ["torch.load(path, weights_only=True)", "np.load(path)", "torch.jit.load(path)"],
    "yaml.load": ["yaml.load(text, Loader)", "yaml.safe_load(text)"],
    "open for writing": [
        'open(path, "w")', 'path.open("wb")', 'path.open(mode="a")', 'h5py.File(path, "r+")',
        '(folder / name).open("xb")',
    ],
    "os.open": ["os.open(path, os.O_RDONLY)"],
    "Path.write_*": ["path.write_text(text)", "(folder / name).write_bytes(data)"],
    "import_module": ["importlib.import_module(name)", "import_module(name)", "__import__(name)"],
    "pickle, eval, exec": ["pickle.load(file)", "eval(text)", "subprocess.run(words)"],
}  # fmt: skip
HARMLESS = [
    "open_storage(path)", 'path.open("rb")', "maps.open(path, identity=known)", "h5py.File(path)",
    "torch.save(state, buffer)", "load_yaml(text)", "self._open()", 'h5py.h5o.open(group, "low")',
]  # fmt: skip


def test_each_rule_has_examples_and_modules():
    assert EXAMPLES.keys() == RULES.keys() == ALLOWED.keys()


@pytest.mark.parametrize("rule", RULES)
def test_a_forbidden_call_is_found_outside_of_its_module(rule):
    for text in EXAMPLES[rule]:
        (line,) = find_dangers(ast.parse(text), "kdcache/new.py")
        assert rule in line
        for allowed in ALLOWED[rule]:
            assert not list(find_dangers(ast.parse(text), allowed))


@pytest.mark.parametrize("text", HARMLESS)
def test_others_are_left_alone(text):
    assert not list(find_dangers(ast.parse(text), "kdcache/new.py"))


def test_no_exception_is_older_than_its_call():
    """A module that makes the call no more is taken out of the table."""
    trees = {
        path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in find_files()
    }
    for rule, modules in ALLOWED.items():
        for name in modules:
            calls = (node for node in ast.walk(trees[name]) if isinstance(node, ast.Call))
            assert any(map(RULES[rule], calls)), f"{name} may {rule}, and does not"


def test_the_library_makes_none():
    for path in find_files():
        where = path.relative_to(ROOT).as_posix()
        assert not list(find_dangers(ast.parse(path.read_text(encoding="utf-8")), where))
