"""The series: runs the notebooks in order, through papermill, into runs/<run>/; `cli.py` is its command line.

At the end stand the table of all models and report.html.
"""

from __future__ import annotations

import ast
import difflib
import itertools
import json
import platform
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from hcm_helpers import acdc
from hcm_helpers.acdc import DataError
from hcm_helpers.execute import Parameters, default_jobs, execute_at_once, execute_in_turn, machine, progress
from hcm_helpers.files import clone_or_wheel, read_json, write_whole
from hcm_helpers.report import write_report
from hcm_helpers.resume import CUT_OFF, alone, inputs, reasons, this_process

NOTEBOOKS = clone_or_wheel("notebooks")

# Notebook: the model it trains. What passes from one to the next is files.
STEPS: dict[str, str | None] = {
    "01_data_preparation": None,
    "02_vae": "vae",
    "03_gan": "gan",
    "04_dcgan": "dcgan",
    "05_acgan": "acgan",
    "06_infogan": "infogan",
    "07_diffusion": "diffusion",
    "08_evaluation": None,
    "09_augmentation": None,
    "10_figures": None,
}

# Profile: step: parameters that differ from those stored in the step's notebook.
PROTOCOL = {"batch_size": 32, "learning_rate": 2e-4, "betas": [0.5, 0.999]}  # the paper's section 2.3.2
MANY = {"num_samples": 3000}  # ten for each HCM slice in notebook 09; notebook 08 compares the first 1,000
PAPER = PROTOCOL | MANY | {"epochs": 100, "patience": 20, "validate_every": 1, "ema_decay": 0.999}
ANCESTRAL = {"recipe": "epsilon", "schedule": "linear", "sampler": "ancestral", "sampling_steps": 1000}
# Equation 5 with the paper's label smoothing and gradient penalty, whose weight it does not say: 0.0002 S² / B for
# images of side S in batches of B (Karras et al. 2020, arXiv 2006.06676).
EQUATION_5 = {"loss": "bce", "spectral_norm": False, "label_smoothing": 0.1, "gradient_penalty": 0.1}
NETWORKS = {"encoder_epochs": 60, "segmenter_epochs": 60, "steps_compared": [5, 10, 30, 100], "num_compared": 200}
TRIAL = {"patients": [2, 5, 10, 0], "factors": [1, 3, 10], "seeds": 3, "steps": 400, "width": 32, "learning_rate": 1e-3}
# The GANs of profile cpu look at validation once, and so keep the weights of their end: two patients cannot tell those
# of one epoch from another's.
AT_THE_END = {"validate_every": 1_000_000}
GAN_64 = AT_THE_END | {"epochs": 220, "learning_rate": 2e-4, "width": 32, "ema_decay": 0.995}
GAN_128 = MANY | {"epochs": 600, "batch_size": 32, "learning_rate": 2e-4, "width": 64, "ema_decay": 0.999}
PROFILES: dict[str, dict[str, Parameters]] = {
    "quick": {},  # the notebooks as they are stored: the phantom, small pictures, minutes on two CPU cores
    "cpu": {  # 64×64, real patients where there are any, within an hour on two CPU cores
        "data_preparation": {"image_size": 64},
        # Fewer numbers blur more, and a blur is nearer to everything; ten normals copy more (docs/results.md)
        "vae": {"epochs": 480, "cooldown": 1.0, "latent_dim": 128, "prior_components": 1},
        "gan": AT_THE_END | {"epochs": 220},
        "dcgan": GAN_64,
        # Of five times as many slices; by equation 7 its walls are those of any heart (docs/results.md)
        "acgan": GAN_64
        | {"epochs": 50, "label_smoothing": 0.0, "classify_fakes": False, "class_weight": 0.7, "copy_penalty": 20.0},
        "infogan": GAN_64,
        # HCM only: in this hour it comes nearer to HCM than one that learns all groups at once
        # At half the rate more hearts are plausible and more are copies (docs/results.md)
        "diffusion": {"groups": ["HCM"], "epochs": 220, "batch_size": 32, "learning_rate": 4e-3, "dropout": 0.2}
        | {"validate_every": 10, "sampling_steps": 10},
        "evaluation": {"encoder_epochs": 30, "segmenter_epochs": 24, "steps_compared": [5, 10, 30]},
        "augmentation": {"seeds": 3, "steps": 200, "width": 16, "learning_rate": 1e-3},
    },
    "paper": {  # the paper's protocol at 128×128, on a GPU
        "data_preparation": {"image_size": 128},
        "vae": PAPER | {"kl_warmup": 0},  # the paper tells of none
        "gan": PAPER | {"copy_penalty": 0.0},
        "dcgan": PAPER | EQUATION_5 | {"copy_penalty": 0.0},
        "acgan": PAPER
        | EQUATION_5
        | {"classifier": "linear", "class_weight": 0.2, "classify_fakes": True, "copy_penalty": 0.0},
        "infogan": PAPER | EQUATION_5 | {"copy_penalty": 0.0, "mutual_information_weight": 1.0, "least_sigma": 1.0},
        "diffusion": PAPER
        | ANCESTRAL
        | {"epochs": 115, "ema_decay": [0.999], "groups": ["HCM"], "conditional": False}
        | {"augment": 0.0, "optimizer": "adam", "cooldown": 0.0, "gaussian_start": False},
        "evaluation": NETWORKS,
        "augmentation": TRIAL,
    },
    "best": {  # longer training and wider networks at 128×128, on a GPU
        "data_preparation": {"image_size": 128},
        "vae": MANY | {"epochs": 500, "cooldown": 1.0, "latent_dim": 128, "prior_components": 1},
        "gan": MANY | {"epochs": 500},
        "dcgan": GAN_128,
        "infogan": GAN_128,
        "acgan": GAN_128 | {"epochs": 120},
        "diffusion": MANY
        | {"epochs": 100, "batch_size": 32, "learning_rate": 2e-3, "width": 64, "dropout": 0.1}
        | {"validate_every": 10, "ema_decay": [0.99, 0.998], "sampling_steps": 10},
        "evaluation": NETWORKS,
        "augmentation": TRIAL,
    },
}

# What papermill writes into a notebook as a literal, in lists too. A tuple of strings it writes so that they are code.
PLAIN = (str, bool, int, float, type(None))
PACKAGES = ("hcm-helpers", "torch", "lightning-fabric", "numpy", "scikit-image", "nibabel", "papermill")


def run_series(
    profile: str | None = None,
    data: str | Path | None = None,
    run: str | None = None,
    seed: int | None = None,
    only: Iterable[str] = (),
    overrides: Mapping[str, Parameters] | None = None,
    jobs: int | None = None,
    resume: bool = False,
    devices: int | None = None,
    nodes: int | None = None,
    *,
    home: str | Path = ".",
    notebooks_dir: str | Path = NOTEBOOKS,
    echo: Callable[[str], None] = click.echo,
) -> Path | None:
    """Run the notebooks in order into home/runs/<run>/.

    Args:
        profile: a key of PROFILES; None: quick, or where `only` repeats steps of a run, that run's.
        data: a folder in ACDC's layout; None: home/data/acdc if that holds ACDC, the phantom otherwise.
        run: name of the run's folder; None: the profile's name.
        seed: of every notebook; None: 0, or where `only` repeats steps of a run, that run's.
        only: the steps to run, by number or name; none named: all.
        overrides: step: parameter: value, over the profile's; the step by number or name.
        jobs: how many notebooks that need nothing of each other run at once, the cores shared among them; None: as
            many as there are cores, or one where there is a GPU. With more than one, a script that calls this needs
            the guard `if __name__ == "__main__":`.
        resume: go on with a run that was cut off, with its profile, seed, data and overrides where none are given.
            Notebooks that are done with the same inputs are kept, and one that was cut off goes on from its
            checkpoint.
        devices, nodes: processes that share each batch of a training, one a GPU or a share of the CPU's cores, on each
            of so many machines, see `team`; None: one, or as many as torchrun has started.
        home: the folder with runs/ and data/ in it.
        notebooks_dir: where the notebooks are.
        echo: prints one line.

    Returns:
        The run's folder: report.html, run.json, notebooks/ and what the notebooks wrote. None in the processes beside
        the first that torchrun or Slurm have started.

    Raises:
        DataError: data, profile, step, parameter or value are wrong, another process has this run, or there is nothing
            to resume; nothing has been started or written.
        NotebookError: a cell failed; run.json and the executed notebook tell where.
    """
    from hcm_helpers.team import find_team  # here, as torch comes with it, and --help need not wait

    team = find_team(devices, nodes)
    if team and team.rank:
        team.follow()
        return None
    home, notebooks_dir = Path(home).resolve(), Path(notebooks_dir).resolve()
    notebooks = chosen_steps(only)
    folder = home / "runs" / run_name(run or profile or "quick")
    record = earlier_record(folder) if only or resume else {}
    if resume and not record:
        raise DataError(f"{folder}: there is no run to go on with; leave --resume out to begin one")
    profile = profile or record.get("profile", "quick")
    seed = record.get("seed", 0) if seed is None else seed
    settings: dict[str, Parameters] = {}
    if resume:
        settings = {step: values for step, values in record.get("settings", {}).items() if step in notebooks}
    for step, values in (overrides or {}).items():
        settings[find_step(step)] = settings.get(find_step(step), {}) | dict(values)
    parameters = plan(profile, folder, seed, notebooks, settings, notebooks_dir)

    prepares = "01_data_preparation" in notebooks
    if prepares:
        data = record.get("data") if resume and data is None else data
        data, description = choose_data(data, home, parameters["01_data_preparation"])
        parameters["01_data_preparation"]["data_dir"] = str(data)
        record |= {"data": str(data), "data_description": description}
        echo(f"data      {data} ({description})")
    elif data is not None:
        raise DataError("--data is read by notebook 01 only; add 01 to --only")
    echo(f"run       {folder} (profile {profile}, seed {seed})")

    others = {step: values for step, values in record.get("settings", {}).items() if step not in notebooks}
    record |= {"run": folder.name, "profile": profile, "seed": seed, "settings": others | settings}
    record |= {
        "process": this_process(),
        "started": datetime.now().isoformat("T", "seconds"),
        "versions": versions(),
        "machine": machine(),
    }
    states = dict(record.get("notebooks", {}))
    files = {notebook: notebooks_dir / f"{notebook}.ipynb" for notebook in notebooks}
    now = {notebook: inputs(files[notebook], parameters[notebook]) for notebook in notebooks}
    order = batches(notebooks)
    why = reasons(order, states, parameters, now) if resume else dict.fromkeys(notebooks, "")
    for notebook, reason in why.items():
        if resume:
            echo(f"{notebook:<20}{reason}")
        if "resume" in parameters[notebook]:
            parameters[notebook]["resume"] = reason == CUT_OFF
    jobs = default_jobs() if jobs is None else jobs
    jobs = 1 if team else jobs
    from hcm_helpers import needs

    needs.check(folder, {notebook: parameters[notebook] for notebook in why}, jobs, echo)
    with alone(folder), team.assembled() if team else nullcontext(), progress(len(why), echo) as (begin, end):
        (folder / "notebooks").mkdir(exist_ok=True)

        def started(notebook: str) -> None:
            begun = {"parameters": parameters[notebook], "inputs": now[notebook]}
            states[notebook] = {"state": "running", "seconds": None} | begun
            record["notebooks"] = dict(sorted(states.items()))
            write_record(folder, record)
            if team and STEPS[notebook]:
                team.call(files[notebook], parameters[notebook])
            begin(notebook)

        def ended(notebook: str, state: str, seconds: float) -> None:
            states[notebook] |= {"state": state, "seconds": round(seconds, 1)}
            write_record(folder, record)
            if state == "done":
                end(notebook, seconds)

        for together in order:
            calls = {
                notebook: (files[notebook], folder / "notebooks", parameters[notebook])
                for notebook in together
                if notebook in why
            }
            if jobs > 1 and len(calls) > 1:
                # Longest first, so that no core is idle at the end: in profile cpu 02 with 9 minutes, then 07 to 04, 03
                calls = dict(sorted(calls.items(), key=lambda call: (call[0] == "02_vae", call[0]), reverse=True))
                execute_at_once(calls, jobs, started, ended)
            else:
                execute_in_turn(calls, started, ended)
        write_report(folder)
    return folder


def plan(
    profile: str,
    folder: Path,
    seed: int,
    notebooks: Iterable[str],
    overrides: Mapping[str, Parameters],
    notebooks_dir: Path = NOTEBOOKS,
) -> dict[str, Parameters]:
    """All parameters of each notebook: the stored ones, over them the profile's, over these the overrides.

    Args:
        profile: a key of PROFILES.
        folder: the run's folder, absolute.
        seed: of every notebook.
        notebooks: names, as in STEPS.
        overrides: step: parameter: value.
        notebooks_dir: where the notebooks are.

    Raises:
        DataError: an unknown profile, step or parameter, or a value of the wrong type.
    """
    if profile not in PROFILES:
        raise unknown("profile", profile, PROFILES)
    by_notebook = {find_step(step): values for step, values in PROFILES[profile].items()}
    ours: dict[str, Parameters] = {}
    for step, values in overrides.items():
        ours.setdefault(find_step(step), {}).update(values)
    for notebook in ours.keys() - set(notebooks):
        raise DataError(f"{step_name(notebook)} gets parameters, but is not among the steps to run; add it to --only")

    parameters = {}
    for notebook in notebooks:
        step, defaults = step_name(notebook), stored_parameters(notebooks_dir / f"{notebook}.ipynb")
        common = {"run_dir": str(folder), "seed": seed}
        values = {**defaults, **{name: value for name, value in common.items() if name in defaults}}
        for name, value in (by_notebook.get(notebook, {}) | ours.get(notebook, {})).items():
            if name not in defaults:
                known = [f"{step}.{known}" for known in defaults if known not in ("run_dir", "data_dir")]
                raise unknown("parameter", f"{step}.{name}", known)
            values[name] = checked(f"{step}.{name}", value, defaults[name])
        parameters[notebook] = values
    if "01_data_preparation" in parameters:
        from hcm_helpers.cutting import check_image_size  # here, as torch comes with it, and --help need not wait

        check_image_size(parameters["01_data_preparation"]["image_size"])
    return parameters


def stored_parameters(notebook: Path) -> Parameters:
    """Name and value of each flat literal in the notebook's cell tagged `parameters`; nothing is executed.

    Raises:
        DataError: no such notebook, no such cell, or something else than `name = literal` in it.
    """
    if not notebook.is_file():
        raise DataError(f"{notebook}: no such notebook; install the package anew")
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    tagged = [cell for cell in cells if "parameters" in cell.get("metadata", {}).get("tags", [])]
    if not tagged:
        raise DataError(f"{notebook}: no cell is tagged `parameters`; tag the one that holds them")
    parameters = {}
    for statement in ast.parse("".join(tagged[0]["source"])).body:
        try:
            (target,) = statement.targets
            parameters[target.id] = ast.literal_eval(statement.value)
        except (AttributeError, ValueError):
            where = f"{notebook}: line {statement.lineno} of the parameters cell"
            raise DataError(f"{where} is not `name = literal`; derive values in the next cell") from None
    return parameters


def checked(name: str, value: Any, default: Any) -> Any:
    """The value in the type of its default: an int does for a float, a tuple for a list, anything of PLAIN for None.

    Raises:
        DataError: the types differ.
    """
    if isinstance(value, (list, tuple)) and isinstance(default, (list, tuple, type(None))):
        return [checked(f"an entry of {name}", entry, default[0] if default else None) for entry in value]
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if type(value) not in PLAIN or (default is not None and type(value) is not type(default)):
        raise DataError(f"{name} is of type {type(default).__name__}, such as {default!r}; {value!r} is not")
    return value


def chosen_steps(only: Iterable[str]) -> list[str]:
    """The notebooks that `only` names by number or name, in the order of the series; all if it names none."""
    wanted = {find_step(step) for step in only}
    return [notebook for notebook in STEPS if notebook in wanted or not wanted]


def find_step(step: str) -> str:
    """The notebook's name, from its number (04 or 4), its step's name (dcgan) or itself (04_dcgan).

    Raises:
        DataError: there is none, with the nearest one.
    """
    for notebook in STEPS:
        if step in (notebook, step_name(notebook)) or step.zfill(2) == notebook[:2]:
            return notebook
    if step.isdigit():
        raise unknown("notebook", step, [notebook[:2] for notebook in STEPS])
    raise unknown("step", step, [step_name(notebook) for notebook in STEPS])


def step_name(notebook: str) -> str:
    """04_dcgan → dcgan."""
    return notebook[3:]


def run_name(name: str) -> str:
    """The name, if it can be a folder's on any machine.

    Raises:
        DataError: it cannot.
    """
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise DataError(
            f"{name!r} cannot name a run: use letters, digits, - + _ and . only, the first a letter or digit"
        )
    return name


def choose_data(data: str | Path | None, home: Path, parameters: Parameters) -> tuple[Path, str]:
    """The data folder, and in words what it holds; the phantom is written where it is missing.

    Args:
        data: a folder in ACDC's layout, or None to choose.
        home: the folder with data/ in it.
        parameters: of notebook 01; `phantom_patients` is the number of patients of the phantom.

    Raises:
        DataError: the folder is missing, empty, or a patient in it cannot be read.
    """
    from hcm_helpers import phantom

    if data is not None:
        folder, kind = Path(data).expanduser().resolve(), "given by --data"
    elif acdc.holds_acdc(home / "data" / "acdc"):
        folder, kind = home / "data" / "acdc", "real, ACDC"
    else:
        patients = parameters["phantom_patients"]
        folder, kind = home / "data" / "phantom", "synthetic, the phantom, as there is no data/acdc"
        if acdc.holds_acdc(folder) and len(acdc.find_patients(folder)) != patients:
            folder = folder.with_name(f"phantom-{patients}")
        if not acdc.holds_acdc(folder):
            phantom.write_phantom(folder, patients)
    return folder, f"{len(acdc.find_patients(folder))} patients, {kind}"


def batches(notebooks: Iterable[str]) -> list[list[str]]:
    """The notebooks in their order, together those of which none reads what another one writes."""
    kinds = {"08_evaluation": "judges", "09_augmentation": "judges"}  # both read what the models have drawn
    together = itertools.groupby(notebooks, key=lambda name: "models" if STEPS[name] else kinds.get(name, name))
    return [list(batch) for _, batch in together]


def earlier_record(folder: Path) -> dict[str, Any]:
    """run.json in the folder of a run that is there already, else an empty dict."""
    path = folder / "run.json"
    return read_json(path, "remove it and run all steps") if path.is_file() else {}


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write run.json: profile, seed, data, process, machine; each notebook's parameters, inputs, state, seconds."""
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    write_whole(folder / "run.json", lambda path: path.write_text(text, encoding="utf-8"))


def versions() -> dict[str, str]:
    """Version of Python and of each package that decides about the results."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES}


def unknown(what: str, word: str, known: Iterable[str]) -> DataError:
    """The error that refuses a word and names the nearest known one."""
    known = list(known)
    nearest = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0)[0]
    others = ", ".join(name.rpartition(".")[2] for name in known)
    return DataError(f"unknown {what} {word!r}; the nearest is {nearest!r} (there are {others})")
