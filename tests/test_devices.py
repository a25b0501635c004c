"""Training on several devices and in several processes against one device."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import tensorflow as tf

from maskx_tf import checkpoints, objective
from maskx_tf import config as config_lib
from maskx_tf.errors import UserError
from maskx_tf.losses import IMAGES, TERMS
from maskx_tf.ops import replicas
from maskx_tf.training import devices
from maskx_tf.training.devices import Cluster
from tests import batches, harness
from tf_records import coco
from tf_records.output import Output

STEPS = 50
TWO_CPUS = """
import sys
import tensorflow as tf
from maskx_tf import config, training
from maskx_tf.training import devices

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
one = devices.make_strategy
def two(*arguments):
    one(*arguments)  # deterministic ops
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
devices.make_strategy = two
training.train(config.read_flagfile(sys.argv[1]))
"""


class TestOneReplica:
    """Without a strategy nothing is changed, to the bit: published figures stay what they are."""

    def test_random_numbers(self):
        seed = tf.constant([3, 4])
        found = replicas.uniform([2, 5], seed)
        np.testing.assert_array_equal(found, tf.random.stateless_uniform([2, 5], seed))

    def test_losses(self):
        rng = np.random.default_rng(0)
        losses = {
            name: (tf.constant(rng.uniform(), tf.float32), tf.constant(count))
            for name, count in {"rpn_box": 3.0, "class": 7.0, "box": 2.0, "mask": 5.0}.items()
        }
        terms = objective.loss_terms(config_lib.Config(mode="end_to_end"))
        terms = [term for term in terms if term.name in losses]
        for name, share in objective.shares(losses, terms).items():
            assert float(share) == float(losses[name][0])
        nothing = {name: (tf.constant(0.0), tf.constant(0.0)) for name in losses}
        assert [float(share) for share in objective.shares(nothing, terms).values()] == [0.0] * 4


def test_gpus_are_left_alone_where_they_are_not_asked_for(monkeypatch):
    """Of evaluation too: 0 is the CPU, beside a training on the GPU."""
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["first", "second"])
    seen = []
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda gpus, kind: seen.append(gpus))
    for number in (0, 1, -1):
        devices.use_gpus(number)
    assert seen == [[], ["first"], ["first", "second"]]
    with pytest.raises(UserError, match="--num_gpus=3, but TensorFlow sees 2"):
        devices.use_gpus(3)
    assert os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] == "true"  # memory is taken as it is needed


def test_a_mean_over_rois_weighs_a_replica_by_its_rois(monkeypatch):
    """Of a replica with a quarter of all RoIs; of images each replica has as many."""
    monkeypatch.setattr(replicas, "total", lambda counts: 4.0 * counts)
    with_heads = {"point_head": "agnostic", "mask_scoring": "agnostic"}
    of_mnc = {"box_head": "mnc", "mask_body": "mlp", "transfer_input": "cls"}
    of_fcis = {"mask_body": "fcis", "mask_mlp": False, "loss_joint": 1.0}
    seen = set()
    for options in (
        {"loss_projection": 1.0, "loss_pairwise": 1.0, **with_heads},
        of_mnc,
        of_fcis,
        {"semantic_head": "fcn8s", "mask_mlp": False},
    ):
        terms = objective.loss_terms(config_lib.Config(mode="end_to_end", **options))
        losses = {term.name: (tf.constant(3.0), tf.constant(2.0)) for term in terms}
        for term, share in zip(terms, objective.shares(losses, terms).values(), strict=True):
            expected = 3.0 if term.mean_over == IMAGES else 0.75
            assert float(share) == pytest.approx(expected * term.weight)
        seen |= set(losses)
    assert seen == {term.name for term in TERMS}


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        (Cluster(("a:1", "b"), 0), "--worker_hosts: 'b' is not of the form host:port"),
        (Cluster(("a:1", "b:x"), 0), "--worker_hosts: 'b:x' is not of the form host:port"),
        (Cluster(("a:1", "a:1"), 0), "names a worker twice"),
        (Cluster(("a:1", "b:1"), 2), "--worker_index=2 must be from 0 to 1"),
        (Cluster(("a:1", "b:1"), -1), "--worker_index=-1 must be from 0 to 1"),
    ],
)
def test_a_cluster_that_cannot_be(cluster, message):
    with pytest.raises(UserError, match=message):
        devices.make_strategy(0, cluster)


@pytest.mark.parametrize(
    ("num_gpus", "names"),
    [(-1, ["GPU:0", "GPU:1", "GPU:2"]), (2, ["GPU:0", "GPU:1"]), (0, ["/cpu:0"])],
)
@pytest.mark.parametrize("has_started", [False, True])
def test_gpus_that_are_not_asked_for_are_left_alone(num_gpus, names, has_started, monkeypatch):
    """Two runs can share a machine: neither takes memory of the other's GPUs."""
    gpus = [types.SimpleNamespace(name=f"GPU:{number}") for number in range(3)]
    visible = list(gpus)

    def set_visible_devices(chosen, kind):
        if has_started:
            raise RuntimeError("Visible devices cannot be modified after being initialized")
        visible[:] = chosen

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus)
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: visible)
    monkeypatch.setattr(tf.config, "set_visible_devices", set_visible_devices)
    monkeypatch.setattr(tf.distribute, "MirroredStrategy", list)
    assert devices.make_strategy(num_gpus) == names
    assert [gpu.name for gpu in visible] == [
        gpu.name for gpu in gpus if has_started or gpu.name in names
    ]


def test_a_lost_worker_is_said_in_a_line():
    class Workers:
        cluster_resolver = "two workers"

    message = r"another worker .* has stopped \(gone\).* on all workers"
    with pytest.raises(UserError, match=message), devices.lost_workers(Workers()):
        raise tf.errors.UnavailableError(None, None, "gone")
    alone = tf.distribute.get_strategy()
    with pytest.raises(tf.errors.UnavailableError), devices.lost_workers(alone):
        raise tf.errors.UnavailableError(None, None, "a disk")


def write_flagfile(directory):
    """Records and options under which rounding, which differs, changes no discrete choice.

    The 8 images are smooth, without equal pixels: equal scores would be ranked as they please. All
    RoIs are sampled, since a RoI's random number goes by the rank of its score; that of an anchor,
    of which a few are sampled, goes by its place. The small learning rate keeps differences small.
    """
    rng = np.random.default_rng(0)
    annotations = [
        harness.annotation(image, [*corner, *side], category_id=int(rng.integers(1, 4)))
        for image in range(1, 9)
        for corner, side in [(rng.integers(0, 30, 2).tolist(), rng.integers(16, 34, 2).tolist())]
        for _ in range(1 + image % 3)
    ]
    path, images = harness.write_coco(directory / "coco", annotations, sizes=[(64, 64)] * 8)
    coco.convert(path, images, Output(str(directory / "records"), "smooth", workers=1))
    config = batches.tiny_config(
        train_records=(str(directory / "records"),),
        normalization="sync_batch_norm",
        pixel_std=(57.0, 57.0, 57.0),
        rpn_post_nms_train=20,
        roi_batch_size=128,
        learning_rate=0.0002,
        warmup_steps=10,
        lr_steps=(40,),
        train_steps=STEPS,
        checkpoint_interval=STEPS // 2,
        summary_interval=1,
        keep_checkpoints=9,
        ema_decay=0.9,
        num_gpus=0,
    )
    path = directory / "run.flags"
    path.write_text(config_lib.to_text(config))
    return path


def start(*command):
    """A process in the repository; its output is read by `finish`."""
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=harness.REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(harness.REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*processes):
    outputs = [process.communicate(timeout=1800)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), outputs
    return outputs


def scalars(run):
    """{name: {step: value}} of a run's TensorBoard logs."""
    found: dict[str, dict[int, float]] = {}
    for path in sorted((run / "train").glob("events*")):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = tf.make_ndarray(value.tensor).item()
    return found


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    """(flagfile, run) of 50 steps on one device."""
    directory = tmp_path_factory.mktemp("devices")
    flagfile = write_flagfile(directory)
    run = directory / "one"
    finish(start("-m", "maskx_tf.train", f"--flagfile={flagfile}", f"--model_dir={run}"))
    return flagfile, run


def assert_equal_runs(run, wanted):
    found, wanted_points = scalars(run), scalars(wanted)
    for name in ("loss", "rpn_score", "rpn_box", "class", "box", "mask", "learning_rate"):
        assert list(wanted_points[name]) == list(range(1, STEPS + 1))
        assert list(found[name]) == list(wanted_points[name])
        differences = [abs(found[name][s] - wanted_points[name][s]) for s in found[name]]
        assert max(differences) < 1e-4, (name, differences)
    weights = [
        {v.name: v.numpy() for v in checkpoints.load_model(str(path)).model.weights}
        for path in (run, wanted)
    ]
    for name, value in weights[1].items():
        np.testing.assert_allclose(weights[0][name], value, rtol=1e-2, atol=1e-3, err_msg=name)


@pytest.mark.slow
def test_two_devices_train_as_one(one_device):
    flagfile, wanted = one_device
    run = wanted.with_name("two")
    path = flagfile.with_name("two.flags")
    path.write_text(f"{flagfile.read_text()}--model_dir={run}\n")
    finish(start("-c", TWO_CPUS, path))
    assert_equal_runs(run, wanted)


@pytest.mark.slow
def test_two_processes_train_as_one_and_a_signal_to_one_ends_both(one_device):
    flagfile, wanted = one_device
    run = wanted.with_name("workers")

    def begin():
        hosts = ",".join(f"localhost:{port}" for port in free_ports(2))
        command = ("-m", "maskx_tf.train", f"--flagfile={flagfile}", f"--model_dir={run}")
        return [start(*command, f"--worker_hosts={hosts}", f"--worker_index={i}") for i in range(2)]

    chief, other = begin()
    lines = iter(chief.stdout.readline, "")
    assert any(re.match("step +20/", line) for line in lines)
    other.send_signal(signal.SIGTERM)
    said, _ = chief.communicate(timeout=600)
    other.communicate(timeout=600)
    assert (chief.returncode, other.returncode) == (143, 143), said
    step = int(re.search(rf"SIGTERM: saved {run}/ckpt-(\d+); repeat the command", said)[1])
    assert 20 <= step < STEPS
    saved = config_lib.load(str(run))
    assert saved == config_lib.read_flagfile(str(flagfile)).replace(model_dir=str(run))
    for output in finish(*begin()):
        assert f"Resuming {run}/ckpt-{step} at step {step}." in output
    assert_equal_runs(run, wanted)
    files, wanted_files = (
        # The names of event files have the time and the process.
        {
            path.name.split(".")[0] if path.name.startswith("events.") else path.name
            for path in directory.iterdir()
            if not path.name.startswith("ckpt-")
        }
        for directory in (run, wanted)
    )
    assert files == wanted_files  # nothing of worker 1
    assert len(list((run / "train").glob("events*"))) == 2  # the chief's, one for each start


@pytest.mark.slow
def test_workers_that_differ_are_refused(one_device):
    """They would train to the end, each with weights of its own and the gradients of all."""
    flagfile, run = one_device
    hosts = ",".join(f"localhost:{port}" for port in free_ports(2))
    command = ("-m", "maskx_tf.train", f"--flagfile={flagfile}", f"--worker_hosts={hosts}")
    processes = [
        start(*command, "--worker_index=0", f"--model_dir={run}"),
        start(*command, "--worker_index=1", f"--model_dir={run}_copy", "--learning_rate=0.1"),
    ]
    for process in processes:
        output = process.communicate(timeout=600)[0]
        assert process.returncode == 2, output
        assert (
            "error: the workers differ in --model_dir, --learning_rate, the last checkpoint: start "
            "the same command on all"
        ) in output


@pytest.mark.slow
def test_waiting_for_workers_is_said_and_ends_on_ctrl_c(tmp_path):
    hosts = ",".join(f"localhost:{port}" for port in free_ports(2))
    code = (
        "import sys; from maskx_tf.training import devices\n"
        "from maskx_tf.training.devices import Cluster\n"
    )
    process = start(
        "-c", f"{code}devices.make_strategy(0, Cluster(tuple(sys.argv[1].split(',')), 0))", hosts
    )
    lines = iter(process.stdout.readline, "")
    assert "Waiting until all 2 workers have started.\n" in lines
    time.sleep(5)  # it is in the middle of that
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for item in sockets:
        item.bind(("localhost", 0))
    ports = [item.getsockname()[1] for item in sockets]
    for item in sockets:
        item.close()
    return ports
