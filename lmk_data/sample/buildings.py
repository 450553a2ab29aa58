"""Imaginary landmarks: a building per class, each kind put together from solids. Pure: seeds in, buildings out.

Space has x to the right, y away from the front, z up; a building is about 40 units large.
"""

from collections.abc import Callable
from functools import lru_cache
from math import cos, pi, sin, tau

import numpy as np
from numpy.random import Generator

from lmk_data.sample.solids import Builder, Landmark, Point, arched_wall, dome_profile, flat_shape


@lru_cache(maxsize=16)
def design_landmark(seed: int, number: int) -> Landmark:
    """The building of class `number`; any run of `len(_KINDS)` neighbouring classes holds every kind once."""
    order = np.random.default_rng([seed, 1]).permutation(len(_KINDS))
    noun, over_water, raise_building = _KINDS[order[number % len(_KINDS)]]
    rng = np.random.default_rng([seed, 2, number])
    builder = Builder(rng)
    raise_building(builder, rng)
    return builder.finish(noun, over_water)


def _top_off(b: Builder, r: Generator, x: float, y: float, z: float, half: float, kind: str) -> None:
    """What stands on a tower of the given half width: a spire, a dome, battlements or an onion."""
    if kind == "battlements":
        b.box(x, y, z, (half * 2.3, half * 2.3, half * 0.3), "trim")
        for i in range(5):
            for j in range(5):
                if (i in (0, 4) or j in (0, 4)) and (i + j) % 2 == 0:
                    merlon = (half * 0.34, half * 0.34, half * 0.45)
                    b.box(x + (i - 2) * half * 0.49, y + (j - 2) * half * 0.49, z + half * 0.3, merlon)
        return
    if kind == "spire":
        sides = int(r.choice([4, 8]))
        height = half * r.uniform(2.2, 4.2)
        b.lathe(x, y, [(half * 1.12, z), (half * 0.55, z + height * 0.4), (0, z + height)], sides, ("roof",))
        z += height
    else:
        b.lathe(x, y, [(half * 0.86, z), (half * 0.86, z + half * 0.5)], 12, ("trim",))
        profile = dome_profile(half * 0.86, z + half * 0.5, kind)
        b.lathe(x, y, profile, 16, ("roof",))
        z = profile[-1][1]
    b.lathe(x, y, [(0.12, z), (0.4, z + 0.5), (0.12, z + 1.0), (0.08, z + 2.4)], 6, ("gold",))


def _campanile(b: Builder, r: Generator) -> None:
    half, z, shape = r.uniform(2.6, 4.4), 0.0, str(r.choice(["arch", "rect", "pointed"]))
    stages, columns = int(r.integers(3, 6)), int(r.integers(1, 4))
    clock, taper = bool(r.random() < 0.55), r.uniform(0.9, 1.0)
    for stage in range(stages):
        height = r.uniform(5.5, 8.5)
        sides = b.box(0, 0, z, (half * 2, half * 2, height))
        if stage == stages - 1:
            b.windows(sides, (int(r.integers(1, 4)), 1), "arch", (0.1, 0.08, 0.9, 0.95), (0.62, 0.8), "dark")
        elif stage == stages - 2 and clock:
            for face in sides:
                for radius, material in ((0.4, "trim"), (0.34, "gold"), (0.29, "wall")):
                    b.paint(face, flat_shape("round", 0.5, 0.5, radius, radius * half * 2 / height), material)
                for shape_of in ([(0.485, 0.5), (0.515, 0.5), (0.51, 0.66)], [(0.5, 0.48), (0.5, 0.52), (0.68, 0.55)]):
                    b.paint(face, shape_of, "dark")
        else:
            b.windows(sides, (columns, int(r.integers(1, 3))), shape)
        b.bands(sides, 1, 0.05)
        b.box(0, 0, z + height, (half * 2.18, half * 2.18, 0.6), "trim")
        z, half = z + height + 0.6, half * taper
    _top_off(b, r, 0, 0, z, half, str(r.choice(["spire", "round", "battlements", "onion"])))
    if r.random() < 0.6:
        side, width = float(r.choice([-1, 1])), r.uniform(9, 14)
        x, depth, low = side * (half / taper**stages + 0.3 + width / 2), 8.0, r.uniform(5, 8)
        b.windows(b.box(x, 0, 0, (width, depth, low)), (int(width // 2.4), 1), shape, (0.05, 0.2, 0.95, 0.9))
        b.extrude(
            [(-depth / 2 - 0.5, low), (depth / 2 + 0.5, low), (0, low + 3.4)], x - width / 2, x + width / 2, "roof", "x"
        )


def _lighthouse(b: Builder, r: Generator) -> None:
    base, top, height, rings = r.uniform(3.6, 5), r.uniform(2, 2.7), r.uniform(22, 32), int(r.integers(3, 9))
    sides = int(r.choice([8, 20]))
    steps = np.linspace(0, 1, rings + 1).tolist()
    stripe = ("wall", str(r.choice(["roof", "metal", "wall"])))
    faces = b.lathe(0, 0, [(base + (top - base) * t**0.8, 1.5 + height * t) for t in steps], sides, stripe)
    quarters = [face for i, face in enumerate(faces) if i % sides % (sides // 4) == 0]
    b.windows(quarters, (1, 1), "arch", (0.2, 0.2, 0.8, 0.85), (0.6, 0.5))
    b.lathe(0, 0, [(base * 1.5, 0), (base * 1.4, 1.5)], sides, ("stone",))
    z = height + 1.5
    b.lathe(0, 0, [(top * 1.5, z), (top * 1.5, z + 0.6)], 16, ("trim",))
    b.lathe(0, 0, [(top * 0.72, z + 0.6), (top * 0.72, z + 4)], 10, ("glass",))
    cap = dome_profile(top * 0.95, z + 4, str(r.choice(["round", "cone", "tall"])))
    b.lathe(0, 0, cap, 12, ("roof",))
    x, width, low = float(r.choice([-1, 1])) * (base * 1.5 + 6), r.uniform(7, 10), r.uniform(3.6, 5.5)
    b.windows(b.box(x, 1, 0, (width, 6, low)), (4, 1), "rect", (0.05, 0.2, 0.95, 0.8))
    b.extrude([(-2.5, low), (4.5, low), (1, low + 3)], x - width / 2 - 0.4, x + width / 2 + 0.4, "roof", "x")


def _skyscraper(b: Builder, r: Generator) -> None:
    half, z, tiers, round_plan = r.uniform(5, 8), 0.0, int(r.integers(2, 6)), bool(r.random() < 0.3)
    columns, shape = int(r.integers(4, 8)), str(r.choice(["rect", "rect", "arch"]))
    fill = (r.uniform(0.4, 0.8), r.uniform(0.4, 0.8))
    for tier in range(tiers):
        height = r.uniform(28, 46) / tiers * (1.25 - 0.2 * tier)
        rows = max(3, int(height / 1.6))
        if round_plan:
            b.windows(b.lathe(0, 0, [(half, z), (half, z + height)], 14), (2, rows), shape, (0, 0.02, 1, 0.97), fill)
        else:
            sides = b.box(0, 0, z, (half * 2, half * 2, height))
            b.windows(sides, (columns, rows), shape, (0.06, 0.02, 0.94, 0.97), fill)
            b.bands(sides, 1, 0.02)
        z, half = z + height, half * r.uniform(0.62, 0.86)
    b.lathe(0, 0, [(half, z), (half * 0.75, z + 2.5)], 4, ("trim",))
    if r.random() < 0.7:
        b.lathe(0, 0, [(half * 0.7, z + 2.5), (half * 0.25, z + 6), (0.1, z + 14)], int(r.choice([4, 8])), ("metal",))


def _pagoda(b: Builder, r: Generator) -> None:
    tiers, sides, half, z = int(r.choice([3, 4, 5, 7])), int(r.choice([4, 8])), r.uniform(6, 8), 1.6
    shrink, reach, height = r.uniform(0.8, 0.9), r.uniform(1.35, 1.65), r.uniform(2.6, 4)
    b.lathe(0, 0, [(half * 1.5, 0), (half * 1.45, 1.6)], sides, ("stone",))
    for _ in range(tiers):
        faces = b.lathe(0, 0, [(half, z), (half, z + height)], sides, ("metal",))
        b.windows(faces, (3 if sides == 8 else 5, 1), "rect", (0.04, 0.1, 0.96, 0.85), (0.6, 0.8), "glass")
        z += height
        eaves = [(half * reach, z - 0.1), (half * (reach * 0.5 + 0.45), z + 0.9), (half * shrink * 1.02, z + 2)]
        b.lathe(0, 0, [(half * 0.98, z - 0.4), *eaves], sides, ("trim", "roof", "roof"))
        z, half = z + 2, half * shrink
    b.lathe(0, 0, [(half * 1.02, z), (half * 0.45, z + 2), (0.3, z + 4)], sides, ("roof",))
    b.lathe(0, 0, [(0.3, z + 4), (0.7, z + 5), (0.25, z + 6), (0.6, z + 7), (0.08, z + 10)], 8, ("gold",))


def _lattice(b: Builder, r: Generator) -> None:
    base, height, bays, bend = r.uniform(8, 11.5), r.uniform(36, 48), int(r.integers(6, 10)), r.uniform(1.5, 3)
    levels = [height * (1 - (1 - t) ** 1.3) for t in np.linspace(0, 1, bays + 1).tolist()]
    halves = [0.7 + (base - 0.7) * (1 - z / height) ** bend for z in levels]
    corners = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    for (sx, sy), (tx, ty) in zip(corners, corners[1:] + corners[:1], strict=True):
        lines, braces = [], []
        for i in range(bays):
            p, q, h, k = levels[i], levels[i + 1], halves[i], halves[i + 1]
            lines += [[(sx * h, sy * h, p), (sx * k, sy * k, q)], [(tx * h, ty * h, p), (tx * k, ty * k, q)]]
            if i > 0:
                braces += [[(sx * h, sy * h, p), (tx * k, ty * k, q)], [(tx * h, ty * h, p), (sx * k, sy * k, q)]]
                braces += [[(sx * h, sy * h, p), (tx * h, ty * h, p)]]
        arch = [(-cos(a), sin(a) * 0.92 * levels[1]) for a in np.linspace(0, pi, 13).tolist()]
        flare = [halves[0] + (halves[1] - halves[0]) * z / levels[1] for _, z in arch]
        middle = ((sx + tx) / 2, (sy + ty) / 2)
        span = (tx - middle[0], ty - middle[1])
        curve = [
            (middle[0] * f + span[0] * u * f, middle[1] * f + span[1] * u * f, z)
            for (u, z), f in zip(arch, flare, strict=True)
        ]
        b.beams([*lines, curve], 0.85)
        b.beams(braces, 0.42)
    for level in sorted({1, int(bays * r.uniform(0.4, 0.6))}):
        b.box(0, 0, levels[level] - 0.4, (halves[level] * 2.3, halves[level] * 2.3, 0.9), "metal")
    b.box(0, 0, height, (2.4, 2.4, 1.4), "metal")
    b.lathe(0, 0, [(0.5, height + 1.4), (0.1, height + 8)], 6, ("metal",))
    for sx, sy in corners:
        b.box(sx * base, sy * base, 0, (3, 3, 1.3), "stone")


def _portico(b: Builder, x: float, y: float, z: float, size: Point, num_columns: int) -> None:
    """A row of columns under a gable, its back at y; size is width, depth and the columns' height."""
    width, depth, height = size
    for c in np.linspace(-width / 2 + 0.8, width / 2 - 0.8, num_columns).tolist():
        profile = [(0.75, z), (0.62, z + 0.5), (0.5, z + height - 0.6), (0.8, z + height)]
        b.lathe(x + c, y - depth + 0.9, profile, 10, ("trim",))
    b.box(x, y - depth / 2, z + height, (width, depth, 1.2), "trim")
    foot, side = z + height + 1.2, width / 2 + 0.3
    gable = [(x - side, foot), (x + side, foot), (x, foot + width * 0.2)]
    face = b.extrude(gable, y - depth - 0.2, y, "trim")
    b.paint(face, [(0.14, 0.1), (0.86, 0.1), (0.5, 0.8)], "wall")


def _capitol(b: Builder, r: Generator) -> None:
    width, depth, height = r.uniform(14, 18), r.uniform(11, 14), r.uniform(7, 10)
    shape = str(r.choice(["rect", "arch"]))
    b.box(0, 0, 0, (width + 22, depth + 8, 0.9), "stone")
    sides = b.box(0, 0, 0.9, (width, depth, height))
    b.windows(sides, (5, 2), shape)
    b.bands(sides, 1, 0.06)
    wing = r.uniform(6, 10)
    for side in (-1, 1):
        x, low = side * (width + wing) / 2, height * r.uniform(0.7, 0.85)
        faces = b.box(x, 0.5, 0.9, (wing, depth - 2, low))
        b.windows(faces, (4, 2), shape)
        b.bands(faces, 1, 0.06)
    _portico(b, 0, -depth / 2, 0.9, (width * 0.62, 3.2, height * 0.72), int(r.integers(4, 8)))
    radius, z = depth * r.uniform(0.32, 0.42), height + 0.9
    drum = r.uniform(3, 6)
    b.lathe(0, 0, [(radius * 1.15, z), (radius * 1.15, z + 0.8)], 18, ("trim",))
    eaves = z + drum
    profile = [(radius, z + 0.8), (radius, eaves), (radius * 1.1, eaves + 0.1), (radius * 1.1, eaves + 0.7)]
    faces = b.lathe(0, 0, profile, 16)
    b.windows(faces[:16], (1, 1), "arch", (0.1, 0.1, 0.9, 0.95), (0.6, 0.75))
    dome = dome_profile(radius * 1.02, z + drum + 0.7, str(r.choice(["round", "tall", "tall"])))
    b.lathe(0, 0, dome, 20, ("roof",))
    z = dome[-1][1]
    b.lathe(0, 0, [(0.9, z - 0.3), (0.9, z + 2), (1.1, z + 2.1), (0, z + 4.5)], 10, ("trim", "trim", "gold"))


def _mausoleum(b: Builder, r: Generator) -> None:
    half, height, plinth = r.uniform(7, 9), r.uniform(9, 12), r.uniform(1, 2.6)
    sides_of_plan = int(r.choice([4, 8]))
    b.box(0, 0, 0, (half * 3.5, half * 3.5, plinth), "trim")
    faces = b.lathe(0, 0, [(half, plinth), (half, plinth + height)], sides_of_plan)
    for face in faces:
        b.paint(face, flat_shape("rect", 0.5, 0.5, 0.27, 0.48), "trim")
        b.paint(face, flat_shape("pointed", 0.5, 0.42, 0.2, 0.4), "dark")
    if sides_of_plan == 4:
        b.windows(faces, (1, 2), "pointed", (0.03, 0.05, 0.22, 0.95), (0.7, 0.7), "dark")
        b.windows(faces, (1, 2), "pointed", (0.78, 0.05, 0.97, 0.95), (0.7, 0.7), "dark")
    z, kind, radius = plinth + height, str(r.choice(["onion", "onion", "tall", "round"])), half * r.uniform(0.5, 0.66)
    b.lathe(0, 0, [(radius * 0.9, z), (radius * 0.9, z + 2.2)], 18, ("wall",))
    dome = dome_profile(radius, z + 2.2, kind)
    b.lathe(0, 0, dome, 20, (str(r.choice(["wall", "roof", "roof"])),))
    b.lathe(0, 0, [(0.15, dome[-1][1] - 0.2), (0.5, dome[-1][1] + 0.8), (0.06, dome[-1][1] + 3)], 8, ("gold",))
    for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
        if sides_of_plan == 4:
            b.lathe(sx * half * 0.76, sy * half * 0.76, [(1.3, z), (1.3, z + 1.8)], 8, ("trim",))
            b.lathe(sx * half * 0.76, sy * half * 0.76, dome_profile(1.4, z + 1.8, kind), 12, ("roof",))
    tall = r.uniform(13, 21)
    for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1))[: int(r.choice([2, 4, 4]))]:
        x, y, rings = sx * half * 1.58, sy * half * 1.58, int(r.integers(2, 5))
        for k in range(rings):
            low, high = plinth + tall * k / rings, plinth + tall * (k + 1) / rings
            shaft = [(0.85 - 0.08 * k, low), (0.77 - 0.08 * k, high - 0.6), (1.15, high - 0.3), (1.15, high)]
            b.lathe(x, y, shaft, 10, ("wall", "wall", "trim"))
        b.lathe(x, y, dome_profile(0.75, plinth + tall, kind), 10, ("roof",))


def _onion_church(b: Builder, r: Generator) -> None:
    half, height, shape = r.uniform(6, 8), r.uniform(8, 11), str(r.choice(["arch", "rect"]))
    sides = b.box(0, 0, 0, (half * 2, half * 2, height))
    b.windows(sides, (int(r.integers(3, 6)), int(r.integers(1, 3))), shape)
    b.bands(sides, 1, 0.07)
    materials = ["roof", "gold", "metal", "roof", "gold"]
    r.shuffle(materials)
    kind, grow = str(r.choice(["onion", "onion", "cone"])), r.uniform(1.5, 2.1)
    places = [(-0.6, -0.6), (0.6, -0.6), (0.6, 0.6), (-0.6, 0.6), (0.0, 0.0)][int(r.choice([0, 0, 4])) :]
    for (sx, sy), material in zip(places, materials, strict=False):
        centre = sx == 0
        radius, z = (half * 0.34, height + half * grow * 0.5) if centre else (half * 0.22, height + half * grow * 0.25)
        x, y = sx * half * 1.05, sy * half * 1.05
        drum = [(radius, height), (radius, z), (radius * 1.2, z + 0.2), (radius * 1.2, z + 0.7)]
        faces = b.lathe(x, y, drum, 10, ("wall", "trim"))
        b.windows(faces[:10], (1, 1), "arch", (0.15, 0.15, 0.85, 0.9), (0.5, 0.7))
        dome = dome_profile(radius * 1.25, z + 0.7, kind)
        b.lathe(x, y, dome, 14, (material, material, "trim") if r.random() < 0.3 else (material,))
        b.lathe(x, y, [(0.15, dome[-1][1] - 0.2), (0.12, dome[-1][1] + 2.4)], 6, ("gold",))
    if r.random() < 0.6:
        b.box(0, -half - 2, 0, (5, 4, 5))
        b.extrude([(-3, 5), (3, 5), (0, 8)], -half - 4.3, -half, "roof")
    else:
        b.lathe(half + 4, 2, [(2.6, 0), (2.6, height * 1.5)], 8)
        _top_off(b, r, half + 4, 2, height * 1.5, 2.6, "spire")


def _triumphal_arch(b: Builder, r: Generator) -> None:
    three, width, height, depth = bool(r.random() < 0.5), r.uniform(18, 26), r.uniform(13, 19), r.uniform(5, 8)
    half = width * (0.13 if three else 0.2)
    openings = [(0.0, half, height * 0.58)]
    if three:
        small = (half * 0.62, height * 0.36)
        openings = [(-width * 0.31, *small), openings[0], (width * 0.31, *small)]
    front = b.extrude(arched_wall(-width / 2, width / 2, 0, height, openings), -depth / 2, depth / 2)
    b.bands([front], 1, 0.05)
    b.box(0, 0, height, (width * 1.07, depth * 1.2, 1), "trim")
    attic = r.uniform(3, 5.5)
    panel = b.box(0, 0, height + 1, (width * 0.97, depth * 0.95, attic))
    b.paint(panel[0], flat_shape("rect", 0.5, 0.5, 0.3, 0.33), "trim")
    for row in range(3):
        b.paint(panel[0], flat_shape("rect", 0.5, 0.68 - 0.18 * row, 0.25 - 0.03 * row, 0.035), "dark")
    b.box(0, 0, height + 1 + attic, (width, depth, 0.7), "trim")
    for x in ([-0.46, -0.2, 0.2, 0.46] if three else [-0.44, -0.28, 0.28, 0.44]) if r.random() < 0.75 else []:
        b.box(x * width, -depth / 2 - 1, 0, (1.7, 1.7, height * 0.16), "stone")
        b.lathe(x * width, -depth / 2 - 1, [(0.7, height * 0.16), (0.55, height * 0.93), (0.9, height)], 10, ("trim",))
    z = height + 1.7 + attic
    if r.random() < 0.6:
        for x in (-2.2, -0.8, 0.8, 2.2):
            b.lathe(x, 0, [(0.7, z), (0.5, z + 1.4), (0.8, z + 1.9), (0.2, z + 3)], 8, ("gold",))
    else:
        _top_off(b, r, 0, 0, z, 2.4, "round")


def _castle(b: Builder, r: Generator) -> None:
    half, height, radius = r.uniform(8, 12), r.uniform(7, 10), r.uniform(2.2, 3.4)
    tops, rise, pointed = str(r.choice(["cone", "battlements", "cone"])), r.uniform(4, 10), bool(r.random() < 0.5)
    door = [(0.0, r.uniform(1.6, 2.6), height * 0.3)]
    b.extrude(arched_wall(-half, half, 0, height, door, pointed), -radius * 0.5, radius * 0.5)
    for k in range(11):
        b.box((k - 5) * half * 0.17, 0, height, (half * 0.09, radius, 0.9))
    for x, extra in ((-half - radius, 0.0), (half + radius, r.choice([0.0, 4.0]))):
        tall = height + rise + extra
        faces = b.lathe(x, 0, [(radius * 1.1, 0), (radius, 3), (radius, tall)], 14)
        b.windows(faces[14:], (1, 3), "arch", (0.2, 0.05, 0.8, 0.95), (0.45, 0.4), "dark")
        b.lathe(x, 0, [(radius, tall), (radius * 1.25, tall + 0.8), (radius * 1.25, tall + 1.8)], 14, ("trim",))
        if tops == "cone":
            b.lathe(x, 0, [(radius * 1.4, tall + 1.8), (0, tall + 1.8 + radius * r.uniform(2, 3.4))], 14, ("roof",))
        else:
            for a in range(8):
                b.box(x + radius * cos(a * tau / 8), radius * sin(a * tau / 8), tall + 1.8, (0.9, 0.9, 1.1))
    keep, tall, x, y = r.uniform(3, 5), height + rise * r.uniform(1, 1.8), half * r.uniform(-0.4, 0.4), half * 0.9
    b.windows(b.box(x, y, 0, (keep * 2, keep * 2, tall)), (3, 4), "arch")
    b.extrude([(y - keep - 0.4, tall), (y + keep + 0.4, tall), (y, tall + keep)], x - keep, x + keep, "roof", "x")


def _cathedral(b: Builder, r: Generator) -> None:
    half, tall, nave, length = r.uniform(2.4, 3.2), r.uniform(19, 27), r.uniform(4, 5.5), r.uniform(16, 22)
    top, shape = str(r.choice(["spire", "spire", "battlements", "round"])), str(r.choice(["pointed", "arch"]))
    front = b.box(0, 0.4, 0, (nave * 2, 3, tall * 0.66))
    b.windows(front[:1], (1, 1), shape, (0.3, 0.0, 0.7, 0.42), (0.9, 0.95), "dark")
    for radius, material in ((0.34, "trim"), (0.29, "glass"), (0.1, "trim")):
        b.paint(front[0], flat_shape("round", 0.5, 0.66, radius, radius * nave * 2 / (tall * 0.66)), material)
    b.extrude([(-nave, tall * 0.66), (nave, tall * 0.66), (0, tall * 0.66 + nave * 0.9)], -1.1, 1.9)
    for side in (-1, 1) if r.random() < 0.75 else (float(r.choice([-1, 1])),):
        x, stages = side * (nave + half), int(r.integers(2, 5))
        for k in range(stages):
            faces = b.box(x, 0.4, tall * k / stages, (half * 2, half * 2, tall / stages))
            b.windows(faces, (int(1 + (k + stages) % 2), 1), shape, (0.12, 0.1, 0.88, 0.92), (0.55, 0.75))
            b.bands(faces, 1, 0.05)
        _top_off(b, r, x, 0.4, tall, half, top)
    y, wall = 1.9 + length / 2, tall * 0.52
    faces = b.box(0, y, 0, (nave * 2, length, wall))
    b.windows([faces[1], faces[3]], (5, 1), shape, (0.04, 0.15, 0.96, 0.9))
    b.extrude([(-nave - 0.4, wall), (nave + 0.4, wall), (0, wall + nave * 1.1)], 1.9, 1.9 + length, "roof")
    for k in range(5):
        for side in (-1, 1):
            b.box(side * (nave + 0.7), 3 + (length - 2) * k / 4, 0, (1.4, 0.9, wall * 0.8), "trim")
            b.lathe(side * (nave + 0.7), 3 + (length - 2) * k / 4, [(0.6, wall * 0.8), (0, wall * 1.1)], 4, ("trim",))


def _temple(b: Builder, r: Generator) -> None:
    across, along, height, z = int(r.integers(4, 9)), int(r.integers(5, 9)), r.uniform(7, 11), 0.0
    pitch = r.uniform(2.5, 3.1)
    width, depth = pitch * (across - 1) + 2, pitch * (along - 1) + 2
    for step in range(int(r.integers(2, 6))):
        b.box(0, 0, z, (width + 5 - step * 0.9, depth + 5 - step * 0.9, 0.7), "stone")
        z += 0.7
    cella = b.box(0, 0, z, (width - 5.4, depth - 5.4, height), "roof" if r.random() < 0.4 else "trim")
    b.windows(cella, (3, 1), "rect", (0.05, 0.1, 0.95, 0.8), (0.5, 0.9), "dark")
    column = [(0.8, z), (0.72, z + height * 0.4), (0.58, z + height * 0.93), (0.95, z + height)]
    for i in range(across):
        for j in range(along):
            if i in (0, across - 1) or j in (0, along - 1):
                x, y = (i - (across - 1) / 2) * pitch, (j - (along - 1) / 2) * pitch
                b.lathe(x, y, column, 9)
    z += height
    faces = b.box(0, 0, z, (width, depth, 1.6))
    b.windows(faces[:1] + faces[2:3], (across * 2, 1), "rect", (0, 0.3, 1, 0.8), (0.4, 1), "metal")
    if r.random() < 0.75:
        rise = width * r.uniform(0.13, 0.22)
        outline = [(-width / 2 - 0.6, z + 1.6), (width / 2 + 0.6, z + 1.6), (0, z + 1.6 + rise)]
        b.extrude(outline, -depth / 2 + 0.1, depth / 2, "roof")
        gable = b.extrude(outline, -depth / 2 - 0.6, -depth / 2 + 0.1)
        b.paint(gable, [(0.16, 0.12), (0.84, 0.12), (0.5, 0.78)], "metal")
    else:
        radius = min(width, depth) * 0.36
        b.lathe(0, 0, [(radius, z + 1.6), (radius, z + 3.6)], 16)
        b.lathe(0, 0, dome_profile(radius, z + 3.6, "round"), 20, ("roof",))


def _column(b: Builder, r: Generator) -> None:
    z, half, height = 0.0, r.uniform(7, 10), r.uniform(20, 32)
    for _ in range(int(r.integers(2, 6))):
        b.box(0, 0, z, (half * 2, half * 2, 0.9), "stone")
        z, half = z + 0.9, half - r.uniform(0.7, 1.2)
    plinth = r.uniform(3, 6)
    faces = b.box(0, 0, z, (6.4, 6.4, plinth))
    for face in faces:
        b.paint(face, flat_shape("rect", 0.5, 0.5, 0.33, 0.33), "trim")
    b.box(0, 0, z + plinth, (7.2, 7.2, 0.8), "trim")
    z += plinth + 0.8
    if r.random() < 0.5:
        thick = r.uniform(1.6, 2.3)
        faces = b.lathe(
            0, 0, [(thick, z), (thick * 0.7, z + height), (0, z + height + thick * 1.7)], 4, ("wall", "gold")
        )
        marks, shape = int(r.integers(5, 10)), str(r.choice(["rect", "round"]))
        b.windows(faces[:4], (1, marks), shape, (0.2, 0.03, 0.8, 0.97), (0.6, 0.5), "trim")
    else:
        thick, rings = r.uniform(1.5, 2.1), int(r.integers(1, 7))
        steps = np.linspace(0, 1, rings * 2 + 1).tolist()
        b.lathe(0, 0, [(thick * 1.3, z), (thick * 1.3, z + 0.8)], 14, ("trim",))
        b.lathe(0, 0, [(thick * (1 - 0.2 * t), z + 0.8 + height * t) for t in steps], 14, ("wall", "trim"))
        z += height + 0.8
        b.lathe(0, 0, [(thick * 0.8, z), (thick * 1.6, z + 1.4)], 14, ("trim",))
        b.box(0, 0, z + 1.4, (thick * 3, thick * 3, 0.6), "trim")
        b.lathe(
            0, 0, [(1.1, z + 2), (0.6, z + 3.6), (0.9, z + 5), (0.3, z + 5.6), (0.5, z + 6.2), (0, z + 7)], 8, ("gold",)
        )
    if r.random() < 0.6:
        for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
            b.box(sx * 11, sy * 11, 0, (2.4, 2.4, 2), "stone")
            b.lathe(sx * 11, sy * 11, [(1.1, 2), (0.6, 3.6), (0.9, 4.4), (0, 5.2)], 8, ("metal",))


def _hung_bridge(b: Builder, r: Generator) -> None:
    half, deck, tall, wide = r.uniform(28, 33), r.uniform(5, 7), r.uniform(19, 28), 3.4
    main, fan = half * r.uniform(0.45, 0.6), bool(r.random() < 0.4)
    stone = "wall" if r.random() < 0.4 else "metal"
    b.box(0, 0, deck, (half * 2, wide * 2, 1.1), "metal" if r.random() < 0.5 else "stone")
    for x in (-main, main):
        b.box(x, 0, 0, (4, wide * 2 + 3, 2), "stone")
        thick = 2.4 if stone == "wall" else 1.5
        for y in (-wide - 0.8, wide + 0.8):
            b.box(x, y, 2, (thick, 1.5, tall - 2), stone)
        for level in np.linspace(deck + (tall - deck) * 0.4, tall - 1, int(r.integers(1, 4))).tolist():
            b.box(x, 0, level, (thick * 0.9, wide * 2 + 0.1, 1.3), stone)
    for y in (-wide - 0.8, wide + 0.8):
        cables: list[list[Point]] = []
        hangers: list[list[Point]] = []
        places = np.linspace(-half, half, 49).tolist()
        if fan:
            for x in (-main, main):
                reach = np.linspace(0.15, 1, 8).tolist()
                for t in reach:
                    top = tall - 1 - (1 - t) * (tall - deck) * 0.35
                    cables += [
                        [(x, y, top), (x + s * t * (main if s * x < 0 else half - main), y, deck + 1)] for s in (-1, 1)
                    ]
        else:
            sag = [deck + 2 + (tall - deck - 2) * (x / main) ** 2 if abs(x) <= main
                   else tall - (tall - deck - 1) * (abs(x) - main) / (half - main) for x in places]  # fmt: skip
            cables = [[(x, y, z) for x, z in zip(places, sag, strict=True)]]
            hangers = [[(x, y, deck + 1), (x, y, z)] for x, z in zip(places[1::2], sag[1::2], strict=True)]
        b.beams(cables, 0.32 if fan else 0.6)
        b.beams(hangers, 0.18)
    for x in (-half - 3, half + 3):
        b.box(x, 0, 0, (6, wide * 2 + 2, deck + 1.1), "stone")


def _arched_bridge(b: Builder, r: Generator) -> None:
    half, tiers, spans, wide = r.uniform(26, 32), int(r.choice([1, 1, 2, 3])), int(r.integers(3, 7)), 2.6
    pointed, z = bool(r.random() < 0.25), 0.0
    for tier in range(tiers):
        count = spans * (2 if tier == tiers - 1 and tiers > 1 else 1)
        pitch = half * 2 / count
        height = pitch * r.uniform(0.68, 0.95) if tiers == 1 else max(pitch * 0.75, 6.5 if tier < tiers - 1 else 4)
        openings = [
            (-half + pitch * (k + 0.5), pitch * 0.4, max(z + height - pitch * 0.56 - 0.6, z + 0.3))
            for k in range(count)
        ]
        face = b.extrude(arched_wall(-half, half, z, z + height, openings, pointed), -wide, wide)
        b.bands([face], 1, 0.07)
        b.box(0, 0, z + height, (half * 2 + 1, wide * 2 + 0.8, 0.7), "trim")
        if tier == 0:
            for k in range(1, count):
                for y in (-wide - 0.9, wide + 0.9):
                    cutwater = [(pitch * 0.1, z), (pitch * 0.1, z + height * 0.6), (0.1, z + height * 0.75)]
                    b.lathe(-half + pitch * k, y, cutwater, 6, ("stone",))
        z, wide = z + height + 0.7, wide * 0.85
    ends = int(r.integers(0, 3)) if tiers == 1 else 0
    for x in (-half - 2, half + 2)[: ends if ends else 0]:
        gate = b.extrude(arched_wall(x - 2.4, x + 2.4, 0, z + 9, [], False), -3.2, 3.2)
        b.windows([gate], (1, 2), "arch", (0.2, 0.55, 0.8, 0.95), (0.6, 0.6), "dark")
        _top_off(b, r, x, 0, z + 9, 2.4, "spire")
    if ends == 0 and tiers == 1:
        for k in range(1, spans):
            x = -half + half * 2 / spans * k
            b.lathe(x, -wide, [(0.5, z), (0.35, z + 2.6), (0.8, z + 3), (0, z + 4)], 6, ("metal", "metal", "gold"))


def _steel_arch(b: Builder, r: Generator) -> None:
    half, deck, rise, wide = r.uniform(22, 27), r.uniform(4, 9), r.uniform(13, 19), 3.2
    b.box(0, 0, deck, (half * 2 + 12, wide * 2, 1.2), "stone")
    ts = np.linspace(0, pi, 23).tolist()
    foot, gap = r.choice([0.5, deck * 0.6]), r.uniform(2, 4)
    for y in (-wide - 0.5, wide + 0.5):
        lower = [(-half * cos(t), y, foot + rise * sin(t)) for t in ts]
        upper = [(-half * cos(t), y, foot + gap + (rise + 0.4) * sin(t)) for t in ts]
        b.beams([lower, upper], 0.8)
        web = [[p, q] for p, q in zip(lower, upper, strict=True)]
        web += [[p, q] for p, q in zip(lower, upper[1:], strict=False)]
        b.beams(web, 0.36)
        hangers = [[(x, y, deck + 1), (x, y, z)] for x, _, z in lower if z > deck + 1.5]
        b.beams([*hangers, *([(x, y, z), (x, y, deck)] for x, _, z in lower[1::3] if z < deck - 1)], 0.26)
    braces = [
        [(-half * cos(t), -wide, foot + gap + rise * sin(t)), (-half * cos(t), wide, foot + gap + rise * sin(t))]
        for t in ts
    ]
    b.beams([line for line in braces if line[0][2] > deck + 4], 0.4)
    pylon = r.uniform(deck + 5, deck + 13)
    for x in (-half - 2.6, half + 2.6):
        for y in (-wide - 1, wide + 1):
            faces = b.box(x, y, 0, (3.6, 2, pylon))
            b.windows(faces, (1, 3), "arch", (0.15, 0.3, 0.85, 0.95), (0.5, 0.5), "dark")
            b.box(x, y, pylon, (4.2, 2.6, 0.8), "trim")
        b.box(x, 0, 0, (3.6, wide * 2, deck), "wall")


_Kind = tuple[str, bool, Callable[[Builder, Generator], None]]


_KINDS: tuple[_Kind, ...] = (
    ("Bell Tower", False, _campanile),
    ("Bridge", True, _hung_bridge),
    ("Capitol", False, _capitol),
    ("Arch", False, _triumphal_arch),
    ("Lighthouse", False, _lighthouse),
    ("Old Bridge", True, _arched_bridge),
    ("Mausoleum", False, _mausoleum),
    ("Castle", False, _castle),
    ("Iron Tower", False, _lattice),
    ("Church", False, _onion_church),
    ("Arch Bridge", True, _steel_arch),
    ("Pagoda", False, _pagoda),
    ("Cathedral", False, _cathedral),
    ("Temple", False, _temple),
    ("Building", False, _skyscraper),
    ("Column", False, _column),
)
