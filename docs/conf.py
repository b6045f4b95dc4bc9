"""The site that `make docs` builds: the notebooks as they are stored, the package's docstrings, the repository's texts.

Nothing is executed and nothing is fetched, neither in building nor in reading: equations are MathML.
"""

import os
import re
import shutil
import tomllib
from pathlib import Path

import click
from docutils.nodes import SkipNode
from latex2mathml.converter import convert

from hcm_helpers.cli import cli

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

project = "HCM hearts"
author = "the authors of hcm-helpers"
release = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "_texts"]
default_role = "py:obj"  # `name` in a docstring: a link where there is such a name, code in any case

nb_execution_mode = "off"
nb_merge_streams = True
nb_ipywidgets_js: dict[str, dict] = {}  # sliders need a kernel; no script is fetched for them
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
add_module_names = False
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"HCM hearts {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
highlight_language = "text"
html_show_sourcelink = False
html_show_copyright = False
html_copy_source = False
html_math_renderer = "mathml"

# Where a file of the repository stands on the site; notebooks/ and examples/ keep their names, docs/ is its root.
PAGES = {"README.md": "index.md", "README.md#results": "reproduce.md#results", "data/README.md": "your_data.md"}
PAGES |= {"CONTRIBUTING.md": "contributing.md"}


def gather() -> None:
    """Put what lies elsewhere beside this file: notebooks, examples, texts, and what `hcm --help` says."""
    for name in ("notebooks", "examples"):
        shutil.rmtree(HERE / name, ignore_errors=True)
        for path in (ROOT / name).rglob("*"):
            if path.suffix in (".ipynb", ".py") and ".ipynb_checkpoints" not in path.parts:
                place = HERE / path.relative_to(ROOT)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, place)
    texts = HERE / "_texts"
    texts.mkdir(exist_ok=True)
    for name in ("README.md", "data/README.md", "CONTRIBUTING.md"):
        text = relinked((ROOT / name).read_text(encoding="utf-8"), Path(name).parent)
        (texts / name.replace("/", "_")).write_text(text, encoding="utf-8")
    (texts / "commands.md").write_text(commands(), encoding="utf-8")


def relinked(text: str, folder: Path) -> str:
    """Markdown of a file in a folder of the repository, its links led to the site's pages or, where none is, taken out.

    Args:
        text: the Markdown.
        folder: of its file, relative to the repository's root.
    """

    def lead(match: re.Match) -> str:
        label, target, anchor = match[1], os.path.normpath(folder / match[2]).replace(os.sep, "/"), match[3] or ""
        page = PAGES.get(target + anchor) or PAGES.get(target, target.removeprefix("docs/"))
        ours = target.startswith(("docs/", "notebooks/", "examples/")) and (ROOT / target).is_file()
        return f"[{label}]({page if '#' in page else page + anchor})" if ours or target in PAGES else label

    return re.sub(r"\[([^\]]*)\]\(([^)#:\s]+)(#[^)\s]*)?\)", lead, text)


def commands() -> str:
    """What `hcm --help` says, and the help of each command, as Markdown."""
    top = click.Context(cli, info_name="hcm", terminal_width=100)
    texts = {"hcm": cli.get_help(top)}
    for name, command in cli.commands.items():
        context = click.Context(command, info_name=name, parent=top, terminal_width=100)
        texts[f"hcm {name}"] = command.get_help(context)
    return "\n".join(f"## {name}\n\n```text\n{text}\n```\n" for name, text in texts.items())


def mathml(tex: str, display: str) -> str:
    """TeX as MathML, which every browser has drawn by itself since 2023; `display` is "inline" or "block"."""
    tex = re.sub(r"\\tag\{(.+?)\}", r"\\qquad\\text{(\1)}", tex)
    tex = re.sub(r"\\(mathcal|mathbb) (\w)", r"\\\1{\2}", tex)  # the converter makes a character of it only so
    tex = re.sub(r"\\texttt\{(.+?)\}", lambda match: match[0].replace(r"\_", "_"), tex)
    return convert(tex, display=display)


def visit_math(self, node) -> None:
    self.body.append(mathml(node.astext(), "inline"))
    raise SkipNode


def visit_math_block(self, node) -> None:
    self.body.append(f'<div class="math">{mathml(node.astext(), "block")}</div>')
    raise SkipNode


def relink_source(app, name: str, source: list[str]) -> None:
    if name in ("add_a_model", "faq", "index", "reproduce", "results", "scale"):
        source[0] = relinked(source[0], Path("docs"))


def plain_words(app, what, name, thing, options, lines: list[str]) -> None:
    """Before Napoleon: |A| is a size, no substitution; and what stands before a colon in Returns is no type."""
    text = "\n".join(lines).replace("|", r"\|")
    lines[:] = re.sub(r"(?m)^( *)Returns:$", r"\1Returns:\n\1    \\ ", text).splitlines()


def setup(app) -> None:
    gather()
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    app.connect("source-read", relink_source)
    app.connect("autodoc-process-docstring", plain_words, priority=400)
