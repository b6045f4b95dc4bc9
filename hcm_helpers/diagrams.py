"""How the models are built: the paper's figures 1 to 3, drawn anew, what came after them, and the map of the series."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Polygon

from hcm_helpers.figures import BLUE, GREEN, INK, ORANGE, RED, SOFT, empty_figure


def vae() -> Figure:
    """Figure 1: input → encoder → μ, σ → z → decoder → reconstruction, and where the two losses arise."""
    axes = _diagram(11.2, 4.0)
    middle = 2.25
    _picture(axes, 0.1, middle, _heart(), "input $x$")
    _funnel(axes, 1.9, 3.6, middle, 2.2, 1.3, "Encoder\n$q_\\phi(z\\,|\\,x)$", BLUE)
    _box(axes, 4.25, middle + 0.62, 0.9, 0.7, "$\\mu$", GREEN, size=14)
    _box(axes, 4.25, middle - 0.62, 0.9, 0.7, "$\\sigma$", GREEN, size=14)
    _box(axes, 6.0, middle, 0.9, 0.9, "$z$", ORANGE, size=14)
    _funnel(axes, 7.5, 9.2, middle, 1.3, 2.2, "Decoder\n$p_\\theta(x\\,|\\,z)$", BLUE)
    _picture(axes, 9.7, middle, _heart(blur=2.0), "reconstruction $\\hat{x}$")

    _arrow(axes, (1.4, middle), (1.9, middle))
    for sign in (1, -1):
        _arrow(axes, (3.6, middle + sign * 0.35), (4.25, middle + sign * 0.62))
        _arrow(axes, (5.15, middle + sign * 0.62), (6.0, middle + sign * 0.22))
    _arrow(axes, (6.9, middle), (7.5, middle))
    _arrow(axes, (9.2, middle), (9.7, middle))
    _arrow(axes, (6.45, 1.15), (6.45, middle - 0.45))
    _text(axes, 6.45, 0.98, "$\\epsilon \\sim N(0, I)$")
    _text(axes, 6.45, middle + 0.75, "$z = \\mu + \\sigma \\odot \\epsilon$")

    _bracket(axes, 4.25, 5.15, middle + 1.22, 0.14, GREEN)
    _text(axes, 4.7, middle + 1.5, "KL divergence $\\mathrm{KL}(q_\\phi(z\\,|\\,x)\\,\\|\\,N(0, I))$", GREEN)
    _bracket(axes, 0.75, 10.35, 0.66, -0.24, RED)
    _text(axes, 5.55, 0.3, "reconstruction loss $-\\log p_\\theta(x\\,|\\,z)$", RED)
    return axes.figure


def gan() -> Figure:
    """Figure 2: the generator draws from noise, the discriminator judges, and both learn from that."""
    return _game("$\\max_D\\;\\log D(x) + \\log(1 - D(G(z)))$", "$\\max_G\\;\\log D(G(z))$")


def dcgan() -> Figure:
    """The same game with convolutions: how the sides double in the generator and halve in the discriminator."""
    axes = _diagram(11.2, 3.4)
    middle, left = 1.85, 0.1
    _box(axes, left, middle, 0.75, 0.9, "$z$", ORANGE, size=14)
    steps = [("4×4", 0.4), ("8×8", 0.7), ("16×16", 1.0), ("32×32", 1.3)]
    left += 1.07
    for i, (name, side) in enumerate(steps + steps[-2::-1]):
        colour, ahead = (BLUE if i < 4 else RED), 0.32
        if i == 3:
            _picture(axes, left, middle, _heart(), "", side)
        else:
            for back in (0.12, 0.06, 0.0):  # channels, one behind the other
                _box(axes, left + back, middle + back, side, side, "", colour)
        _text(axes, left + side / 2, middle - side / 2 - 0.2, name, size=9)
        _arrow(axes, (left - ahead, middle), (left - 0.02, middle), colour)
        left += side + 0.12 + ahead
    _arrow(axes, (left - 0.32, middle), (left, middle), RED)
    _box(axes, left, middle, 1.3, 0.9, "$D(\\cdot)$\nreal or drawn?", INK)
    _text(axes, 3.1, 3.1, "Generator: transposed convolutions double each side", BLUE, size=12)
    _text(axes, 8.4, 3.1, "Discriminator: strided convolutions halve it", RED, size=12)
    _text(axes, 5.6, 0.35, "a window of 4×4, the same everywhere: each pixel is seen with its neighbours", size=11)
    return axes.figure


def acgan() -> Figure:
    """A GAN that is told the group: it goes into the generator, and the discriminator is asked for it back."""
    answer = "$S$: real or drawn?\n$C$: which group?"
    return _game("$\\max_D\\;L_S + L_C$", "$\\max_G\\;L_C - L_S$", "group $c$", answer)


def infogan() -> Figure:
    """A GAN whose input has named codes: a reader Q on the discriminator's trunk is asked for them."""
    answer = "$D$: real or drawn?\n$Q$: which code?"
    return _game("$\\max_D\\;V(D, G)$", "$\\min_{G,Q}\\;V(D, G) - \\lambda L_I$", "code $c$", answer)


def _game(
    objective_D: str, objective_G: str, told: str = "", answer: str = "$D(\\cdot)$\nreal or generated?"
) -> Figure:
    """Noise and what else the generator is told, the two players, and what each learns from."""
    axes = _diagram(11.2, 4.7)
    top, low = 3.5, 1.5
    middle = (top + low) / 2
    _box(axes, 0.1, low, 1.3, 0.9, "noise\n$z \\sim N(0, I)$", ORANGE)
    if told:
        _box(axes, 0.1, 0.5, 1.3, 0.6, told, GREEN)
        _arrow(axes, (1.4, 0.5), (2.0, low - 0.3))
    _funnel(axes, 2.0, 3.7, low, 0.8, 1.5, "Generator\n$G$", BLUE)
    _picture(axes, 4.3, low, _heart(noise=0.25), f"generated $G(z{', c' if told else ''})$")
    _picture(axes, 4.3, top, _heart(), "real $x$")
    _funnel(axes, 6.7, 8.5, middle, 2.2, 1.2, "Discriminator\n$D$", RED)
    _box(axes, 9.2, middle, 1.8, 0.9, answer, INK)

    _arrow(axes, (1.4, low), (2.0, low))
    _arrow(axes, (3.7, low), (4.3, low))
    _arrow(axes, (5.6, top), (6.7, middle + 0.6))
    _arrow(axes, (5.6, low), (6.7, middle - 0.6))
    _arrow(axes, (8.5, middle), (9.2, middle))
    _path(axes, [(10.1, middle + 0.45), (10.1, 4.1), (7.6, 4.1), (7.6, middle + 0.9)], RED)
    _text(axes, 8.85, 4.33, objective_D, RED)
    _path(axes, [(10.1, middle - 0.45), (10.1, 0.32), (2.85, 0.32), (2.85, low - 0.62)], BLUE)
    _text(axes, 8.0, 0.55, objective_G, BLUE)
    return axes.figure


def diffusion() -> Figure:
    """Figure 3: noise is added step by step; a network that predicts it takes the steps back."""
    axes = _diagram(11.2, 4.3)
    middle, side = 2.35, 1.3
    lefts = (0.1, 2.95, 6.95, 9.8)
    kept = (1.0, 0.75, 0.5, 0.0)  # share of the signal that is left
    names = ("$x_0$", "$x_{t-1}$", "$x_t$", "$x_T \\sim N(0, I)$")
    for left, share, name in zip(lefts, kept, names, strict=True):
        _picture(axes, left, middle, share**0.5 * _heart() + (1 - share) ** 0.5 * _noise(), name)
    for i, between in ((0, "dots"), (1, "step"), (2, "dots")):
        start, end = lefts[i] + side, lefts[i + 1]
        if between == "dots":
            _text(axes, (start + end) / 2, middle, "· · ·", SOFT, size=16)
        for height, colour, ends in ((0.38, BLUE, (start, end)), (-0.38, RED, (end, start))):
            first, last = (x + np.sign(ends[1] - ends[0]) * pad for x, pad in zip(ends, (0.08, -0.08), strict=True))
            _arrow(axes, (first, middle + height), (last, middle + height), colour)
    centre = (lefts[1] + side + lefts[2]) / 2
    _text(axes, centre, middle + 0.62, "$q(x_t\\,|\\,x_{t-1})$", BLUE)
    _text(axes, centre, middle + 0.1, "$p_\\theta(x_{t-1}\\,|\\,x_t)$", RED)
    _text(axes, 5.6, 4.0, "Forward process: a little Gaussian noise at every step", BLUE, size=12)
    _text(axes, 5.6, 3.6, "$q(x_t\\,|\\,x_{t-1}) = N(x_t;\\,\\sqrt{1-\\beta_t}\\,x_{t-1},\\,\\beta_t I)$", BLUE)
    _box(axes, centre - 0.95, 0.92, 1.9, 0.62, "U-Net $\\epsilon_\\theta(x_t, t)$", RED)
    _arrow(axes, (centre, 1.23), (centre, middle - 0.44), RED)
    _text(
        axes,
        5.6,
        0.2,
        "Reverse process: the network predicts the noise, and a step takes part of it away",
        RED,
        12,
    )
    return axes.figure


def series() -> Figure:
    """The map: patients → slices → six models → judgement → pictures, the notebook of each step and what it writes."""
    axes = _diagram(11.2, 4.9)
    heights = np.linspace(3.95, 1.2, 6)
    middle = heights.mean()
    sources = ("ACDC\ndata/acdc", "the phantom\nhcm phantom", "your patients\nhcm convert")
    models = ("02 VAE", "03 GAN", "04 DCGAN", "05 ACGAN", "06 InfoGAN", "07 Diffusion")
    judges = ("08 evaluation", "09 augmentation")
    columns = {"patients": 0.95, "slices": 3.1, "six models": 5.5, "judgement": 8.0, "pictures": 10.35}
    for name, place in columns.items():
        _text(axes, place, 4.6, name, SOFT, size=12)
    for y, name in zip((3.7, middle, 1.45), sources, strict=True):
        _box(axes, 0.1, y, 1.7, 0.8, name, SOFT)
        _arrow(axes, (1.8, y), (2.4, middle + 0.18 * np.sign(y - middle)), SOFT)
    _box(axes, 2.4, middle, 1.4, 1.0, "01 data\npreparation", ORANGE)
    for y, name in zip(heights, models, strict=True):
        _box(axes, 4.7, y, 1.6, 0.42, name, BLUE)
        _arrow(axes, (3.8, middle + 0.12 * (y - middle)), (4.7, y), ORANGE)
        for judge in (middle + 0.6, middle - 0.6):
            _arrow(axes, (6.3, y), (7.15, judge + 0.12 * (y - middle)), BLUE)
    for y, name in zip((middle + 0.6, middle - 0.6), judges, strict=True):
        _box(axes, 7.15, y, 1.7, 0.6, name, GREEN)
        _arrow(axes, (8.85, y), (9.65, middle + 0.15 * np.sign(y - middle)), GREEN)
    _box(axes, 9.65, middle, 1.4, 0.8, "10 figures\nreport.html", RED)
    for place, files, colour in (
        (3.1, "slices/", ORANGE),
        (5.5, "weights, samples.npz", BLUE),
        (8.0, "evaluation/*.csv", GREEN),
        (10.35, "figures/", RED),
    ):
        _text(axes, place, 0.78 if colour == BLUE else middle - 1.15, files, colour, size=10)
    _path(axes, [(3.1, 1.2), (3.1, 0.4), (8.0, 0.4), (8.0, 1.2)], ORANGE)
    _text(axes, 5.5, 0.18, "slices of patients that no model has seen", ORANGE)
    return axes.figure


def _diagram(width: float, height: float) -> Axes:
    """An empty sheet whose unit is an inch."""
    axes = empty_figure(width, height)[1]
    axes.set_position([0, 0, 1, 1])
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.set_axis_off()
    return axes


def _text(axes: Axes, x: float, y: float, text: str, colour: str = INK, size: float = 11) -> None:
    axes.text(x, y, text, color=colour, fontsize=size, ha="center", va="center", linespacing=1.5)


def _box(
    axes: Axes,
    left: float,
    middle: float,
    width: float,
    height: float,
    text: str,
    colour: str,
    size: float = 11,
) -> None:
    shape = "round,pad=0,rounding_size=0.12"
    corner = (left, middle - height / 2)
    axes.add_patch(FancyBboxPatch(corner, width, height, shape, fc=_tint(colour), ec=colour, lw=1.5))
    _text(axes, left + width / 2, middle, text, size=size)


def _funnel(
    axes: Axes, left: float, right: float, middle: float, before: float, after: float, text: str, colour: str
) -> None:
    """A trapezoid that narrows or widens from left to right, as the data do in a network."""
    corners = [(left, middle - before / 2), (left, middle + before / 2)]
    corners += [(right, middle + after / 2), (right, middle - after / 2)]
    axes.add_patch(Polygon(corners, fc=_tint(colour), ec=colour, lw=1.5, joinstyle="round"))
    _text(axes, (left + right) / 2, middle, text)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = INK) -> None:
    look = {"arrowstyle": "-|>", "mutation_scale": 13, "shrinkA": 2, "shrinkB": 2}
    axes.add_patch(FancyArrowPatch(start, end, color=colour, lw=1.4, **look))


def _path(axes: Axes, points: Sequence[tuple[float, float]], colour: str) -> None:
    """A dashed line around corners that ends in an arrow: what a network learns from."""
    axes.plot(*zip(*points[:-1], strict=True), color=colour, lw=1.3, ls=(0, (4, 3)))
    _arrow(axes, points[-2], points[-1], colour)


def _bracket(axes: Axes, left: float, right: float, y: float, depth: float, colour: str) -> None:
    """A line that gathers what lies from left to right; it opens downwards for a positive depth."""
    low, high = y - depth / 2, y + depth / 2
    axes.plot([left, left, right, right], [low, high, high, low], color=colour, lw=1.3)


def _picture(axes: Axes, left: float, middle: float, image: np.ndarray, name: str, side: float = 1.3) -> None:
    extent = (left, left + side, middle - side / 2, middle + side / 2)
    axes.imshow(image, vmin=-1, vmax=1, extent=extent, aspect="auto", zorder=2)
    _text(axes, left + side / 2, middle - side / 2 - 0.2, name)


def _tint(colour: str) -> tuple[float, ...]:
    return tuple(1 - 0.14 * (1 - channel) for channel in mpl.colors.to_rgb(colour))


def _noise(size: int = 64) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.6, (size, size))


def _heart(size: int = 64, noise: float = 0.0, blur: float = 1.0) -> np.ndarray:
    """A drawn short axis: bright cavities, a thick dark wall, grey around; (size, size) in [−1, 1]."""
    y, x = np.mgrid[:size, :size] / (size - 1) * 2 - 1

    def disc(across: float, down: float, radius: float, stretch: float = 1.0) -> np.ndarray:
        distance = radius - np.hypot((x - across) / stretch, y - down)
        return 1 / (1 + np.exp(-distance * size / (2.5 * blur)))

    picture = np.full((size, size), -0.75)
    for shape, level in (
        (disc(0.0, 0.05, 0.92, 1.05), -0.35),
        (disc(-0.38, -0.12, 0.46, 1.0), 0.75),
        (disc(0.2, 0.08, 0.56), -0.55),
        (disc(0.28, 0.1, 0.27), 0.85),
    ):
        picture = picture * (1 - shape) + level * shape
    return np.clip(picture + noise * _noise(size), -1, 1)
