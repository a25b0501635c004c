"""What the files beside the code promise: pins, documented commands, packages, one Keras."""

import ast
import pathlib
import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.harness import check_each

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ("maskx_tf", "tf_records", "export")
SOURCES = sorted(
    path.relative_to(ROOT)
    for folder in (*PACKAGES, "tests", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
)
DOCUMENTS = sorted(
    path.relative_to(ROOT)
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("configs/**/*")]
    if path.is_file()
)
MODULE = re.compile(r"python3? -m ((?:maskx_tf|tf_records|export|benchmarks)(?:\.\w+)*)")
TARGET = re.compile(r"^make ([a-z][a-z-]*)|`make ([a-z][a-z-]*)", re.MULTILINE)
FLAGFILE = re.compile(r"--flagfile=(configs/[\w./-]+)")


def requirements(name: str) -> list[Requirement]:
    lines = (line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def locked() -> dict[str, str]:
    return {
        canonicalize_name(pin.name): str(pin.specifier).removeprefix("==")
        for pin in requirements("requirements.lock")
    }


def direct() -> list[Requirement]:
    extras = pyproject()["project"]["optional-dependencies"]
    optional = extras["dev"] + extras["serving"] + extras["client"]
    return [*requirements("requirements.txt"), *map(Requirement, optional)]


def test_direct_dependencies_are_pinned_within_their_ranges():
    pins = locked()

    def check(requirement):
        name = canonicalize_name(requirement.name)
        assert name in pins, f"requirements.lock does not pin {name}; run `make lock`"
        assert requirement.specifier.contains(pins[name]), pins[name]

    check_each(check, direct())


def test_lock_has_exact_pins_only():
    text = (ROOT / "requirements.lock").read_text()
    pins = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert [line for line in pins if not re.fullmatch(r"[\w.-]+==[\w.!+-]+( ; .+)?", line)] == []
    assert len(locked()) == len(pins)


def test_only_one_package_brings_cv2():
    assert [name for name in locked() if name.startswith("opencv")] == ["opencv-python-headless"]


def test_every_source_folder_is_a_package():
    folders = {path.parent for path in SOURCES if path.parts[0] in PACKAGES}
    assert [str(path) for path in folders if not (ROOT / path / "__init__.py").is_file()] == []


def test_documented_commands_exist():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)

    def check(path):
        text = (ROOT / path).read_text()
        for module in MODULE.findall(text):
            file = ROOT / module.replace(".", "/")
            assert file.with_suffix(".py").is_file() or (file / "__main__.py").is_file(), module
        named = {"".join(groups) for groups in TARGET.findall(text)}
        assert named <= set(targets), "make"
        missing = [name for name in FLAGFILE.findall(text) if not (ROOT / name).is_file()]
        assert missing == []

    check_each(check, DOCUMENTS)


def test_flagfiles_named_in_the_code_exist():
    named = {
        (str(path), flagfile)
        for path in SOURCES
        if path.parts[0] != "tests"
        for flagfile in re.findall(r"configs/[\w./-]+\.flags", (ROOT / path).read_text())
    }
    assert len(named) > 1
    assert [(path, file) for path, file in sorted(named) if not (ROOT / file).is_file()] == []


def keras_3_uses(tree: ast.AST) -> list[str]:
    """Imports and attributes that mean Keras 3, as "line: what"."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names = [f"{node.value.id}.{node.attr}"] if node.value.id == "tf" else []
        else:
            continue
        pattern = r"(keras|tf\.keras|tensorflow\.keras|tensorflow\.python\.keras)(\.|$)"
        found += [f"{node.lineno}: {name}" for name in names if re.match(pattern, name)]
    return found


def test_sources_use_keras_2_only():
    texts = {path: (ROOT / path).read_text() for path in SOURCES}
    texts = {path: text for path, text in texts.items() if "keras" in text}
    assert len(texts) > 20
    uses = {str(path): keras_3_uses(ast.parse(text)) for path, text in texts.items()}
    assert {path: lines for path, lines in uses.items() if lines} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import keras",
        "from keras.layers import Dense",
        "from tensorflow import keras",
        "tf.keras.Model",
    ],
)
def test_keras_3_would_be_found(source):
    assert keras_3_uses(ast.parse(source))


def test_keras_2_is_not_mistaken_for_keras_3():
    assert not keras_3_uses(ast.parse("import tf_keras\ntf_keras.Model\nimport keras_like"))
