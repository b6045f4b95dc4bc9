"""The command line and the runner, on stand-in notebooks of a few lines."""

import json
import os
import socket
import subprocess
import sys

import nbformat
import pytest
from click.testing import CliRunner
from jupyter_client.connect import LocalPortCache
from stand_ins import write_notebook

from hcm_helpers import cli, execute, phantom, run
from hcm_helpers.acdc import DataError

COMMON = 'run_dir = "../runs/quick"\nseed = 0\n'
PREPARE = COMMON + 'data_dir = ""\nimage_size = 32\nphantom_patients = 5'
TRAIN = COMMON + 'groups = ["HCM"]\nepochs = 2\nlearning_rate = 2e-4\naugment = True\nwidth = None'
TABLE = """
from pathlib import Path
folder = Path(run_dir) / "evaluation"
folder.mkdir()
rows = ["model,pairing,metric,value,low,high,n,drawn", "vae,random,SSIM,0.25,0.2,0.3,10,images"]
(folder / "table1.csv").write_text("\\n".join(rows))
"""
DRAW = """
from pathlib import Path
import matplotlib.pyplot as plt
(Path(run_dir) / "figures").mkdir()
figure = plt.figure(figsize=(1, 1))
for suffix in ("png", "svg"):
    figure.savefig(Path(run_dir) / "figures" / f"figure_05_vae_loss.{suffix}")
"""


@pytest.fixture
def notebooks(tmp_path):
    """A folder with a stand-in for each notebook of the series."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for name, model in run.STEPS.items():
        write_notebook(folder, name, TRAIN if model else COMMON)
    write_notebook(folder, "01_data_preparation", PREPARE)
    return folder


@pytest.fixture
def hcm(tmp_path, monkeypatch, notebooks):
    """Calls `hcm` in a folder of its own, on the stand-in notebooks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HCM_HEADLESS", "1")
    monkeypatch.setitem(run.run_series.__kwdefaults__, "notebooks_dir", notebooks)
    monkeypatch.setattr(run, "PROFILES", {"quick": {}, "cpu": {}, "paper": {}})
    return lambda *arguments: CliRunner().invoke(cli.cli, [str(argument) for argument in arguments])


def test_a_run_leaves_notebooks_record_and_report(hcm, tmp_path, notebooks):
    write_notebook(
        notebooks, "02_vae", TRAIN, "import os\nprint(learning_rate, os.environ['HCM_HEADLESS'], os.getcwd())"
    )
    write_notebook(notebooks, "08_evaluation", COMMON, TABLE)
    write_notebook(notebooks, "10_figures", COMMON, DRAW)
    result = hcm("run", "--only", "10,evaluation,1,02", "--run", "a", "--seed", "7", "--set", "vae.learning_rate=1e-4")
    assert result.exit_code == 0, result.output
    assert "(5 patients, synthetic" in result.output
    assert "0.250 [0.200, 0.300]" in result.output
    assert result.output.rstrip().endswith(str(tmp_path / "runs" / "a" / "report.html"))

    folder = tmp_path / "runs" / "a"
    executed = nbformat.read(folder / "notebooks" / "02_vae.ipynb", as_version=4)
    assert executed.cells[-1].outputs[0].text == f"0.0001 1 {notebooks}\n"
    record = json.loads((folder / "run.json").read_text())
    assert list(record["notebooks"]) == ["01_data_preparation", "02_vae", "08_evaluation", "10_figures"]
    assert {notebook["state"] for notebook in record["notebooks"].values()} == {"done"}
    assert all(0 < notebook["seconds"] < 60 for notebook in record["notebooks"].values())
    assert record["notebooks"]["02_vae"]["parameters"] == {
        "run_dir": str(folder),
        "seed": 7,
        "groups": ["HCM"],
        "epochs": 2,
        "learning_rate": 1e-4,
        "augment": True,
        "width": None,
    }
    assert record["data"] == str(tmp_path / "data" / "phantom")
    assert record["versions"]["python"] == sys.version.split()[0]

    html = (folder / "report.html").read_text()
    assert "Figure 5. Losses of the VAE" in html
    assert "0.250" in html
    assert html.count('src="data:image/') == 1
    assert 'src="http' not in html
    assert 'href="http' not in html


def test_a_failing_cell_stops_the_run(hcm, tmp_path, notebooks):
    write_notebook(notebooks, "03_gan", TRAIN, "count = 0\n1 / count")
    result = hcm("run", "--only", "03,04", "--jobs", "1")
    assert result.exit_code == 1
    executed = tmp_path / "runs" / "quick" / "notebooks" / "03_gan.ipynb"
    for part in (
        "03_gan failed in cell",
        "    1 / count",
        "ZeroDivisionError: division by zero",
        str(executed),
    ):
        assert part in result.output
    assert executed.is_file()
    record = json.loads((tmp_path / "runs" / "quick" / "run.json").read_text())
    assert {name: notebook["state"] for name, notebook in record["notebooks"].items()} == {"03_gan": "failed"}
    assert not (tmp_path / "runs" / "quick" / "report.html").exists()


# Each of the two waits until the other has begun, so it ends only if both run at once.
MEET = """import pathlib, time, os
here = pathlib.Path(run_dir)
(here / "{mine}").write_text(os.environ["OMP_NUM_THREADS"])
end = time.time() + 30
while not (here / "{other}").exists():
    assert time.time() < end, "the other one did not come"
    time.sleep(0.05)
"""


def test_models_run_at_once_with_their_share_of_the_cores(hcm, tmp_path, notebooks, monkeypatch):
    monkeypatch.setattr(execute, "machine", lambda: {"cpu_cores": 6})
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    write_notebook(notebooks, "02_vae", TRAIN, MEET.format(mine="a", other="b"))
    write_notebook(notebooks, "03_gan", TRAIN, MEET.format(mine="b", other="a"))
    result = hcm("run", "--only", "02,03", "--jobs", "2")
    assert result.exit_code == 0, result.output
    folder = tmp_path / "runs" / "quick"
    assert (folder / "a").read_text() == (folder / "b").read_text() == "3"
    assert "OMP_NUM_THREADS" not in os.environ
    record = json.loads((folder / "run.json").read_text())
    assert {name: notebook["state"] for name, notebook in record["notebooks"].items()} == {
        "02_vae": "done",
        "03_gan": "done",
    }


def test_of_models_at_once_one_fails_the_others_end(hcm, tmp_path, notebooks):
    code = "import pathlib\nfrom hcm_helpers.acdc import DataError\n(pathlib.Path(run_dir) / 'failing').touch()\n"
    write_notebook(notebooks, "07_diffusion", TRAIN, code + "raise DataError('too few slices')")
    code = MEET.format(mine="training", other="failing")  # on a busy machine the other one begins late
    write_notebook(notebooks, "02_vae", TRAIN, code + "time.sleep(3)")
    result = hcm("run", "--only", "02,06,07,08", "--jobs", "2")
    assert result.exit_code == 2
    assert "hcm: too few slices\n" in result.output
    record = json.loads((tmp_path / "runs" / "quick" / "run.json").read_text())
    states = {name: notebook["state"] for name, notebook in record["notebooks"].items()}
    assert states == {"02_vae": "done", "07_diffusion": "failed"}, "they take longest; 06 and 08 were not begun"


def test_what_runs_together_reads_nothing_from_each_other():
    together = run.batches(run.STEPS)
    assert [len(batch) for batch in together] == [1, 6, 2, 1]
    assert [notebook for batch in together for notebook in batch] == list(run.STEPS)


def test_bad_data_in_a_notebook_is_one_sentence(hcm, notebooks):
    sentence = "batch_size 64 is larger than the 40 training slices; take 32"
    code = f"from hcm_helpers.acdc import DataError\nraise DataError({sentence!r})"
    write_notebook(notebooks, "04_dcgan", TRAIN, code)
    result = hcm("run", "--only", "dcgan")
    assert result.exit_code == 2
    assert f"hcm: {sentence}\n" in result.output
    assert "Traceback" not in result.output


def test_a_dead_kernel_is_told(hcm, notebooks):
    write_notebook(notebooks, "05_acgan", TRAIN, "import os\nos._exit(1)")
    result = hcm("run", "--only", "5")
    assert result.exit_code == 1
    assert "05_acgan: its kernel died" in result.output


@pytest.mark.parametrize(("taken", "exit_code"), [(1, 0), (3, 1)])
def test_a_kernel_whose_port_was_taken_is_started_again(hcm, notebooks, monkeypatch, taken, exit_code):
    free_port, starts = LocalPortCache.find_available_port, []
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()

        def port(cache: LocalPortCache, ip: str) -> int:  # five a kernel
            starts.append(ip)
            return other.getsockname()[1] if len(starts) <= 5 * taken else free_port(cache, ip)

        monkeypatch.setattr(LocalPortCache, "find_available_port", port)
        write_notebook(notebooks, "05_acgan", TRAIN, "print('ran')")
        result = hcm("run", "--only", "5", "--jobs", "1")
    assert result.exit_code == exit_code, result.output
    assert len(starts) == 5 * min(taken + 1, 3)
    assert ("05_acgan: its kernel died in each of 3 starts" in result.output) == bool(exit_code)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--profile", "papr"], "unknown profile 'papr'; the nearest is 'paper'"),
        (["--only", "11"], "unknown notebook '11'; the nearest is '10'"),
        (["--only", "dcgn"], "unknown step 'dcgn'; the nearest is 'dcgan'"),
        (["--set", "infogn.epochs=3"], "unknown step 'infogn'; the nearest is 'infogan'"),
        (["--set", "dcgan.epoch=3"], "unknown parameter 'dcgan.epoch'; the nearest is 'dcgan.epochs'"),
        (["--set", "dcgan.epochs=2.5"], "dcgan.epochs is of type int"),
        (["--set", "dcgan.epochs=True"], "dcgan.epochs is of type int"),
        (["--set", "dcgan.augment=1"], "dcgan.augment is of type bool"),
        (["--set", "vae.groups=HCM"], "vae.groups is of type list"),
        (["--set", "vae.groups=[1]"], "an entry of vae.groups is of type str"),
        (["--set", "vae.learning_rate=open('x')"], "vae.learning_rate is of type float"),
        # What papermill would write as it is:
        (["--set", 'vae.width=b\'"); open("ran", "w") #\''], "vae.width is of type NoneType"),
        (["--set", "vae.width=[1, {2}]"], "an entry of vae.width is of type NoneType"),
        (["--set", "epochs=3"], "--set epochs=3 is not of the form step.parameter=value"),
        (["--set", "vae.run_dir=x"], "run_dir is set by --run"),
        (["--image-size", "50"], "image_size=50: the networks halve"),
        (["--set", "data_preparation.image_size=16"], "image_size=16: the networks halve"),
        (
            ["--only", "04", "--image-size", "64"],
            "data_preparation gets parameters, but is not among the steps",
        ),
        (["--only", "04", "--data", "."], "--data is read by notebook 01 only"),
        (["--data", "nowhere"], "nowhere: there is no such folder"),
        (["--data", "notebooks"], "notebooks: holds no patientNNN folders"),
        (["--run", "../a"], "'../a' cannot name a run"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_refused_before_anything_starts(hcm, tmp_path, arguments, sentence):
    result = hcm("run", *arguments)
    assert result.exit_code == 2
    assert sentence in result.output
    assert result.output.count("\n") == 1
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "data").exists()


def test_repeating_a_step_keeps_the_runs_profile_and_seed(hcm, tmp_path):
    assert hcm("run", "--only", "02", "--run", "a", "--profile", "cpu", "--seed", "3").exit_code == 0
    assert hcm("run", "--only", "03", "--run", "a").exit_code == 0
    record = json.loads((tmp_path / "runs" / "a" / "run.json").read_text())
    assert (record["profile"], record["seed"]) == ("cpu", 3)
    assert list(record["notebooks"]) == ["02_vae", "03_gan"]
    assert record["notebooks"]["03_gan"]["parameters"]["seed"] == 3


def test_data_is_acdc_if_it_is_there_and_else_the_phantom(tmp_path):
    folder, words = run.choose_data(None, tmp_path, {"phantom_patients": 3})
    assert (folder, words[:21]) == (tmp_path / "data" / "phantom", "3 patients, synthetic")
    folder, _ = run.choose_data(None, tmp_path, {"phantom_patients": 2})
    assert folder == tmp_path / "data" / "phantom-2", "another number of patients is another data set"
    phantom.write_phantom(tmp_path / "data" / "acdc", patients=1)
    folder, words = run.choose_data(None, tmp_path, {"phantom_patients": 3})
    assert (folder, words) == (tmp_path / "data" / "acdc", "1 patients, real, ACDC")
    folder, _ = run.choose_data(tmp_path / "data" / "phantom-2", tmp_path, {"phantom_patients": 3})
    assert folder == tmp_path / "data" / "phantom-2"


def test_overrides_beat_the_profile_and_it_beats_the_notebook(notebooks, monkeypatch, tmp_path):
    monkeypatch.setitem(run.PROFILES, "paper", {"vae": {"epochs": 100, "learning_rate": 1}})
    parameters = run.plan("paper", tmp_path, 0, ["02_vae"], {"2": {"epochs": 5}}, notebooks)["02_vae"]
    assert (parameters["epochs"], parameters["learning_rate"], parameters["groups"]) == (5, 1.0, ["HCM"])
    assert type(parameters["learning_rate"]) is float


@pytest.mark.parametrize("cell", ["epochs = 2\nsteps = epochs * 3", "import os", "a, b = 1, 2"])
def test_parameters_are_flat_literals(tmp_path, cell):
    write_notebook(tmp_path, "02_vae", cell)
    with pytest.raises(DataError, match="is not `name = literal`"):
        run.stored_parameters(tmp_path / "02_vae.ipynb")


def test_settings_are_literals_and_never_code():
    settings = ["vae.epochs=5", "dcgan.betas=0, 0.9", "vae.name=best", "04.name=exit()", "vae.note=a=b"]
    assert cli.parse_settings(settings) == {
        "vae": {"epochs": 5, "name": "best", "note": "a=b"},
        "dcgan": {"betas": (0, 0.9), "name": "exit()"},
    }


@pytest.mark.parametrize(
    "value", ['1); import os; open("ran", "w") #', '"); open("ran", "w") #', '\\\n"""\u2028\';{{1}}']
)
def test_a_value_that_looks_like_code_stays_a_value(hcm, tmp_path, notebooks, value):
    write_notebook(notebooks, "02_vae", TRAIN, "import json\nprint(json.dumps([groups, width, run_dir]))")
    result = hcm("run", "--only", "2", "--set", f"vae.width={(value,)}", "--set", f"vae.groups={(value, 'HCM')}")
    assert result.exit_code == 0, result.output
    folder = tmp_path / "runs" / "quick"
    executed = nbformat.read(folder / "notebooks" / "02_vae.ipynb", as_version=4)
    assert json.loads(executed.cells[-1].outputs[0].text) == [[value, "HCM"], [value], str(folder)]
    assert not list(tmp_path.rglob("ran"))


def test_a_folder_whose_name_looks_like_code_stays_a_folder(hcm, tmp_path, notebooks):
    write_notebook(notebooks, "01_data_preparation", PREPARE, "print(data_dir)")
    folder = phantom.write_phantom(tmp_path / 'a"); open("ran", "w") #', patients=1)
    result = hcm("run", "--only", "1", "--data", folder)
    assert result.exit_code == 0, result.output
    executed = nbformat.read(tmp_path / "runs/quick/notebooks/01_data_preparation.ipynb", as_version=4)
    assert executed.cells[-1].outputs[0].text == f"{folder}\n"
    assert not list(tmp_path.rglob("ran"))


def test_a_broken_record_is_one_sentence(hcm, tmp_path):
    (tmp_path / "runs" / "quick").mkdir(parents=True)
    for content in ("[]", "{", "[" * 10**5):
        (tmp_path / "runs" / "quick" / "run.json").write_text(content)
        result = hcm("run", "--only", "2")
        assert result.exit_code == 2
        assert "run.json is broken" in result.output
        assert result.output.count("\n") == 1


def test_phantom_command(hcm, tmp_path):
    result = hcm("phantom", tmp_path / "hearts", "--patients", "2")
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "hearts" / "training").glob("patient*/Info.cfg"))) == 2
    assert hcm("phantom", tmp_path / "more", "--patients", "0").exit_code == 2


def test_help_needs_no_torch():
    code = "import sys, hcm_helpers.cli; sys.exit('torch' in sys.modules or 'papermill' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
