"""The devices a run trains on: GPUs of one machine or of several, or the CPU."""

import atexit
import contextlib
import dataclasses
import functools
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator

import tensorflow as tf
from tensorflow.python.eager import context

from maskx_tf.errors import UserError

# How long a worker may be silent until the others give up, and wait for it at the end.
PATIENCE_S = 120


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Several machines (or processes), each of which runs the same command.

    Attributes:
      hosts: `host:port` of every worker, in the same order everywhere. Empty: this process alone,
        or those that the environment variable TF_CONFIG describes.
      index: of this worker; number 0 is the chief, who alone writes the run.
    """

    hosts: tuple[str, ...] = ()
    index: int = 0


def use_gpus(num_gpus: int) -> list:
    """Lets TensorFlow see so many GPUs (-1: all), before it starts; those it may use.

    Raises:
      UserError: there are fewer.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if num_gpus > len(gpus):
        raise UserError(f"--num_gpus={num_gpus}, but TensorFlow sees {len(gpus)} GPUs.")
    chosen = gpus if num_gpus < 0 else gpus[:num_gpus]
    # TensorFlow takes memory of all that it sees. Once it has started it is too late for that.
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices(chosen, "GPU")
    return chosen


def make_strategy(num_gpus: int, cluster: Cluster | None = None) -> tf.distribute.Strategy:
    """A strategy over the GPUs asked for (-1: all) of each worker, or the CPU where is none.

    Call it before anything else uses TensorFlow: a cluster can only be joined at the start.

    Raises:
      UserError: there are fewer GPUs, or the cluster's description is wrong.
    """
    resolver = _resolver(cluster or Cluster())
    chosen = use_gpus(num_gpus)
    if not chosen:
        # On the CPU the gradient of crop-and-resize is a race: threads lose each other's updates,
        # up to half of a cell's value (tensorflow#42033). This makes it one thread.
        tf.config.experimental.enable_op_determinism()
    if resolver is None:
        # This starts TensorFlow: no cluster can be joined afterwards.
        logical = tf.config.list_logical_devices("GPU")[: len(chosen)]
        return tf.distribute.MirroredStrategy([gpu.name for gpu in logical] or ["/cpu:0"])
    _be_patient()
    spec = resolver.cluster_spec()
    count = sum(spec.num_tasks(job) for job in spec.jobs)
    print(f"Waiting until all {count} workers have started.", file=sys.stderr, flush=True)
    try:
        with _ended_by_ctrl_c():
            return tf.distribute.MultiWorkerMirroredStrategy(resolver)
    except (RuntimeError, tf.errors.OpError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"cannot join the workers of --worker_hosts: {reason}") from None


def _be_patient() -> None:
    """TensorFlow waits ten seconds, too few on a busy machine, and has no option for it."""
    running = context.context()
    running.configure_coordination_service = functools.partial(
        running.configure_coordination_service,
        heartbeat_timeout_in_ms=PATIENCE_S * 1000,
        shutdown_barrier_timeout_in_ms=PATIENCE_S * 1000,
    )


@contextlib.contextmanager
def _ended_by_ctrl_c() -> Iterator[None]:
    """Python's own handler does not run before TensorFlow returns, with all workers there."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def lost_workers(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Makes a UserError of what TensorFlow reports when another worker has ended."""
    lost = (tf.errors.UnavailableError, tf.errors.DeadlineExceededError, tf.errors.AbortedError)
    try:
        yield
    except lost as error:
        if strategy.cluster_resolver is None:
            raise
        reason = " ".join(error.message.split())[:300]
        raise UserError(
            f"another worker of --worker_hosts has stopped ({reason}). Its own messages say why; "
            "repeat the command on all workers to resume from the last checkpoint."
        ) from None


def _resolver(cluster: Cluster) -> tf.distribute.cluster_resolver.ClusterResolver | None:
    """None if there is one worker only."""
    if not cluster.hosts:
        resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
        return resolver if os.environ.get("TF_CONFIG") and resolver.task_type else None
    _check(cluster)
    return tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(cluster.hosts)}),
        task_type="worker",
        task_id=cluster.index,
        rpc_layer="grpc",
    )


def _check(cluster: Cluster) -> None:
    for host in cluster.hosts:
        name, _, port = host.rpartition(":")
        if not name or not port.isdecimal():
            raise UserError(f"--worker_hosts: {host!r} is not of the form host:port.")
    if len(set(cluster.hosts)) < len(cluster.hosts):
        raise UserError(f"--worker_hosts={','.join(cluster.hosts)} names a worker twice.")
    if not 0 <= cluster.index < len(cluster.hosts):
        raise UserError(
            f"--worker_index={cluster.index} must be from 0 to {len(cluster.hosts) - 1}: "
            f"--worker_hosts names {len(cluster.hosts)} workers."
        )


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one that writes the run."""
    return strategy.extended.should_checkpoint


def checkpoint_directory(strategy: tf.distribute.Strategy, model_dir: str) -> str:
    """Where this process saves: `model_dir`, or a temporary place unless it is the chief.

    All workers have to save: values that each has its own of are added up over all then.
    """
    if is_chief(strategy):
        return model_dir
    directory = tempfile.mkdtemp(prefix="maskx_tf_worker_")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory
