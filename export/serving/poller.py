"""The thread that looks for new versions."""

from __future__ import annotations

import threading

from absl import logging

from export.serving.versions import Model


class Poller:
    """A thread that polls models: at once, and then every `wait_s` seconds (0: never again)."""

    def __init__(self, models: list[Model], wait_s: float):
        self._models = models
        self._wait_s = wait_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="versions", daemon=True)

    def start(self) -> None:
        """Starts polling."""
        self._thread.start()

    def close(self) -> None:
        """Ends polling, after a load that is under way."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            for model in self._models:
                try:
                    model.poll(self._stop.is_set)
                except Exception:  # the next round may succeed; without this thread none would
                    logging.exception("%s: looking for versions failed", model.name)
            if self._wait_s <= 0:
                return
            self._stop.wait(self._wait_s)
