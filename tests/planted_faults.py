"""Plants faults, one at a time, and sees that the tests which have to catch each do.

  python -m tests.planted_faults [--list] [--only=NAME …]

The working tree is copied once to a temporary folder, where all tests of the list have to pass as
they are: one that fails anyway catches nothing. Then each fault replaces a piece of text, the tests
named with it are run, and the text is put back. It prints `caught` or `MISSED` with seconds, and
ends with status 1 if a fault was not caught.
"""

import argparse
import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
_LONGEST_S = 600  # of the tests of one fault


@dataclasses.dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes:
      name: what --only takes.
      file: of the repository.
      text: what stands there, once.
      replacement: what is put in its place.
      tests: node ids below tests/, separated by spaces: at least one of them has to fail.
      tier: of these tests: quick (run by `make test`), thorough or slow.
    """

    name: str
    file: str
    text: str
    replacement: str
    tests: str
    tier: str = "quick"


FAULTS = (
    # Arithmetic
    Fault(
        "boxes_without_masks_are_background",
        "maskx_tf/ops/semantic_targets.py",
        "& ~unknown",
        "",
        "test_semantic_head.py::TestTargets::test_by_hand",
    ),
    Fault(
        "dilation_forgets_which_convolution_had_the_stride",
        "maskx_tf/layers/backbone.py",
        "after if first else rate",
        "after",
        "test_output_stride.py::test_which_convolution_keeps_the_old_rate",
    ),
    Fault(
        "iou_mixes_y_and_x",
        "maskx_tf/ops/boxes.py",
        "tf.minimum(a[..., 2], b[..., 2]) - tf.maximum(a[..., 0], b[..., 0])",
        "tf.minimum(a[..., 2], b[..., 2]) - tf.maximum(a[..., 1], b[..., 1])",
        "test_boxes.py::test_iou_is_the_definition",
    ),
    Fault(
        "clip_leaves_a_pixel_outside",
        "maskx_tf/ops/boxes.py",
        "limits - pixel[::-1])",
        "limits + 1.0)",
        "test_boxes.py::test_clip_to_each_image",
    ),
    Fault(
        "decode_takes_width_for_height",
        "maskx_tf/ops/boxes.py",
        "centre = centre + deltas[..., :2] * size",
        "centre = centre + deltas[..., :2] * size[..., ::-1]",
        "test_boxes.py::test_encode_and_decode_are_the_definition",
    ),
    Fault(
        "anchors_at_the_corners_of_cells",
        "maskx_tf/ops/anchors.py",
        "y = (tf.range(height, dtype=tf.float32) + offset) * stride",
        "y = tf.range(height, dtype=tf.float32) * stride",
        "test_anchors.py::test_equal_model_garden",
    ),
    Fault(
        "crowd_gives_negatives",
        "maskx_tf/ops/sampling.py",
        "negative = ~foreground & ~in_crowd & (",
        "negative = ~foreground & (",
        "test_sampling.py::TestRois::test_a_roi_inside_a_crowd_is_no_negative",
    ),
    Fault(
        "sample_repeats_the_positives",
        "maskx_tf/ops/sampling.py",
        "second = tf.math.top_k(tf.where(negative, random, -1.0)",
        "second = tf.math.top_k(tf.where(negative | positive, random, -1.0)",
        "test_sampling.py::TestBalancedSample::test_quotas",
    ),
    Fault(
        "mask_target_half_a_cell_off",
        "maskx_tf/ops/mask_targets.py",
        "/ mask_cell + 0.5",
        "/ mask_cell + 1.0",
        "test_mask_targets.py::test_equal_numpy",
    ),
    Fault(
        "window_widened_by_its_whole_side_on_each_side",
        "maskx_tf/ops/boxes.py",
        "half = 0.5 * scale * size",
        "half = scale * size",
        "test_mask_windows.py::test_windows_by_hand",
    ),
    Fault(
        "evaluated_masks_pasted_into_boxes",
        "maskx_tf/evaluation/runner.py",
        "mask_windows(boxes_yxyx, mask_roi_scale).numpy()",
        "boxes_yxyx",
        "test_mask_windows.py::test_served_evaluated_and_labelled_masks_are_the_same",
        "slow",
    ),
    Fault(
        "neighbours_beyond_the_image_count",
        "maskx_tf/losses.py",
        "weight = tf.cast(in_box[first] & in_image[second], tf.float32)",
        "weight = tf.cast(in_box[first], tf.float32)",
        "test_box_losses.py::TestPairwise::test_equals_numpy",
    ),
    Fault(
        "losses_from_boxes_on_set_a_too",
        "maskx_tf/losses.py",
        'return objects if config.weak_on == "all" else objects & ~examples.valid',
        "return objects",
        "test_box_losses.py::test_which_objects_learn_from_their_boxes",
    ),
    Fault(
        "warm_up_never_ends",
        "maskx_tf/training/steps.py",
        "objective.shares(losses, self._terms, step)",
        "objective.shares(losses, self._terms, tf.zeros([], tf.int32))",
        "test_box_losses.py::TestRuns::test_the_warm_up_ends_with_its_steps",
        "slow",
    ),
    Fault(
        "paste_at_the_corners_of_pixels",
        "maskx_tf/ops/masks.py",
        "position = (np.arange(first, last) + 0.5 - low)",
        "position = (np.arange(first, last) - low)",
        "test_masks.py::test_paste_equals_per_pixel_oracle",
    ),
    Fault(
        "rle_of_a_region_by_rows",
        "maskx_tf/ops/masks.py",
        "positions = (column + left) * height + row + top",
        "positions = (column + left) * width + row + top",
        "test_masks.py::test_paste_to_rle_equals_encoding_the_whole_image",
    ),
    Fault(
        "rle_in_the_graph_forgets_the_column",
        "maskx_tf/ops/graph_rle.py",
        "(edges // step + left) * height",
        "(edges // step) * height",
        "test_graph_rle.py::test_equals_numpy_for_random_masks_and_boxes",
    ),
    Fault(
        "outline_fills_the_holes",
        "maskx_tf/ops/polygons.py",
        "rings[joined[i]] = _join(rings[joined[i]], rings[i], (x, y), edge)",
        "pass",
        "test_polygons.py::test_the_outline_is_exact",
    ),
    # Layers
    Fault(
        "roi_align_without_half_a_pixel",
        "maskx_tf/layers/roi_align.py",
        "boxes_yxyx[:, :2] / stride - 0.5, boxes_yxyx[:, 2:] / stride - 0.5",
        "boxes_yxyx[:, :2] / stride, boxes_yxyx[:, 2:] / stride",
        "test_roi_align.py::test_forward_is_the_definition",
    ),
    Fault(
        "roi_pool_without_overlap",
        "maskx_tf/layers/roi_pooling.py",
        "first[:, None] - (-(bins + 1) * size // output_size)",
        "first[:, None] + (bins + 1) * size // output_size",
        "test_roi_pooling.py::TestPool::test_worked_by_hand",
    ),
    Fault(
        "hourglass_without_its_way_across",
        "maskx_tf/layers/mask_bodies/hourglass.py",
        "return across + tf.reshape(",
        "return 0 * across + tf.reshape(",
        "test_mask_bodies.py::TestHourglass::test_is_model_gardens",
    ),
    Fault(
        "mask_norm_never_in_training",
        "maskx_tf/objective.py",
        "examples.classes, training=True)",
        "examples.classes)",
        "test_mask_bodies.py::TestNorm::test_batch_norm_learns_statistics_in_training_only",
    ),
    Fault(
        "roi_align_in_the_order_of_levels",
        "maskx_tf/layers/roi_align.py",
        "return tf.gather(tf.concat(crops, axis=0), place)",
        "return tf.concat(crops, axis=0)",
        "test_roi_align.py::test_each_box_is_cropped_on_its_level_in_the_given_order",
    ),
    Fault(
        "mask_loss_reaches_w_det",
        "maskx_tf/layers/weight_transfer.py",
        "x = tf.stop_gradient(w_det) if self.stop_gradient else w_det",
        "x = w_det",
        "test_weight_transfer.py::test_stop_gradient_lies_before_the_first_layer",
    ),
    Fault(
        "activation_map_trains_the_class_weights",
        "maskx_tf/layers/conv_box_head.py",
        "kernels = tf.stop_gradient(tf.gather(self.cls_kernel, classes))",
        "kernels = tf.gather(self.cls_kernel, classes)",
        "test_mask_branches.py::TestConvBoxHead::test_maps_have_a_gradient_to_features_but_none_to_class_weights",
    ),
    Fault(
        "activation_map_of_the_background",
        "maskx_tf/model.py",
        "self.box_heads[-1].class_activations(seen, classes)",
        "self.box_heads[-1].class_activations(seen, 0 * classes)",
        "test_mask_branches.py::TestModel::test_the_prior_is_added_to_all_channels",
        "thorough",
    ),
    Fault(
        "caches_do_not_know_the_prior",
        "maskx_tf/frozen/training.py",
        'options["cam"] = True',
        "pass",
        "test_mask_branches.py::TestModel::test_caches_know_the_prior_and_not_the_coordinates",
        "thorough",
    ),
    Fault(
        "points_where_the_mask_is_certain",
        "maskx_tf/ops/points.py",
        "doubt = -tf.abs(sample_masks(tf.stop_gradient(logits), candidates))",
        "doubt = tf.abs(sample_masks(tf.stop_gradient(logits), candidates))",
        "test_point_head.py::TestForTraining::test_three_of_four_are_the_least_certain_candidates",
    ),
    Fault(
        "subdivision_asks_half_a_pixel_off",
        "maskx_tf/ops/points.py",
        "new = predict((tf.cast(at, tf.float32) + 0.5) / side)",
        "new = predict(tf.cast(at, tf.float32) / side)",
        "test_point_head.py::TestSubdivide::test_by_hand",
    ),
    Fault(
        "point_loss_of_rois_without_masks",
        "maskx_tf/losses.py",
        """            examples.point_targets[..., None],
            examples.valid,""",
        """            examples.point_targets[..., None],
            tf.ones_like(examples.valid),""",
        "test_point_head.py::TestModel::test_objects_without_a_mask_teach_it_nothing",
        "thorough",
    ),
    Fault(
        "mask_iou_with_what_the_window_shows",
        "maskx_tf/ops/mask_targets.py",
        "union = tf.reduce_sum(masks, axis=[1, 2]) + areas - common",
        "union = tf.reduce_sum(masks + targets, axis=[1, 2]) - common",
        "test_mask_scoring.py::TestTargets::test_by_hand",
    ),
    Fault(
        "masks_ranked_by_their_boxes",
        "maskx_tf/evaluation/coco.py",
        'row = {**row, "score": row.get("mask_score", row["score"])}',
        "row = {**row}",
        "test_mask_scoring.py::test_masks_are_ranked_by_their_own_scores_and_boxes_are_not",
    ),
    Fault(
        "crf_normalises_rows_only",
        "maskx_tf/ops/dense_crf.py",
        "alike = (sums * (bilateral @ (sums * q.ravel())))",
        "alike = (sums**2 * (bilateral @ q.ravel()))",
        "test_dense_crf.py::TestMeanField::test_equals_the_textbook",
    ),
    Fault(
        "crf_takes_the_whole_box_for_its_window",
        "maskx_tf/ops/dense_crf.py",
        "to_window = bilinear_weights((centres - low) / (high - low) * cells - 0.5, cells)",
        "to_window = bilinear_weights((np.arange(count) + 0.5) / count * cells - 0.5, cells)",
        "test_dense_crf.py::TestRefine::test_without_kernels_the_mask_stays",
    ),
    Fault(
        "nms_over_all_classes",
        "maskx_tf/layers/detections.py",
        "return decoded, scores, decoded + class_grid_offsets(classes, spacing)",
        "return decoded, scores, decoded",
        "test_detections.py::test_equal_a_plain_nms_per_class",
    ),
    Fault(
        "detected_class_counts_from_the_background",
        "maskx_tf/layers/detections.py",
        "classes = best.indices % num_classes + first_class",
        "classes = best.indices % num_classes",
        "test_detections.py::test_equal_a_plain_nms_per_class",
    ),
    Fault(
        "w_det_of_the_class_before",
        "maskx_tf/layers/box_head.py",
        "parts.append(tf.gather(self.cls_kernel, classes))",
        "parts.append(tf.gather(self.cls_kernel, classes - 1))",
        "test_box_head.py::test_class_weights_are_cls_then_dy_dx_dh_dw",
    ),
    # Training objective and model
    Fault(
        "mask_loss_counts_rois_without_mask",
        "maskx_tf/losses.py",
        "else entropy * weights, valid)",
        "else entropy * weights, tf.ones_like(valid))",
        "test_losses.py::test_mask_loss_is_the_mean_over_pixels_and_valid_rois",
    ),
    Fault(
        "mask_weight_of_0_counts_as_a_mask",
        "maskx_tf/objective.py",
        'return labels["has_mask"] & (labels["mask_weight"] > 0)',
        'return labels["has_mask"]',
        "test_objective.py::TestMaskWeights::test_weight_0_is_no_mask",
        "thorough",
    ),
    Fault(
        "weights_of_sources_at_test_time",
        "maskx_tf/data/pipeline.py",
        "if training and config.mask_source_weights:",
        "if config.mask_source_weights:",
        "test_pipeline.py::test_weights_of_masks_and_of_their_sources",
    ),
    Fault(
        "labelled_records_keep_masks_of_set_b",
        "maskx_tf/labeling/of_records.py",
        "return bool(source) and class_name in self.classes and is_chosen and is_weighted",
        "return bool(source) and is_chosen and is_weighted",
        "test_tf_records_label.py::"
        "test_masks_of_set_a_stay_and_others_are_the_models_where_they_agree",
    ),
    Fault(
        "rpn_box_loss_over_positives",
        "maskx_tf/losses.py",
        "return total / tf.cast(tf.shape(positive)[0] * anchors_per_image, tf.float32), count",
        "return total / tf.maximum(count, 1.0), count",
        "test_losses.py::test_rpn_box_loss",
    ),
    Fault(
        "unmasked_objects_reach_the_mask_loss",
        "maskx_tf/objective.py",
        'usable = labels["classes"] > 0 if from_boxes else has_mask',
        'usable = labels["classes"] > 0',
        "test_objective.py::TestMissingMasks::test_mask_bits_of_an_object_without_mask_change_nothing",
    ),
    Fault(
        "distant_rois_vote",
        "maskx_tf/ops/mask_voting.py",
        "boxes.iou(boxes_yxyx, rois_yxyx) >= IOU, scores, 0.0)",
        "boxes.iou(boxes_yxyx, rois_yxyx) >= 0.0, scores, 0.0)",
        "test_mnc.py::TestVoting::test_is_the_definition",
    ),
    Fault(
        "objects_without_masks_have_bad_ones",
        "maskx_tf/mnc_objective.py",
        "positive=sample.positive & (is_good | ~is_judged)",
        "positive=sample.positive & is_good",
        "test_mnc.py::TestLosses::test_bad_masks_are_background_and_objects_without_masks_are_not",
        "thorough",
    ),
    Fault(
        "new_classes_move_old_rois",
        "maskx_tf/box_detections.py",
        "if len(model.box_heads) == model.config.box_passes == 1:",
        "if model.box_heads:",
        "test_add_classes.py::test_old_classes_of_a_cascade_are_detected_the_same_to_the_bit",
        "thorough",
    ),
    Fault(
        "crowd_as_an_object",
        "maskx_tf/objective.py",
        '    objects = tf.where(crowd, 0.0, labels["boxes_yxyx"])',
        '    objects = labels["boxes_yxyx"]',
        "test_objective.py::TestObjects::test_a_crowd_is_no_object",
    ),
    Fault(
        "replicas_weighed_alike",
        "maskx_tf/objective.py",
        "value = value * of_replica[term.mean_over]",
        "value = value / count",
        "test_devices.py::test_a_mean_over_rois_weighs_a_replica_by_its_rois",
    ),
    Fault(
        "channels_not_turned",
        "maskx_tf/model.py",
        "images = images[..., ::-1]",
        "images = images[..., :]",
        "test_model.py::test_normalisation",
    ),
    # Data
    Fault(
        "masks_of_set_b_in_training",
        "maskx_tf/data/pipeline.py",
        'tf.gather(in_set_a, example["classes"]) & ~example["is_crowd"]',
        '~example["is_crowd"]',
        "test_pipeline.py::test_masks_of_set_b_and_of_crowds_are_withheld",
    ),
    Fault(
        "masks_of_crowds_in_training",
        "maskx_tf/data/pipeline.py",
        'tf.gather(in_set_a, example["classes"]) & ~example["is_crowd"]',
        'tf.gather(in_set_a, example["classes"])',
        "test_pipeline.py::test_masks_of_set_b_and_of_crowds_are_withheld",
    ),
    Fault(
        "flip_leaves_the_masks",
        "maskx_tf/data/augmentation.py",
        "turned_boxes, tf.reverse(masks, [2])",
        "turned_boxes, masks",
        "test_pipeline.py::test_boxes_and_masks_follow_flip_scale_and_crop",
    ),
    Fault(
        "copy_paste_leaves_covered_boxes",
        "maskx_tf/data/copy_paste.py",
        "axis=[1, 2])[:, None], shrunk, boxes)",
        "axis=[1, 2])[:, None], boxes, boxes)",
        "test_copy_paste.py::test_what_is_covered_is_cut_from_masks_and_boxes",
    ),
    Fault(
        "order_without_the_seed",
        "maskx_tf/data/order.py",
        "tf.constant(self._seed, tf.int64), epoch",
        "tf.constant(0, tf.int64), epoch",
        "test_pipeline.py::test_training_is_shuffled_repeated_and_the_same_for_a_seed",
    ),
    Fault(
        "resume_one_batch_too_early",
        "maskx_tf/data/order.py",
        "return epoch, step - self._full_before(epoch)",
        "return epoch, max(step - self._full_before(epoch) - 1, 0)",
        "test_pipeline.py::test_a_restart_goes_on_with_the_same_batches",
    ),
    Fault(
        "padded_side_rounded_down",
        "maskx_tf/data/preprocessing.py",
        "tf.floor(original * scale * scale_jitter + 0.5)",
        "tf.floor(original * scale * scale_jitter)",
        "test_preprocessing.py::test_resize_and_pad_equals_the_oracle",
    ),
    Fault(
        "coco_rle_by_rows",
        "maskx_tf/data/coco/masks.py",
        "np.repeat(values, self.counts).reshape(self.size[::-1]).T",
        "np.repeat(values, self.counts).reshape(self.size)",
        "test_tf_records_coco.py::test_crowd_rle",
    ),
    Fault(
        "coco_box_of_x_before_y",
        "maskx_tf/data/coco/boxes.py",
        "corners = (y, x, y + box_height, x + box_width)",
        "corners = (x, y, x + box_width, y + box_height)",
        "test_tf_records_coco.py::test_box_beyond_the_image_is_clipped",
    ),
    Fault(
        "new_annotation_id_is_taken",
        "maskx_tf/data/coco/annotations.py",
        "self._next = 1 if far else max(largest, 0) + 1",
        "self._next = 1 if far else max(largest, 0)",
        "test_tf_records_coco.py::test_ids_become_unique",
    ),
    Fault(
        "conversion_without_objects_goes_on",
        "tf_records/losses.py",
        "    if not manifest.num_objects:",
        "    if False:",
        "test_tf_records_losses.py::test_a_great_loss_stops_and_writes_nothing",
    ),
    Fault(
        "crowds_count_as_objects",
        "tf_records/writer.py",
        "objects = [item for item in record.objects if not item.is_crowd]",
        "objects = list(record.objects)",
        "test_tf_records_losses.py::test_crowds_are_counted_apart",
    ),
    Fault(
        "training_without_objects_goes_on",
        "maskx_tf/data/supervision.py",
        "if any(m.num_objects for m in manifests if m.crowd_counts is not None) or _has_objects(",
        "if manifests or _has_objects(",
        "test_tf_records_losses.py::test_training_without_any_object_is_refused",
    ),
    Fault(
        "crowds_of_records_of_before_are_objects",
        "maskx_tf/data/supervision.py",
        "return any(not item.is_crowd for record in records for item in record.objects)",
        "return any(record.objects for record in records)",
        "test_tf_records_losses.py::test_training_on_crowds_of_records_of_before_is_refused",
    ),
    Fault(
        "photo_that_was_cut_off_is_decoded",
        "maskx_tf/data/decoding.py",
        'channels=3, dct_method="INTEGER_ACCURATE")',
        'channels=3, dct_method="INTEGER_ACCURATE", try_recover_truncated=True)',
        "test_image_decoding.py::test_a_damaged_photo_is_refused_with_its_cause",
    ),
    Fault(
        "sixteen_bits_are_cut_to_eight",
        "maskx_tf/data/decoding.py",
        "data[24] <= 8",
        "data[24] <= 16",
        "test_image_decoding.py::test_only_jpeg_and_png_of_8_bits_are_decoded",
    ),
    Fault(
        "ids_as_text_are_none",
        "maskx_tf/data/coco/values.py",
        "value = int(match[1])",
        "value = match[1]",
        "test_tf_records_coco_fuzz.py::test_each_habit",
    ),
    Fault(
        "corners_are_not_told_from_sizes",
        "maskx_tf/data/coco/objects.py",
        'return ["box_is_corners"]',
        "return []",
        "test_tf_records_coco_fuzz.py::test_each_habit",
    ),
    Fault(
        "swapped_size_is_another_size",
        "maskx_tf/data/coco/masks.py",
        "if size is None and numbers[::-1] in sizes:",
        "if False:",
        "test_tf_records_coco_fuzz.py::test_each_habit",
    ),
    Fault(
        "boxes_do_not_tell_what_exif_turns",
        "maskx_tf/data/coco/objects.py",
        "return not fit(*size) and fit(*size[::-1])",
        "return fit(*size[::-1])",
        "test_tf_records_coco.py::test_boxes_tell_which_way_up_they_were_drawn",
    ),
    Fault(
        "file_of_two_spellings_is_guessed",
        "maskx_tf/data/coco/images.py",
        "uses[path] == 1",
        "uses[path] >= 1",
        "test_tf_records_coco.py::test_a_file_of_two_spellings_is_not_guessed",
    ),
    Fault(
        "label_takes_a_mask_beside_its_box",
        "maskx_tf/labeling/source.py",
        "                mask is not None,",
        "                item_object.segmentation is not None,",
        "test_label.py::test_what_counts_as_a_mask",
    ),
    Fault(
        "checksum_of_the_payload_ignored",
        "maskx_tf/data/records/framing.py",
        'if int.from_bytes(data[frame.length :], "little") == masked_crc(payload):',
        "if True:",
        "test_tf_records_verify.py::test_every_kind_of_corruption_is_named",
    ),
    Fault(
        "damaged_record_is_an_empty_one",
        "maskx_tf/data/records/reader.py",
        'tf.debugging.Assert(payload != "", [_DAMAGED, where])',
        'tf.debugging.Assert(payload != "x", [_DAMAGED, where])',
        "test_pipeline.py::test_corruption_stops_with_its_name",
    ),
    # Training
    Fault(
        "evaluation_without_the_averages",
        "maskx_tf/training/validation.py",
        "with self._average.in_use() if self._average else contextlib.nullcontext():",
        "with contextlib.nullcontext():",
        "test_moving_average.py::test_evaluation_during_training_uses_it",
    ),
    Fault(
        "average_without_warm_up",
        "maskx_tf/training/moving_average.py",
        "keep = tf.minimum(self._decay, (1.0 + done) / (10.0 + done))",
        "keep = self._decay",
        "test_moving_average.py::test_equals_the_recursion_in_numpy",
    ),
    Fault(
        "step_guard_lets_nan_pass",
        "maskx_tf/training/step_guard.py",
        "checked = tf.debugging.check_numerics(checked, _MARKER)",
        "checked = tf.identity(checked)",
        "test_step_guard.py::TestCheck::test_what_is_not",
    ),
    Fault(
        "bias_learns_as_a_kernel",
        "maskx_tf/training/optimizer.py",
        "learning_rate = learning_rate * self.bias_factor",
        "learning_rate = learning_rate * 1.0",
        "test_optimizer.py::test_equals_detectron_across_learning_rate_cuts",
    ),
    Fault(
        "rate_cut_a_step_late",
        "maskx_tf/training/optimizer.py",
        "boundaries = [step - 1 for step in cuts]",
        "boundaries = list(cuts)",
        "test_optimizer.py::test_published_schedule",
    ),
    # Checkpoints and files
    Fault(
        "checkpoint_a_step_after_the_interval",
        "maskx_tf/checkpoints/saving.py",
        "if interval and int(self._step_counter.numpy()) % interval == 0:",
        "if interval and int(self._step_counter.numpy()) % interval == 1:",
        "test_training.py::TestRun::test_checkpoints_are_not_further_apart_than_asked",
    ),
    Fault(
        "model_directory_not_locked",
        "maskx_tf/checkpoints/leftovers.py",
        "with files.locked(model_dir, refuse):",
        "with contextlib.nullcontext():",
        "test_checkpoint_files.py::TestLock::test_a_second_training_is_refused",
    ),
    Fault(
        "unreadable_taken_for_damaged",
        "maskx_tf/checkpoints/leftovers.py",
        "        _require_readable(file)",
        "        pass",
        "test_checkpoint_files.py::TestNotLookedAt::test_unreadable",
    ),
    Fault(
        "class_rows_one_off",
        "maskx_tf/checkpoints/initialize.py",
        "value[known] = other.numpy()[rows]",
        "value[known] = other.numpy()[rows - 1]",
        "test_checkpoints.py::TestInitialize::test_class_rows_are_matched_by_name",
    ),
    Fault(
        "write_not_atomic",
        "maskx_tf/system/files.py",
        'temporary = path.with_name(path.name + ".tmp")',
        "temporary = path",
        "test_files.py::test_a_full_disk_keeps_no_part_of_a_file",
    ),
    Fault(
        "status_1_for_a_user_error",
        "maskx_tf/system/ending.py",
        "    sys.exit(2)",
        "    sys.exit(1)",
        "test_cli.py::test_a_user_error_is_one_line_without_traceback",
    ),
    Fault(
        "flagfile_may_include_itself",
        "maskx_tf/system/flagfiles.py",
        "    if name in including:",
        "    if not name:",
        "test_flagfiles.py::test_a_file_that_cannot_be_read_is_named",
    ),
    # Frozen features
    Fault(
        "rows_of_a_killed_process_stay",
        "maskx_tf/frozen/row_store.py",
        "file.truncate(int(count) * _row_bytes(array))",
        "pass",
        "test_feature_cache.py::TestRowStore::test_what_a_killed_process_left_is_cut_off",
    ),
    Fault(
        "feature_cache_of_another_detector",
        "maskx_tf/frozen/training.py",
        "if not is_of_masks(variable) and name != EMBEDDINGS:",
        "if not name:",
        "test_feature_cache.py::TestKey::test_knows_set_a_records_and_weights",
    ),
    # Inference
    Fault(
        "exif_orientation_ignored",
        "maskx_tf/inference/image_bytes.py",
        "orientation = image_header.jpeg_orientation(tf.identity(encoded))",
        "orientation = tf.constant(1)",
        "test_image_bytes.py::test_exif_orientation",
    ),
    Fault(
        "coco_results_of_y_before_x",
        "maskx_tf/inference/detections.py",
        "return x1, y1, x2 - x1, y2 - y1",
        "return y1, x1, y2 - y1, x2 - x1",
        "test_inference_detections.py::TestCoco::test_results_load_into_cocos_tools",
    ),
    Fault(
        "score_of_a_mask_without_its_doubts",
        "maskx_tf/inference/segmenter.py",
        "tf.where(inside, tf.ones_like(probabilities), probabilities), [-2, -1])",
        "tf.cast(inside, tf.float64), [-2, -1])",
        "test_label.py::test_expected_iou",
    ),
    Fault(
        "brackets_in_a_path_are_a_pattern",
        "maskx_tf/system/literal_paths.py",
        "escaped = glob.escape(existing)",
        "escaped = existing",
        "test_predict.py::test_a_name_with_brackets_is_a_file",
    ),
    # Evaluation
    Fault(
        "sheet_has_one_colour_for_all",
        "tf_records/describe_sheet.py",
        "place * _GOLDEN_SECTION % 1",
        "0.3",
        "test_tf_records_describe.py::TestSheet::"
        "test_each_object_has_its_colour_and_crowds_are_named",
    ),
    Fault(
        "evaluation_takes_crowds_for_crowds",
        "maskx_tf/evaluation/ground_truth.py",
        "read_objects(item, (height, width), crowds)",
        "read_objects(item, (height, width))",
        "test_evaluation.py::test_crowds_of_a_json_as_objects",
    ),
    Fault(
        "lvis_forgets_the_absent_classes",
        "maskx_tf/evaluation/federated.py",
        'annotated[image["id"]].union(image["neg_category_ids"])',
        'annotated[image["id"]]',
        "test_evaluation_lvis.py::test_numbers_are_those_of_lvis_api",
    ),
    Fault(
        "lvis_counts_objects_without_an_area",
        "maskx_tf/evaluation/federated.py",
        ' if a["area"] > 0]',
        "]",
        "test_evaluation_lvis.py::test_numbers_are_those_of_lvis_api",
    ),
    Fault(
        "lvis_records_lose_the_incomplete_classes",
        "maskx_tf/data/records/schema.py",
        '"image/not_exhaustive_category/text": "not_exhaustive_classes"',
        '"image/not_exhaustive_category/text": "neg_classes"',
        "test_evaluation_lvis.py::test_as_it_is_from_json_and_records",
    ),
    Fault(
        "subset_a_is_b",
        "maskx_tf/evaluation/coco.py",
        '"A": sorted(mask_class_ids),',
        '"A": sorted(set(every) - set(mask_class_ids)),',
        "test_evaluation.py::test_subset_ap_equals_rerunning_cocoeval_on_the_subset",
    ),
    Fault(
        "objects_without_mask_count_as_missed",
        "maskx_tf/evaluation/coco.py",
        'annotation["iscrowd"] = 1',
        'annotation["iscrowd"] = 0',
        "test_evaluation.py::test_objects_without_mask_are_ignored_by_mask_ap_only",
    ),
    # Labelling, new classes, weights of others
    Fault(
        "label_takes_a_mask_for_a_persons",
        "maskx_tf/labeling/objects.py",
        "        return OURS",
        "        return HUMAN",
        "test_label.py::test_labels_what_has_no_mask_and_keeps_the_rest",
    ),
    Fault(
        "label_overwrites_crowds",
        "maskx_tf/labeling/labeler.py",
        "if annotation.is_crowd or (annotation.has_mask and not overwrite_masks):",
        "if annotation.has_mask and not overwrite_masks:",
        "test_label.py::test_overwrite_masks_leaves_crowds_alone",
    ),
    Fault(
        "add_classes_moves_the_old_rows",
        "maskx_tf/adding/grow.py",
        "np.concatenate([value, added[key]]) if key in added",
        "np.concatenate([added[key], value]) if key in added",
        "test_add_classes.py::test_old_classes_are_detected_the_same_to_the_bit",
    ),
    Fault(
        "import_forgets_a_transpose",
        "maskx_tf/weights/caffe2.py",
        "return np.transpose(kernel, (2, 3, 1, 0))",
        "return np.transpose(kernel, (3, 2, 1, 0))",
        "test_weights_detectron.py::TestEqualsTheFormulas::test_mask_x",
    ),
    Fault(
        "import_keeps_x_before_y",
        "maskx_tf/weights/caffe2.py",
        "YXYX = [1, 0, 3, 2]",
        "YXYX = [0, 1, 2, 3]",
        "test_weights_detectron.py::TestEqualsTheFormulas::test_mask_x",
    ),
    Fault(
        "keras_weights_taken_for_rgb",
        "maskx_tf/weights/imagenet.py",
        '"keras": {\n        "channel_order": "bgr",',
        '"keras": {\n        "channel_order": "rgb",',
        "test_weights_imagenet.py::TestRefusals::test_flagfile_has_the_options_of_its_weights",
    ),
    Fault(
        "onnx_pooling_taken_for_symmetric",
        "maskx_tf/weights/onnx_resnet.py",
        '("symmetric", "same"): "caffe",',
        '("symmetric", "same"): "symmetric",',
        "test_weights_resnet_files.py::TestOnnx::test_every_tensor_and_option_without_a_model",
    ),
    Fault(
        "torchvision_rows_without_a_category_stay",
        "maskx_tf/weights/torchvision.py",
        "np.delete(by_row, _NO_CATEGORY, axis=0)",
        "by_row[:81]",
        "test_weights_torchvision.py::test_rows_without_a_category_are_dropped",
    ),
    Fault(
        "torchvision_rois_end_a_pixel_early",
        "maskx_tf/layers/roi_align.py",
        "if to_corner and not half_pixel:",
        "if False:",
        "test_weights_torchvision.py::test_rois_reach_to_their_corners",
    ),
    # Study, options, Python API
    Fault(
        "study_counts_a_changed_split_as_done",
        "maskx_tf/study/store.py",
        "if name in splits and made_with[name] == splits[name]",
        "if name in splits",
        "test_study.py::test_another_set_a_of_a_split_is_noticed",
    ),
    Fault(
        "study_result_not_locked",
        "maskx_tf/study/store.py",
        "with files.locked(self._path.parent):",
        "with contextlib.nullcontext():",
        "test_study.py::test_a_result_is_not_added_while_another_process_adds",
    ),
    Fault(
        "a_level_above_the_backbones_last",
        "maskx_tf/config_rules.py",
        "config.max_level >= last",
        "config.max_level >= 2",
        "test_config.py::test_the_small_backbone_has_a_stage_less",
    ),
    Fault(
        "false_is_saved_as_true",
        "maskx_tf/system/options.py",
        "--{'' if value else 'no'}{field.name}",
        "--{field.name}",
        "test_config.py::test_saved_options_are_read_back_equal",
    ),
    Fault(
        "evaluate_forgets_the_records",
        "maskx_tf/api.py",
        'options["eval_records"] = records',
        "pass",
        "test_api.py::TestEvaluate::test_scores_of_records",
        "thorough",
    ),
    Fault(
        "ctrl_c_is_a_signal_of_ours",
        "maskx_tf/api.py",
        'if interrupted.signal_name == "SIGINT":',
        'if interrupted.signal_name == "SIGTERM":',
        "test_api.py::TestBuildAndTrain::test_ctrl_c_is_pythons_own",
    ),
    # Records
    Fault(
        "damaged_shard_is_adopted",
        "tf_records/shards.py",
        'if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:',
        "if not shard.sha256:",
        "test_writer.py::test_damaged_shards_are_written_again",
    ),
    Fault(
        "manifest_counts_a_mask_for_every_object",
        "tf_records/writer.py",
        "counts[class_name][1] += masks",
        "counts[class_name][1] += objects",
        "test_writer.py::test_manifest_describes_the_files",
    ),
    Fault(
        "split_without_the_seed",
        "tf_records/splits.py",
        "np.random.RandomState(options.seed)",
        "np.random.RandomState(0)",
        "test_splits.py::test_command_line",
    ),
    Fault(
        "joint_scores_without_the_outside_map",
        "maskx_tf/layers/mask_bodies/fcis.py",
        "larger = tf.reduce_max(self._maps(x, kernels), axis=0)",
        "larger = self._maps(x, kernels)[0]",
        "test_mask_bodies.py::TestFCIS::test_worked_by_hand",
    ),
    Fault(
        "position_sensitive_parts_transposed",
        "maskx_tf/layers/roi_pooling.py",
        "part[:, None] * parts + part",
        "part[:, None] + part * parts",
        "test_roi_pooling.py::TestPositionSensitive::test_worked_by_hand",
    ),
    # Export, serving and client
    Fault(
        "export_not_compared",
        "export/saved_model.py",
        "comparison.compare(str(saved), asked, expected, comparison.tolerance_of(config))",
        "pass",
        "test_export.py::test_a_differing_export_is_refused_and_leaves_nothing",
    ),
    Fault(
        "openvino_not_compared",
        "export/openvino_ir/version.py",
        '_compare(detect(batch), wanted, config, f"request {number} of {len(batches)}")',
        "pass",
        "test_export_openvino.py::test_a_differing_export_is_refused_and_leaves_nothing",
        "thorough",
    ),
    Fault(
        "int8_at_any_price",
        "export/openvino_ir/quantization.py",
        "if problems:",
        "if False:",
        "test_export_openvino.py::test_int8_that_costs_more_than_allowed_is_refused",
    ),
    Fault(
        "cut_objects_stay_in_parts",
        "maskx_tf/inference/tiles.py",
        "parent[root(j)] = root(i)",
        "pass",
        "test_tiles.py::test_boxes_without_masks_are_merged_too",
    ),
    Fault(
        "masks_of_tiles_in_their_order",
        "maskx_tf/inference/tiles.py",
        "_concatenated(every, size)[np.argsort(np.array(order, int))]",
        "_concatenated(every, size)",
        "test_tiles.py::test_masks_of_boxes_come_from_the_tile_that_holds_the_box",
    ),
    Fault(
        "comparison_lets_nan_pass",
        "export/comparison.py",
        "if not gap <= limit:",
        "if gap > limit:",
        "test_export.py::test_difference",
    ),
    Fault(
        "server_admits_one_more",
        "export/serving/admission.py",
        "if self._taken >= self._capacity:",
        "if self._taken > self._capacity:",
        "test_server_admission.py::test_a_full_queue_refuses_at_once_and_recovers",
    ),
    Fault(
        "base64_needs_its_padding",
        "export/serving/json_tensors.py",
        'text + "=" * (-len(text) % 4)',
        "text",
        "test_server_json.py::test_base64_may_lack_its_padding_and_hold_line_breaks",
    ),
    Fault(
        "features_of_another_version",
        "export/serving/feature_cache.py",
        "key = (owner, hashlib",
        "key = (None, hashlib",
        "test_server_features.py::TestCache::test_an_image_is_computed_once_by_each_owner",
    ),
    Fault(
        "version_half_copied_is_served",
        "export/serving/versions.py",
        "\n        and any((path / name).is_file() for name in VERSION_FILES)",
        "",
        "test_server_versions.py::test_a_version_counts_when_it_is_complete",
    ),
    Fault(
        "client_drops_the_last_image",
        "export/client/client.py",
        "while waiting:",
        "while len(waiting) > 1:",
        "test_client.py::TestAnswers::test_many_images_come_in_order_several_at_a_time",
    ),
    Fault(
        "client_asks_again_without_a_pause",
        "export/client/retries.py",
        "delay = min(FIRST_DELAY_S * 2**attempt, LONGEST_DELAY_S)",
        "delay = FIRST_DELAY_S * attempt",
        "test_client.py::TestErrors::test_pauses_double_up_to_a_limit",
    ),
    # Folders of other tools, results of others, the best checkpoint
    Fault(
        "yolo_box_from_its_centre",
        "tf_records/folders/yolo.py",
        "shapes.pixels(x - w / 2, width)",
        "shapes.pixels(x, width)",
        "test_folders.py::test_yolo_boxes_and_polygons_in_one_file_beside_images_without_objects",
    ),
    Fault(
        "label_lost_without_a_word",
        "tf_records/folders/yolo.py",
        'item.lose("label_class_unknown", place)',
        "pass",
        "test_folders_fuzz.py::test_mutations",
    ),
    Fault(
        "voc_counts_from_1_always",
        "tf_records/folders/voc.py",
        "return 0, \"VOC's own files",
        "return 1, \"VOC's own files",
        "test_folders.py::test_voc_counts_pixels_from_1_in_its_own_files_alone",
    ),
    Fault(
        "brush_reads_red_for_alpha",
        "tf_records/folders/brush.py",
        "[..., 3]",
        "[..., :3].min(axis=-1) + 1",
        "test_folders.py::test_records_of_one_data_set_in_five_formats_are_equal_to_the_byte",
    ),
    Fault(
        "xml_expands_entities",
        "tf_records/folders/xml_file.py",
        "    parser.StartDoctypeDeclHandler = _refuse\n",
        "",
        "test_folders.py::test_xml_that_is_damaged_or_has_entities_is_refused",
    ),
    Fault(
        "last_of_equal_checkpoints_is_best",
        "maskx_tf/checkpoints/best.py",
        "key=lambda step: (-values[step], step)",
        "key=lambda step: (-values[step], -step)",
        "test_best_checkpoint.py::test_the_first_of_the_best_is_kept",
    ),
    Fault(
        "what_sees_no_class_is_given_one",
        "maskx_tf/evaluation/results_file.py",
        "rows[int(of_object.argmax())]",
        "rows[int(of_object.argmin())]",
        "test_results_file.py::test_what_sees_no_class_gets_one_mask_for_a_torn_pair",
    ),
)


def main() -> int:
    """Runs the list or a part of it; 1 if a fault was not caught, 2 if a test fails without one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--list", action="store_true", help="only list the faults")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="repeatable")
    arguments = parser.parse_args()
    if unknown := set(arguments.only) - {fault.name for fault in FAULTS}:
        parser.error(f"no such fault: {', '.join(sorted(unknown))}; see --list")
    chosen = [fault for fault in FAULTS if not arguments.only or fault.name in arguments.only]
    if arguments.list:
        for fault in chosen:
            print(f"{fault.name:42} {fault.file:38} {fault.tier:9} {fault.tests}")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        tree = pathlib.Path(folder) / "tree"
        _copy(tree)
        tests = sorted({test for fault in chosen for test in fault.tests.split()})
        if status := _run(tree, tests, quiet=False, longest_s=_LONGEST_S * 6):
            print(f"Tests fail without any fault (status {status}): mend them first.")
            return 2
        missed = [fault for fault in chosen if not _is_caught(tree, fault)]
    print(f"{len(chosen) - len(missed)} of {len(chosen)} faults are caught.")
    return 1 if missed else 0


def _copy(tree: pathlib.Path) -> None:
    """Copies what git knows or does not ignore."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        source, target = ROOT / name, tree / name
        if source.is_symlink() or source.is_file():  # not removed without git's knowledge
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target, follow_symlinks=False)


def _is_caught(tree: pathlib.Path, fault: Fault) -> bool:
    """Whether a test fails while the fault is in; says so."""
    path = tree / fault.file
    before = path.read_text()
    if before.count(fault.text) != 1:
        print(f"MISSED          {fault.name}: its text is not there once", flush=True)
        return False
    start = time.monotonic()
    try:
        path.write_text(before.replace(fault.text, fault.replacement))
        status = _run(tree, fault.tests.split())
    finally:
        path.write_text(before)
    caught = status == 1  # failed; other numbers: passed, found no test, could not be run
    word = "caught" if caught else "MISSED"
    print(f"{word} {time.monotonic() - start:6.1f} s {fault.name}", flush=True)
    return caught


def _run(
    tree: pathlib.Path, tests: list[str], quiet: bool = True, longest_s: float = _LONGEST_S
) -> int:
    """The status of pytest; 1: a test failed; -1: it was stopped after `longest_s`."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(tree),
        "PYTHONDONTWRITEBYTECODE": "1",  # a fault may be as long as what it replaces
    }
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    command += [f"tests/{test}" for test in tests]
    output = subprocess.DEVNULL if quiet else None
    try:
        return subprocess.run(
            command, cwd=tree, env=environment, stdout=output, stderr=output, timeout=longest_s
        ).returncode
    except subprocess.TimeoutExpired:
        return -1


if __name__ == "__main__":
    sys.exit(main())
