"""The results of a study: one json file, in version control, that a fresh clone resumes from."""

from __future__ import annotations

import contextlib
import copy
import json
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np

from maskx_tf.errors import UserError
from maskx_tf.study.declaration import Split
from maskx_tf.study.plan import ALL_SPLITS, Run
from maskx_tf.system import files


class Results:
    """Results of finished runs by their keys.

    Args:
      path: results.json; made by the first `add`.
    """

    def __init__(self, path: pathlib.Path):
        self._path = path
        self.runs: dict[str, dict] = {}
        self._read()

    def _read(self) -> None:
        """Takes over what is in the file; another process may have added to it."""
        if self._path.is_file():
            try:
                self.runs |= json.loads(self._path.read_text())["runs"]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{self._path} is not a study's results: {error}.") from None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from writing into the directory, and has what they added."""
        with files.locked(self._path.parent):
            self._read()
            yield

    def add(self, run: Run, evaluations: dict[str, dict], seconds: float) -> None:
        """Keeps the result of a run, at once, beside those that other processes add.

        Args:
          run: which one.
          evaluations: by split, as of `CocoEvaluator.evaluate`; none of a detector.
          seconds: wall time.
        """
        with self.locked():
            self.runs[run.key] = {
                "digest": run.digest,
                "splits": run.mask_classes,
                "command": " && ".join(run.commands),
                "seconds": round(seconds, 1),
                "evaluations": evaluations,
            }
            runs = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(self.runs.items())]
            files.write_atomically(self._path, '{"runs": {\n' + ",\n".join(runs) + "\n}}\n")

    def has(self, run: Run) -> bool:
        """Whether there is a result of the run as it is declared now, on all of its splits."""
        return run.key in self.runs and _is_whole(self.runs[run.key], run.digest, run.mask_classes)

    def is_outdated(self, run: Run) -> bool:
        """Whether there is one, of other options."""
        return run.key in self.runs and self.runs[run.key].get("digest", run.digest) != run.digest

    def current(self, runs: Iterable[Run]) -> Results:
        """Only what is of these runs as they are declared now, and of their splits."""
        found = copy.copy(self)
        found.runs = {}
        for run in (run for run in runs if run.key in self.runs):
            result = self.runs[run.key]
            made = _evaluations(result, run.digest, run.mask_classes)
            if made is not None:
                found.runs[run.key] = {**result, "evaluations": made}
        return found

    def seconds(self, run: Run) -> float | None:
        """What the row has taken so far, in the mean over its runs; None without any."""
        name = run.key.rpartition("/")[2]
        taken = [r["seconds"] for k, r in self.runs.items() if k.rpartition("/")[2] == name]
        return float(np.mean(taken)) if taken else None

    def value(
        self, seed: int, split: str, row: str, subset: str, metric="AP", section="mask"
    ) -> float | None:
        """A score in percent; None where there is none (yet)."""
        score = self._evaluation(seed, split, row).get(section, {}).get(subset, {}).get(metric)
        return None if score is None else 100 * score

    def class_scores(self, seed: int, split: str, row: str, subset: str) -> np.ndarray | None:
        """Mask AP of each class of a subset in percent, nan where undefined; None without any."""
        of_classes = self._evaluation(seed, split, row).get("classes", {})
        scores = of_classes.get(subset, {}).get("AP")
        return 100 * np.array(scores, np.float64) if scores else None

    def _evaluation(self, seed: int, split: str, row: str) -> dict:
        """Of a row, empty without; of one that is trained for all splits the split's."""
        for trained_on in (split, ALL_SPLITS):
            run = self.runs.get(f"seed{seed}/{trained_on}/{row}", {})
            if split in run.get("evaluations", {}):
                return run["evaluations"][split]
        return {}

    def values(
        self, seeds, split: str | Split, row: str, subset: str, metric="AP", section="mask"
    ) -> list[float]:
        """Scores of all seeds that have one."""
        name = split if isinstance(split, str) else split.name
        found = [self.value(seed, name, row, subset, metric, section) for seed in seeds]
        return [value for value in found if value is not None]


def is_result(path: pathlib.Path, digest: str, splits: dict[str, str]) -> bool:
    """Whether the result of a run is there.

    Args:
      path: of the file.
      digest: of the options that it must be of.
      splits: {name: --mask_classes} that it must be evaluated on.
    """
    return path.is_file() and _is_whole(json.loads(path.read_text()), digest, splits)


def _is_whole(result: dict, digest: str, splits: dict[str, str]) -> bool:
    found = _evaluations(result, digest, splits)
    return found is not None and found.keys() == splits.keys()


def _evaluations(result: dict, digest: str, splits: dict[str, str]) -> dict[str, dict] | None:
    """A result's evaluations of these splits; None where it is of other options."""
    # Results did not always have a digest, nor the set A of their splits.
    if result.get("digest", digest) != digest:
        return None
    made_with = {**splits, **result.get("splits", {})}
    return {
        name: evaluation
        for name, evaluation in result["evaluations"].items()
        if name in splits and made_with[name] == splits[name]
    }
