"""One file of HTML, readable without network or JavaScript: its look, its tables, and the two pages made of them."""

from __future__ import annotations

from typing import NamedTuple

import jinja2


class Cell(NamedTuple):
    """A place in a table: its text, an interval in small print below, and a mark: best, better, worse or none."""

    text: str
    interval: str = ""
    mark: str = ""


class Table(NamedTuple):
    """A table in words; `head[0]` stands over the rows' names."""

    caption: str
    head: list[str]
    rows: list[tuple[str, list[Cell]]]
    legend: str = ""


def number(value: float, digits: int, low: float = float("nan"), high: float = float("nan"), mark: str = "") -> Cell:
    """A figure with its interval, "–" for NaN; no figure is −0."""
    if value != value:
        return Cell("–")
    interval = "" if low != low or high != high else f"[{figure(low, digits)}, {figure(high, digits)}]"
    return Cell(figure(value, digits), interval, mark)


def figure(value: float, digits: int, sign: str = "") -> str:
    """−0.004 with two digits → 0.00, −0.5 → −0.50; with the sign "+" also +0.50."""
    return f"{value:{sign}z.{digits}f}".replace("-", "−")


def show(table: Table) -> str:
    """The table alone as HTML, everything in it escaped."""
    return str(ENVIRONMENT.get_template("parts").module.table(table))


def render(name: str, **values) -> str:
    """A page, "report" or "comparison", with everything in the values escaped."""
    return ENVIRONMENT.get_template(name).render(**values)


PARTS = """\
{% macro table(table) %}
<div class="wide" role="region" tabindex="0" aria-label="{{ table.caption }}">
<table>
<caption><span>{{ table.caption }}</span></caption>
<thead><tr>{% for title in table.head %}<th scope="col">{{ title }}</th>{% endfor %}</tr></thead>
<tbody>
{% for name, cells in table.rows %}
<tr><th scope="row">{{ name }}</th>{% for cell in cells %}{{ place(cell) }}{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
{% if table.legend %}
<p class="soft">{{ table.legend }}</p>
{% endif %}
</div>
{% endmacro %}

{% macro place(cell) %}
<td{% if cell.mark %} class="{{ cell.mark }}"{% endif %}>
{%- if cell.mark == "best" %}<b>{{ cell.text }}</b> <span role="img" aria-label="best">★</span>
{%- elif cell.mark %}<b>{{ cell.text }}</b> <span>{{ "▲" if cell.mark == "better" else "▼" }} {{ cell.mark }}</span>
{%- else %}{{ cell.text }}{% endif %}
{%- if cell.interval %}<br><small>{{ cell.interval }}</small>{% endif %}</td>
{%- endmacro %}

{% macro pairs(list) %}
<dl>
{% for name, text in list %}
<dt>{{ name }}</dt><dd>{{ text }}</dd>
{% endfor %}
</dl>
{% endmacro %}

{% macro head(title) %}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }} – six generative models for cardiac MR images</title>
<style>
:root { color-scheme: light dark; --ink: #1d2430; --soft: #566072; --line: #d5dbe5; --paper: #fff;
        --best: #005f99; --worse: #a83a00; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e6eaf0; --soft: #a9b4c4; --line: #39424f; --paper: #161a21; --best: #6cc0f5; --worse: #ffab73; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 76rem; background: var(--paper); color: var(--ink);
       font: 16px/1.55 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { margin: 0 0 .4rem; font-size: 1.8rem; line-height: 1.2; }
h2 { margin: 2.8rem 0 .8rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); font-size: 1.3rem; }
p, dl, li { margin: .5rem 0; max-width: 48rem; }
a { color: var(--best); }
nav a { display: inline-block; margin-right: 1rem; }
.soft, figcaption, caption { color: var(--soft); }
dl { display: grid; grid-template-columns: minmax(8rem, 13rem) 1fr; gap: .6rem 1.4rem; }
dt { font-weight: 600; }
dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; margin: 1rem 0 1.6rem; }
.wide p { font-size: .9rem; }
.side { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 33rem), 1fr)); gap: 0 2.5rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { padding-bottom: .4rem; text-align: left; font-weight: 600; }
th, td { padding: .32rem .9rem .32rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
thead th { vertical-align: bottom; }
tbody th { font-weight: 400; }
td small { color: var(--soft); white-space: nowrap; }
.best { color: var(--best); }
.better { color: var(--best); }
.worse { color: var(--worse); }
figure { margin: 1.6rem 0; max-width: 60rem; }
figure img { display: block; max-width: 100%; height: auto; padding: .5rem; border-radius: 4px; background: #fff; }
figcaption { margin-top: .4rem; max-width: 48rem; font-size: .9rem; }
code { font: .88em ui-monospace, monospace; overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .7rem; }
  caption span { display: block; max-width: calc(100vw - 2.5rem); }
  .figures tbody th { position: sticky; left: 0; max-width: 8rem; background: var(--paper); }
}
@page { margin: 15mm 14mm; }
@media print {
  body { padding: 0; max-width: none; font-size: 10pt; }
  nav { display: none; }
  .wide { overflow: visible; }
  p.soft, figcaption { font-size: 8.5pt; }
  .side { display: block; orphans: 1; widows: 1; }
  .side .wide { display: inline-block; margin: 1mm 3mm 3mm 0; vertical-align: top; }
  table { font-size: 7pt; }
  th, td { padding: 2pt 4pt 2pt 0; }
  td small { white-space: normal; }
  thead { display: table-header-group; }
  table, tr, figure, dd { break-inside: avoid; }
  h2, caption { break-after: avoid; }
  figure img { max-height: 210mm; }
  .square img { max-height: 100mm; }
}
</style>
</head>
{% endmacro %}
"""

REPORT = """\
{% from "parts" import head, pairs, table %}
{{ head("Run " ~ run) }}
<body>
<header>
<h1>Run “{{ run }}”</h1>
<p class="soft">Generative models learned from cardiac MR slices of hypertrophic cardiomyopathy (HCM) and drew new ones;
here is how good these are. Brackets hold 95 % intervals.</p>
<nav aria-label="On this page"><a href="#quality">Quality</a> <a href="#similarity">Similarity</a>
<a href="#use">Use</a> <a href="#figures">Figures</a> <a href="#limits">Limits</a>
<a href="#made">How it was made</a></nav>
</header>
<main>
<section>
<h2 id="short">In short</h2>
{{ pairs(summary) }}
</section>

<section class="figures">
<h2 id="quality">How good are the images?</h2>
{% if scorecard is none %}
<p class="soft">Notebook 08 has not been run to its end yet; it writes this table.</p>
{% else %}
{{ table(scorecard) }}
{% endif %}
</section>

<section class="figures">
<h2 id="similarity">Similarity of generated to real slices</h2>
{% if similar %}
<div class="side">
{% for part in similar %}
{{ table(part) }}
{% endfor %}
</div>
<p class="soft">{{ similar_legend }}</p>
{% else %}
<p class="soft">Notebook 08 has not been run yet; it writes this table.</p>
{% endif %}
</section>

<section class="figures">
<h2 id="use">HCM or not: generated slices in the training of a classifier</h2>
{% if use is none %}
<p class="soft">Notebook 09 has not been run yet; it writes this table.</p>
{% else %}
{{ table(use) }}
{% endif %}
</section>

<section>
<h2 id="figures">Figures</h2>
{% for (caption, alt), address, square in figures %}
<figure{% if square %} class="square"{% endif %}><img src="{{ address }}" alt="{{ alt }}">
<figcaption>{{ caption }}</figcaption></figure>
{% else %}
<p class="soft">Notebooks 09 and 10 have not been run yet; they draw them.</p>
{% endfor %}
</section>

<section>
<h2 id="limits">Limits</h2>
<ul>
{% for limit in limits %}
<li>{{ limit }}</li>
{% endfor %}
</ul>
</section>

<section>
<h2 id="made">How it was made</h2>
{{ pairs(made) }}
{% for part in (models, notebooks) if part.rows %}
{{ table(part) }}
{% endfor %}
</section>
</main>
</body>
</html>
"""

COMPARISON = """\
{% from "parts" import head, pairs, table %}
{{ head("Runs " ~ names | join(", ")) }}
<body>
<header>
<h1>{{ names | length }} runs side by side</h1>
<p class="soft">{{ names | join(" · ") }}</p>
</header>
<main>
<section>
<h2>In short</h2>
{{ pairs(summary) }}
</section>
<section>
<h2>What differs</h2>
{{ table(facts) }}
{% if settings.rows %}
{{ table(settings) }}
{% else %}
<p>No parameter differs in the notebooks that the runs have in common.</p>
{% endif %}
</section>
<section class="figures">
<h2>Measures</h2>
<p class="soft">{{ reading }}</p>
<div class="side">
{% for part in measures if part.rows %}
{{ table(part) }}
{% else %}
<p>Notebook 08 has not been run to its end in any of them.</p>
{% endfor %}
</div>
{% if use.rows %}
{{ table(use) }}
{% endif %}
</section>
</main>
</body>
</html>
"""

ENVIRONMENT = jinja2.Environment(
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
    loader=jinja2.DictLoader({"parts": PARTS, "report": REPORT, "comparison": COMPARISON}),
)
