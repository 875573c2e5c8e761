"""`kdlab predict`: a finished run's student answers rows of one's own."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from kdlab.errors import ConfigError
from kdlab.verbs import parser

ABOUT = """Let a finished run's student answer rows of your own: a JSON object a row, in their order, with the row's id
and line, its prediction, and of a model that writes its rationale."""


def main(words: list[str]) -> int:
    arguments = parser("predict", ABOUT)
    arguments.add_argument("run", type=Path, help="the folder of a run")
    arguments.add_argument("--input", required=True, metavar="FILE", help="jsonl, csv, tsv, parquet; -: standard input")
    arguments.add_argument("--output", default="-", metavar="FILE", help="jsonl; -: standard output (default)")
    arguments.add_argument("--format", choices=["jsonl", "csv", "tsv", "parquet"], help="default: by the file's name")
    arguments.add_argument(
        "--columns",
        default="",
        metavar="NAME=COLUMN,...",
        help="where the texts stand: text_a=premise,text_b=hypothesis; in several languages also translation=COLUMN, "
        "the text in the source language: with it the student is asked in the run's own mode",
    )
    arguments.add_argument("--probabilities", action="store_true", help="of every class")
    arguments.add_argument("--language", help="of a run in several languages: that of the rows")
    arguments.add_argument("--batch", type=int, default=0, metavar="N", help="rows at once; default: as the run")
    arguments.add_argument("--skip-bad", action="store_true", help="leave out and count rows that can't be read")
    arguments.add_argument("--threads", type=int, default=0, help="0: as the run")
    given = arguments.parse_args(words)

    from kdlab import compose, prediction
    from kdlab.data.rows import format_of
    from kdlab.runs import Record

    record = Record.open(given.run)
    run = compose.further(record.config, [], open_to=(), check=lambda run, paths: ())
    if given.batch < 0 or given.threads < 0:
        raise ConfigError([f"--batch {given.batch} --threads {given.threads}: 0 (as the run) or more"])
    run.hardware.threads = given.threads or run.hardware.threads
    prediction.check(record, run, probabilities=given.probabilities, language=given.language)
    wanted, translations = prediction.columns(run, given.columns, language=given.language)
    if given.language is not None and given.language not in run.task.languages:
        known = ", ".join(run.task.languages)
        print(f"note: the run is in {known}; rows in {given.language} are answered all the same", file=sys.stderr)
    path = None if given.input == "-" else Path(given.input)
    done = prediction.predict(
        path,
        format_of(path, given.format),
        wanted,
        translations=translations,
        skip_bad=given.skip_bad,
        load=partial(
            prediction.load,
            record,
            run,
            hardware=run.hardware,
            batch=given.batch or run.hardware.eval_batch,
            probabilities=given.probabilities,
            translations=translations,
            language=given.language,
        ),
        out=None if given.output == "-" else Path(given.output),
    )
    for line in prediction.told(done):
        print(line, file=sys.stderr)
    return 0
