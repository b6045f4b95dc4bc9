"""report.html: what a run has found, its tables, figures, settings and times, on one page that needs no network.

And the page that sets several runs side by side. What is read here may come from another machine: it is checked and
escaped, never trusted.
"""

from __future__ import annotations

import base64
import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hcm_helpers import page
from hcm_helpers.acdc import DataError
from hcm_helpers.files import read_json, write_whole
from hcm_helpers.page import Cell, Table

if TYPE_CHECKING:
    import pandas as pd

MEDIA_TYPES = {".svg": "image/svg+xml", ".png": "image/png"}
NOT_SETTINGS = ("run_dir", "data_dir", "resume")  # parameters that say where, and not what


class Run(NamedTuple):
    """What the files of a run's folder say of how it was made; empty where a file is not there (yet)."""

    folder: Path
    record: dict[str, Any]  # run.json of `hcm run`
    slices: dict[str, Any]  # slices/slices.json
    models: dict[str, dict[str, Any]]  # name → its run.json

    @property
    def notebooks(self) -> dict[str, dict[str, Any]]:
        """Name → state, seconds, parameters, in the order of the series."""
        return dict(sorted(self.record.get("notebooks", {}).items()))

    @property
    def seeds(self) -> str:
        """Of the run or of its models, "" where none is known."""
        return ", ".join(
            sorted({str(facts["seed"]) for facts in (self.record, *self.models.values()) if "seed" in facts})
        )

    def noted(self, part: str) -> dict[str, Any]:
        """The versions or the machine, as `hcm run` or else the models have noted them."""
        records = (*self.models.values(), self.record)
        return {name: value for facts in records for name, value in facts.get(part, {}).items()}

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """Step → parameter → value, of the notebooks and, where these were run by hand, of the models."""
        steps = {name: facts.get("parameters", {}) for name, facts in self.models.items()}
        for name, notebook in self.notebooks.items():
            steps[name[3:]] = steps.get(name[3:], {}) | notebook.get("parameters", {})
        return {
            step: {name: value for name, value in values.items() if name not in NOT_SETTINGS}
            for step, values in steps.items()
        }


def read_run(folder: Path) -> Run:
    """What made a run, by `hcm run` or notebook by notebook.

    Raises:
        DataError: the folder holds no run, or a file of it is broken.
    """
    from hcm_helpers.training import models_with

    def read(path: Path, remedy: str, parts: list[str]) -> dict[str, Any]:
        content = read_json(path, remedy) if path.is_file() else {}
        for part in parts:
            nested = content.get(part, {})
            if not isinstance(nested, dict) or (part == "notebooks" and not all(map(is_notebook, nested.values()))):
                raise DataError(f"{path} is broken ({part} is not what was written there): {remedy}")
        return content

    record = read(folder / "run.json", "remove it and run all steps", ["notebooks", "versions", "machine"])
    slices = read(folder / "slices" / "slices.json", "run notebook 01 again", ["patients_by_split"])
    models = {
        name: read(folder / name / "run.json", "train this model again", ["parameters", "versions", "machine"])
        for name in models_with(folder, "run.json")
    }
    if not (record or slices or models):
        raise DataError(f"{folder}: is no run, for neither run.json nor slices lie in it; name one that `hcm run` made")
    return Run(folder, record, slices, models)


def is_notebook(entry: Any) -> bool:
    """Whether this can be what `hcm run` notes of a notebook."""
    return isinstance(entry, dict) and isinstance(entry.get("parameters", {}), dict)


def write_report(folder: Path, path: Path | None = None) -> Path:
    """Write report.html from what is in a run's folder.

    Args:
        folder: with run.json and, after notebooks 08 to 10, the tables in evaluation/ and figures/.
        path: of the page; None: report.html in that folder.

    Returns:
        The page's path.

    Raises:
        DataError: the folder holds no run, a file of it is broken, or the page cannot be written.
    """
    from hcm_helpers import captions, scorecard, summary

    run = read_run(folder)
    cards, use = read_cards(folder), optional_table(folder, "utility")
    best = None if cards is None else summary.nearest(cards[0])
    similar, similar_legend = similarity_tables(folder)
    html = page.render(
        "report",
        run=run_title(run),
        summary=[
            ("What was run", summary.what_ran(run)),
            ("Whose images come nearest to real ones?", summary.which_is_nearest(cards)),
            ("Are they copies?", summary.does_it_copy(cards)),
            ("Does the anatomy hold?", summary.does_anatomy_hold(cards)),
            ("Did they help to detect HCM?", summary.did_it_help(use, best)),
            (
                "What may it be used for?",
                "For research and teaching only, never for a diagnosis; see the limits below.",
            ),
        ],
        scorecard=None if cards is None else scorecard.as_table(*cards),
        similar=similar,
        similar_legend=similar_legend,
        use=None if use is None else use_table(use),
        figures=[
            (captions.describe(file, folder, cards, use), data_address(file), file.stem.startswith("samples_"))
            for file in figure_files(folder)
        ],
        limits=[*overtaken(folder), *summary.limits(run.record, run.slices)],
        made=provenance(run),
        models=models_table(run),
        notebooks=notebooks_table(run),
    )
    path = folder / "report.html" if path is None else path
    write_page(path, html)
    return path


def overtaken(folder: Path) -> list[str]:
    """A sentence, if models have drawn since notebook 08 measured them, by the times of their files."""
    from hcm_helpers.similarity import TITLES
    from hcm_helpers.training import models_with

    table = folder / "evaluation" / "copies.csv"
    if not table.is_file():
        return []
    drawn = {name: (folder / name / "samples.npz").stat().st_mtime for name in models_with(folder, "samples.npz")}
    late = [TITLES[name] for name, time in drawn.items() if time > table.stat().st_mtime]
    return [f"Drawn after the tables here were made: {', '.join(late)}. Run notebooks 08 to 10 again."] if late else []


def read_cards(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame] | None:
    """`scorecard.scorecard` of a run: value, low and high; None before notebook 08 has written all its tables."""
    from hcm_helpers import scorecard

    if not all((folder / "evaluation" / f"{name}.csv").is_file() for name in scorecard.TABLES):
        return None
    return tuple(scorecard.scorecard(folder, end) for end in scorecard.ENDS)


def optional_table(folder: Path, name: str) -> pd.DataFrame | None:
    """A table of notebook 08 or 09; None before it is written, DataError if it is broken."""
    from hcm_helpers.scorecard import read_table

    return read_table(folder, name) if (folder / "evaluation" / f"{name}.csv").is_file() else None


def similarity_tables(folder: Path) -> tuple[list[Table], str]:
    """Table 1 of a run, a table a measure, what is nearest to real hearts marked, and their legend.

    Empty before notebook 08 has written evaluation/table1.csv.
    """
    from hcm_helpers import similarity

    table = optional_table(folder, "table1")
    if table is None:
        return [], ""
    wide, models = similarity.render(table), list(dict.fromkeys(table["model"]))
    values = table.pivot(index="model", columns=["metric", "pairing"], values="value")
    references = {"random": similarity.REAL_TEST, "nearest train": similarity.REAL_TEST}
    references["nearest test"] = similarity.REAL_TRAIN
    tables = []
    for metric in wide.columns.unique(0):
        rows = {name: [] for name in models}
        for pairing in wide[metric].columns:
            best = []
            if pairing in references:
                column = values[metric, pairing].round(4 if metric == "MSE" else 3)
                gaps = (column - column.get(references[pairing], math.nan)).abs()
                gaps = gaps.drop(list(similarity.REFERENCE_ROWS), errors="ignore")
                best = gaps.index[gaps < gaps.min() + 1e-9] if gaps.count() > 1 else []
            for name, text in zip(models, wide[metric, pairing], strict=True):
                rows[name].append(in_two(text, "best" if name in best else ""))
        named = [(similarity.TITLES[name], cells) for name, cells in rows.items()]
        tables.append(Table(f"{metric} with real slices", ["", *wide[metric].columns], named))
    return tables, f"★: nearest to what real slices reach in the same column. {similarity.LEGEND}"


def use_table(table: pd.DataFrame) -> Table:
    """What generated slices do for a classifier, gains and losses that are told from 0 marked."""
    from hcm_helpers import utility

    wide = utility.render(table)
    verdicts = {
        (row.arm, utility.patients_in_words(row.patients), "gain"): row.verdict
        for row in utility.by_patient(table).itertuples()
        if row.verdict in ("better", "worse")
    }
    rows = [
        (name, [in_two(text, verdicts.get((name, *place), "")) for place, text in cells.items()])
        for name, cells in wide.iterrows()
    ]
    head = ["", *(f"{column}, {place}" for place, column in wide.columns)]
    legend = f"▲ better, ▼ worse: the gain’s interval excludes 0. {utility.legend(table)}"
    return Table("How well HCM is told from the rest, by patient", head, rows, legend)


def in_two(text: str, mark: str = "") -> Cell:
    """ "0.24 [0.23, 0.26]" as a figure and its interval."""
    value, bracket, interval = text.replace("-", "−").partition(" [")
    return Cell(value, f"[{interval}" if bracket else "", mark)


def provenance(run: Run) -> list[tuple[str, str]]:
    """Where a run's data come from, when and with what it was made."""
    machine, versions = run.noted("machine"), run.noted("versions")
    seconds = [notebook.get("seconds") for notebook in run.notebooks.values()]
    apart = ("fingerprint", "patients_by_split")
    slices = {name: value for name, value in run.slices.items() if value != {} and name not in apart}
    pairs = {
        "Data": run.record.get("data", ""),
        "Slices": in_words(slices),
        "Fingerprint of the slices": run.slices.get("fingerprint", ""),
        "Started": str(run.record.get("started", "")).replace("T", " "),
        "Time": f"{span(sum(filter(is_span, seconds)))} over {len(seconds)} notebooks" if seconds else "",
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "Machine": in_words(machine),
    }
    return [(name, str(text)) for name, text in pairs.items() if text]


def models_table(run: Run) -> Table:
    """Size, time and data of each trained model."""
    from hcm_helpers.similarity import TITLES

    rows = []
    for name, facts in run.models.items():
        size, groups = facts.get("num_parameters"), facts.get("parameters", {}).get("groups", "–")
        same = facts.get("data") == run.slices.get("fingerprint")
        texts = [
            f"{size:,}" if isinstance(size, int) else "–",
            span(facts.get("seconds_training")),
            ", ".join(map(str, groups)) if isinstance(groups, list) else str(groups),
            "–" if not run.slices else "these slices" if same else "other slices than lie here now",
            str(facts.get("written", "–")),
        ]
        rows.append((TITLES[name], [Cell(text) for text in texts]))
    return Table("The models", ["", "weights", "training time", "groups", "learned from", "written"], rows)


def notebooks_table(run: Run) -> Table:
    """State, time and parameters of each notebook, or only the parameters of each model."""
    rows, named = [], {name[3:]: name for name in run.notebooks}
    for step, values in run.settings.items():
        name = named.get(step, step)
        facts = run.notebooks.get(name, {})
        texts = [str(facts.get("state", "–")), span(facts.get("seconds")), in_words(values)]
        rows.append((name, [Cell(text) for text in texts]))
    return Table("The notebooks and their parameters", ["", "state", "time", "parameters"], rows)


def in_words(values: dict[str, Any]) -> str:
    """{"epochs": 5, "groups": ["HCM"]} → epochs = 5, groups = ["HCM"]."""
    return ", ".join(f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in values.items())


def run_title(run: Run) -> str:
    """The name that the run was given, or its folder's."""
    return str(run.record.get("run") or run.folder.name)


def write_page(path: Path, html: str) -> None:
    """Write a page, whole or not at all; DataError if its folder is not there or not to be written to."""
    if not path.parent.is_dir():
        raise DataError(f"{path}: there is no folder {path.parent}; make it first")
    write_whole(path, lambda part: part.write_text(html, encoding="utf-8"))


def table_as_text(folder: Path) -> str | None:
    """Table 1 of a run for a terminal, a block of lines a metric; None before notebook 08 has written it."""
    table = optional_table(folder, "table1")
    if table is None:
        return None
    from hcm_helpers import similarity

    wide = similarity.render(table)
    blocks = [(metric, wide[metric]) for metric in wide.columns.unique(0)]
    return "\n\n".join(block.rename_axis(columns=metric, index=None).to_string() for metric, block in blocks)


def figure_files(folder: Path) -> list[Path]:
    """One file a figure of the run, PNG or SVG, whichever is smaller; figure_2 before figure_10."""
    files: dict[str, list[Path]] = {}
    for path in (folder / "figures").glob("*"):
        if path.suffix in MEDIA_TYPES and not path.name.startswith("."):
            files.setdefault(path.stem, []).append(path)
    stems = sorted(files, key=lambda stem: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", stem)])
    return [min(files[stem], key=lambda path: path.stat().st_size) for stem in stems]


def data_address(path: Path) -> str:
    """The picture itself as a data: address."""
    return f"data:{MEDIA_TYPES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def clock(seconds: float) -> str:
    """75.2 → 1:15, and from an hour on 3723 → 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def is_span(seconds: Any) -> bool:
    """Whether this is a time that can be told."""
    return isinstance(seconds, (int, float)) and 0 <= seconds < 1e9


def span(seconds: Any) -> str:
    """`clock`, or "–" of what is no time."""
    return clock(seconds) if is_span(seconds) else "–"
