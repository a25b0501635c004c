"""Empty stand-ins for libraries that take seconds to import, where only options are asked for.

`--help` and completion need what a command defines, and none of what it does. A test compares the
help that they give with that of the libraries themselves.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from typing import Any

_LIBRARIES = (
    "tensorflow",
    "tf_keras",
    "official",
    "orbit",
    "tensorboard",
    "tensorflow_serving",
    "matplotlib",
)


class _Anything:
    """Can be called, subscripted, derived from and used as a decorator or in an annotation."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self

    def __getitem__(self, key: Any) -> Any:
        return self

    def __or__(self, other: Any) -> Any:
        return self

    __ror__ = __or__

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return ()


class _Module(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything()


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname.partition(".")[0] in _LIBRARIES:
            return importlib.util.spec_from_loader(fullname, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def install() -> None:
    """From now on, imports of the libraries give stand-ins. For a process that ends soon."""
    sys.meta_path.insert(0, _Finder())
