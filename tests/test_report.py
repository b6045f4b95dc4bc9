"""The page of a run and the page of several, on runs whose figures are known."""

import json
import math
import os
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from hcm_helpers import captions, cli, comparison, report, scorecard, summary

NAN = math.nan
EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}'
ENDS = ["value", "low", "high"]


def write_run(folder, name="a", epochs=5, kid=1.0, fingerprint="f" * 64, **record):
    """A run of VAE and diffusion model: the latter has the lower KID, few copies, closed walls, and did not help."""
    (folder / "evaluation").mkdir(parents=True)
    (folder / "slices").mkdir()
    slices = {"image_size": 32, "pixel_mm": 5.0, "slices": 90, "patients": 50, "fingerprint": fingerprint}
    slices["patients_by_split"] = {"train": 35, "validation": 5, "test": 10}
    (folder / "slices" / "slices.json").write_text(json.dumps(slices))
    parameters = {"run_dir": "/somewhere", "seed": 0, "epochs": epochs, "betas": [0.5, 0.999]}
    record = {
        "run": name,
        "profile": "quick",
        "seed": 3,
        "data": "/data/phantom",
        "data_description": "50 patients, synthetic, the phantom",
        "started": "2026-11-26T08:00:00",
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "machine": {"cpu_cores": 2},
        "notebooks": {
            "07_diffusion": {"state": "done", "seconds": 75.2, "parameters": parameters},
            "02_vae": {"state": "done", "seconds": 4.6, "parameters": {"seed": 0}},
        },
    } | record
    (folder / "run.json").write_text(json.dumps(record))
    similarity = [
        (name, pairing, "SSIM", value, value - 0.01, value + 0.01)
        for name, *values in (
            ("vae", 0.30, 0.50, 0.40),
            ("diffusion", 0.16, 0.41, 0.31),
            ("real test slices", 0.15, 0.40, NAN),
            ("real train slices", NAN, NAN, 0.32),
        )
        for pairing, value in zip(("random", "nearest train", "nearest test"), values, strict=True)
        if not math.isnan(value)
    ]
    fidelity = [
        (name, measure, value, value - margin, value + margin)
        for name, margin, *values in (
            ("vae", 0.5, 5.0, 6.0, 0.2, 0.1),
            ("diffusion", 0.1, kid, 0.8, 0.6, NAN),
            ("real test slices", 0.2, 0.5, NAN, 0.7, 0.6),
            ("real train slices", 0.2, 0.4, 0.55, 1.0, 1.0),
        )
        for measure, value in zip(("KID", "KID to test", "precision", "recall"), values, strict=True)
    ]
    copies = [("vae", 0.4, 0.35, 0.45), ("diffusion", 0.003, 0.001, 0.005), ("real held-out slices", 0.009, 0, 0.03)]
    anatomy = [
        (name, "segmenter", measure, value, value - 0.02, value + 0.02, distance, distance - 0.1, distance + 0.1)
        for name, share, distance in (("vae", 0.5, 3.0), ("diffusion", 0.91, 1.0), ("real test slices", 0.92, 0.6))
        for measure, value, distance in (("plausible", share, NAN), ("max_wall_mm", 15, distance))
    ]
    use = [
        (2, "real only", "–", False, 0.7, 0.6, 0.8, 0, 0, 0, "–"),
        (2, "real + VAE ×1", "vae", True, 0.5, 0.4, 0.6, -0.2, -0.3, -0.1, "worse"),
        (2, "real + Diffusion ×1", "diffusion", True, 0.75, 0.6, 0.9, 0.05, -0.1, 0.2, "not told apart"),
    ]
    tables = {
        "table1": (["model", "pairing", "metric", *ENDS], similarity),
        "fidelity": (["model", "measure", *ENDS], fidelity),
        "copies": (["model", "copies", "low", "high"], copies),
        "anatomy": (["model", "masks", "measure", *ENDS, "distance", "distance_low", "distance_high"], anatomy),
        "cost": (["model", "steps", "seconds_sampling"], [("vae", NAN, 0.4), ("diffusion", NAN, 60.0)]),
        "utility": (
            ["patients", "arm", "model", "leaks", *ENDS, "gain", "gain_low", "gain_high", "verdict"],
            use,
        ),
    }
    for table, (columns, rows) in tables.items():
        content = pd.DataFrame(rows, columns=columns)
        if table == "utility":
            content = content.assign(level="patient", metric="AUC", seeds=2, n=10)
        content.to_csv(folder / "evaluation" / f"{table}.csv", index=False)
    return folder


def draw(folder, *names):
    """Files in figures/ that look like pictures."""
    (folder / "figures").mkdir()
    for name in names:
        (folder / "figures" / name).write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")


class Page(HTMLParser):
    """What a browser would make of a page: its elements, and its tables as text."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.tables, self.caption, self.cell, self.text = [], {}, "", None, ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "table":
            self.rows = []
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td", "caption"):
            self.cell = ""

    def handle_data(self, data):
        self.text += data
        if self.cell is not None:
            self.cell += data

    def handle_endtag(self, tag):
        if tag == "caption":
            self.caption = self.cell
        if tag in ("th", "td"):
            self.rows[-1].append(" ".join(self.cell.split()))
        if tag in ("th", "td", "caption"):
            self.cell = None
        if tag == "table":
            self.tables[self.caption] = {row[0]: row[1:] for row in self.rows}

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(folder):
    return Page(report.write_report(folder).read_text(encoding="utf-8"))


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "runs" / "a")


@pytest.fixture
def hcm(tmp_path, monkeypatch):
    """Calls `hcm` in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(cli.cli, [str(argument) for argument in arguments])


def test_the_summary_says_what_the_tables_say(run):
    text = page_of(run).text.replace("\u00a0", " ")
    for sentence in (
        "Profile quick, seed 3. Data: 50 patients, synthetic, the phantom. Slices: 90 of 32×32 pixels (5.0 mm each) "
        "from 50 patients: 35 to learn from, 5 to choose weights by, 10 held out for the test.",
        "The diffusion model has the lowest KID of 2 models: 1.00 [0.90, 1.10] (held-out real hearts: 0.50 [0.30,",
        "where a copy gains nothing, it is lowest as well: 0.80 [0.70, 0.90] (the training slices themselves: 0.55",
        "No more than real hearts resemble each other: 0.3 [0.1, 0.5] % of the diffusion model’s images are nearer",
        "The most copies are the VAE’s: 40.0 [35.0, 45.0] %.",
        "Nearly as often as in real hearts (the intervals overlap): 91 [89, 93] % of the diffusion model’s images show",
        "largest thickness is 1.0 [0.9, 1.1] mm off that of the training patients (held-out patients: 0.6 [0.5, 0.7]",
        "No gain is shown: of 2 trials",
        "none told HCM from the rest better than the real slices alone, 1 worse, and 1 could not be told apart",
        "largest gain with the diffusion model’s slices is +0.05 [−0.10, +0.20] (real + Diffusion ×1, 2 HCM patients †)"
        ". †: the generator has seen more HCM patients than the trial had.",
        "For research and teaching only",
        "The hearts are synthetic",
    ):
        assert sentence in text, sentence
    assert "not told apart from it" not in text, "the VAE's KID is far away"


def test_the_summary_turns_with_the_figures(run):
    cards = tuple(scorecard.scorecard(run, end) for end in ENDS)
    value, low, high = cards
    value.loc["vae", "KID"], low.loc["vae", "KID"], high.loc["vae", "KID"] = 0.9, 0.85, 1.0
    assert "The VAE has the lowest KID" in summary.which_is_nearest(cards)
    assert "the diffusion model (1.00\u00a0[0.90,\u00a01.10]) is not told apart from it" in summary.which_is_nearest(
        cards
    )
    assert "the diffusion model is lowest: 0.80" in summary.which_is_nearest(cards)
    assert summary.does_it_copy(cards).startswith("Yes, more than real hearts resemble each other: 40.0")
    assert summary.does_anatomy_hold(cards).startswith("Less often than in real hearts: 50")
    high.loc[scorecard.REAL, "copies, %"] = 35.5
    assert summary.does_it_copy(cards).startswith("Perhaps (the intervals overlap): 40.0")
    value.loc["vae", "plausible, %"] = 92.0
    assert summary.does_anatomy_hold(cards).startswith("At least as often as in real hearts: 92")
    value["KID"] = np.nan
    assert summary.which_is_nearest(cards) == summary.does_it_copy(cards) == summary.NOT_YET
    table = report.optional_table(run, "utility")
    table.loc[2, "verdict"] = "better"
    assert summary.did_it_help(table, "diffusion").startswith("In part: of 2 trials")
    assert "Better: real + Diffusion ×1, 2 HCM patients †." in summary.did_it_help(table, "diffusion")
    table["leaks"] = False
    assert "†" not in summary.did_it_help(table, "diffusion")


def test_the_summary_claims_no_more_than_is_known(run):
    cards = value, low, high = tuple(scorecard.scorecard(run, end) for end in ENDS)
    value.loc[["vae", "diffusion"], "plausible, %"] = 80.0, 80.4
    assert "The most closed walls" not in summary.does_anatomy_hold(cards), "as many, as the page shows them"
    value.loc["vae", "copies, %"] = value.loc["diffusion", "copies, %"]
    assert "The most copies" not in summary.does_it_copy(cards)
    value.loc["diffusion", ["copies, %", "plausible, %"]] = 60.0, 3.0
    low.loc[scorecard.REAL] = high.loc[scorecard.REAL] = np.nan
    for text in (summary.does_it_copy(cards), summary.does_anatomy_hold(cards)):
        assert text.startswith("Too few held-out patients to say")
    value.loc[scorecard.REAL] = np.nan
    assert "(held-out patients: –)" in summary.does_anatomy_hold(cards)
    assert summary.does_anatomy_hold(cards).startswith("Too few held-out patients to say")


def test_tables_older_than_the_images_are_told(run):
    assert report.overtaken(run) == []
    for name, seconds in (("vae", 1.0), ("diffusion", 2e9)):
        (run / name).mkdir()
        (run / name / "samples.npz").write_bytes(b"")
        os.utime(run / name / "samples.npz", (seconds, seconds))
    os.utime(run / "evaluation" / "copies.csv", (1e9, 1e9))
    assert report.overtaken(run) == ["Drawn after the tables here were made: Diffusion. Run notebooks 08 to 10 again."]
    assert "Drawn after the tables" in page_of(run).text


def test_a_single_model_is_not_the_best_of_all(run):
    for path in (run / "evaluation").glob("*.csv"):
        table = pd.read_csv(path)
        table[table["model"] != "vae"].to_csv(path, index=False)
    assert "★" not in "".join(cell for table in page_of(run).tables.values() for row in table.values() for cell in row)


def test_the_best_of_each_column_is_marked_by_a_sign(run):
    page = page_of(run)
    table = page.tables["What was measured of each model’s images, beside real hearts"]
    marked = {title: [name for name in table if name and "★" in table[name][i]] for i, title in enumerate(table[""])}
    diffusion = ["SSIM", "KID ↓", "KID to test ↓", "precision ↑", "copies, % ↓", "plausible, % ↑", "wall, mm off ↓"]
    assert marked == {title: ["Diffusion"] for title in diffusion} | {"recall ↑": [], "time, s ↓": ["VAE"]}
    assert table["Diffusion"][4] == "–", "without a second figure none is the best"
    assert table["Diffusion"][1] == "1.00 ★[0.90, 1.10]"
    similar = page.tables["SSIM with real slices"]
    assert [cell.endswith("]") and "★" in cell for cell in similar["Diffusion"][1:]] == [True, True, True]
    assert "★" not in "".join(similar["VAE"] + similar["real test slices"])
    use = page.tables["How well HCM is told from the rest, by patient"]
    assert use["real + VAE ×1"] == ["0.50[0.40, 0.60] †", "−0.20 ▼ worse[−0.30, −0.10] †"]
    assert "▲" not in "".join(use["real + Diffusion ×1"])


def test_a_page_is_whole_alone_and_can_be_read_by_a_machine(run):
    draw(run, "samples_vae.svg", "figure_1_vae_architecture.svg", "figure_5_vae_loss.svg", "table_1_similarity.svg")
    draw_more = ["use_in_a_classifier.svg", "figure_4_original_and_nearest.svg", "own_work.svg"]
    for name in draw_more:
        (run / "figures" / name).write_text("<svg/>")
    (run / "vae").mkdir()
    (run / "vae" / "history.csv").write_text("epoch,loss,validation\n1,9,8\n2,-5,6\n3,-6,7\n")
    html = report.write_report(run).read_text(encoding="utf-8")
    page = Page(html)
    assert html.startswith("<!doctype html>")
    assert [attributes["lang"] for attributes in page.of("html")] == ["en"]
    assert len(page.of("h1")) == 1
    assert not page.of("script") + page.of("link") + page.of("iframe")
    assert not re.search(r"(src|href)=.(https?:)?//|url\(|@import", html)
    images = page.of("img")
    assert len(images) == len(page.of("figcaption")) == 7
    assert all(image["src"].startswith("data:image/svg+xml;base64,") for image in images)
    assert all(len(image["alt"]) > 30 for image in images)
    assert len({image["alt"] for image in images}) == 7
    alts = " ".join(image["alt"] for image in images).replace("\u00a0", " ")
    assert "the training loss goes from 9 to −6 and the validation figure is lowest, 6, in epoch 2" in alts
    assert "Of all its images 50 [48, 52] % show one closed ring" in alts
    assert "The AUC runs from 0.50 (real + VAE ×1, 2 HCM patients) to 0.75 (real + Diffusion ×1" in alts
    assert len(page.of("table")) == len(page.of("caption")) == len(page.tables)
    assert all(attributes["scope"] in ("row", "col") for attributes in page.of("th"))
    anchors = {attributes["href"] for attributes in page.of("a")}
    assert anchors == {"#quality", "#similarity", "#use", "#figures", "#limits", "#made"}
    assert anchors <= {f"#{attributes.get('id')}" for _, attributes in page.elements}
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html


def test_how_a_run_was_made(run):
    page = page_of(run)
    notebooks = page.tables["The notebooks and their parameters"]
    assert list(notebooks) == ["", "02_vae", "07_diffusion"]
    assert notebooks["07_diffusion"] == ["done", "1:15", "seed = 0, epochs = 5, betas = [0.5, 0.999]"]
    for part in (
        "f" * 64,
        "/data/phantom",
        "2026-11-26 08:00:00",
        "1:20 over 2 notebooks",
        "torch 2.13.0",
        "cpu_cores",
    ):
        assert part in page.text
    assert "/somewhere" not in page.text


def test_notebooks_run_by_hand_have_a_page_too(run):
    (run / "run.json").unlink()
    facts = {"parameters": {"epochs": 7}, "seed": 4, "data": "0" * 64, "num_parameters": 12345, "seconds_training": 61}
    (run / "vae").mkdir()
    (run / "vae" / "run.json").write_text(json.dumps(facts | {"versions": {"torch": "2.0"}}))
    page = page_of(run)
    assert "Notebooks that were run one by one, seed 4." in page.text
    assert page.tables["The models"]["VAE"] == ["12,345", "1:01", "–", "other slices than lie here now", "–"]
    assert page.tables["The notebooks and their parameters"]["vae"] == ["–", "–", "epochs = 7"]


def test_before_anything_is_measured(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"run": "new", "notebooks": {}}))
    text = page_of(tmp_path).text
    assert text.count("Not measured yet") == 4
    assert text.count("has not been run") == 3 + 4
    assert "Notebooks 09 and 10 have not been run yet" in text


def test_what_looks_like_code_stays_text(tmp_path):
    notebooks = {EVIL: {"state": EVIL, "seconds": EVIL, "parameters": {EVIL: [EVIL]}}}
    evil = {"data_description": EVIL, "versions": {EVIL: EVIL}, "machine": {EVIL: EVIL}, "notebooks": notebooks}
    folders = [write_run(tmp_path / name, f"{name}{EVIL}", fingerprint=EVIL, **evil) for name in "ab"]
    for folder in folders:
        for name in ("table1", "utility"):
            path = folder / "evaluation" / f"{name}.csv"
            table = pd.read_csv(path)
            table.loc[1, ["model"]] = EVIL
            table.loc[2, ["arm" if name == "utility" else "pairing"]] = EVIL
            table.to_csv(path, index=False)
    draw(folders[0], "own_<img src=x>.svg")
    pages = [report.write_report(folders[0]), comparison.write_comparison(folders, tmp_path / "both.html")]
    for path in pages:
        html = path.read_text(encoding="utf-8")
        page = Page(html)
        assert not page.of("script")
        assert all(image["src"].startswith("data:") for image in page.of("img"))
        assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
        assert "{{ 7 * 7 }}" in page.text, "not evaluated, and not lost"


def test_runs_side_by_side(hcm, tmp_path):
    write_run(tmp_path / "runs" / "a", "a")
    write_run(tmp_path / "runs" / "b", "b", epochs=9, kid=0.75, versions={"python": "3.11.7", "torch": "2.14.0"})
    (tmp_path / "runs" / "b" / "evaluation" / "utility.csv").unlink()
    write_run(tmp_path / "elsewhere" / "c", "c")
    (tmp_path / "elsewhere" / "c" / "evaluation" / "cost.csv").unlink()
    result = hcm("report", "a", "b", tmp_path / "elsewhere" / "c", "--out", "all.html")
    assert result.exit_code == 0, result.output
    page = Page((tmp_path / "all.html").read_text(encoding="utf-8"))
    assert page.tables["Parameters that differ"] == {"": ["a", "b", "c"], "diffusion.epochs": ["5", "9", "5"]}
    runs = page.tables["The runs"]
    assert runs["torch"] == ["2.13.0", "2.14.0", "2.13.0"]
    assert "python" not in runs, "all alike"
    kid = page.tables["KID (lower is better)"]
    assert kid["Diffusion"] == ["1.00[0.90, 1.10]", "0.75 ★[0.65, 0.85]", "–"], "c has not been judged to the end"
    assert kid["VAE"] == ["5.00[4.50, 5.50]", "5.00[4.50, 5.50]", "–"], "alike, so neither is best"
    assert "★" not in "".join(kid["real hearts"])
    use = page.tables["HCM or not: AUC by patient, higher is better"]
    assert use["real only, 2 HCM patients"] == ["0.70[0.60, 0.80]", "–", "0.70[0.60, 0.80]"]


def test_runs_made_notebook_by_notebook_side_by_side(tmp_path):
    for name, torch in (("a", "2.12"), ("b", "2.13")):
        (tmp_path / name / "vae").mkdir(parents=True)
        facts = {"parameters": {"epochs": 5}, "seed": 4, "versions": {"torch": torch}}
        (tmp_path / name / "vae" / "run.json").write_text(json.dumps(facts))
    page = Page(comparison.write_comparison([tmp_path / "a", tmp_path / "b"], tmp_path / "both.html").read_text())
    assert page.tables["The runs"]["seed"] == ["4", "4"]
    assert page.tables["The runs"]["torch"] == ["2.12", "2.13"]
    assert list(page.tables) == ["The runs"], "no table without a row"
    assert "Notebook 08 has not been run to its end in any of them" in page.text


def test_the_better_run_is_the_better_way_round():
    values = np.array([[1.0, 2.0, np.nan, 3.0], [1.0, 1.0, 5.0, np.nan], [1.0, np.nan, np.nan, 4.0]])
    lower = comparison.best_of_rows(values, "lower")
    higher = comparison.best_of_rows(values, "higher")
    assert lower.tolist() == [[False, False, False, True], [False, True, False, False], [False, False, False, False]]
    assert higher.tolist() == [[False, True, False, False], [False, False, False, False], [False, False, False, True]]


def test_runs_on_other_slices_are_not_ranked(tmp_path):
    folders = [write_run(tmp_path / "a"), write_run(tmp_path / "b", kid=0.75, fingerprint="0" * 64)]
    page = Page(comparison.write_comparison(folders, tmp_path / "both.html").read_text(encoding="utf-8"))
    assert "★" not in page.text
    assert "different slices" in page.text
    assert page.tables["The runs"][""] == [str(folder) for folder in folders], "both are called a"


def test_a_step_or_parameter_that_a_run_lacks(tmp_path):
    first = {"02_vae": {"parameters": {"epochs": 2, "width": 8}}, "03_gan": {"parameters": {"epochs": 2}}}
    second = {"02_vae": {"parameters": {"epochs": 2}}}
    folders = [write_run(tmp_path / "a", "a", notebooks=first), write_run(tmp_path / "b", "b", notebooks=second)]
    page = Page(comparison.write_comparison(folders, tmp_path / "both.html").read_text(encoding="utf-8"))
    assert page.tables["Parameters that differ"] == {"": ["a", "b"], "vae.width": ["8", "–"]}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nothing"], "nothing: there is no such run below runs/ and no such folder"),
        (["empty"], "is no run, for neither run.json nor slices lie in it"),
        (["a", "empty"], "is no run, for neither run.json nor slices lie in it"),
        (["a", "a"], "is named twice"),
        (["broken"], "run.json is broken"),
        (["odd"], "run.json is broken (notebooks is not what was written there)"),
        (["a", "--out", "nowhere/page.html"], "there is no folder nowhere; make it first"),
        (["a", "--out", "empty"], "empty cannot be written"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_no_run_is_one_sentence(hcm, run, tmp_path, arguments, sentence):
    (tmp_path / "empty").mkdir()
    for name, content in (("broken", "{"), ("odd", '{"notebooks": {"02_vae": 5}}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(content)
    result = hcm("report", *arguments)
    assert result.exit_code == 2
    assert sentence in result.output
    assert result.output.count("\n") == 1


def test_one_run_by_name_or_folder(hcm, run, tmp_path):
    assert hcm("report", "a").output == f"report    {run / 'report.html'}\n"
    assert hcm("report", run, "--out", "page.html").exit_code == 0
    assert (tmp_path / "page.html").read_bytes() == (run / "report.html").read_bytes()
    write_run(tmp_path / "runs" / "b")
    assert hcm("report", "a", "b").exit_code == 0
    assert (tmp_path / "comparison.html").is_file()


def test_a_broken_history_is_one_sentence(run):
    draw(run, "figure_5_vae_loss.svg")
    (run / "vae").mkdir()
    (run / "vae" / "history.csv").write_text("epoch,loss\n1,<b>\n")
    with pytest.raises(report.DataError, match=r"history\.csv is broken \([^\n]+\); train this model again"):
        report.write_report(run)


def test_figures_come_once_and_in_their_order(tmp_path):
    (tmp_path / "figures").mkdir()
    sizes = {
        "figure_10_b.png": 9,
        "figure_2_a.png": 9,
        "figure_2_a.svg": 5,
        "table_1_c.svg": 1,
        "samples_vae.png": 1,
    }
    for name, size in sizes.items():
        (tmp_path / "figures" / name).write_bytes(b"x" * size)
    (tmp_path / "figures" / ".figure_2_a.png.part").touch()
    files = report.figure_files(tmp_path)
    assert [file.name for file in files] == [
        "figure_2_a.svg",
        "figure_10_b.png",
        "samples_vae.png",
        "table_1_c.svg",
    ]
    named = [captions.describe(file, tmp_path, None, None)[0] for file in files]
    assert named[:2] == ["Figure 2. a", "Figure 10. b"]


@pytest.mark.parametrize(("seconds", "text"), [(4.6, "0:05"), (75, "1:15"), (3599.7, "1:00:00")])
def test_clock(seconds, text):
    assert report.clock(seconds) == text


def test_a_model_that_is_not_of_the_series_stands_by_its_own_name(tmp_path):
    folders = [write_run(tmp_path / name, name) for name in "ab"]
    for path in folders[0].glob("evaluation/*.csv"):
        path.write_text(path.read_text().replace("vae", "mine_2"))
    (folders[0] / "mine_2").mkdir()
    (folders[0] / "mine_2" / "run.json").write_text(json.dumps({"parameters": {"epochs": 7}, "num_parameters": 5}))
    draw(folders[0], "samples_mine_2.svg")
    page = page_of(folders[0])
    assert page.tables["The models"]["mine_2"][0] == "5"
    assert "What the mine_2 usually makes" in page.text
    assert (
        page.tables["What was measured of each model’s images, beside real hearts"]["mine_2"][1] == "5.00[4.50, 5.50]"
    )
    page = Page(comparison.write_comparison(folders, tmp_path / "both.html").read_text(encoding="utf-8"))
    kid = page.tables["KID (lower is better)"]
    assert (kid["mine_2"], kid["VAE"]) == (["5.00[4.50, 5.50]", "–"], ["–", "5.00[4.50, 5.50]"])
