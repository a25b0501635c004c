"""Keeps TensorFlow's cost model from logging about every crop whose number of boxes varies."""

from tensorflow.core.protobuf import config_pb2, rewriter_config_pb2
from tensorflow.python.eager import context


def silence() -> None:
    """Leaves out the one graph optimisation that asks for costs: moving tensors out of a full GPU.

    For each crop-and-resize it would log a line of a thousand characters, which no log level stops.
    `tf.config.optimizer` has no name for it. Call before the first `tf.function` of a thread runs.
    """
    running = context.context()
    config = config_pb2.ConfigProto()
    if running._config is not None:
        config.CopyFrom(running._config)
    options = config.graph_options.rewrite_options
    options.memory_optimization = rewriter_config_pb2.RewriterConfig.NO_MEM_OPT
    running._config = config
    running.function_call_options = None  # this thread's, made of the config when first asked for
