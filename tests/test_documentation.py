"""What the documents say can be done: their links lead somewhere, their flags exist."""

import re

from absl import flags

from maskx_tf import config
from maskx_tf.system import verbs
from tests import documentation
from tests.documentation import DOCUMENTS
from tests.harness import REPOSITORY, check_each

# Of the programs that the documents compare with or start: not ours.
OTHERS = {
    "tensorflow_model_server": """
        allowed_batch_sizes batch_timeout_micros enable_batching file_system_poll_wait_seconds
        max_enqueued_batches model_config_file num_batch_threads rest_api_timeout_in_ms
        tensorflow_inter_op_parallelism tensorflow_intra_op_parallelism""",
    "tensorboard": "logdir",
    "beam": "flink_master",
    "model_garden": "include_masks",
}


def project_flags():
    """Names of all flags: those of the configuration, and those that a source defines by name."""
    values = flags.FlagValues()
    config.define_flags(values)
    found = set(values)
    for folder in ("maskx_tf", "tf_records", "export", "benchmarks"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            found.update(re.findall(r'\bDEFINE_\w+\(\s*"(\w+)"', path.read_text()))
    return found | {"flagfile", "help", "helpfull"}


def test_links_lead_somewhere():
    def check(path):
        for target in documentation.links(path):
            file, _, anchor = target.partition("#")
            linked = path.parent / file if file else path
            assert linked.exists(), target
            assert not anchor or anchor in documentation.anchors(linked), target

    check_each(check, DOCUMENTS)


def test_flags_in_the_text_exist():
    known = project_flags().union(*(names.split() for names in OTHERS.values()))

    def check(path):
        named = documentation.inline_flags(path)
        assert sorted(name for name in named if not known & {name, name.removeprefix("no")}) == []

    check_each(check, DOCUMENTS)


def test_commands_of_the_documents_are_found():
    found = documentation.flags_by_module()
    assert "model_dir" in found["maskx_tf.evaluate"]
    assert "images" in found["tf_records.coco"]  # on a second line of its command


def test_the_page_of_the_commands_lists_them_in_the_order_of_their_help():
    text = (REPOSITORY / "docs" / "commands.md").read_text()
    rows = re.findall(r"^\| `maskx ([\w -]+)` \| `([\w.]+)` \|", text, re.MULTILINE)
    assert rows == [(name, verb.module) for name, verb in verbs.VERBS.items()]


def test_verbs_in_the_text_exist():
    def check(path):
        for words in documentation.inline_verbs(path):
            verb, _ = verbs.split(words)
            assert verb or words[0] in {"completion", "--help", "VERB", "records", "weights"}, words

    check_each(check, DOCUMENTS)
