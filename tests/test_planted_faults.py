"""The list of planted faults fits the code: texts, tests and tiers are there, of all packages."""

import ast
import functools

from tests.planted_faults import FAULTS, ROOT

LEAST = 40
PLACES = {
    *(f"maskx_tf/{name}.py" for name in ("losses", "objective", "model", "config_rules", "api")),
    "tf_records",
    "export",
    "export/client",
    "export/serving",
}


@functools.cache
def tiers_of(file):
    """The tier of each test in a file below tests/, by its node id."""
    tiers = {}

    def take(body, prefix, tier):
        for node in body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef):
                continue
            name, own = f"{prefix}::{node.name}", tier
            for mark in map(ast.unparse, node.decorator_list):
                own = next((t for t in ("thorough", "slow") if mark == f"pytest.mark.{t}"), own)
            if isinstance(node, ast.ClassDef):
                take(node.body, name, own)
            else:
                tiers[name] = own

    take(ast.parse((ROOT / "tests" / file).read_text()).body, file, "quick")
    return tiers


def test_every_fault_fits_the_code():
    for fault in FAULTS:
        count = (ROOT / fault.file).read_text().count(fault.text)
        assert count == 1, f"{fault.name}: its text is {count} times in {fault.file}"
        assert fault.replacement != fault.text, fault.name
        assert fault.tests, fault.name
        for test in fault.tests.split():
            tier = tiers_of(test.partition("::")[0]).get(test)
            assert tier == fault.tier, f"{fault.name}: the tier of {test}"


def test_all_packages_have_faults():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= LEAST
    files = {fault.file for fault in FAULTS}
    folders = {file.rpartition("/")[0] for file in files}
    packages = {p.parent.relative_to(ROOT).as_posix() for p in ROOT.glob("maskx_tf/*/__init__.py")}
    assert PLACES | packages <= files | folders
