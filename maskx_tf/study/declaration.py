"""What a study is: the TOML file that declares it, read and checked. See docs/study.md."""

from __future__ import annotations

import dataclasses
import pathlib
import tomllib
from typing import Any

from maskx_tf.errors import UserError
from maskx_tf.evaluation.coco import METRICS
from maskx_tf.evaluation.report import SUBSETS
from maskx_tf.system import flagfiles


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the tables: a configuration, trained once for each seed and split.

    Attributes:
      name: key in the declaration.
      title: what tables call it.
      flagfile: of maskx_tf.train; "" for a row that only evaluates the detector.
      flags: further flags, with `{seed}` and `{detector}` filled in.
      evaluate: flags of maskx_tf.evaluate, for a row that trains nothing.
      of: the row whose models such a row evaluates; "" for the detector.
    """

    name: str
    title: str
    flagfile: str = ""
    flags: tuple[str, ...] = ()
    evaluate: tuple[str, ...] = ()
    of: str = ""


@dataclasses.dataclass(frozen=True)
class Split:
    """Which classes have masks (A); the others are B."""

    name: str
    title: str
    mask_classes: str
    size: int = 0  # of A, for a split drawn at random
    rows: tuple[str, ...] = ()  # all, where empty


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of the paper: its rows, and the published values of each."""

    title: str
    rows: tuple[str, ...]
    published: dict[str, tuple[float, ...]]
    columns: tuple[str, ...]  # split/subset, such as a_to_b/B
    metrics: tuple[str, ...] = ("AP",)


@dataclasses.dataclass(frozen=True)
class Check:
    """A claim of the paper: `higher` scores more than each of `lower`, or `at_least` as much."""

    claim: str
    higher: tuple[str, ...]
    lower: tuple[str, ...]
    subset: str = "B"
    at_least: bool = False
    tolerance: float = 0.0  # AP points that may be lost where `at_least`


@dataclasses.dataclass(frozen=True)
class Study:
    """Everything that a declaration says."""

    name: str
    title: str
    seeds: tuple[int, ...]
    detector: str
    rows: dict[str, Row]
    splits: dict[str, Split]
    flags: tuple[str, ...] = ()
    prepare: tuple[tuple[str, str], ...] = ()  # (command, what it makes)
    tables: tuple[Table, ...] = ()
    checks: tuple[Check, ...] = ()
    seconds_per_step: dict[str, float] = dataclasses.field(default_factory=dict)
    share_features: bool = True  # rows of a split on the same detector train on cached features
    directory: str = ""  # of everything; empty: one for runs, another for results

    @property
    def runs_dir(self) -> pathlib.Path:
        """Where data that are not kept go."""
        return pathlib.Path(self.directory or f"runs/study_{self.name}")

    @property
    def results_dir(self) -> pathlib.Path:
        """Where results go."""
        return pathlib.Path(self.directory or f"docs/results/{self.name}")

    @property
    def designed_splits(self) -> list[Split]:
        """Those that were not drawn at random."""
        return [split for split in self.splits.values() if not split.size]


def load(path: str) -> Study:
    """Reads a declaration; UserError where it is wrong."""
    try:
        content = tomllib.loads(pathlib.Path(flagfiles.resolve(path)).read_text())
    except OSError as error:
        raise UserError(f"--study={path} cannot be read: {error.strerror}.") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"--study={path} is not TOML: {error}.") from None
    try:
        return _study(content)
    except (KeyError, TypeError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise UserError(f"--study={path}: {reason}; docs/study.md says what there is.") from None
    except UserError as error:
        raise UserError(f"--study={path}: {error}") from None


def _study(content: dict[str, Any]) -> Study:
    rows = {n: Row(n, **_tuples(row)) for n, row in content.pop("rows").items()}
    splits = {n: Split(n, **_tuples(split)) for n, split in content.pop("splits").items()}
    drawn = content.pop("random_splits", {})
    if unknown := drawn.keys() - {"sizes", "rows"}:
        raise UserError(f"random_splits has sizes and rows, no {_list(sorted(unknown))}.")
    for size in drawn.get("sizes", []):
        name = f"random{size}"
        file = f"{{runs_dir}}/seed{{seed}}/{name}.txt"
        splits[name] = Split(name, f"{size} random classes", file, size, tuple(drawn["rows"]))
    tables = tuple(_table(table) for table in content.pop("tables", []))
    checks = tuple(Check(**_tuples(check)) for check in content.pop("checks", []))
    prepare = tuple((p["command"], p["creates"]) for p in content.pop("prepare", []))
    study = Study(
        rows=rows, splits=splits, tables=tables, checks=checks, prepare=prepare, **_tuples(content)
    )
    _check(study)
    return study


def _table(table: dict[str, Any]) -> Table:
    published = {name: tuple(values) for name, values in table.pop("published", {}).items()}
    return Table(published=published, **_tuples(table))


def _check(study: Study) -> None:
    used = [name for table in study.tables for name in (*table.rows, *table.published)]
    used += [name for check in study.checks for name in check.higher + check.lower]
    used += [name for split in study.splits.values() for name in split.rows]
    used += [row.of for row in study.rows.values() if row.of]
    unknown = sorted(set(used) - set(study.rows))
    if unknown:
        raise UserError(f"there are no rows {_list(unknown)}; there are {_list(study.rows)}.")
    if "detector" in study.rows:
        raise UserError("a row cannot be called detector: so is the directory of stage 1.")
    for row in study.rows.values():
        if bool(row.flagfile) == bool(row.evaluate):
            raise UserError(f"row {row.name} needs either flagfile or evaluate.")
        if row.of and not (row.evaluate and study.rows[row.of].flagfile):
            raise UserError(f"row {row.name}: `of` names a trained row that `evaluate` evaluates.")
        if row.evaluate and row.flags:
            raise UserError(
                f"row {row.name} trains nothing, so it has no `flags`; list those of "
                "maskx_tf.evaluate in `evaluate`."
            )
    for check in study.checks:
        if check.subset not in SUBSETS:
            raise UserError(f"{check.claim}: subset {check.subset} is none of {_list(SUBSETS)}.")
        if check.tolerance and not check.at_least:
            raise UserError(f"{check.claim}: tolerance needs at_least = true.")
    for table in study.tables:
        _check_table(study, table)


def _check_table(study: Study, table: Table) -> None:
    for column in table.columns:
        split, _, subset = column.partition("/")
        if split not in study.splits or subset not in SUBSETS:
            raise UserError(f"column {column} of {table.title} is not SPLIT/A, /B or /all.")
    if unknown := sorted(set(table.metrics) - set(METRICS)):
        raise UserError(f"{table.title}: metrics {_list(unknown)} are none of {_list(METRICS)}.")
    wanted = len(table.columns) * len(table.metrics)
    for name, values in table.published.items():
        if len(values) != wanted:
            raise UserError(f"{table.title}, {name}: {len(values)} values for {wanted} columns")


def _tuples(options: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}


def _list(names) -> str:
    return ", ".join(names)
