"""The command `maskx`: verbs, help, what it says of a mistake, completion."""

import os
import re
import resource
import subprocess
import sys

import pytest

import maskx_tf
from maskx_tf import __main__ as maskx
from maskx_tf.system import completion, verbs
from tests.harness import REPOSITORY

SPLIT = ["--vocabulary=coco", "--size=20"]


def run(*words, command=("-m", "maskx_tf"), **options):
    """The finished process of `maskx` in the repository."""
    return subprocess.run(
        [sys.executable, *command, *words],
        **{"cwd": REPOSITORY, "capture_output": True, "text": True, "timeout": 60} | options,
    )


@pytest.fixture
def call(monkeypatch, capsys):
    """(status, stdout, stderr) of `maskx` in this process, for what runs no verb."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["maskx", *words])
        try:
            maskx.main()
        except SystemExit as end:
            return (end.code, *capsys.readouterr())
        return (0, *capsys.readouterr())

    return call


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_verb_with_its_meaning(words, call):
    status, out, err = call(*words)
    assert (status, err) == (0, "")
    assert re.findall(r"^  (\S+(?: \S+)?)  +(\S.*)$", out, re.MULTILINE) == [
        *((name, verb.meaning) for name, verb in verbs.VERBS.items()),
        ("completion SHELL", "Code for bash, zsh, fish"),
    ]


def test_help_of_a_group_lists_its_verbs_alone(call):
    status, out, _ = call("records", "--help")
    assert (status, out, "") == call("records")
    assert re.findall(r"^  (records \S+) ", out, re.MULTILINE) == [
        name for name in verbs.VERBS if name.startswith("records ")
    ]
    assert status == 0 and "train" not in out


def test_help_is_there_at_once():
    script = "import sys; from maskx_tf.__main__ import main; main(); print(*sys.modules)"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = run("--help", command=("-c", script))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    modules = set(result.stdout.splitlines()[-1].split())
    assert not modules & {"numpy", "tensorflow", "absl", "argcomplete"} and "runpy" in modules
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_version(call):
    assert call("--version") == (0, f"maskx_tf {maskx_tf.__version__}\n", "")


def test_a_verb_does_what_its_module_does(tmp_path):
    path, outputs = tmp_path / "a.txt", []
    for command in (("-m", "maskx_tf", "records", "splits"), ("-m", "tf_records.splits")):
        result = run(*SPLIT, f"--output={path}", command=command)
        assert (result.returncode, result.stderr) == (0, "")
        outputs.append((path.read_bytes(), result.stdout))
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize(
    ("words", "verb", "rest"),
    [
        (["add-classes", "--x=1"], "add-classes", ["--x=1"]),
        (["add_classes"], "add-classes", []),
        (["records", "visual_genome", "a_b"], "records visual-genome", ["a_b"]),
        (["records", "verify", "DIR"], "records verify", ["DIR"]),
        (["export", "train"], "export", ["train"]),
        (["records"], "", ["records"]),
        ([], "", []),
    ],
)
def test_verbs_may_have_hyphens_or_underscores(words, verb, rest):
    assert verbs.split(words) == (verb, rest)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["trian"], ["'trian'", "Did you mean 'train'?"]),
        (["Evaluate"], ["Did you mean 'evaluate'?"]),
        (["add_class"], ["Did you mean 'add-classes'?"]),
        (["coco"], ["Did you mean 'records coco'?"]),
        (["records", "verfy"], ["'records verfy'", "Did you mean 'records verify'?"]),
        (["xyzzy", "--help"], ["'xyzzy'. maskx --help"]),
        (["--model_dir=x", "train"], ["'--model_dir=x'"]),
        (["completion"], ["name a shell", "bash|zsh|fish"]),
        (["completion", "tcsh"], ["name a shell"]),
    ],
)
def test_a_mistake_is_one_line_with_what_was_perhaps_meant(words, named, call):
    status, out, err = call(*words)
    assert (status, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    assert all(text in err for text in named)


def complete(line, tmp_path):
    """What argcomplete's shell code gets for a line."""
    output = tmp_path / "completions"
    environment = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_SHELL": "bash",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(output),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9",
    }
    result = run(env=os.environ | environment)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    return {word.strip() for word in output.read_text().splitlines()}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("maskx tr", {"train"}),
        ("maskx train --ema", {"--ema_decay"}),
        ("maskx records coco --nosk", {"--noskip_bad_images"}),
        ("maskx records coco --masks ", {"annotated", "grabcut", "grabcut_missing"}),
        ("maskx records coco --masks=gr", {"--masks=grabcut", "--masks=grabcut_missing"}),
    ],
)
def test_completion(line, words, tmp_path):
    assert complete(line, tmp_path) - {"-h", "--help"} == words


def test_a_shell_completes_maskx(tmp_path):
    """In bash itself: what it does when TAB is pressed."""
    (tmp_path / "maskx").write_text(f'#!/bin/sh\nexec {sys.executable} -m maskx_tf "$@"\n')
    (tmp_path / "maskx").chmod(0o755)
    script = f"""
        PATH={tmp_path}:$PATH
        eval "$(maskx completion bash)"
        COMP_LINE="maskx records sp" COMP_POINT=16 COMP_TYPE=9
        COMP_WORDS=(maskx records sp) COMP_CWORD=2
        $(complete -p maskx | sed 's/.*-F //; s/ maskx$//') maskx sp records
        echo "${{COMPREPLY[@]}}"
    """
    result = subprocess.run(["bash", "-c", script], cwd=REPOSITORY, capture_output=True, text=True)
    assert (result.stdout.split(), result.stderr) == (["splits"], "")


def test_what_completion_lacks_is_named(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "argcomplete", None)
    monkeypatch.delitem(sys.modules, "maskx_tf.system.completion")
    monkeypatch.delattr("maskx_tf.system.completion")
    status, _, err = call("completion", "bash")
    assert status == 2 and "pip install argcomplete" in err


@pytest.mark.parametrize("shell", maskx.SHELLS)
def test_code_for_every_shell(shell):
    assert "maskx" in completion.code(shell)
