"""Serves exported models on this machine, over TensorFlow Serving's REST and gRPC interface.

Example:
  maskx serve --model_base_path=exported/mine

For trying a model out, and for machines without Docker. For production take TensorFlow Serving:
it reads the same directories, and clients need no change. See docs/serving.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import pathlib
import signal
import threading
from collections.abc import Iterator

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is there

import tensorflow as tf
from absl import flags, logging
from aiohttp import web

from export.serving import grpc_api, model_config, rest
from export.serving.core import Core, Options
from export.serving.feature_cache import FeatureCache
from export.serving.graph_servable import GraphServable
from export.serving.metrics import Metrics
from export.serving.poller import Poller
from export.serving.servable import Servable
from export.serving.versions import Model
from maskx_tf.errors import UserError
from maskx_tf.inference import graph_model
from maskx_tf.system import cli

NOTICE = (
    "This is a local server for trying models out. For production use TensorFlow Serving, which "
    "serves the same directory to the same clients: docs/serving.md."
)


def define_flags() -> None:
    """Defines this command's flags, named as tensorflow_model_server's where it has them."""
    default = Options()
    flags.DEFINE_string("model_name", "maskx", "Name of the model in URLs and requests.")
    flags.DEFINE_string("model_base_path", "", "Directory with one directory per version.")
    flags.DEFINE_string(
        "model_config_file", "", "TensorFlow Serving's configuration of models, instead of both."
    )
    flags.DEFINE_string("host", default.host, "Address to listen on; 0.0.0.0: every network.")
    flags.DEFINE_integer("port", default.port, "Port of gRPC; 0: any free one.", 0, 65535)
    flags.DEFINE_integer(
        "rest_api_port", default.rest_api_port, "Port of REST; 0: any free one.", 0, 65535
    )
    flags.DEFINE_integer(
        "rest_api_timeout_in_ms", default.rest_api_timeout_in_ms, "Time limit of a REST request.", 1
    )
    flags.DEFINE_bool(
        "rest_api_enable_cors_support",
        default.rest_api_enable_cors_support,
        "Let web pages of other origins send requests.",
    )
    flags.DEFINE_float(
        "file_system_poll_wait_seconds",
        default.file_system_poll_wait_seconds,
        "Seconds between checks for new versions; 0: only at the start.",
        0,
    )
    flags.DEFINE_integer("num_workers", default.num_workers, "Requests that run at once.", 1)
    flags.DEFINE_integer("max_queue", default.max_queue, "Most requests that may wait.", 0)
    flags.DEFINE_integer(
        "max_request_bytes", default.max_request_bytes, "Largest request.", 1024, (1 << 31) - 1
    )
    flags.DEFINE_integer(
        "feature_cache_bytes",
        default.feature_cache_bytes,
        "Memory for features of the images that boxes were asked of last; 0: none are kept.",
        0,
    )
    flags.DEFINE_float(
        "shutdown_grace_seconds",
        default.shutdown_grace_seconds,
        "Time to finish requests after SIGTERM.",
        0,
    )
    flags.DEFINE_integer(
        "tensorflow_intra_op_parallelism", 0, "Threads within an operation; 0: all cores.", 0
    )
    flags.DEFINE_integer(
        "tensorflow_inter_op_parallelism", 0, "Operations at once; 0: all cores.", 0
    )


def load(path: str, threads: tuple[int, int], cache: FeatureCache | None = None) -> Servable:
    """A version in any format; threads (inter, intra) and cache as of `Servable`."""
    if graph_model.is_version(pathlib.Path(path)):
        return GraphServable(path, threads[1])
    return Servable(path, threads, cache)


class Server:
    """Both protocols, the models behind them, and the way to start and stop them together."""

    def __init__(self, configs: list, options: Options, threads: tuple[int, int] = (0, 0)):
        """Takes ModelConfigs, and (inter, intra) threads of each model's session."""
        metrics = Metrics()
        size = options.feature_cache_bytes
        cache = FeatureCache(size) if size else None
        models = []
        for config in configs:
            gauge = metrics.version.labels(config.name)
            models.append(Model(config, lambda path: load(path, threads, cache), gauge.set))
        self.core = Core(models, options, metrics)
        self.port = self.rest_api_port = 0
        self._poller = Poller(models, options.file_system_poll_wait_seconds)

    async def start(self) -> None:
        """Listens, and begins to load models; `port` and `rest_api_port` are known then.

        Raises:
          OSError: a port is taken.
        """
        options = self.core.options
        self._grpc = grpc_api.create_server(self.core)
        address = _address(options.host, options.port)
        try:
            self.port = self._grpc.add_insecure_port(address)
        except RuntimeError:
            raise OSError(f"{address} cannot be listened on") from None
        self._runner = web.AppRunner(
            rest.application(self.core),
            access_log=None,
            handler_cancellation=True,
            shutdown_timeout=options.shutdown_grace_seconds,
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, options.host, options.rest_api_port)
        await site.start()
        self.rest_api_port = self._runner.addresses[0][1]
        await self._grpc.start()
        self._poller.start()

    async def stop(self) -> bool:
        """Refuses new requests, answers those under way, and unloads the models.

        Returns:
          Whether all was answered within the grace. If not, some still run, and nothing is
          unloaded: the process should end.
        """
        self.core.stop()
        grace_s = self.core.options.shutdown_grace_seconds
        try:
            async with asyncio.timeout(grace_s):
                while not self.core.admission.idle:
                    await asyncio.sleep(0.01)
        except TimeoutError:
            return False
        await asyncio.gather(self._grpc.stop(grace_s), self._runner.cleanup())
        await asyncio.to_thread(self._close)
        return True

    def _close(self) -> None:
        self._poller.close()
        self.core.admission.close()
        for model in self.core.models.values():
            model.close()


@contextlib.contextmanager
def running(server: Server) -> Iterator[Server]:
    """Runs a server in a thread of this process, from start to stop."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="server")
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result()
        try:
            yield server
        finally:
            asyncio.run_coroutine_threadsafe(server.stop(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def serve(server: Server) -> None:
    """Serves until SIGTERM or SIGINT."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    await server.start()
    host = server.core.options.host
    names = ", ".join(server.core.models)
    print(NOTICE)
    print(f"REST  http://{_address(host, server.rest_api_port)}/v1/models/{names}")
    print(f"gRPC  {_address(host, server.port)}", flush=True)
    await stopped.wait()
    print("stopping: no new requests; finishing those under way", flush=True)
    if not await server.stop():
        grace_s = server.core.options.shutdown_grace_seconds
        print(f"requests that ran for {grace_s:g} s more are cut off", flush=True)
        os._exit(128 + signal.SIGTERM)  # a normal exit would wait for their threads


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"  # IPv6 in brackets


def _options() -> Options:
    values = flags.FLAGS
    names = Options.__dataclass_fields__
    return Options(**{name: getattr(values, name) for name in names})


def main() -> None:
    """Reads the flags and serves."""
    values = flags.FLAGS
    if values.model_config_file:
        configs = model_config.read(values.model_config_file)
    else:
        configs = model_config.single(values.model_name, values.model_base_path)
    threads = values.tensorflow_inter_op_parallelism, values.tensorflow_intra_op_parallelism
    logging.set_verbosity(logging.INFO)
    tf.get_logger().setLevel("ERROR")
    gc.collect()
    gc.freeze()  # so that collecting an unloaded model does not halt requests for a second
    try:
        asyncio.run(serve(Server(configs, _options(), threads)))
    except OSError as error:  # of a port
        raise UserError(f"{error}.") from None


if __name__ == "__main__":
    define_flags()
    cli.run(main)
