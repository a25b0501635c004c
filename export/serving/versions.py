"""The versions of one model: found on disk, loaded, swapped and unloaded while requests run."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import pathlib
import threading
from collections.abc import Callable, Iterator

from absl import logging
from tensorflow_serving.apis.get_model_status_pb2 import ModelVersionStatus as Status
from tensorflow_serving.config import model_server_config_pb2

from export.serving.errors import Code, ServingError, invalid
from export.serving.servable import Servable

VERSION_FILES = ("saved_model.pb", "model.xml", "model.onnx")  # TensorFlow's, OpenVINO's, ONNX's


@dataclasses.dataclass
class _Version:
    """One version, from the time it was first wanted; kept after its end for the status."""

    state: int = Status.START
    error: ServingError | None = None
    servable: Servable | None = None
    users: int = 0
    stamp: tuple = ()  # of the files that failed to load


class Model:
    """The versions of a model under its base path.

    `poll` loads what should be served before it unloads what should not, so that there is a
    version to answer at any time. A version that fails to load is left out, until one of its files
    changes, as if it were not there: the one before it goes on, or is loaded.
    """

    def __init__(
        self,
        config: model_server_config_pb2.ModelConfig,
        load: Callable[[str], Servable],
        on_change: Callable[[int], None] = lambda version: None,
    ):
        """Takes the model's configuration, what loads a version, and who hears of the newest."""
        self.name = config.name
        self._config = config
        self._load_servable = load
        self._on_change = on_change
        self._versions: dict[int, _Version] = {}
        self._condition = threading.Condition()
        self._warned = False  # that there is nothing to serve

    @property
    def ready(self) -> bool:
        """Whether a version is available."""
        with self._condition:
            return bool(self._available())

    @contextlib.contextmanager
    def acquire(self, version: int | None = None, label: str = "") -> Iterator[tuple]:
        """(number, `Servable`) of a version, by default the newest, which stays until released.

        Raises:
          ServingError: NOT_FOUND, or INVALID_ARGUMENT for an unknown label.
        """
        version = self._resolve(version, label)
        with self._condition:
            number = max(self._available(), default=None) if version is None else version
            if number not in self._available():
                which = f"Latest({self.name})"
                if version is not None:
                    which = f"Specific({self.name}, {version})"
                raise ServingError(Code.NOT_FOUND, f"Servable not found for request: {which}")
            entry = self._versions[number]
            entry.users += 1
        try:
            yield number, entry.servable
        finally:
            with self._condition:
                entry.users -= 1
                self._condition.notify_all()

    def status(self, version: int | None = None, label: str = "") -> list[Status]:
        """The state of one version or of all, newest first.

        Raises:
          ServingError: NOT_FOUND, or INVALID_ARGUMENT for an unknown label.
        """
        version = self._resolve(version, label)
        with self._condition:
            numbers = sorted(self._versions, reverse=True)
            if version is not None:
                numbers = [number for number in numbers if number == version]
            if not numbers:
                what = f"version {version}" if version is not None else "any versions"
                raise ServingError(Code.NOT_FOUND, f"Could not find {what} of model {self.name}")
            return [self._status(number) for number in numbers]

    def poll(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Brings what is loaded in line with what lies on disk.

        Args:
          stopped: looked at before each load; where it is true, the rest is left undone.
        """
        tried: set[int] = set()  # one that is being copied may look new each time
        while not stopped():
            paths = find_versions(self._config.base_path)
            self._warn_of_nothing(paths)
            wanted = self._wanted(paths, tried - self._available())
            missing = [number for number in wanted if number not in self._available()]
            if not missing:
                if wanted:
                    for number in sorted(self._available() - set(wanted)):
                        self._unload(number)
                return
            self._load(missing[0], paths[missing[0]])
            tried.add(missing[0])

    def close(self) -> None:
        """Unloads all versions, each once its last request is done."""
        for number in sorted(self._available()):
            self._unload(number)

    def _warn_of_nothing(self, paths: dict[int, pathlib.Path]) -> None:
        if not paths and not self._warned:
            logging.warning(
                "%s: nothing to serve under %s yet: it has no directory named with a number that "
                "holds a saved_model.pb, a model.xml or a model.onnx",
                self.name,
                self._config.base_path,
            )
        self._warned = not paths

    def _resolve(self, version: int | None, label: str) -> int | None:
        if not label:
            return version
        if label not in self._config.version_labels:
            raise invalid(f"Unrecognized servable version label: {label[:100]}")
        return self._config.version_labels[label]

    def _available(self) -> set[int]:
        return {n for n, entry in self._versions.items() if entry.state == Status.AVAILABLE}

    def _status(self, number: int) -> Status:
        entry = self._versions[number]
        status = Status(version=number, state=entry.state)
        if entry.error:
            status.status.error_code = entry.error.code.value[0]
            status.status.error_message = entry.error.message
        return status

    def _wanted(self, paths: dict[int, pathlib.Path], failed: set[int]) -> list[int]:
        """Versions that should be served, newest first."""
        numbers = sorted(set(paths) - failed, reverse=True)
        good = [number for number in numbers if not self._failed(number, paths)]
        policy = self._config.model_version_policy
        if policy.HasField("all"):
            return good
        if policy.HasField("specific"):
            return [number for number in good if number in policy.specific.versions]
        return good[: max(1, policy.latest.num_versions)]

    def _failed(self, number: int, paths: dict[int, pathlib.Path]) -> bool:
        entry = self._versions.get(number)
        return entry is not None and bool(entry.stamp) and entry.stamp == _stamp(paths[number])

    def _load(self, number: int, path: pathlib.Path) -> None:
        entry, stamp = _Version(state=Status.LOADING), _stamp(path)
        with self._condition:
            self._versions[number] = entry
        logging.info("%s: loading version %d from %s", self.name, number, path)
        servable = None
        try:
            servable = self._load_servable(str(path))
            warmed = servable.warm_up()
        except Exception as error:
            if servable:
                servable.close()
            # TensorFlow raises what it likes on damaged files: whatever it is, the others go on.
            message = f"{path}: {type(error).__name__}: {error}"
            with self._condition:
                entry.error = ServingError(getattr(error, "code", None) or Code.UNKNOWN, message)
                entry.state, entry.stamp = Status.END, stamp
            logging.error("%s: version %d cannot be loaded: %s", self.name, number, entry.error)
            return
        with self._condition:
            entry.servable, entry.state = servable, Status.AVAILABLE
            newest = max(self._available())
        self._on_change(newest)
        logging.info("%s: version %d is available (%d warm-up requests)", self.name, number, warmed)

    def _unload(self, number: int) -> None:
        entry = self._versions[number]
        with self._condition:
            entry.state = Status.UNLOADING
            self._condition.wait_for(lambda: not entry.users)
            servable, entry.servable = entry.servable, None
            newest = max(self._available(), default=0)
        if servable:
            servable.close()
        del servable
        gc.collect()  # graphs hold themselves in cycles
        with self._condition:
            entry.state = Status.END
        self._on_change(newest)
        logging.info("%s: version %d is unloaded", self.name, number)


def find_versions(base_path: str) -> dict[int, pathlib.Path]:
    """Complete version directories by number: those that hold one of `VERSION_FILES`."""
    try:
        with os.scandir(base_path) as entries:
            paths = [pathlib.Path(entry.path) for entry in entries if entry.name.isascii()]
    except OSError as error:
        logging.error("%s cannot be listed: %s", base_path, error.strerror)
        return {}
    return {
        int(path.name): path
        for path in paths
        if path.name.isdecimal()
        and len(path.name) < 19
        and any((path / name).is_file() for name in VERSION_FILES)
    }


def _stamp(path: pathlib.Path) -> tuple:
    """Name, size and time of all files of a version: it may have been copied in part only."""
    found = []
    for folder, _, names in os.walk(path):
        for name in names:
            file = os.path.join(folder, name)
            with contextlib.suppress(OSError):  # renamed or removed meanwhile
                status = os.stat(file)
                found.append((file, status.st_size, status.st_mtime_ns))
    return tuple(sorted(found)) or ("gone",)
