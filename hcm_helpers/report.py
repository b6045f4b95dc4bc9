"""report.html: table, figures, times, settings and versions of a run, on one page that needs no network."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2

from hcm_helpers.files import write_whole

if TYPE_CHECKING:
    import pandas as pd

MEDIA_TYPES = {".svg": "image/svg+xml", ".png": "image/png"}


def write_report(folder: Path) -> Path:
    """Write report.html from what is in a run's folder.

    Args:
        folder: with run.json and, after notebooks 08 to 10, the tables in evaluation/ and figures/.

    Returns:
        The page's path.
    """
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    notebooks = dict(sorted(record["notebooks"].items()))
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(TEMPLATE)
    html = page.render(
        record=record,
        notebooks=notebooks,
        total=sum(notebook["seconds"] or 0 for notebook in notebooks.values()),
        longest=max((notebook["seconds"] or 0 for notebook in notebooks.values()), default=0) or 1,
        table=table_as_html(folder),
        scorecard=scorecard_as_html(folder),
        utility=utility_as_html(folder),
        figures=[(caption(path), data_address(path)) for path in figure_files(folder)],
        clock=clock,
    )
    write_whole(folder / "report.html", lambda path: path.write_text(html, encoding="utf-8"))
    return folder / "report.html"


def table_as_html(folder: Path) -> str | None:
    """Table 1 of a run with its legend; None before notebook 08 has written evaluation/table1.csv."""
    table = _read_table(folder, "table1.csv")
    if table is None:
        return None
    from hcm_helpers import similarity

    return similarity.render_html(table)


def scorecard_as_html(folder: Path) -> str | None:
    """What notebook 08 found of each model, on one page; None before it has written all its tables."""
    from hcm_helpers import scorecard

    if any(_read_table(folder, f"{name}.csv") is None for name in scorecard.TABLES):
        return None
    return scorecard.render_html(scorecard.scorecard(folder))


def utility_as_html(folder: Path) -> str | None:
    """What generated slices do for a classifier, with legend; None before notebook 09 has written it."""
    table = _read_table(folder, "utility.csv")
    if table is None:
        return None
    from hcm_helpers import utility

    return utility.render_html(table)


def table_as_text(folder: Path) -> str | None:
    """Table 1 of a run for a terminal, a block of lines a metric; None before notebook 08 has written it."""
    table = _read_table(folder, "table1.csv")
    if table is None:
        return None
    from hcm_helpers import similarity

    wide = similarity.render(table)
    blocks = [(metric, wide[metric]) for metric in wide.columns.unique(0)]
    return "\n\n".join(block.rename_axis(columns=metric, index=None).to_string() for metric, block in blocks)


def _read_table(folder: Path, name: str) -> pd.DataFrame | None:
    import pandas as pd

    path = folder / "evaluation" / name
    return pd.read_csv(path) if path.is_file() else None


def figure_files(folder: Path) -> list[Path]:
    """One file a figure of the run, PNG or SVG, whichever is smaller; figure_2 before figure_10."""
    files: dict[str, list[Path]] = {}
    for path in (folder / "figures").glob("*"):
        if path.suffix in MEDIA_TYPES and not path.name.startswith("."):
            files.setdefault(path.stem, []).append(path)
    stems = sorted(files, key=lambda stem: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", stem)])
    return [min(files[stem], key=lambda path: path.stat().st_size) for stem in stems]


def caption(path: Path) -> str:
    """figure_05_vae_loss.png → Figure 5: VAE loss."""
    from hcm_helpers.similarity import TITLES

    words = " ".join(TITLES.get(word, word) for word in re.split(r"[_-]", path.stem))
    text = re.sub(r"^(figure|table) 0*(\d+) ", r"\1 \2: ", words)
    return text[:1].upper() + text[1:]


def data_address(path: Path) -> str:
    """The picture itself as a data: address."""
    return f"data:{MEDIA_TYPES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def clock(seconds: float) -> str:
    """75.2 → 1:15, and from an hour on 3723 → 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


TEMPLATE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ record.run }} – six generative models for cardiac MR images</title>
<style>
:root { color-scheme: light dark; --ink: #1d2430; --soft: #5d6778;
        --line: #dde2ea; --paper: #fff; --mark: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6eaf0; --soft: #a2adbd; --line: #343c49; --paper: #161a21; --mark: #56b4e9; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 84rem; background: var(--paper);
       color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
h1 { margin: 0 0 .4rem; font-size: 1.8rem; line-height: 1.2; }
h2 { margin: 2.8rem 0 .8rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line);
     font-size: 1.25rem; }
p, dl { margin: .4rem 0; max-width: 60rem; }
.soft, figcaption, th { color: var(--soft); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .32rem .8rem .32rem 0; border-bottom: 1px solid var(--line); text-align: left;
         vertical-align: top; }
th { font-weight: 600; white-space: nowrap; }
.table1 { font-size: .78rem; }
.table1 td, .table1 th { padding-right: .6rem; }
.table1 small, td code { white-space: nowrap; }
.table1 tbody th { position: sticky; left: 0; background: var(--paper); }
td.time { text-align: right; white-space: nowrap; }
td.bar { width: 50%; min-width: 8rem; }
td.bar span { display: block; height: .8rem; margin-top: .35rem; min-width: 2px; border-radius: 2px;
              background: var(--mark); }
figure { margin: 1.6rem 0; max-width: 60rem; break-inside: avoid; }
figure img { display: block; max-width: 100%; height: auto; padding: .5rem; border-radius: 4px;
             background: #fff; }
figcaption { margin-top: .4rem; font-size: .92rem; }
code { font: .9em ui-monospace, monospace; }
@media print { body { max-width: none; padding: 0; } }
</style>
</head>
<body>
<header>
<h1>Run “{{ record.run }}”</h1>
<p class="soft">Six generative models for cardiac MR images of hypertrophic cardiomyopathy</p>
<dl>
<dt>Profile</dt><dd>{{ record.profile }}, seed {{ record.seed }}</dd>
<dt>Data</dt><dd>{{ record.data_description or "see notebook 01" }}<br><code>{{ record.data }}</code></dd>
<dt>Started</dt><dd>{{ record.started.replace("T", " ") }}</dd>
<dt>Time</dt><dd>{{ clock(total) }} over {{ notebooks | length }} notebooks</dd>
</dl>
</header>

<h2>How good are the images?</h2>
{% if scorecard is none %}
<p class="soft">Notebook 08 has not been run to its end yet; it writes this table.</p>
{% else %}
<div class="wide">{{ scorecard | safe }}</div>
{% endif %}

<h2>Similarity of generated to real slices</h2>
{% if table is none %}
<p class="soft">Notebook 08 has not been run yet; it writes this table.</p>
{% else %}
<div class="wide">{{ table | safe }}</div>
{% endif %}

<h2>HCM or not: generated slices in the training of a classifier</h2>
{% if utility is none %}
<p class="soft">Notebook 09 has not been run yet; it writes this table.</p>
{% else %}
<div class="wide">{{ utility | safe }}</div>
{% endif %}

<h2>Figures</h2>
{% for text, address in figures %}
<figure><img src="{{ address }}" alt="{{ text }}"><figcaption>{{ text }}</figcaption></figure>
{% else %}
<p class="soft">Notebooks 09 and 10 have not been run yet; they draw them.</p>
{% endfor %}

<h2>Time per notebook</h2>
<div class="wide"><table>
{% for name, notebook in notebooks.items() %}
<tr><td>{{ name }}</td><td class="time">{{ clock(notebook.seconds or 0) }}</td>
<td class="bar"><span style="width: {{ (100 * (notebook.seconds or 0) / longest) | round(1) }}%"></span></td>
<td>{{ notebook.state }}</td></tr>
{% endfor %}
</table></div>

<h2>Settings</h2>
<div class="wide"><table>
<thead><tr><th>notebook</th><th>parameters</th></tr></thead>
<tbody>
{% for name, notebook in notebooks.items() %}
<tr><td>{{ name }}</td><td>
{% for key, value in notebook.parameters.items() if key not in ("run_dir", "data_dir") %}
<code>{{ key }} = {{ value | tojson }}</code>{{ ", " if not loop.last }}
{% endfor %}</td></tr>
{% endfor %}
</tbody>
</table></div>

<h2>Versions</h2>
<dl>
{% for name, value in (record.versions | items | list) + (record.machine | items | list) %}
<dt>{{ name.replace("_", " ") }}</dt><dd>{{ value }}</dd>
{% endfor %}
</dl>
<p class="soft">Pictures of ACDC’s patients and of models trained on them are for non-commercial use
(CC BY-NC-SA 4.0; Bernard et al. 2018, doi 10.1109/TMI.2018.2837502).</p>
</body>
</html>
"""
