"""Batches formed in the graph: concurrent calls share them, and two models never do."""

import concurrent.futures
import threading

import numpy as np
import pytest
import tensorflow as tf

from maskx_tf.inference.batching import Batching, on_rows

SIGNATURE = [tf.TensorSpec([None], tf.float32)]


def build(factor, batching, name):
    """A graph function that gives factor * x and, for each row, how many ran together."""
    function = on_rows(
        lambda x: {"value": factor * x, "rows": tf.fill(tf.shape(x), tf.size(x))},
        SIGNATURE,
        batching,
        name,
    )
    return tf.function(function, input_signature=SIGNATURE)


def at_once(function, calls):
    """The results of concurrent calls, in order."""
    barrier = threading.Barrier(len(calls))

    def call(rows):
        barrier.wait()
        return {key: value.numpy() for key, value in function(tf.constant(rows)).items()}

    with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(call, calls))


def test_concurrent_calls_share_batches_of_the_allowed_sizes():
    function = build(3.0, Batching((1, 2, 5), timeout_us=2_000_000, threads=1), "shared")
    calls = [[float(i)] for i in range(5)]
    found = at_once(function, calls)
    assert [float(one["value"][0]) for one in found] == [0, 3, 6, 9, 12]
    assert [int(one["rows"][0]) for one in found] == [5] * 5


def test_what_runs_in_batches_is_optimised():
    """The body of a BatchFunction is not, unless it is a call that is not inlined."""
    function = build(2.0, Batching((1,), timeout_us=1000), "optimised")
    library = function.get_concrete_function().graph.as_graph_def().library.function
    bodies = {f.signature.name: f for f in library}
    (batched,) = [n for f in library for n in f.node_def if n.op == "BatchFunction"]
    calls = [n for n in bodies[batched.attr["f"].func.name].node_def if "Call" in n.op]
    (call,) = [n for n in calls if bodies[n.attr["f"].func.name].attr["_noinline"].b]
    assert "Mul" in {n.op for n in bodies[call.attr["f"].func.name].node_def}


def test_a_batch_is_filled_up_to_an_allowed_size_and_a_large_one_split():
    function = build(2.0, Batching((2, 4), timeout_us=1000), "sizes")
    for count, rows in ((1, [2]), (3, [4] * 3), (9, [4] * 8 + [2])):
        found = function(tf.range(float(count)))
        np.testing.assert_array_equal(found["value"], 2 * np.arange(count))
        assert sorted(found["rows"].numpy(), reverse=True) == rows


def test_a_call_of_more_than_all_waiting_batches_is_refused():
    function = build(2.0, Batching((2, 4), timeout_us=1000, max_enqueued=3), "limit")
    assert function(tf.zeros([12]))["value"].shape == (12,)
    with pytest.raises(tf.errors.InvalidArgumentError, match="13 is larger than maximum .* 12"):
        function(tf.zeros([13]))


def test_functions_of_other_names_do_not_share():
    batching = Batching((1, 2), timeout_us=100_000)
    one, other = build(2.0, batching, "one"), build(5.0, batching, "other")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda f: f(tf.ones([1])), (one, other)))
    assert [float(found["value"][0]) for found in results] == [2, 5]
    assert [int(found["rows"][0]) for found in results] == [1, 1]


@pytest.mark.parametrize("batching", [None, Batching((1, 2))])
def test_no_rows(batching):
    found = build(2.0, batching, "none")(tf.zeros([0]))
    assert found["value"].shape == (0,) and found["rows"].dtype == tf.int32


def test_without_batching_a_call_is_a_batch():
    found = build(2.0, None, "")(tf.range(7.0))
    assert found["rows"].numpy().tolist() == [7] * 7


def test_a_full_queue_refuses():
    """One batch runs and one waits for as long as the lock is held."""
    lock = threading.Lock()

    def slow(x):
        with lock:
            return x

    function = tf.function(
        on_rows(
            lambda x: {"value": tf.ensure_shape(tf.numpy_function(slow, [x], tf.float32), [None])},
            SIGNATURE,
            Batching((1,), timeout_us=0, threads=1, max_enqueued=1),
            "full",
        ),
        input_signature=SIGNATURE,
    )
    with lock, concurrent.futures.ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(function, tf.ones([1])) for _ in range(8)]
        done, _ = concurrent.futures.wait(
            calls, timeout=60, return_when=concurrent.futures.FIRST_COMPLETED
        )
        errors = [call.exception() for call in done]
        lock.release()
        concurrent.futures.wait(calls)
        lock.acquire()
    assert isinstance(errors[0], tf.errors.UnavailableError)
    assert sum(call.exception() is None for call in calls) >= 1
