"""How long the reader waits after each move: every control of every interactive cell, at 64×64.

    python benchmarks/widgets.py [NOTEBOOK ...]      such as 04 07; all by default

Runs the notebooks with the networks of profile `cpu` on a small phantom, trained for one epoch (the weights do not
change the time), the interactive cells too, which `hcm run` passes over. The kernel itself moves each control through
its values and times each move, from the new value to the finished picture (PNG). What a slider calls is called for with
each value in its place, the panels' own controls are set. JupyterLab adds the way to the browser and the drawing.
Prints the median and the slowest move of each control beside the 100 ms that feel like at once.
"""

import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from hcm_helpers import run
from hcm_helpers.phantom import write_phantom

BUDGET = 100  # ms
MODELS = [model for model in run.STEPS.values() if model]
SHORT = {model: {"epochs": 1, "batch_size": 16, "num_samples": 100} for model in MODELS}
SHORT["acgan"] |= {"judge_epochs": 1}
SHORT["infogan"] |= {"segmenter_epochs": 1}
SHORT["diffusion"] |= {"compare_steps": [5, 10]}
NETWORKS = {"encoder_epochs": 1, "segmenter_epochs": 1, "steps_compared": [5], "num_compared": 10}
SHORT |= {"evaluation": {"num_bootstrap": 20} | NETWORKS, "augmentation": {"seeds": 1, "steps": 2, "num_bootstrap": 20}}

# Runs in the kernel before an interactive cell: what `slider` does at each move, without widgets, of which many at once
# have made nbclient wait for ever.
CALL = """
import inspect as _inspect, json as _json, time as _time
from IPython.core.pylabtools import print_figure as _print_figure

def slider(function, **ranges):
    first = {name: values[0] for name, values in ranges.items()}
    own = {name: given.default for name, given in _inspect.signature(function).parameters.items() if name in ranges}
    first |= {name: value for name, value in own.items() if value is not _inspect.Parameter.empty}
    for name, values in ranges.items():
        if isinstance(values, tuple):
            low, high, *step = values
            kind = int if isinstance(low, int) and not step else type(low)
            values = [kind(low + (high - low) * i / 8) for i in range(9)]
        times = []
        for value in values:
            start = _time.perf_counter()
            _print_figure(function(**first | {name: value}), "png", bbox_inches="tight")
            times.append(1000 * (_time.perf_counter() - start))
        print("MOVED", _json.dumps([name, times]))
"""

# Runs in the kernel after an interactive cell: moves the controls that the cell has made, and prints what it took.
MOVE = """
from ipywidgets.widgets import widget as _widget
try: _before
except NameError: _before = set()
for _key, _control in list(_widget._instances.items()):
    if _key in _before or not hasattr(_control, "value") or getattr(_control, "disabled", False):
        continue
    if hasattr(_control, "options"):
        _values = [value for _, value in _control._options_full]
    elif hasattr(_control, "max") and hasattr(_control, "step") and hasattr(_control, "readout"):
        _values = [_control.min + (_control.max - _control.min) * _i / 8 for _i in range(9)]
        _values = [int(_value) if isinstance(_control.value, int) else _value for _value in _values]
    elif isinstance(_control.value, bool):
        _values = [True, False]
    else:
        continue
    _start_value, _times = _control.value, []
    for _value in [*_values, _start_value]:
        if _value != _control.value:
            _start = _time.perf_counter()
            _control.value = _value
            _times.append(1000 * (_time.perf_counter() - _start))
    print("MOVED", _json.dumps([_control.description or type(_control).__name__, _times]))
_before = set(_widget._instances)
"""


def moves(notebook: str, parameters: run.Parameters) -> list[tuple[str, str, list[float]]]:
    """Run a notebook; for each control its cell, its name and the milliseconds of each move."""
    path = run.NOTEBOOKS / f"{notebook}.ipynb"
    document = parameterize_notebook(load_notebook_node(str(path)), parameters)
    cells, measured = [], {}
    for cell in document.cells:
        if "skip-execution" not in cell.metadata.get("tags", []):
            cells.append(cell)
            continue
        measured[len(cells) + 1] = cell.id
        cells += [nbformat.v4.new_code_cell(text) for text in (CALL, f"{cell.source}\n{MOVE}")]
    document.cells = cells
    place = {"metadata": {"path": str(run.NOTEBOOKS)}}
    NotebookClient(document, timeout=1800, skip_cells_with_tag="parameters", resources=place).execute()
    found = []
    for index, cell in measured.items():
        text = "".join(output.get("text", "") for output in cells[index].outputs)
        for line in text.splitlines():
            if line.startswith("MOVED "):
                found.append((cell, *json.loads(line.removeprefix("MOVED "))))
    return found


def main(chosen: list[str]) -> None:
    os.environ["HCM_HEADLESS"] = "1"
    with tempfile.TemporaryDirectory() as home:
        patients = write_phantom(Path(home) / "phantom", 30)
        parameters = run.plan("cpu", Path(home) / "run", 0, list(run.STEPS), SHORT)
        parameters["01_data_preparation"] |= {"data_dir": str(patients)}
        print(f"{'notebook':<21}{'cell':<18}{'control':<18}{'moves':>6}{'median, ms':>12}{'slowest, ms':>13}")
        for notebook in run.STEPS:
            if chosen and notebook[:2] not in chosen and notebook[:2] != "01":
                continue
            for cell, control, times in moves(notebook, parameters[notebook]):
                median = statistics.median(times) if times else 0
                verdict = f"{median / BUDGET:8.2f} of the budget"
                slowest = max(times, default=0)
                print(f"{notebook:<21}{cell:<18}{control:<18}{len(times):>6}{median:>12.0f}{slowest:>13.0f}{verdict}")


if __name__ == "__main__":
    main([step.zfill(2) for step in sys.argv[1:]])
