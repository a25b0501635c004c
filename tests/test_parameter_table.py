"""The table of parameters: golden text, and sums that are right."""

import pytest

from maskx_tf.assembly import build_model
from maskx_tf.model import trained_variables
from maskx_tf.training import parameter_table
from tests import batches

OPTIONS = {"frozen_stages": 1, "backbone_width": 8, "box_fc_units": 4, "mask_mlp": False}
HEAD = """\
parameter                                                shape   size  trained  gradient stopped
"""
END_TO_END = """\
backbone/res2_0/conv1/norm/beta                              8      8  yes
backbone/stem1/norm/beta                                     4      4  no       frozen
backbone/stem1/norm/moving_mean                              4      4  no       frozen
backbone/res2_0/conv1/norm/moving_mean                       8      8  no       statistics
box_head/cls_kernel                                      8 x 4     32  yes      mask loss
box_head/cls_bias                                            8      8  yes
box_head/box_kernel                                  8 x 4 x 4    128  yes      mask loss
box_head/box_bias                                        8 x 4     32  yes
weight_transfer/fc1/kernel                             20 x 16    320  yes
"""
STAGE_2 = """\
backbone/res2_0/conv1/norm/beta                              8      8  no       --mode=stage2_masks
backbone/stem1/norm/beta                                     4      4  no       frozen
backbone/res2_0/conv1/norm/moving_mean                       8      8  no       frozen
box_head/cls_kernel                                      8 x 4     32  no       --mode=stage2_masks
weight_transfer/fc1/kernel                             20 x 16    320  yes
"""


def table(**changes):
    model = build_model(batches.tiny_config(**OPTIONS | changes), batches.NUM_CLASSES)
    return model, parameter_table.format_table(model, trained_variables(model))


@pytest.mark.parametrize(
    ("mode", "golden"), [("end_to_end", END_TO_END), ("stage2_masks", STAGE_2)]
)
def test_golden_text(mode, golden):
    model, text = table(mode=mode)
    lines = text.splitlines(keepends=True)
    assert lines[0] == HEAD
    assert len(lines) == 2 + len(model.weights)
    names = {line.split()[0] for line in golden.splitlines()}
    assert "".join(line for line in lines if line.split()[0] in names) == golden
    total = sum(v.shape.num_elements() for v in model.weights)
    trained = sum(v.shape.num_elements() for v in trained_variables(model))
    assert lines[-1] == f"{total:,} parameters, {trained:,} of them trained\n"


@pytest.mark.parametrize(
    ("changes", "stopped"),
    [
        ({"transfer_input": "cls"}, {"box_head/cls_kernel"}),
        ({"transfer_input": "box"}, {"box_head/box_kernel"}),
        ({"transfer_stop_gradient": False}, set()),
        ({"mask_output": "class_agnostic"}, set()),
    ],
)
def test_what_t_reads(changes, stopped):
    _, text = table(**changes)
    assert {line.split()[0] for line in text.splitlines() if "mask loss" in line} == stopped


def test_the_file(tmp_path):
    model, text = table()
    found = parameter_table.write(model, trained_variables(model), str(tmp_path))
    assert found == text == (tmp_path / "parameters.txt").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["parameters.txt"]
