"""What the reader touches, without a browser: a blind and fair quiz, sorted lists, moves that do what they say."""

import io

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from patients import save_nifti, write_patient
from PIL import Image
from rings import ring_slices

from hcm_helpers import figures, widgets
from hcm_helpers.acdc import DataError, find_patients
from hcm_helpers.cutting import Settings
from hcm_helpers.memorisation import nearest_by_pixels
from hcm_helpers.models.diffusion import Diffusion

BRIGHT, DARK = torch.full((40, 1, 32, 32), 0.5), torch.full((30, 1, 32, 32), -0.5)  # "real" and "generated"


def clicks(panel, answers):
    """Press the button of each answer, and return the quiz's text before each."""
    text, buttons = panel.children[2], {button.description: button for button in panel.children[3].children}
    told = []
    for answer in answers:
        told.append(text.value)
        buttons[answer].click()
    return told


def pixels(panel):
    """What the panel's picture shows, (Z, Z, 3) uint8."""
    picture = next(child for child in panel.children if hasattr(child, "format"))
    return np.asarray(Image.open(io.BytesIO(picture.value)).convert("RGB"))


# Pictures


def test_outlined_keeps_grey_and_draws_the_rim_of_each_structure():
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 8:24], mask[12:20, 12:20] = 2, 3
    plain, drawn = (widgets.outlined(torch.zeros(1, 32, 32), m, side=128) for m in (None, mask))
    assert plain.shape == drawn.shape == (128, 128, 3)
    assert (plain == 128).all()
    orange, red = ([round(255 * part) for part in to_rgb(figures.STRUCTURES[k][1])] for k in (2, 3))
    assert drawn[32, 64].tolist() == orange, "the upper edge of the wall, from row 8 · 4 on"
    assert drawn[48, 64].tolist() == red, "and of the cavity, from row 12 · 4 on"
    assert (drawn[64, 64] == 128).all(), "the inside stays as it is"
    assert (drawn[:32] == 128).all(), "and so does what is around"


def test_black_is_minus_one_and_white_is_one():
    ends = torch.tensor([-1.0, 1.0]).repeat(2, 1)[None]
    assert widgets.outlined(ends, side=2)[0, :, 0].tolist() == [0, 255]


def test_a_closed_ring_is_measured_and_an_open_one_is_not():
    y, x = np.mgrid[:64, :64] - 31.5
    distance = 2 * np.hypot(x, y)  # mm
    ring = np.where(distance < 18, 3, np.where(distance < 30, 2, 0)).astype(np.uint8)
    half = np.where((ring == 2) & (x > 0), 0, ring).astype(np.uint8)
    figure = widgets.measured(torch.zeros(2, 1, 64, 64), torch.from_numpy(np.stack([ring, half])), pixel_mm=2.0)
    first, second = (text.get_text() for text in figure.axes[0].texts)
    assert 11.4 < float(first.split()[1]) < 12.6, "from 18 to 30 mm everywhere"
    assert second.startswith("no wall to measure")


def test_the_frame_stands_around_the_chosen_image():
    images = torch.linspace(-1, 1, 5)[:, None, None, None].expand(5, 1, 48, 48)
    for chosen in range(5):
        axes = widgets.marked_row(images, list("abcde"), chosen).axes[0]
        (frame,) = (patch for patch in axes.patches if isinstance(patch, Rectangle))
        centre = round(frame.get_x() + frame.get_width() / 2), round(frame.get_y() + frame.get_height() / 2)
        assert axes.images[0].get_array()[centre[::-1]] == pytest.approx(images[chosen, 0, 0, 0].item())


def test_a_number_always_names_the_same_noise():
    first = widgets.noise(7, 64)
    torch.randn(3)  # whatever else is drawn in between
    assert torch.equal(first, widgets.noise(7, 64))
    assert not torch.equal(first, widgets.noise(8, 64))
    assert first.shape == (1, 64)


def test_cost_is_counted_and_the_model_stays_as_it_is():
    model = Diffusion(32, width=8, sampler="euler", sampling_steps=3, num_classes=5)
    labels = torch.full((2,), 3)
    images, line = widgets.draw_at_cost(model, labels, 2, sampler="heun", sampling_steps=4, guidance=2.0)
    assert images.shape == (2, 1, 32, 32)
    assert line.startswith("14 evaluations"), "Heun asks twice a step but in the last, guidance twice each time"
    assert (model.sampler, model.sampling_steps, model.guidance) == ("euler", 3, 1.0)
    again, _ = widgets.draw_at_cost(model, labels, 2, sampler="heun", sampling_steps=4, guidance=2.0)
    assert torch.equal(images, again)


def test_an_error_leaves_the_model_as_it_is():
    model = Diffusion(32, width=8, sampling_steps=3)
    with pytest.raises(DataError, match="sampler='none'"):
        widgets.draw_at_cost(model, None, 1, sampler="none")
    assert (model.sampler, model.sampling_steps) == ("dpmpp_2m", 3)


# The closest pairs


def test_pairs_come_by_similarity_and_say_on_which_side_of_the_threshold():
    train = ring_slices(range(4), ("HCM",))
    noise = torch.randn(6, *train.images.shape[1:], generator=torch.Generator().manual_seed(0))
    levels = torch.tensor([1.0, 0.0, 3.0, 0.3, 2.0, 0.6])[:, None, None, None]  # image 1 is a copy, image 3 nearly
    images = (train.images[:6] + levels * noise).clamp(-1, 1)
    cc, rows = nearest_by_pixels(images, train)
    found = pd.DataFrame({"cc": cc, "cc_row": rows, "patient": train.manifest["patient"].to_numpy()[rows]})
    titles = [
        widgets.pair_figure(images, train, found, rank, threshold=0.99).axes[0].get_title()
        for rank in range(len(images))
    ]
    values = [float(title.split("CC ")[1].split(",")[0]) for title in titles]
    assert values == sorted(values, reverse=True)
    assert values[0] == 1
    assert ", above the threshold of 0.990" in titles[0]
    assert "not above" in titles[-1]
    picture = widgets.pair_figure(images, train, found, 0, 0.99).axes[0].images[0].get_array()
    assert np.allclose(picture[:32, :32], images[1, 0]), "the copy, image 1, is the closest"


# Real or generated?


@pytest.mark.parametrize("seed", range(5))
def test_a_quiz_is_half_real_without_repetition_and_in_an_order_of_its_seed(seed):
    names = torch.arange(40.0)[:, None, None, None] / 100  # each image bears its number
    real, generated = BRIGHT + names, DARK + names[:30]
    quiz = widgets.make_quiz(real, generated, 20, seed)
    assert quiz.real.sum() == 10
    assert ((quiz.images[:, 0, 0, 0] >= 0.5).numpy() == quiz.real).all()
    assert len(quiz.images[:, 0, 0, 0].unique()) == 20
    again, other = widgets.make_quiz(real, generated, 20, seed), widgets.make_quiz(real, generated, 20, seed + 1)
    assert torch.equal(quiz.images, again.images)
    assert not np.array_equal(quiz.real, other.real) or not torch.equal(quiz.images, other.images)


def test_the_place_in_a_quiz_tells_nothing():
    share = np.mean([widgets.make_quiz(BRIGHT, DARK, 20, seed).real for seed in range(400)], axis=0)
    assert np.abs(share - 0.5).max() < 0.11, "four standard deviations of 400 fair coins"


def test_a_quiz_needs_an_even_number_and_enough_of_each():
    with pytest.raises(DataError, match="even"):
        widgets.make_quiz(BRIGHT, DARK, 19)
    with pytest.raises(DataError, match="too few"):
        widgets.make_quiz(BRIGHT[:9], DARK, 20)


def test_scores_by_hand():
    real = [True] * 10 + [False] * 10
    answers = [True] * 9 + [False] + [False] * 6 + [True] * 4
    scores = widgets.score(answers, real)
    assert scores["right"].to_dict() == {"all": 15, "real": 9, "generated": 6}
    assert scores["of"].to_dict() == {"all": 20, "real": 10, "generated": 10}
    # Clopper and Pearson, from tables: 15 of 20, and 9 of 10.
    assert scores.loc["all", ["low", "high"]].tolist() == pytest.approx([0.509, 0.913], abs=5e-4)
    assert scores.loc["real", ["low", "high"]].tolist() == pytest.approx([0.555, 0.9975], abs=5e-4)
    with pytest.raises(DataError, match="19 answers to 20"):
        widgets.score(answers[1:], real)


@pytest.mark.parametrize(("right", "says"), [(20, "tell them apart"), (14, "not told apart"), (5, "misled")])
def test_verdict(right, says):
    real = np.arange(20) % 2 == 0
    answers = np.where(np.arange(20) < right, real, ~real)
    assert says in widgets.verdict(widgets.score(answers, real))


def test_readers_figure_shows_the_published_and_the_band_of_guessing():
    scores = widgets.score([True] * 20, [True, False] * 10)
    for given in (None, scores):
        ax = widgets.readers_figure(given).axes[0]
        names = [label.get_text() for label in ax.get_yticklabels()]
        assert names[: len(widgets.READERS)] == [reader.who for reader in widgets.READERS]
        assert names[-1].startswith("you")
        assert ("interval" in names[-1]) == (given is not None)
    band = ax.patches[0].get_extents().transformed(ax.transData.inverted())
    assert [band.x0, band.x1] == pytest.approx([6 / 20, 14 / 20])
    assert all(reader.link.startswith("https://") and 0 < reader.share < 1 for reader in widgets.READERS)


def test_the_panel_says_nothing_before_the_last_answer():
    panel = widgets.reader_quiz(BRIGHT, {"Grey": DARK, "Other": DARK}, count=6)
    truth = widgets.make_quiz(BRIGHT, DARK, 6, 0).real
    answers = ["real" if real else "generated" for real in truth]
    shown = []
    for answer in answers:
        shown.append(pixels(panel)[0, 0, 0] > 128)
        assert not panel.children[4].outputs
        told = clicks(panel, [answer])
        assert told[0].endswith("of 6: real or generated?")
    assert shown == truth.tolist(), "the pictures come in the quiz's order"
    assert panel.children[2].value.startswith("6 of 6 right")
    assert len(panel.children[4].outputs) == 3
    assert all(button.disabled for button in panel.children[3].children)

    panel.children[0].children[1].value = 1  # another quiz begins anew
    assert panel.children[2].value == "slice 1 of 6: real or generated?"
    assert not panel.children[4].outputs
    assert not any(button.disabled for button in panel.children[3].children)


# Patients


@pytest.fixture
def beating(tmp_path):
    """A patient with a cine of four frames, brighter from one to the next, and one of another group without."""
    folder = write_patient(tmp_path, 1, "HCM", NbFrame=4, ED=1, ES=3)
    still = nib.load(folder / "patient001_frame01.nii.gz").get_fdata()
    moving = np.stack([still + frame * 40 * (np.indices(still.shape)[0] < 20) for frame in range(4)], axis=-1)
    save_nifti(folder / "patient001_4d.nii.gz", moving.astype(np.int16), (4, 4, 10, 1))
    write_patient(tmp_path, 2, "NOR")
    return find_patients(tmp_path)


def test_heartbeat_has_every_frame_that_there_is_in_order(beating):
    images, masks, rows = widgets.heartbeat(beating[0], Settings(32))
    assert sorted(set(rows["frame"])) == [1, 2, 3, 4]
    assert rows["frame"].is_monotonic_increasing
    assert len(images) == len(masks) == len(rows)
    drawn = rows["labelled"].to_numpy()
    assert set(rows.loc[drawn, "frame"]) == {1, 3}
    assert masks[drawn].any(axis=(1, 2)).all()
    assert not masks[~drawn].any()
    assert sorted(set(widgets.heartbeat(beating[1], Settings(32))[2]["phase"])) == ["ED", "ES"]


def test_a_slice_that_a_frame_lacks_is_its_nearest():
    rows = pd.DataFrame({"frame": [1, 1, 1, 2, 2], "slice": [2, 3, 4, 3, 4]})
    assert widgets.row_at(rows, 2, 4) == 4
    assert widgets.row_at(rows, 2, 2) == 3
    assert widgets.row_at(rows, 1, 2) == 0


def test_the_browser_shows_what_is_chosen(beating):
    panel = widgets.patient_browser(beating, Settings(32))
    (group, name, mask), (_, frame, depth) = (row.children for row in panel.children[:2])
    text = panel.children[3]
    assert (group.value, name.value) == ("HCM", "patient001")
    assert (frame.max, depth.min, depth.max) == (3, 0, 3)
    depth.value = 1
    assert text.value.startswith("ED, frame 1, slice 1, position 0.33")
    outlined = pixels(panel)
    mask.value = False
    images, masks, rows = widgets.heartbeat(beating[0], Settings(32))
    row = widgets.row_at(rows, 1, 1)
    assert np.array_equal(pixels(panel), widgets.outlined(images[row][None]))
    assert np.array_equal(outlined, widgets.outlined(images[row][None], masks[row]))
    frame.value = 1
    assert text.value.startswith("frame 2, slice 1")
    assert text.value.endswith("no mask drawn")

    group.value = "NOR"
    assert name.value == "patient002"
    assert frame.max == 1
    assert text.value.startswith("ES, frame 7"), "it had only two frames; the slider went back to the last"
