"""The examples run as they are, and what they write is of use."""

import re
import runpy

import pytest

from maskx_tf import checkpoints
from tests import harness


@pytest.mark.thorough
def test_a_loop_of_ones_own(tmp_path, capsys):
    example = runpy.run_path(str(harness.REPOSITORY / "examples" / "plain_train.py"))
    example["main"](str(tmp_path / "run"), "40")
    output = capsys.readouterr().out
    losses = [float(loss) for loss in re.findall(r"^step \d+ loss ([\d.]+)", output, re.MULTILINE)]
    assert len(losses) == 3 and losses[2] < 0.7 * losses[0]
    loaded = checkpoints.load_model(str(tmp_path / "run"))
    assert list(loaded.vocabulary.names) == example["CLASSES"]
    assert loaded.mask_class_ids == example["WITH_MASKS"]
