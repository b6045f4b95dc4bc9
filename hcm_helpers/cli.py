"""The `hcm` command: arguments in, one of the package's functions, a line or an error sentence out.

What a command needs is imported when it is called: PyTorch takes seconds, and --help need not wait for it.
"""

import ast
import os
import re
import sys
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path

import click

from hcm_helpers import acdc
from hcm_helpers.acdc import DataError
from hcm_helpers.execute import NotebookError, Parameters
from hcm_helpers.files import REMEDIES, refusal
from hcm_helpers.report import table_as_text, write_report
from hcm_helpers.run import PROFILES, STEPS, find_step, run_series, step_name, unknown


@contextmanager
def _errors_to_exit_codes():
    """Bad input: one sentence and exit code 2; a failing cell: its traceback and exit code 1."""
    try:
        yield
    except OSError as error:
        if error.errno not in REMEDIES:  # a closed pipe, say
            raise
        click.echo(f"hcm: {refusal(error.filename or 'a file', error)}", err=True)
        sys.exit(2)
    except (DataError, NotebookError) as error:
        click.echo(f"hcm: {error}", err=True)
        sys.exit(1 if isinstance(error, NotebookError) and not error.bad_input else 2)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="hcm-helpers")
def cli() -> None:
    """Six generative models for cardiac MR images of hypertrophic cardiomyopathy."""


@cli.command("run")
@click.option("--profile", help=f"Scale: {', '.join(PROFILES)}.  [default: quick]")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Folder in ACDC's layout.  [default: data/acdc, else the phantom]",
)
@click.option("--run", "run", help="Name of the folder under runs/.  [default: the profile]")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="Seed of every notebook.  [default: 0]")
@click.option("--image-size", type=int, help="Height and width of the slices: 32, 64, 128 or 256.")
@click.option(
    "--only",
    default="",
    show_default=False,
    help="Steps to run, by number or name: 04,08 or dcgan,evaluation.",
)
@click.option("--set", "settings", multiple=True, metavar="STEP.NAME=VALUE", help="One parameter; may be repeated.")
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    help="Notebooks run at once, of those that can be.  [default: one a core; one where there is a GPU]",
)
@click.option("--resume", is_flag=True, help="Go on with a run that was cut off; what is done is kept.")
@click.option("--devices", type=click.IntRange(min=1), help="GPUs, or processes on a CPU, that share each batch.")
@click.option("--nodes", type=click.IntRange(min=1), help="Machines that do, each with so many devices.")
def run_command(profile, data, run, seed, image_size, only, settings, jobs, resume, devices, nodes) -> None:
    """Run the notebooks in order into runs/NAME and write the table and report.html."""
    os.environ["HCM_HEADLESS"] = "1"  # plain progress lines in the notebooks
    with _errors_to_exit_codes():
        overrides = parse_settings(settings)
        if image_size is not None:
            overrides.setdefault("data_preparation", {})["image_size"] = image_size
        steps = [step.strip() for step in only.split(",") if step.strip()]
        try:
            folder = run_series(profile, data, run, seed, steps, overrides, jobs, resume, devices, nodes)
        except KeyboardInterrupt:
            click.echo(f"\nhcm: stopped; `hcm run --run {run or profile or 'quick'} --resume` goes on", err=True)
            sys.exit(130)
    if folder is None:  # beside the process that has run the notebooks
        return
    table = table_as_text(folder)
    click.echo(f"\n{table or 'no table yet: notebook 08 writes it'}\n")
    click.echo(f"report    {folder / 'report.html'}")


@cli.command("ablate")
@click.argument("model")
@click.option("--run", "name", required=True, metavar="NAME", help="A run with notebooks 01 and 08 done.")
@click.option("--epochs", type=click.IntRange(min=1), help="Of each training.  [default: a third of the profile's]")
@click.option("--seeds", type=click.IntRange(min=1), default=1, help="Trainings of each variant.")
@click.option("--only", "only", multiple=True, metavar="VARIANT", help="Beside `as it is`; may be repeated.")
@click.option("--jobs", type=click.IntRange(min=1), help="Trainings at once.  [default: one a core]")
def ablate_command(model, name, epochs, seeds, only, jobs) -> None:
    """Train MODEL short, with one part of its recipe changed at a time, into runs/NAME/ablation/MODEL.csv."""
    os.environ["HCM_HEADLESS"] = "1"
    with _errors_to_exit_codes():
        from hcm_helpers import ablation

        table = ablation.ablate(model, name, epochs, seeds, only, jobs, echo=click.echo)
    click.echo(f"\n{ablation.render(table).to_string()}")


@cli.command("report")
@click.argument("runs", nargs=-1, required=True, metavar="RUN [RUN2 ...]")
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The page.  [default: report.html in the run's folder; of several runs comparison.html here]",
)
def report_command(runs, out) -> None:
    """Write the page of a run, a name below runs/ or a path, or one that sets several side by side."""
    with _errors_to_exit_codes():
        from hcm_helpers import comparison, export

        folders = [export.find_run(run) for run in runs]
        if len(folders) == 1:
            path = write_report(folders[0], out)
        else:
            path = comparison.write_comparison(folders, out or Path("comparison.html"))
    click.echo(f"report    {path}")


@cli.command("phantom")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--patients", default=50, help="Number of patients; the five groups in turn.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, help="The same seed writes the same bytes.")
@click.option("--cine", is_flag=True, help="Write the whole beat too, patientNNN_4d.nii.gz: seven times the time.")
def phantom_command(folder, patients, seed, cine) -> None:
    """Write a data set of synthetic hearts in ACDC's layout."""
    with _errors_to_exit_codes():
        from hcm_helpers import phantom

        written = phantom.write_phantom(folder, patients, seed, cine)
    click.echo(f"{patients} patients in {written}")


@cli.command("convert")
@click.argument("table", metavar="TABLE.csv", type=click.Path(path_type=Path))
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
def convert_command(table, folder) -> None:
    """Write another cohort, listed in a table, in ACDC's layout (data/README.md has the columns)."""
    with _errors_to_exit_codes():
        from hcm_helpers.cohort import convert_cohort

        convert_cohort(table, folder)
    click.echo(f"{len(acdc.find_patients(folder))} patients in {folder}")


@cli.command("sample")
@click.argument("run")
@click.argument("model")
@click.option("-n", "n", type=click.IntRange(min=1), default=1000, help="Number of images.")
@click.option("--out", "folder", required=True, metavar="DIR", type=click.Path(path_type=Path), help="Their folder.")
@click.option("--format", "file_format", type=click.Choice(["png", "nifti", "npz"]), default="png")
@click.option(
    "--group",
    type=click.Choice(acdc.GROUPS, case_sensitive=False),
    metavar="|".join(acdc.GROUPS),
    help="Whose hearts to draw.  [default: HCM, if the model has learned it]",
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, help="The same seed draws the same images.")
@click.option("--force", is_flag=True, help="Replace an earlier export in DIR; other files are never removed.")
@click.option(
    "--reject-copies", is_flag=True, help="Draw anew what is nearer to a training slice than real hearts are."
)
@click.option("--with-masks", is_flag=True, help="Write the mask of each image too; the diffusion model draws both.")
def sample_command(run, model, n, folder, file_format, group, seed, force, reject_copies, with_masks) -> None:
    """Draw images from MODEL of RUN, a name below runs/ or a path, into files with a manifest and a MONAI datalist.

    The same command goes on with an export that was interrupted.
    """
    with _errors_to_exit_codes():
        models = [name for name in STEPS.values() if name]
        if model not in models:
            raise unknown("model", model, models)
        from hcm_helpers import export

        try:
            settings = export.sample(
                run, model, n, folder, file_format, group, seed, force, reject_copies, with_masks, click.echo
            )
        except KeyboardInterrupt:
            click.echo("hcm: interrupted; the same command goes on with it", err=True)
            sys.exit(130)
    click.echo(f"{n} images of {settings['group']} in {folder}")


@cli.command("download")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path), default=Path("data/acdc"))
@click.option("--accept-license", is_flag=True, help="Accept the licence without being asked.")
def download_command(folder, accept_license) -> None:
    """Download and unpack ACDC into DIR (default: data/acdc).

    It is about 2 GB; a broken download goes on where it broke, in the same call or the next.
    """
    from hcm_helpers import download

    click.echo(download.TERMS)
    with _errors_to_exit_codes():
        if acdc.holds_acdc(folder):
            click.echo(f"{folder} holds ACDC already")
            return
        if not accept_license:
            if not sys.stdin.isatty():
                raise DataError("the licence is not accepted yet; read it and call with --accept-license")
            click.confirm("Do you accept this licence?", abort=True)
        download.download(folder)
    click.echo(f"{len(acdc.patient_folders(folder))} patients in {folder}; `hcm check {folder}` reads them all")


@cli.command("check")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
def check_command(folder) -> None:
    """Read every file of a data set and tell its faults.

    Where something is wrong, a line a problem and exit code 1.
    """
    from hcm_helpers.check import check

    with _errors_to_exit_codes():
        table, problems = check(folder)
    click.echo(f"{table}\n")
    for problem in problems:
        click.echo(problem)
    if problems:
        sys.exit(1)
    click.echo("no problems")


def parse_settings(settings: Iterable[str]) -> dict[str, Parameters]:
    """`dcgan.epochs=5` → {"dcgan": {"epochs": 5}}; a value that is no Python literal is a string, never code.

    Raises:
        DataError: a setting has another form, or names a parameter that has an option of its own.
    """
    overrides: dict[str, Parameters] = {}
    for setting in settings:
        match = re.fullmatch(r"(\w+)\.(\w+)=(.*)", setting, re.DOTALL)
        if match is None:
            raise DataError(f"--set {setting} is not of the form step.parameter=value, for instance dcgan.epochs=5")
        step, name, text = match.groups()
        if name in ("run_dir", "data_dir"):
            raise DataError(f"{name} is set by --{'run' if name == 'run_dir' else 'data'}, not by --set")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            value = text
        overrides.setdefault(step_name(find_step(step)), {})[name] = value
    return overrides


if __name__ == "__main__":
    cli()
