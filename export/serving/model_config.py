"""Which models to serve: from flags, or from TensorFlow Serving's own configuration file."""

from __future__ import annotations

import pathlib

from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from export.serving.versions import VERSION_FILES
from maskx_tf.errors import UserError


class ConfigError(UserError):
    """What the user gave to start the server is wrong; the message says what to do."""


def single(name: str, base_path: str) -> list[model_server_config_pb2.ModelConfig]:
    """One model, of which the newest version is served.

    Raises:
      ConfigError: the base path is not a directory, or is a version itself.
    """
    if not base_path:
        raise ConfigError("--model_base_path=DIRECTORY is needed: it holds version directories.")
    return [_checked(model_server_config_pb2.ModelConfig(name=name, base_path=base_path))]


def read(path: str) -> list[model_server_config_pb2.ModelConfig]:
    """The models of a `model_config_list` in text format.

    Raises:
      ConfigError: the file cannot be read or used.
    """
    config = model_server_config_pb2.ModelServerConfig()
    try:
        text_format.Parse(pathlib.Path(path).read_text(), config)
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise ConfigError(f"--model_config_file={path}: {error}") from None
    models = [_checked(model) for model in config.model_config_list.config]
    names = [model.name for model in models]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"--model_config_file={path}: needs models of different names: {names}")
    return models


def _checked(
    model: model_server_config_pb2.ModelConfig,
) -> model_server_config_pb2.ModelConfig:
    base_path = pathlib.Path(model.base_path)
    if not model.name or "/" in model.name or ":" in model.name:
        raise ConfigError(f"{model.name!r} cannot be a model's name: it is part of a URL.")
    if not base_path.is_dir():
        raise ConfigError(f"model {model.name}: {base_path} is not a directory.")
    if any((base_path / name).is_file() for name in VERSION_FILES):
        raise ConfigError(
            f"model {model.name}: {base_path} is one version; give the directory above it, "
            f"{base_path.resolve().parent}."
        )
    return model
