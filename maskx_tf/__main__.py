"""The command `maskx`, also `python -m maskx_tf`: one verb for each module that can be run.

Nothing but Python's standard library is imported before the verb is known.
"""

import difflib
import os
import runpy
import sys

import maskx_tf
from maskx_tf.system import ending, verbs

SHELLS = ("bash", "zsh", "fish")


def main() -> None:
    """Runs the verb that the command line names."""
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what may come next
        from maskx_tf.system import completion

        completion.answer()
    with ending.quietly():
        _run(sys.argv[1:])


def _run(words: list[str]) -> None:
    verb, rest = verbs.split(words)
    if verb:
        sys.argv[1:] = rest
        if verbs.asks_for_help(rest):
            from maskx_tf.system import stand_ins

            stand_ins.install()
        # Not imported: `maskx_tf.train` is a function of the package too.
        runpy.run_module(verbs.VERBS[verb].module, run_name="__main__", alter_sys=True)
    elif verbs.asks_for_help(words[:1]) or words in ([], ["help"]):
        print(overview())
    elif words[0] == "--version":
        print(f"maskx_tf {maskx_tf.__version__}")
    elif words[0] == "completion":
        _print_completion(words[1:])
    elif _group(words[0]) and (not words[1:] or verbs.asks_for_help(words[1:])):
        print(overview(_group(words[0])))
    else:
        told = f"there is no verb {_quoted(words)}.{_suggestion(words)}"
        ending.fail(f"{told} maskx --help lists all.")


def overview(prefix: str = "") -> str:
    """What `--help` prints: every verb, or those that begin with a word, by what they are for."""
    lines = [
        "Mask^X R-CNN: instance masks for every class that has boxes.",
        "",
        f"usage: maskx {prefix}VERB [--option=value ...]",
        f"       maskx {prefix}VERB --help    what a verb does, and its options",
    ]
    for title, group in verbs.GROUPS.items():
        names = {name: verb.meaning for name, verb in group.items() if name.startswith(prefix)}
        if names:
            lines += ["", title]
            lines += [f"  {name:22} {meaning}" for name, meaning in names.items()]
    if not prefix:
        lines += ["", "For your shell", f"  {'completion SHELL':22} Code for {', '.join(SHELLS)}"]
    return "\n".join(lines)


def _group(word: str) -> str:
    """The word and a space if verbs of two words begin with it."""
    return f"{word} " if any(name.startswith(f"{word} ") for name in verbs.VERBS) else ""


def _quoted(words: list[str]) -> str:
    return repr(" ".join(words[: 2 if _group(words[0]) else 1]))


def _suggestion(words: list[str]) -> str:
    """The verb that was perhaps meant; `coco` means `records coco`."""
    known = {name: name for name in [*verbs.VERBS, "completion"]}
    known |= {name.split()[-1]: name for name in verbs.VERBS}
    for text in (" ".join(words[:2]), words[0]):
        if close := difflib.get_close_matches(text.replace("_", "-").lower(), known, n=1):
            return f" Did you mean {known[close[0]]!r}?"
    return ""


def _print_completion(words: list[str]) -> None:
    if len(words) != 1 or words[0] not in SHELLS:
        ending.fail(f"name a shell: maskx completion {'|'.join(SHELLS)}; see docs/commands.md.")
    try:
        from maskx_tf.system import completion
    except ModuleNotFoundError as error:  # in an installation without dependencies
        ending.fail(f"completion needs {error.name}: pip install {error.name}.")
    print(completion.code(words[0]))


if __name__ == "__main__":
    main()
