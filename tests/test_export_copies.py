"""`hcm sample` and copies of training slices: marked and named, or left out; and no patient is told of."""

import csv
import gzip
import json
import time
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from exports import content, exported, floats, hcm, refusal, save_model, unfinished, write_manifest
from PIL import Image

from hcm_helpers import export

pytestmark = pytest.mark.usefixtures("here")


def noise_of(block):
    """What the model of these tests draws in a block: 50 images of noise, no two of them alike."""
    return torch.rand(50, 1, 32, 32, generator=torch.Generator().manual_seed(block)) * 2 - 1


@pytest.fixture
def copies(monkeypatch):
    """A model of noise, and the blocks that have been drawn from it."""
    drawn = []

    def draw(network, settings, block):
        drawn.append(block)
        return (noise_of(block),)

    monkeypatch.setattr(export, "draw", draw)
    return drawn


def learn(*places, held_out=20):
    """runs/small/slices anew: the candidates at these places in training; held-out noise, one 0.6 like the first."""
    candidates = torch.cat([noise_of(block) for block in range(6)])
    others = torch.rand(held_out, 1, 32, 32, generator=torch.Generator().manual_seed(99)) * 2 - 1
    others[:1] = 0.42 * candidates[places[0]] + 0.56 * others[:1]
    folder = Path("runs/small/slices")
    rows = ["train"] * len(places) + ["validation", "test"] * (held_out // 2)
    write_manifest(folder, [(f"patient{i:03d}", "HCM", split, 8.0) for i, split in enumerate(rows)])
    images = torch.cat([candidates[list(places)] * 0.5 + 0.1, others])  # of less contrast, and brighter
    np.save(folder / "images.npy", images.numpy())
    np.save(folder / "masks.npy", np.zeros((len(rows), 32, 32), np.uint8))


def without(places, n):
    candidates = torch.cat([noise_of(block) for block in range(6)])
    return candidates[[i for i in range(300) if i not in places][:n]].numpy()


def facts_of(folder):
    return json.loads((Path(folder) / "export.json").read_text())


COPIES = (3, 10, 49, 50, 51, 77)


def test_copies_are_left_out_and_counted(copies):
    learn(*COPIES)
    images, _ = floats(exported("vae", 60, "out", "--format", "npz", "--reject-copies"), 60)
    assert np.array_equal(images, without(COPIES, 60))
    facts = facts_of("out")
    assert (facts["drawn"], facts["rejected"], facts["kept"]) == (100, 6, [47, 47])
    assert facts["settings"]["copies_above"] == pytest.approx(0.6, abs=0.05)
    images, _ = floats(exported("vae", 60, "all", "--format", "npz"), 60)
    assert np.array_equal(images, without((), 60))
    assert "rejected" not in facts_of("all")
    assert marks("out") == ["False"] * 60


def marks(folder):
    return [row["copy"] for row in csv.DictReader((Path(folder) / "manifest.csv").open(newline=""))]


@pytest.mark.parametrize("file_format", ["png", "nifti", "npz"])
def test_copies_are_marked_and_named(copies, file_format):
    learn(*COPIES, 78, 79)
    result = hcm("vae", "-n", 80, "--out", "out", "--format", file_format)
    assert result.exit_code == 0, result.output
    assert [i for i, mark in enumerate(marks("out")) if mark == "True"] == [*COPIES, 78, 79]
    assert marks("out").count("False") == 72
    (line,) = [line for line in result.output.splitlines() if "copies" in line]
    assert line.startswith("8 of 80 images are copies of a training slice (r above 0.")
    named = {"npz": "samples.npz[{}]"}.get(file_format, "vae_{:05d}." + export.SUFFIXES[file_format])
    assert ": " + ", ".join(named.format(i) for i in COPIES[:5]) + " and 3 more; " in line

    result = hcm("vae", "-n", 3, "--out", "few", "--format", file_format)
    assert "0 of 3 images are copies" in result.output
    assert marks("few") == ["False"] * 3


def test_where_copies_cannot_be_told_a_line_says_why(copies, here):
    learn(*COPIES, held_out=18)
    before = content(exported("vae", 4, "few_held_out"))
    for why in ("18 held-out slices are too few", "are not the slices", "holds no images.npy"):
        result = hcm("vae", "-n", 4, "--out", "out", "--force")
        assert result.exit_code == 0, result.output
        (line,) = [line for line in result.output.splitlines() if "could not be told" in line]
        assert why in line
        assert marks("out") == [""] * 4
        assert content("out") == before
        slices = here / "runs/small/slices"
        (slices / "slices.json").write_text(json.dumps({"fingerprint": "0" * 64}))
        if why == "are not the slices":
            (slices / "images.npy").unlink()


@pytest.mark.parametrize("model", ["vae", "diffusion"])
@pytest.mark.parametrize("file_format", ["png", "nifti", "npz"])
def test_no_patient_and_no_path_is_in_any_file(here, model, file_format):
    """Nor a time: what the files hold is the images and the settings."""
    learn(*COPIES)
    if model == "diffusion":
        save_model(model, with_masks=True)
    options = ["--with-masks"] if model == "diffusion" else []
    folder = exported(model, 3, "out", "--format", file_format, *options)
    secrets = ["patient", str(here), time.strftime("%Y-%m-%d")]
    for path in folder.iterdir():
        written = path.read_bytes()
        if path.suffix == ".gz":
            assert written[3:8] == bytes(5), "no name, comment or time in gzip's header"
            written = gzip.decompress(written)
            header = nib.load(path).header
            assert not header.extensions
            for field in ("descrip", "aux_file", "intent_name", "data_type", "db_name"):
                assert header[field] == b""
        if path.suffix == ".png":
            assert Image.open(path).info == {}
        if path.suffix == ".npz":
            for member in zipfile.ZipFile(path).infolist():
                assert member.filename in ("images.npy", "labels.npy", "masks.npy")
                assert (member.comment, member.date_time) == (b"", (1980, 1, 1, 0, 0, 0))
        for secret in secrets:
            assert secret.encode() not in written, f"{path.name} holds {secret}"
    assert set(facts_of("out")) == {"made_by", "finished", "settings"}
    known = {"run", "model", "group", "seed", "images", "format", "masks", "weights_sha256", "spacing_mm"}
    assert set(facts_of("out")["settings"]) <= known


def test_fewer_images_without_copies_are_the_first_of_more(copies):
    learn(*COPIES)
    more, fewer = (content(exported("vae", n, f"{n}", "--reject-copies")) for n in (120, 48))
    images = [name for name in fewer if name.endswith(".png")]
    assert len(images) == 48
    assert all(more[name] == fewer[name] for name in images)


@pytest.mark.parametrize("file_format", ["png", "npz"])
@pytest.mark.parametrize("stop_at", [1, 30, 49, 75, 99, 120, 172])
def test_an_interrupted_export_without_copies_continues(copies, monkeypatch, file_format, stop_at):
    learn(*COPIES)
    options = ("--format", file_format, "--reject-copies")
    whole = content(exported("vae", 120, "whole", *options))
    calls, write_whole = [], export.write_whole

    def stopping(path, write):
        calls.append(path)
        if len(calls) == stop_at:
            write(path.with_name(f".{path.name}.part"))
            raise KeyboardInterrupt
        write_whole(path, write)

    monkeypatch.setattr(export, "write_whole", stopping)
    stopped = hcm("vae", "-n", 120, "--out", "out", *options).exit_code
    assert stopped == (130 if stop_at <= len(calls) else 0)
    monkeypatch.setattr(export, "write_whole", write_whole)
    if stopped:
        copies.clear()
        exported("vae", 120, "out", *options)
        finished = max(0, (stop_at - 2) // 48)  # blocks of 47 images and a line in export.json
        assert file_format == "npz" or copies == list(range(min(finished, 2), 3)) or stop_at >= 122
    assert content("out") == whole


def test_a_model_of_copies_is_given_up(copies):
    learn(*(place for place in range(200) if place % 40))
    sentence = refusal("vae", "-n", 20, "--out", "out", "--reject-copies")
    assert "195 of 200 images are copies" in sentence
    assert copies == [0, 1, 2, 3]
    assert "195 of 200" in refusal("vae", "-n", 20, "--out", "out", "--reject-copies")
    assert copies == [0, 1, 2, 3], "what is known is not drawn again"
    exported("vae", 5, "few", "--reject-copies")


def test_a_model_of_many_copies_goes_on(copies):
    learn(*(place for place in range(300) if place % 10))
    exported("vae", 25, "out", "--reject-copies")
    assert facts_of("out")["kept"] == [5] * 5


def test_without_copies_needs_the_slices_that_tell_them(copies):
    learn(*COPIES, held_out=18)
    assert "18 held-out slices are too few" in refusal("vae", "--out", "out", "--reject-copies")
    learn(*COPIES, held_out=0)
    assert "no slices of validation or test" in refusal("vae", "--out", "out", "--reject-copies")
    learn(*COPIES)
    Path("runs/small/slices/slices.json").write_text(json.dumps({"fingerprint": "0" * 64}))
    assert "are not the slices" in refusal("vae", "--out", "out", "--reject-copies")
    assert not Path("out").exists()


def test_an_unfinished_export_with_copies_is_not_continued_without_them(copies):
    learn(*COPIES)
    unfinished()
    assert "of another copies_above;" in refusal("vae", "-n", 3, "--out", "out", "--reject-copies")
