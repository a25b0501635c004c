"""Winograd's algorithm against the direct convolution: values, rounding, gradients, where used."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from maskx_tf.assembly import build_model, rebuilt
from maskx_tf.layers import convolution
from maskx_tf.layers.backbone import ConvNorm
from maskx_tf.objective import training_losses
from maskx_tf.ops import winograd
from tests.batches import NUM_CLASSES, random_features, random_labels, tiny_config
from tests.harness import thorough

MANY = convolution.LEAST_CHANNELS
SHAPES = [
    (1, 1, 1), (2, 3, 2), (1, 5, 3), (2, 4, 4), (1, 2, 5), (1, 7, 8), (3, 1, 9), (1, 14, 14),
    (5, 2, 2),
]  # fmt: skip


def random_inputs(batch, height, width, channels=5, filters=3, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, height, width, channels)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, channels, filters)).astype(np.float32)
    return tf.constant(x), tf.constant(kernel / np.sqrt(9 * channels).astype(np.float32))


@pytest.fixture(params=[winograd.STRIPE_BYTES, 240, 1])
def stripes(request, monkeypatch):
    """Bytes of a stripe: all at once, several, and one tile."""
    monkeypatch.setattr(winograd, "STRIPE_BYTES", request.param)


def direct(x, kernel):
    return tf.nn.conv2d(x, kernel, 1, "SAME")


@pytest.mark.usefixtures("stripes")
@pytest.mark.parametrize("shape", SHAPES)
def test_values(shape):
    x, kernel = random_inputs(*shape)
    ours = winograd.conv3x3(x, kernel)
    assert ours.shape == (*shape, 3)
    np.testing.assert_allclose(ours, direct(x, kernel), atol=3e-6)


@pytest.mark.usefixtures("stripes")
def test_shapes_known_only_at_run_time():
    specs = [tf.TensorSpec([None, None, None, 5]), tf.TensorSpec([3, 3, 5, 3])]
    graph = tf.function(winograd.conv3x3, input_signature=specs, autograph=False)
    for shape in SHAPES:
        x, kernel = random_inputs(*shape)
        np.testing.assert_allclose(graph(x, kernel), direct(x, kernel), atol=3e-6)


@pytest.mark.usefixtures("stripes")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("shape", [s if s in SHAPES[1::3] else thorough(s) for s in SHAPES])
def test_gradients(shape, compiled):
    x, kernel = random_inputs(*shape)
    upstream = tf.random.stateless_normal([*shape, 3], [1, 2])

    def gradients(convolve, x, kernel):
        with tf.GradientTape() as tape:
            tape.watch([x, kernel])
            y = convolve(x, kernel)
        return tape.gradient(y, [x, kernel], upstream)

    wrapped = tf.function(gradients, autograph=False) if compiled else gradients
    expected = gradients(direct, x, kernel)
    for ours, theirs in zip(wrapped(winograd.conv3x3, x, kernel), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * float(tf.reduce_max(tf.abs(theirs))))


def test_nothing_is_made_before_it_is_needed():
    """Of a layer deep in a network, what depends on its kernel alone would wait in memory."""
    x, kernel = random_inputs(2, 14, 14)

    @tf.function
    def gradients(x, kernel, upstream):
        with tf.GradientTape() as tape:
            tape.watch([x, kernel])
            y = winograd.conv3x3(x, kernel)
        return tape.gradient(y, [x, kernel], upstream)

    graph = gradients.get_concrete_function(x, kernel, tf.zeros([2, 14, 14, 3])).graph
    given_x, _, given_upstream = (tensor.op for tensor in graph.inputs)
    costly = [op for op in graph.get_operations() if op.type in ("Einsum", "Pad", "Transpose")]
    assert all({given_x, given_upstream} & ancestors(op) for op in costly)
    forward = [op.type for op in costly if given_upstream not in ancestors(op)]
    assert sorted(forward) == ["Einsum", "Pad"]  # of the kernel and of x


def ancestors(operation):
    """The operations that run before it."""
    found, waiting = set(), [operation]
    while waiting:
        one = waiting.pop()
        for before in (*(tensor.op for tensor in one.inputs), *one.control_inputs):
            if before not in found:
                found.add(before)
                waiting.append(before)
    return found


def test_an_empty_batch():
    x, kernel = random_inputs(0, 3, 3)
    with tf.GradientTape() as tape:
        tape.watch([x, kernel])
        y = winograd.conv3x3(x, kernel)
    assert y.shape == (0, 3, 3, 3)
    of_x, of_kernel = tape.gradient(y, [x, kernel])
    assert of_x.shape == x.shape
    np.testing.assert_array_equal(of_kernel, np.zeros(kernel.shape))


def test_rounding_is_within_four_times_that_of_the_direct_convolution():
    x, kernel = random_inputs(1, 24, 40, channels=128, filters=64)
    x = tf.nn.relu(x)
    exact = direct(tf.cast(x, tf.float64), tf.cast(kernel, tf.float64)).numpy()

    def error(values):
        return np.std(values.numpy() - exact)

    assert error(winograd.conv3x3(x, kernel)) < 4 * error(direct(x, kernel))


def count(operation, function, *specs):
    traced = tf.function(function, autograph=False).get_concrete_function(*specs)
    graph = traced.graph.as_graph_def()
    nodes = [*graph.node, *(n for body in graph.library.function for n in body.node_def)]
    return sum(node.op == operation for node in nodes)


def products(layer, channels=MANY):
    """Convolutions that a layer is computed by: six of Winograd's algorithm, or one."""
    dtype = tf.as_dtype(layer.compute_dtype)
    layer.build([None, 8, 8, channels])
    return count("Conv2D", layer.call, tf.TensorSpec([2, 8, 8, channels], dtype))


@pytest.mark.parametrize(
    ("size", "channels", "filters", "options"),
    [
        (3, MANY, MANY, {"strides": 2}),
        (3, MANY, MANY, {"dilation_rate": 2}),
        (3, MANY, MANY, {"pad": (1, 1)}),
        (3, MANY, MANY, {"dtype": "bfloat16"}),
        (3, MANY - 1, MANY, {}),
        (3, MANY, MANY - 1, {}),
        (1, MANY, MANY, {}),
        (7, MANY, MANY, {}),
    ],
)
def test_where_winograd_is_not_used(size, channels, filters, options):
    with convolution.algorithm("winograd"):
        assert products(convolution.Conv2D(filters, size, **options), channels) == 1


def test_the_algorithm_is_that_under_which_a_layer_is_made(monkeypatch):
    def layer():
        return convolution.Conv2D(MANY, 3)

    with convolution.algorithm("winograd"):
        inside = layer()
        with convolution.algorithm("direct"):
            assert products(layer()) == 1
        assert products(layer()) == 6
    assert products(inside) == 6 and products(layer()) == 1
    for gpus in ([], ["a GPU"]):
        monkeypatch.setattr(tf.config, "list_physical_devices", lambda _, found=gpus: found)
        with convolution.algorithm("auto"):
            assert products(layer()) == (1 if gpus else 6)


@pytest.mark.parametrize("options", [{}, {"strides": 2}, {"dilation_rate": 2}])
def test_equals_the_keras_layer(options):
    x, kernel = random_inputs(2, 6, 8, channels=5)
    ours = convolution.Conv2D(3, 3, **options)
    keras = tf_keras.layers.Conv2D(3, 3, padding="same", **options)
    for layer in (ours, keras):
        layer.build(x.shape)
        layer.kernel.assign(kernel)
    np.testing.assert_allclose(ours(x), keras(x), atol=1e-5)


@pytest.mark.parametrize("size", [(6, 8), (7, 5)])
def test_strided_gradients_of_narrow_1x1_kernels(size):
    """oneDNN's, given strides, writes beyond its memory: the process dies, sooner or later."""
    x, kernel = random_inputs(2, *size, channels=8)
    layer = convolution.Conv2D(3, 1, strides=2, use_bias=False)
    layer.build(x.shape)
    layer.kernel.assign(kernel[:1, :1])
    with tf.GradientTape() as tape:
        y = layer(x)
    gradient = tape.gradient(y, layer.kernel)
    seen = x.numpy()[:, ::2, ::2]  # [2, ceil(H / 2), ceil(W / 2), 8]
    np.testing.assert_allclose(y, seen @ kernel[0, 0].numpy(), atol=1e-5)
    np.testing.assert_allclose(gradient[0, 0], [[v] * 3 for v in seen.sum((0, 1, 2))], rtol=1e-4)
    graph = tf.function(layer.call, autograph=False).get_concrete_function(x).graph
    strides = [tuple(o.get_attr("strides")) for o in graph.get_operations() if o.type == "Conv2D"]
    assert strides == [(1, 1, 1, 1)]


@pytest.mark.parametrize("relu", [True, False])
def test_folded_layers(relu):
    x, _ = random_inputs(1, 6, 7, channels=MANY)
    with convolution.algorithm("winograd"):
        layers = [
            convolution.Conv2D(MANY, 3, activation="relu" if relu else None),
            convolution.Conv2D(MANY, 1),
            ConvNorm(MANY, 3, 1, "batch_norm", relu=relu),
            ConvNorm(MANY, 3, 2, "batch_norm", relu=relu),
            ConvNorm(MANY, 3, 1, "group_norm", relu=relu),
        ]
    for layer in layers:
        expected = layer(x)
        for part in (layer, *layer.submodules):  # in any order, as `folding.fold` does
            if isinstance(part, ConvNorm | convolution.Conv2D):
                part.fold()
        np.testing.assert_allclose(layer(x), expected, atol=1e-5)
        assert count("Einsum", layer.call, tf.TensorSpec(x.shape)) == 0  # no transform of kernels


WIDE = {
    "backbone_width": MANY, "fpn_filters": MANY, "rpn_filters": MANY, "mask_filters": MANY,
    "mask_convs": 2,
}  # fmt: skip


def test_a_training_step_has_the_losses_and_gradients_of_direct_convolutions():
    tf.config.experimental.enable_op_determinism()  # or RoIAlign's gradient loses updates
    config = tiny_config(**WIDE, convolutions="winograd")
    model = build_model(config, NUM_CLASSES)
    other = rebuilt(model, config.replace(convolutions="direct"))
    features, labels, seed = random_features(), random_labels(), tf.constant([0, 0])
    results = []
    for m in (model, other):
        with tf.GradientTape() as tape:
            losses = training_losses(m, features, labels, seed)
            total = tf.add_n([value / tf.maximum(count, 1.0) for value, count in losses.values()])
        results.append((total, tape.gradient(total, m.trainable_variables)))
    (ours, our_gradients), (theirs, their_gradients) = results
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    for a, b in zip(our_gradients, their_gradients, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            difference = tf.linalg.global_norm([tf.convert_to_tensor(a) - b])
            # A ReLU whose input is within rounding of zero may pass in one and not in the other.
            assert difference < 0.02 * tf.linalg.global_norm([b]) + 1e-6
