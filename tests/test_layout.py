"""The rules of the layout: which package may import which, and no two files each other."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ("maskx_tf", "tf_records", "export")


def module_name(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for name in PACKAGES for path in (ROOT / name).rglob("*.py")}


def imported(tree: ast.AST, modules: set[str]) -> set[str]:
    """The modules that a file imports, wherever in it; a name in a package counts as its file."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            inner = full & modules
            names |= inner | ({node.module} if inner < full else set())
    return names & modules


ARROWS = {
    name: imported(ast.parse(path.read_text()), set(MODULES)) for name, path in MODULES.items()
}


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """Modules that import one another in a loop; empty if there is no loop."""
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> list[str]:
        if name in way:
            return way[way.index(name) :]
        if name in done:
            return []
        loops = (visit(other, [*way, name]) for other in sorted(arrows[name]))
        found = next((loop for loop in loops if loop), [])
        done.add(name)
        return found

    return next((loop for name in sorted(arrows) if (loop := visit(name, []))), [])


def crossings(arrows: dict[str, set[str]], inside: str, outside: tuple[str, ...]) -> list[str]:
    return [
        f"{name} -> {other}"
        for name, others in arrows.items()
        for other in others
        if name.split(".")[0] == inside and other.split(".")[0] in outside
    ]


def test_maskx_tf_imports_neither_tf_records_nor_export():
    assert crossings(ARROWS, "maskx_tf", ("tf_records", "export")) == []


def test_no_two_files_import_each_other():
    assert circle(ARROWS) == []


@pytest.mark.parametrize("room", ["layers", "ops"])
def test_layers_and_ops_know_no_files_flags_or_options(room):
    allowed = ("maskx_tf.layers", "maskx_tf.ops", "maskx_tf.errors")
    arrows = {n: o for n, o in ARROWS.items() if n.startswith(f"maskx_tf.{room}")}
    assert arrows
    assert [
        f"{n} -> {o}" for n, os in arrows.items() for o in os if not o.startswith(allowed)
    ] == []
    for name in arrows:
        text = MODULES[name].read_text()
        assert not {"absl", "pathlib", "open("} & set(text.replace("(", "( ").split()), name


def test_data_knows_nothing_of_the_model():
    above = ("model", "objective", "training", "checkpoints", "inference", "layers")
    names = {n: o for n, o in ARROWS.items() if n.startswith("maskx_tf.data")}
    assert [f"{n} -> {o}" for n, os in names.items() for o in os if o.split(".")[1:2] and
            o.split(".")[1] in above] == []  # fmt: skip


def test_the_checks_would_find_a_fault():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    assert crossings({"maskx_tf.x": {"export.y"}}, "maskx_tf", ("export",)) == [
        "maskx_tf.x -> export.y"
    ]
    tree = ast.parse("def f():\n    from maskx_tf.data import pipeline, SIDE")
    modules = {"maskx_tf.data", "maskx_tf.data.pipeline"}
    assert imported(tree, modules) == modules


def autographed(tree: ast.AST) -> list[int]:
    """Lines with a `tf.function`, called or as a decorator, without `autograph=False`."""
    without = {
        id(node.func)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "autograph" and getattr(keyword.value, "value", None) is False
    }
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and ast.unparse(node) == "tf.function"
        and id(node) not in without
    ]


def test_no_graph_is_rewritten_by_autograph():
    """No function has Python control flow on tensors; to rewrite them all takes most of tracing."""
    lines = [
        f"{path}:{line}"
        for path in MODULES.values()
        for line in autographed(ast.parse(path.read_text()))
    ]
    assert lines == []
    faulty = "@tf.function\ndef f(): ...\ng = tf.function(f, autograph=True)\nh = tf.function(f)"
    assert autographed(ast.parse(faulty)) == [1, 3, 4]
    assert autographed(ast.parse("g = tf.function(f, jit_compile=x, autograph=False)")) == []
