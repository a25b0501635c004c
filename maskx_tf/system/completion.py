"""Completion of `maskx` in a shell: verbs, and the options and choices of each.

argcomplete speaks with the shells; it wants to see a command line as an argparse parser.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os

import argcomplete

from maskx_tf.system import stand_ins, usage, verbs


def code(shell: str) -> str:
    """What a shell has to run so that it completes `maskx`."""
    return argcomplete.shellcode(["maskx"], shell=shell)


def answer() -> None:
    """Gives the shell that asks what may come next, and ends the process."""
    stand_ins.install()
    line = os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])]
    argcomplete.autocomplete(parser(verbs.split(line.split()[1:])[0]))


def parser(verb: str) -> argparse.ArgumentParser:
    """All verbs, with the options of one of them."""
    root = argparse.ArgumentParser("maskx")
    levels = {"": root.add_subparsers()}
    for name, (_, meaning) in verbs.VERBS.items():
        before, _, last = name.rpartition(" ")
        if before not in levels:
            levels[before] = levels[""].add_parser(before, help=f"{before} …").add_subparsers()
        command = levels[before].add_parser(last, help=meaning)
        if name == verb:
            _add_options(command, verbs.VERBS[name].module)
    shells = levels[""].add_parser("completion", help="Code for a shell")
    shells.add_argument("shell", choices=["bash", "zsh", "fish"])
    return root


def _add_options(command: argparse.ArgumentParser, module: str) -> None:
    spec = importlib.util.find_spec(module)
    if spec and spec.submodule_search_locations:  # a package
        module += ".__main__"
    importlib.import_module(module).define_flags()
    command.add_argument("--flagfile")
    for _, flag in usage.listed():
        meaning = usage.meaning_of(flag).replace("%", "%%")  # argparse fills in %(…)s
        if flag.boolean:
            for name in (flag.name, f"no{flag.name}"):
                command.add_argument(f"--{name}", action="store_true", help=meaning)
        else:
            command.add_argument(f"--{flag.name}", choices=usage.choices_of(flag), help=meaning)
