"""From a declaration to runs: what is trained on what, in which order, with which command."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import tempfile

from maskx_tf import config as config_lib
from maskx_tf.config import Config
from maskx_tf.errors import UserError
from maskx_tf.study.declaration import Row, Split, Study

ALL_SPLITS = "all"


@dataclasses.dataclass(frozen=True)
class Run:
    """One training (or, with `evaluate`, one evaluation of the detector).

    Attributes:
      key: such as seed0/a_to_b/cls_box; `all` in place of the split where the training is the same
        for all of them, as that of an oracle.
      seed, row: what it is of.
      splits: those it is evaluated on, their mask_classes filled in for the seed.
      arguments: of `python -m maskx_tf.train`, or of maskx_tf.evaluate.
      config: what they spell; None for an evaluation.
      evaluations: of an evaluation, all arguments of maskx_tf.evaluate by split.
      digest: of the options that the result depends on, those of the detector included.
    """

    key: str
    seed: int
    row: Row
    splits: tuple[Split, ...]
    arguments: tuple[str, ...]
    config: Config | None
    digest: str
    evaluations: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    @property
    def commands(self) -> list[str]:
        """What to type to repeat it."""
        if self.config:
            return [" ".join(["python -m maskx_tf.train", *self.arguments])]
        return [" ".join(["python -m maskx_tf.evaluate", *a]) for a in self.evaluations.values()]

    @property
    def mask_classes(self) -> dict[str, str]:
        """--mask_classes of every split that it is evaluated on."""
        return {split.name: split.mask_classes for split in self.splits}

    @property
    def mode(self) -> str:
        """stage1_boxes, stage2_masks, end_to_end or evaluation."""
        return self.config.mode if self.config else "evaluation"


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that share a process and, in stage 2, their frozen features."""

    name: str
    seed: int
    runs: tuple[Run, ...]
    needs_detector: bool
    shares_features: bool


class Plan:
    """All runs of a study in the order in which they are made.

    Seed by seed; of each the detector, the stage-wise rows on it split by split, those end to end,
    and at last those on random splits.
    """

    def __init__(self, study: Study):
        self.study = study
        self._read: dict[tuple[str, ...], Config] = {}
        self._detectors = {seed: self._detector(seed) for seed in study.seeds}
        self.groups = [group for seed in study.seeds for group in self._groups(seed)]
        self.runs = [run for group in self.groups for run in group.runs]

    @property
    def stage_wise(self) -> set[str]:
        """The rows on a detector that all of them share."""
        return {r.row.name for group in self.groups if group.needs_detector for r in group.runs}

    def detector(self, seed: int) -> Run:
        """The training of stage 1."""
        return self._detectors[seed]

    def fill(self, text: str, seed: int) -> str:
        """`{seed}`, `{runs_dir}` and `{detector}` in a text of the declaration."""
        detector = self._directory(seed) / "detector"
        return (
            text.replace("{seed}", str(seed))
            .replace("{runs_dir}", str(self.study.runs_dir))
            .replace("{detector}", str(detector))
        )

    def mask_classes(self, split: Split, seed: int) -> str:
        """--mask_classes of a split."""
        return self.fill(split.mask_classes, seed)

    def drawn_splits(self, seed: int) -> list[Split]:
        """The splits that are drawn at random, with their files of the seed."""
        drawn = (split for split in self.study.splits.values() if split.size)
        return [dataclasses.replace(s, mask_classes=self.mask_classes(s, seed)) for s in drawn]

    def _directory(self, seed: int) -> pathlib.Path:
        return self.study.runs_dir / f"seed{seed}"

    def _model_dir(self, seed: int, split: str, row: Row) -> pathlib.Path:
        """Of a row; the split's name says nothing where there is only one."""
        is_only = len(self.study.splits) == 1
        return self._directory(seed) / ("" if is_only else split) / row.name

    def _detector(self, seed: int) -> Run:
        row = Row("detector", "detector", self.study.detector)
        model_dir = f"--model_dir={self._directory(seed) / 'detector'}"
        no_masks = ("--eval_records=", "--mask_classes=none")
        arguments = (*self._arguments(row, seed), model_dir, *no_masks)
        config = self._config(arguments)
        return Run(f"seed{seed}/detector", seed, row, (), arguments, config, digest(config))

    def _arguments(self, row: Row, seed: int) -> tuple[str, ...]:
        flags = [self.fill(flag, seed) for flag in (*self.study.flags, *row.flags)]
        return (f"--flagfile={row.flagfile}", f"--seed={seed}", *flags)

    def _config(self, arguments: tuple[str, ...]) -> Config:
        if arguments not in self._read:
            with tempfile.NamedTemporaryFile("w", suffix=".flags") as file:
                file.write("\n".join(arguments) + "\n")
                file.flush()
                try:
                    self._read[arguments] = config_lib.read_flagfile(file.name)
                except UserError as error:
                    message = str(error).replace(file.name, arguments[0].partition("=")[2])
                    raise UserError(message) from None
        return self._read[arguments]

    def _groups(self, seed: int) -> list[Group]:
        stage_wise: list[Group] = []
        end_to_end: list[Run] = []
        random: list[Group] = []
        for split in self.study.splits.values():
            rows = [row for row in self._rows(split) if not self._is_shared(row, seed)]
            runs = [self._run(row, (split,), seed) for row in rows]
            frozen = tuple(run for run in runs if run.mode in ("stage2_masks", "evaluation"))
            if frozen:
                shares = self.study.share_features and len(frozen) > 1
                group = Group(f"seed{seed}/{split.name}", seed, frozen, True, shares)
                (random if split.size else stage_wise).append(group)
            end_to_end += [run for run in runs if run.mode == "end_to_end"]
        for run in self._shared_runs(seed):
            if run.mode == "end_to_end":
                end_to_end.append(run)
            else:
                stage_wise.append(Group(run.key, seed, (run,), True, False))
        alone = [Group(run.key, seed, (run,), False, False) for run in end_to_end]
        return stage_wise + alone + random

    def _rows(self, split: Split) -> list[Row]:
        """Rows that have results on a split."""
        rows = self.study.rows.values()
        return [row for row in rows if not split.rows or row.name in split.rows]

    def _is_shared(self, row: Row, seed: int) -> bool:
        if row.evaluate:
            return not row.of
        return self._config(self._arguments(row, seed)).mask_classes == "all"

    def _shared_runs(self, seed: int) -> list[Run]:
        """Runs of the rows that are trained once for all splits that have them."""
        runs = []
        for row in self.study.rows.values():
            splits = tuple(s for s in self.study.splits.values() if row in self._rows(s))
            if splits and self._is_shared(row, seed):
                runs.append(self._run(row, splits, seed))
        return runs

    def _run(self, row: Row, splits: tuple[Split, ...], seed: int) -> Run:
        shared = self._is_shared(row, seed)
        splits = tuple(
            dataclasses.replace(s, mask_classes=self.mask_classes(s, seed)) for s in splits
        )
        name = ALL_SPLITS if shared else splits[0].name
        key = f"seed{seed}/{name}/{row.name}"
        detector = self._detectors[seed]
        assert detector.config
        if row.evaluate:
            records = [flag for flag in self.study.flags if flag.startswith("--eval_records=")]
            flags = [self.fill(flag, seed) for flag in (*records, *row.evaluate)]
            if not any(flag.startswith("--eval_records=") for flag in flags):
                raise _nothing_to_score(row)
            scored = self._run(self.study.rows[row.of], splits, seed) if row.of else detector
            assert scored.config
            arguments = (f"--model_dir={scored.config.model_dir}", *flags)
            made = hashlib.sha256("\n".join([*arguments, scored.digest]).encode())
            evaluations = {
                split.name: (
                    *arguments,
                    f"--mask_classes={split.mask_classes}",
                    f"--output={self.study.runs_dir / key / f'evaluation_{split.name}.json'}",
                )
                for split in splits
            }
            made_of = made.hexdigest()[:12]
            return Run(key, seed, row, splits, arguments, None, made_of, evaluations)
        arguments = (*self._arguments(row, seed), f"--model_dir={self._model_dir(seed, name, row)}")
        if not shared:
            arguments += (f"--mask_classes={splits[0].mask_classes}",)
        config = self._config(arguments)
        if config.mode == "stage2_masks":
            arguments += (f"--init_checkpoint={detector.config.model_dir}",)
            config = self._config(arguments)
            made_of = digest(config) + detector.digest
        else:
            made_of = digest(config)
        if config.mode == "stage1_boxes":
            raise UserError(
                f"row {row.name}: {row.flagfile} has --mode=stage1_boxes, which trains no masks; "
                "rows are stage2_masks or end_to_end, on what `detector` names."
            )
        if not config.eval_records:
            raise _nothing_to_score(row)
        return Run(key, seed, row, splits, arguments, config, made_of)


def _nothing_to_score(row: Row) -> UserError:
    return UserError(
        f"row {row.name} has no --eval_records=DIRECTORY to be scored on; add it to the `flags` of "
        "the study."
    )


def digest(config: Config) -> str:
    """Of the options that a result depends on; a new option with its default changes nothing.

    The detector is not named here by its place: its own digest is added to it.
    """
    changed = [
        f"{field.name}={getattr(config, field.name)}"
        for field in dataclasses.fields(config)
        if field.metadata["scope"] != "bookkeeping" and field.name != "init_checkpoint"
        if getattr(config, field.name) != field.default
    ]
    return hashlib.sha256("\n".join(changed).encode()).hexdigest()[:12]
