"""The phantom's body, painted from back to front: chest, abdomen, vessels, and the heart at a phase of its beat.

Coordinates in mm, with the origin on the long axis of the left ventricle: (x, y) the image's; (u, v) the
body's, to the back and to the feet; (a, b) and t the heart's; s along the long axis from base to apex. Arrays
are (Z, X, Y).
"""

import math

import numpy as np

from hcm_helpers.heart import ANGLES, OUTFLOW, Heart, from_angle, hull, left_ventricle, right_ventricle
from hcm_helpers.scene import Grid, Scene, rays, swirls, texture, toward_axis


def surroundings(rng: np.random.Generator, grid: Grid, heart: Heart, tissue: dict[str, float]) -> tuple:
    """The Scene of everything but the heart, and the depth below the skin (mm), which the coils' shading follows."""
    shape = (len(grid.s), len(grid.x), len(grid.y))
    scene = Scene(grid, np.zeros(shape, np.float32), np.zeros(shape, np.float32), tissue)
    textures = {scale: texture(rng, grid, scale) for scale in (4, 8, 16, 40)}  # mm
    skin, pleura = _chest(rng, scene, heart, textures)
    _abdomen(rng, scene, heart, textures, scene.edge(pleura))
    _vessels(rng, scene, heart, textures, scene.edge(pleura))
    return scene, np.maximum(skin, 0)


def _chest(rng: np.random.Generator, scene: Scene, heart: Heart, textures: dict[int, np.ndarray]) -> tuple:
    """Paint skin, fat, muscle, ribs and lung; returns the depths below the skin and below the pleura (mm)."""
    tissue, grid, (u, v) = scene.tissue, scene.grid, scene.grid.body()
    s = grid.s[:, None, None].astype(np.float32)
    fine, medium, lumps, broad = textures.values()
    warp = texture(rng, grid, 30, 1)

    # The front wall is close to the right ventricle and nears the long axis towards the apex.
    fat_depth, muscle_depth = rng.uniform(9, 20) + rng.gamma(1.0, 5.0), rng.uniform(9, 22)
    right = right_ventricle(heart, np.array([0.3]), left_ventricle(heart, np.array([0.3]), 0.0)[1], 0.0)
    reach = float(right.max()) * abs(math.cos(heart.axis))
    front = np.maximum(reach + rng.uniform(-4, 12) - rng.uniform(0.25, 0.55) * s, 18) + fat_depth + muscle_depth
    back, half_height = rng.uniform(125, 165), rng.uniform(180, 260)
    width = (back + front) / 2
    p = (u + rng.uniform(-0.45, 0.4) * v + 9 * texture(rng, grid, 80, 1) - (back - front) / 2) / width
    q = (v - rng.uniform(-20, 30)) / half_height
    skin = (1 - np.sqrt(p * p + q * q - 0.35 * (p * q) ** 2)) * width
    scene.paint(scene.edge(skin), tissue["muscle"])
    septa = np.exp(-((lumps / 0.12) ** 2))
    fat = tissue["fat"] * (1 + 0.14 * broad + 0.08 * medium - 0.25 * septa * np.clip(0.2 + broad, 0, 1))
    scene.paint(scene.edge(skin - 2), 0.0, fat)

    # Muscle in two sheets with a thin seam of fat between them, each grained along the wall.
    muscle = skin - fat_depth * (1 + 0.4 * texture(rng, grid, 50, 1)) + 0.5 * lumps
    grain = np.sin(muscle * (2 * np.pi / rng.uniform(4, 8)) + 2.5 * lumps + 3 * warp + medium)
    meat = tissue["muscle"] * (1 + 0.2 * medium + 0.15 * lumps + 0.2 * grain)
    scene.paint(scene.edge(muscle, 3), meat)
    marbling = np.clip(0.5 * broad + 0.4 * lumps + 0.4 * medium + 0.3 * grain - 0.4, 0, rng.uniform(0.2, 0.8))
    scene.paint(scene.edge(muscle) * marbling, 0.0, fat)
    seam = rng.uniform(0.3, 0.45) * muscle_depth + 2 * warp
    scene.paint(
        scene.edge(rng.uniform(0.2, 1.6) - np.abs(muscle - seam), 3) * np.clip(0.6 + 0.6 * lumps, 0, 1), 0.0, fat
    )

    # Ribs in the inner sheet, cut across; then fat under the pleura, in places.
    pleura = muscle - muscle_depth - 2 * lumps[:1]
    spacing = rng.uniform(28, 42)
    along = np.arctan2(q, p) * half_height / spacing + 0.15 * warp + s / 60 + rng.uniform(0, 1)
    number = np.floor(along)
    sizes = (rng.uniform(*span, 64).astype(np.float32) for span in ((-12, 16), (2.5, 6)))
    long, high = (size[number.astype(np.int32) % 64] for size in sizes)  # some are cut elsewhere
    rib = np.hypot(
        (along - number - 0.5) * spacing / np.maximum(long, 0.1), (muscle - 0.68 * muscle_depth + lumps) / high
    )
    scene.paint(0.6 * scene.edge(5 * (1.35 - rib), 4), 0.0, fat)
    scene.paint(scene.edge(5 * (1.1 - rib)), rng.uniform(0.1, 0.7) * tissue["muscle"])
    marrow = rng.uniform(0.2, 0.8) * tissue["marrow"] * (1 + 0.15 * medium)
    scene.paint(scene.edge(5 * (0.75 - rib)), 0.5 * marrow, 0.5 * marrow)
    scene.paint(scene.edge(2.5 - np.abs(pleura + 1.5), 3) * np.clip(0.3 + 0.8 * broad, 0, 1), 0.0, fat)

    # Lung, its vessels more and wider towards the root.
    inside = scene.edge(pleura, 3)
    scene.paint(inside, tissue["lung"] * (1 + 0.3 * broad + 0.1 * fine) * rng.uniform(0.2, 1.1))
    root = u / 90 + 0.7 * broad
    vessels = np.clip(1.5 * (0.85 * fine + 0.6 * medium + 0.6 * root - rng.uniform(1.8, 2.5)), 0, 1)
    scene.paint(inside * vessels, rng.uniform(0.3, 1.0) * tissue["blood"])

    # A pad of fat fills the narrow places between the chest wall and the heart.
    u0, v0 = 0.6 * heart.radius * math.cos(heart.axis), 0.6 * heart.radius * math.sin(heart.axis)
    both = 1.9 * heart.radius * (1.05 - s / 120) - np.hypot(u - u0, v - v0)  # depth in both ventricles together
    pad = rng.uniform(4, 10)
    fillet = pad * np.logaddexp(-pleura / pad, both / pad) - rng.uniform(0, 4) + 2 * lumps
    scene.paint(inside * scene.edge(fillet, 4), 0.0, fat * (1 + 0.2 * medium))
    return skin, pleura


def _abdomen(
    rng: np.random.Generator, scene: Scene, heart: Heart, textures: dict[int, np.ndarray], inside: np.ndarray
) -> None:
    """Below the diaphragm, on which the heart lies: liver in front, stomach and spleen behind, bowel and fat."""
    tissue, grid, (u, v) = scene.tissue, scene.grid, scene.grid.body()
    s = grid.s[:, None, None].astype(np.float32)
    fine, medium, lumps, broad = textures.values()
    floor = heart.radius + 0.8 * float(heart.wall.mean()) + rng.uniform(-13, -3)
    dome = rng.uniform(-0.2, 0.2) * u - (u - rng.uniform(10, 70)) ** 2 / rng.uniform(400, 1100)
    below = v - np.maximum(floor - 0.2 * s, 16) + dome - 3 * texture(rng, grid, 40, 1)
    scene.paint(inside * scene.edge(below, 4), tissue["muscle"] * (1 + 0.2 * lumps))
    abdomen = inside * scene.edge(below - 2.5, 3)
    lean = float(rng.choice([0.0, 0.0, 0.2, 0.5]))  # share of the room between the organs that is no fat
    scene.paint(
        abdomen,
        lean * rng.uniform(0.8, 1.6) * tissue["spleen"] * (1 + 0.15 * lumps + 0.1 * medium),
        (1 - lean) * rng.uniform(0.85, 1.05) * tissue["fat"] * (1 + 0.15 * broad + 0.1 * lumps),
    )

    def organ(centre, size, content, mottled, wall=0.0):
        """A rounded organ, grained, with a wall where it is hollow."""
        radii = size * rng.uniform(0.9, 1.5), size * rng.uniform(0.7, 1.0), rng.uniform(30, 80)
        place, width = (*centre, rng.uniform(0, 80)), rng.uniform(2, 4)
        near = grid.window(*centre, max(radii[:2]) + wall + 10)  # nothing beyond is touched
        part, room = scene.part(*near), abdomen[:, *near]
        fine, medium, lumps, broad = (values[:, *near] for values in textures.values())
        rough = 2.5 * lumps + 4 * broad
        grained = content * np.clip(1 + mottled * (0.6 * lumps + 0.7 * medium + 0.3 * fine) + 0.1 * fine, 0.1, None)
        if wall:
            part.blob(place, [r + wall for r in radii], room, 0.9 * tissue["muscle"], 0.0, rough, 3)
        part.blob(place, radii, room, grained, 0.0, rough, width)

    for _ in range(20):
        content = tissue[rng.choice(["muscle", "spleen", "bone", "liver"])]
        organ(
            (rng.uniform(-40, 120), floor + rng.uniform(25, 120)),
            rng.uniform(4, 16),
            content * rng.uniform(0.6, 1.6),
            0.6,
            rng.choice([0, 2]),
        )
    organ(
        (rng.uniform(60, 100), floor + rng.uniform(15, 45)),
        rng.uniform(20, 32),
        rng.uniform(0.8, 1.6) * tissue["spleen"],
        0.15,
    )
    stomach = float(rng.choice([tissue["muscle"], tissue["spleen"], 0.6 * tissue["fluid"], tissue["bone"]]))
    organ((rng.uniform(10, 70), floor + rng.uniform(18, 40)), rng.uniform(18, 34), stomach, rng.uniform(0.2, 0.8), 3)
    liver = rng.uniform(0.7, 1.4) * tissue["liver"] * (1 + 0.08 * broad + 0.06 * lumps + 0.07 * medium + 0.08 * fine)
    veins = np.clip(1.5 * (0.9 * medium + 0.5 * fine - rng.uniform(1.5, 2.1)), 0, 1)
    radii = rng.uniform(45, 95), rng.uniform(32, 60), 150.0
    place = rng.uniform(-70, 0), floor + 0.8 * radii[1] + rng.uniform(-10, 4), 60.0
    scene.blob(place, radii, abdomen, liver + rng.uniform(0.1, 0.4) * veins, 0.0, 3 * broad + lumps, rng.uniform(2, 4))


def _vessels(
    rng: np.random.Generator, scene: Scene, heart: Heart, textures: dict[int, np.ndarray], inside: np.ndarray
) -> None:
    """Vessels in their fat, auricle and coronary sinus at the base and the descending aorta; and the spine."""
    tissue, (_, medium, lumps, _) = scene.tissue, textures.values()
    marrow = 0.5 * tissue["marrow"] * (1 + 0.15 * medium)
    spine = rng.uniform(90, 112), rng.uniform(30, 70), 0.0
    scene.blob(spine, (20, 26, 400), inside, tissue["bone"], 0.0, lumps)
    scene.blob(spine, (17, 23, 400), inside, marrow, marrow, lumps)
    around = 1.25 * heart.radius
    for (u0, v0), size, height, sheath in (
        ((around * rng.normal(0.0, 0.2), -0.9 * around), 13, rng.uniform(4, 16), 1),
        ((around * rng.normal(0.2, 0.2), 0.95 * around), 5, rng.uniform(4, 16), 5),
        ((spine[0] - rng.uniform(26, 40), spine[1] - rng.uniform(-10, 20)), 11, 400, 0.5),
    ):
        radii = size * rng.uniform(0.8, 1.5), size * rng.uniform(0.6, 1.0), height
        scene.blob((u0, v0, 0.0), [r + sheath for r in radii], inside, 0.0, tissue["fat"], 2 * lumps, 4)
        blood = rng.uniform(0.5, 1.0) * (1 + 0.12 * lumps + 0.06 * medium)
        scene.blob((u0, v0, 0.0), radii, inside, blood, 0.0, lumps)


def paint_heart(rng: np.random.Generator, scene: Scene, heart: Heart, phase: float) -> np.ndarray:
    """Paint the heart at a phase over its surroundings; returns the mask, (Z, X, Y)."""
    window = scene.grid.window(-20, 8, 105)
    part, tissue = scene.part(*window), scene.tissue
    fine, medium, coarse = (texture(rng, part.grid, scale) for scale in (2.8, 5, 16))
    u, v = part.grid.body()
    c, s = math.cos(heart.axis - math.pi), math.sin(heart.axis - math.pi)
    held = rng.choice([1, 3], (len(part.grid.s), 1, 1), p=[0.9, 0.1])  # a breath a slice, some not held as well
    breath = (held * rng.normal(0, 0.6, (2, len(part.grid.s), 1, 1))).astype(np.float32)  # mm
    height = (part.grid.s - heart.descent * phase) / (heart.length - heart.descent * phase)
    t = height.astype(np.float32)[:, None, None]
    bend = rng.normal(0, 4, (2, 1, 1, 1)).astype(np.float32) * np.clip(t, 0, 1) ** 2  # mm: the apex lies aside
    a, b = c * u + s * v + breath[0] + bend[0], c * v - s * u + breath[1] + bend[1]

    # Depths (mm) below the three surfaces, and how far each moves from slice to slice, which blurs its edge.
    endo_radii, epi_radii = left_ventricle(heart, height, phase)
    right_radii = right_ventricle(heart, height, epi_radii, phase)
    slant = np.gradient(right_radii, ANGLES[1] - ANGLES[0], axis=1) / np.maximum(right_radii, 5)  # of the free wall
    toward, distance = toward_axis(a, b), np.hypot(a, b)
    endo, epi, right, straight = (
        radii.astype(np.float32).ravel()[toward]
        for radii in (endo_radii, epi_radii, right_radii, np.maximum(1 / np.hypot(1, slant), 0.25))
    )
    endo, epi, right = endo - distance, epi - distance, right - distance
    right = np.where(right > 0, straight, np.maximum(straight, np.float32(0.4))) * right
    mask = np.zeros(scene.water.shape, np.uint8)
    labels = mask[:, *window]
    labels[(right > 0) & (epi <= 0) & (t >= 0) & (t < 0.98)] = 1
    labels[(epi > 0) & (t >= 0)] = 2
    labels[(endo > 0) & (t >= 0) & (endo_radii.mean(axis=1) > 2)[:, None, None]] = 3

    # The painted surfaces are uneven, as their tissue is.
    endo, epi, right = endo + 0.4 * medium, epi + 0.5 * medium + 0.3 * coarse, right + 0.6 * medium + 0.4 * coarse
    endo_blur, epi_blur, right_blur = (
        np.clip(np.abs(np.gradient(radii.mean(axis=1))), 0, 12)[:, None, None].astype(np.float32)
        for radii in (endo_radii, epi_radii, right_radii)
    )

    # The pericardium spans both ventricles as a convex sac; fat fills the grooves in it, and lies in patches around
    # it, most of all in the corners at the chest wall and around the apex, least beside the lung.
    around = np.arctan2(b, a)
    corners = 8 * np.exp(-(((around - 2.5) / 0.6) ** 2)) + 5 * np.exp(-(((around + 2.1) / 0.6) ** 2))
    patches = 4 * texture(rng, part.grid, 40, 1) + 0.5 * coarse
    sac_radii = hull(np.maximum(epi_radii, np.where(right_radii > epi_radii, right_radii + 3, 0)))
    sac = sac_radii.astype(np.float32).ravel()[toward] - distance
    thickness = np.clip(heart.fat * (corners + patches - 0.5 - a / 22 + (t > 0.8) * (2 - a / 22)), -3, 12 - a / 6)
    fat = tissue["fat"] * (1 + 0.15 * medium + 0.2 * coarse)
    part.paint(part.edge(sac + 1, 3), 0.7 * tissue["muscle"])
    part.paint(part.edge(sac + thickness, 3) * np.clip(1.1 + 0.3 * coarse, 0, 1), 0.0, fat)
    part.paint(0.5 * part.edge(-np.abs(sac - 1), 3) * np.clip(thickness / 4 - 1, 0, 1), 0.0)

    # The right ventricle: a thin wall, blood, strands of muscle from the wall inwards, the moderator band.
    muscle = tissue["heart"] * (1 + 0.08 * medium + 0.12 * coarse + 0.1 * texture(rng, part.grid, 40))
    part.paint(part.edge(right + 2.5 + 0.5 * coarse, right_blur), muscle)
    inside = part.edge(right, right_blur)
    streaks = swirls(rng, a, b, coarse)
    inflow = rng.uniform(0.9, 1.15) * (1 + 0.08 * streaks + 0.06 * coarse + 0.04 * fine)
    part.paint(inside, tissue["venous blood"] * inflow)
    strands = 0.7 * rays(rng, toward, 6) + 0.8 * medium + 0.4 * fine + 1.4 * (t - 0.4) + b / 60
    strands = np.clip(strands - 0.7 + (6 - right) / 4, 0, 0.85)
    across = np.abs(a * math.sin(heart.band) - b * math.cos(heart.band) + 2.5 * coarse)
    strands = np.maximum(
        strands, np.clip(0.4 + 0.5 * coarse, 0, 0.8) * np.clip(2.5 - across, 0, 1) * (a < 0) * (np.abs(t - 0.55) < 0.12)
    )
    part.paint(inside * strands * heart.trabeculae, muscle)

    # The left ventricle: wall, blood that is fresh at the base and slow at the apex, and turbulent in places;
    # trabeculae (most at the lateral wall and the apex), papillary muscles.
    wall = np.where(t < 0, np.minimum(epi, endo + 2), epi)  # above the base lies the atrium
    part.paint(part.edge(wall, epi_blur), muscle)
    cavity = part.edge(endo, endo_blur)
    turbulent = np.clip(coarse + 0.5 * medium - 1.5 - t, 0, 0.5)
    flow = rng.uniform(0.88, 1.07, (len(t), 1, 1)).astype(np.float32) * (1.05 - 0.2 * t)
    part.paint(cavity, flow * (1 + 0.08 * streaks + 0.02 * coarse + 0.03 * fine - turbulent))
    lateral = 0.8 * a / np.maximum(distance, 1) + 1.2 * np.clip(t, 0, 0.9)  # the septum is smooth
    ridges = rays(rng, toward, 9) + 0.8 * rays(rng, toward, 24) + 0.8 * medium + coarse
    ridges = (0.7 + 1.3 * np.clip(lateral, 0, None)) * ridges + 3 * lateral  # mm
    part.paint(cavity * part.edge(np.minimum(ridges, 9) - endo, 4) * heart.trabeculae * (t > 0.1), muscle)
    for angle, gap, size, level in heart.papillary:
        rim = endo_radii[:, np.abs(from_angle(angle)).argmin(), None, None].astype(np.float32)
        grown = np.minimum(size * (1 + 0.25 * phase), 0.3 * rim) * np.sqrt(np.clip(1 - ((t - level) / 0.32) ** 2, 0, 1))
        far = np.clip(rim - gap * (1 - 0.6 * phase) - 0.6 * grown, 0, None)
        depth = grown * (1 + 0.3 * medium + 0.2 * coarse) - np.hypot(
            a - far * math.cos(angle), b - far * math.sin(angle)
        )
        part.paint(cavity * part.edge(depth, 3) * (grown > 0), muscle)

    # The root of the aorta, between the ventricles, and the outflow of the right one.
    root = 13 - np.hypot(a - 0.75 * heart.radius * math.cos(OUTFLOW), b - 0.75 * heart.radius * math.sin(OUTFLOW))
    above = np.clip(0.4 - 20 * t, 0, 1)
    part.paint(part.edge(root + 2) * above, muscle)
    part.paint(part.edge(root) * above, 1.1 * (1 - turbulent))

    return mask
