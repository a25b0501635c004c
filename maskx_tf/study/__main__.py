"""Runs or resumes a study: many trainings, their tables and figures (docs/study.md).

Example:
  maskx study --flagfile=configs/shapes/study.flags --dry_run
"""

import sys
import time

from absl import flags

from maskx_tf.errors import UserError
from maskx_tf.study import declaration, estimate, execution, hparams, report
from maskx_tf.study.plan import Plan
from maskx_tf.study.store import Results
from maskx_tf.system import cli

FLAGS = flags.FLAGS


def main() -> None:
    """Makes the missing runs and writes the report after each."""
    study = declaration.load(FLAGS.study)
    plan = Plan(study)
    results = Results(study.results_dir / "results.json")
    seeds = _seeds(study)
    only = set(FLAGS.only)
    if unknown := only - set(study.rows):
        raise UserError(f"--only: no rows {', '.join(sorted(unknown))} in {FLAGS.study}.")
    missing = execution.missing_groups(plan, results, only, seeds)
    groups = execution.with_detectors(plan, missing)
    print(estimate.describe(plan, results, groups, FLAGS.jobs), flush=True)
    if FLAGS.dry_run:
        return
    command = f"python -m maskx_tf.study --study={FLAGS.study}"
    deadline = time.time() + 3600 * FLAGS.max_hours if FLAGS.max_hours is not None else None

    def write() -> None:
        with results.locked():
            report.write(plan, results, command)

    try:
        run = execution.Execution(plan, results, missing, FLAGS.jobs, deadline, write)
        run.run()
    finally:
        write()
        hparams.write(plan, results)
    print(f"The report is {study.results_dir}/README.md", file=sys.stderr)


def _seeds(study: declaration.Study) -> set[int]:
    if not FLAGS.seeds:
        return set(study.seeds)
    chosen = {int(seed) for seed in FLAGS.seeds if seed.isdecimal()}
    if len(chosen) < len(FLAGS.seeds) or not chosen <= set(study.seeds):
        known = ", ".join(map(str, study.seeds))
        raise UserError(f"--seeds={','.join(FLAGS.seeds)}: the study's seeds are {known}.")
    return chosen


def define_flags() -> None:
    """The flags of this command."""
    flags.DEFINE_string("study", None, "The TOML file that declares the study.", required=True)
    flags.DEFINE_list("only", [], "Rows to run; empty: all.")
    flags.DEFINE_list("seeds", [], "Seeds to run; empty: all.")
    flags.DEFINE_float("max_hours", None, "Start no run after this time; 0: only write the report.")
    flags.DEFINE_integer("jobs", 1, "Groups of runs at a time, sharing the cores.", lower_bound=1)
    flags.DEFINE_bool("dry_run", False, "Only print what would be run, and how long it takes.")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
