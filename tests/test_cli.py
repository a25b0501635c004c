"""How entry points start and end: all flags in --help, user errors in one line."""

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from absl import app, flags

from maskx_tf.system import verbs
from tests import documentation
from tests.harness import REPOSITORY

PACKAGES = ("maskx_tf", "tf_records", "export", "benchmarks")


def start(body, *arguments):
    """A process whose `main` has the given body."""
    script = "import contextlib, os, subprocess, sys, time\nfrom absl import flags\n"
    script += "from maskx_tf.system import cli\nfrom maskx_tf.errors import UserError\n"
    script += "flags.DEFINE_integer('image_min_side', 800, 'Side.')\n"
    script += f"def main():\n{textwrap.indent(textwrap.dedent(body), '    ')}\ncli.run(main)\n"
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run(body, *arguments):
    """(exit code, stdout, stderr)."""
    process = start(body, *arguments)
    out, err = process.communicate(timeout=60)
    return process.returncode, out.decode(), err.decode()


def test_success():
    assert run("print('done', flags.FLAGS.image_min_side)", "--image_min_side=64") == (
        0,
        "done 64\n",
        "",
    )


def test_a_locale_that_lacks_a_character_costs_no_result(monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    assert run("print('AP –'); print('done')") == (0, "AP ?\ndone\n", "")


def test_a_user_error_is_one_line_without_traceback():
    body = "print('before'); raise UserError('--x=1 must be 2.')"
    assert run(body) == (2, "before\n", "error: --x=1 must be 2.\n")


def test_any_other_error_keeps_its_traceback():
    code, _, err = run("raise KeyError('surprise')")
    assert code == 1
    assert "Traceback" in err and err.endswith("KeyError: 'surprise'\n")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("open('absent/x.txt', 'w')", "absent/x.txt: No such file or directory."),
        ("os.makedirs('README.md/run')", "README.md/run: Not a directory."),
        ("os.replace('absent', 'x')", "absent -> x: No such file or directory."),
    ],
)
def test_a_file_that_cannot_be_written_is_one_line(body, message):
    assert run(body) == (2, "", f"error: {message}\n")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "import resource; from maskx_tf.system import files\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
            "files.write_atomically('{}/found.json', 'x' * 2000)",
            "{}/found.json: File too large.",
        ),
        (
            "open('/dev/full', 'w', buffering=1).write('a line\\n')",
            "the disk is full ([Errno 28] No space left on device); make room and repeat the "
            "command.",
        ),
        (
            "raise RuntimeError('exported/1; No space left on device')",
            "the disk is full (exported/1; No space left on device); make room and repeat the "
            "command.",
        ),
    ],
)
def test_a_full_disk_is_one_line(body, message, tmp_path):
    assert run(body.format(tmp_path)) == (2, "", f"error: {message.format(tmp_path)}\n")
    assert list(tmp_path.iterdir()) == []


def test_a_system_error_of_no_file_keeps_its_traceback():
    code, _, err = run("os.close(1 << 20)")
    assert code == 1 and "Traceback" in err


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--image_min_sid=3", "unknown flag --image_min_sid. Did you mean --image_min_side? See"),
        ("--zzzz=3", "unknown flag --zzzz. See --help."),
        ("image_min_side=3", "unexpected argument 'image_min_side=3'; options are written --name"),
        ("--image_min_side=x", "image_min_side"),
        ("--flagfile=absent.flags", "absent.flags"),
    ],
)
def test_a_mistyped_command_is_one_line(argument, message):
    code, out, err = run("print('started')", argument)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and message in err and err.count("\n") == 1


class TestStderr:
    @pytest.mark.parametrize("end", ["os.abort()", "os.kill(os.getpid(), 9)"])
    def test_the_last_words_before_a_crash_are_kept(self, end):
        """As those of a failed check of TensorFlow, which ends the process in that moment."""
        code, _, err = run(f"os.write(2, b'Check failed: 0 == 1\\n'); {end}")
        assert code < 0 and err.startswith("Check failed: 0 == 1\n")

    def test_a_child_that_lives_on_does_not_hold_up_the_end(self):
        began = time.monotonic()
        process = start("subprocess.Popen(['sleep', '8'], stdout=subprocess.DEVNULL)")
        process.wait(timeout=60)
        assert time.monotonic() - began < 6

    @pytest.mark.parametrize(
        ("body", "code"),
        [
            (
                """
                for i in range(40000):
                    with contextlib.suppress(BrokenPipeError):
                        os.write(2, b"a line of the log\\n")
                """,
                0,
            ),
            ("while True: print('a step', file=sys.stderr, flush=True)", 1),
        ],
    )
    def test_a_reader_that_goes_away_does_not_hold_up_the_process(self, body, code):
        """As in `… 2>&1 | head -1`; far more than a pipe holds is written after that."""
        process = start(body)
        try:
            assert process.stderr.read(1) == b"a"
            process.stderr.close()
            assert bool(process.wait(timeout=60)) == code
        finally:
            process.kill()


class TestEnd:
    @pytest.mark.parametrize(
        ("body", "arguments"),
        [("while True: print('a line')", ()), ("print('a line')", ()), ("", ("--help",))],
    )
    def test_output_that_nobody_reads(self, body, arguments):
        """As in `… | head -1`: the status of SIGPIPE, and no word about it."""
        process = start(f"{body}\nreturn", *arguments)
        process.stdout.close()
        assert process.wait(timeout=60) == 141
        assert process.stderr.read() == b""
        process.communicate()

    @pytest.mark.parametrize("closed", ["2>&-", "1>&-", "1>&- 2>&-"])
    def test_streams_that_are_closed(self, closed, tmp_path):
        """The next file that is opened does not take their place, and the results are written."""
        script = (
            "import sys\nfrom maskx_tf.system import ending\nwith ending.quietly():\n"
            "    file = open(sys.argv[1], 'w')\n    assert file.fileno() > 2\n"
            "    print('progress', file=sys.stderr)\n    print('table')\n"
            "    file.write('results')\n"
        )
        path = tmp_path / "results"
        command = [sys.executable, "-c", script, str(path)]
        shell = ["sh", "-c", f'"$@" {closed}', "sh", *command]
        assert subprocess.run(shell, cwd=REPOSITORY, timeout=60).returncode == 0
        assert path.read_text() == "results"

    def test_another_broken_pipe_keeps_its_traceback(self):
        code, _, err = run("ends = os.pipe(); os.close(ends[0]); os.write(ends[1], b'x')")
        assert code == 1 and err.endswith("BrokenPipeError: [Errno 32] Broken pipe\n")

    def test_ctrl_c(self):
        process = start("print('begun', flush=True); time.sleep(60)")
        assert process.stdout.readline() == b"begun\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert process.communicate() == (b"", b"")


def test_the_entry_point_of_training(run_command):
    """What is missing is named, in the last line."""
    result = run_command("maskx_tf.train", "--num_gpus=0")
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.splitlines()[-1] == "error: training needs --model_dir."
    assert "Traceback" not in result.stderr


def commands():
    """The modules to run with `python -m` that take flags."""
    for folder in PACKAGES:
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            _, _, started = path.read_text().partition('\nif __name__ == "__main__":\n')
            if re.search(r"^    cli\.run\(", started, re.MULTILINE):
                module = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
                yield module.removesuffix(".__main__")


COMMANDS = list(commands())


def flags_of_project():
    """Names of the flags that no library defines; the main module goes by its path."""
    return {
        flag.name
        for module, found in flags.FLAGS.flags_by_module_dict().items()
        if module.split(".")[0] in PACKAGES or module.startswith(f"{REPOSITORY}/")
        for flag in found
    }


def test_every_command_of_the_packages_has_a_verb():
    inner = {"maskx_tf.study.worker"}  # started by the study
    mine = {module for module in COMMANDS if not module.startswith("benchmarks.")}
    assert mine - inner == set(verbs.NAMES)
    assert set(documentation.flags_by_module()) <= set(COMMANDS)


@pytest.fixture(scope="module")
def quick_help():
    """The help of every verb as `maskx VERB --help` prints it, with stand-ins for TensorFlow."""
    script = """
        import json, os, subprocess, sys
        import cv2, google.protobuf.message, numpy  # once, before the forks
        from maskx_tf import __main__ as maskx
        from maskx_tf.system import verbs
        texts = {}
        for verb in verbs.VERBS:
            read_end, write_end = os.pipe()
            if not os.fork():
                os.dup2(write_end, 1)
                sys.argv = ["maskx", *verb.split(), "--help"]
                try:
                    maskx.main()
                finally:
                    loaded = hasattr(sys.modules.get("tensorflow"), "__file__")
                    print("TensorFlow was loaded" * loaded, end="")
                    sys.stdout.flush()
                    os._exit(0)
            os.close(write_end)
            texts[verb] = os.fdopen(read_end).read()
        print(json.dumps(texts))
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=REPOSITORY, env=os.environ | {"COLUMNS": "90"}, capture_output=True, text=True,
    )  # fmt: skip
    return json.loads(result.stdout)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("module", COMMANDS)
def test_help_says_what_a_command_does_and_lists_every_flag(
    module, quick_help, monkeypatch, capsys
):
    app.define_help_flags()
    before = set(flags.FLAGS)
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    monkeypatch.setenv("COLUMNS", "90")
    try:
        with pytest.raises(SystemExit) as end:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        defined = flags_of_project()
    finally:
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)
        of_modules = flags.FLAGS.flags_by_module_dict()
        for name in [name for name, found in of_modules.items() if not found]:
            del of_modules[name]  # help lists modules in the order in which they came
    assert not end.value.code
    help_text = capsys.readouterr().out
    assert help_text.startswith(f"usage: {verbs.command(module)} [--option=value ...]\n\n")
    assert max(map(len, help_text.splitlines())) <= 100
    assert quick_help.get(verbs.NAMES.get(module), help_text) == help_text
    shown = re.findall(r"^  --(?:\[no\])?(\w+)(?:=\S+)?(?:  +|\n {28})\S", help_text, re.MULTILINE)
    assert sorted(shown) == sorted({*defined, "flagfile"})
    known = {*shown, "help"}
    assert documentation.flags_by_module().get(module, set()) <= known
    about = help_text.partition("\nOptions")[0] if module in verbs.NAMES else ""
    for example, *arguments in documentation.commands_in(about):
        assert example == module
        assert {word[2:].split("=")[0] for word in arguments if word.startswith("--")} <= known
