"""Photographs of imaginary landmarks: camera, light, sky and ground. Pure: a generator in, a picture out.

A photograph projects the polygons of a landmark, draws its solids from back to front by the planes between them, and
shades each polygon by the light of the hour. Canvas coordinates are pixels, x to the right and y down.
"""

from dataclasses import dataclass
from math import cos, pi, sin
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from lmk_data.sample.solids import GLASS, Colour, Floats, Ints, Landmark

LONGEST_SIDE = 800
_SUPERSAMPLING = 1.5


@dataclass(frozen=True)
class _Hour:
    """The light of an hour: colours of sky, sun and shade; `cover` is the share of clouds."""

    zenith: Colour
    horizon: Colour
    sun: tuple[float, float, float]
    shade: tuple[float, float, float]
    cloud: Colour
    cover: float
    night: bool = False


_HOURS = (
    _Hour((58, 122, 196), (178, 212, 236), (0.62, 0.59, 0.50), (0.56, 0.60, 0.67), (250, 250, 250), 0.25),
    _Hour((150, 164, 178), (208, 214, 220), (0.20, 0.20, 0.20), (0.78, 0.80, 0.83), (182, 188, 196), 0.85),
    _Hour((74, 96, 158), (250, 190, 124), (0.74, 0.52, 0.30), (0.50, 0.46, 0.52), (250, 176, 140), 0.45),
    _Hour((120, 160, 204), (246, 232, 206), (0.62, 0.54, 0.40), (0.56, 0.57, 0.59), (255, 244, 226), 0.35),
    _Hour((44, 54, 104), (214, 120, 116), (0.50, 0.38, 0.30), (0.46, 0.42, 0.52), (150, 88, 118), 0.5, True),
    _Hour((12, 18, 44), (48, 58, 98), (0.92, 0.74, 0.46), (0.30, 0.30, 0.40), (40, 46, 72), 0.4, True),
)

_GROUNDS = ((116, 160, 78), (98, 146, 70), (146, 164, 88), (198, 190, 176), (178, 180, 184), (214, 198, 168))
_LEAVES = ((74, 110, 56), (92, 120, 52), (56, 92, 58), (150, 112, 50))
# The ellipses of a crown of leaves, for a tree of height 1: x, and y from the ground up.
_TREE = [(0.22 * sin(2.4 * k) * (1 - k / 40), 0.55 + 0.014 * k + 0.06 * cos(2.4 * k)) for k in range(24)]


@dataclass(frozen=True)
class _Camera:
    """Stands at `eye` [3] and looks level along `forward` [2]; verticals stay vertical, as with a shift lens."""

    eye: Floats
    forward: Floats
    focal: float
    centre_x: float
    horizon: float

    def project(self, points: Floats) -> Floats:
        """Return the canvas x and y of points [N, 3]: float [N, 2]."""
        x, y, z = (points - self.eye).T
        depth = np.maximum(x * self.forward[0] + y * self.forward[1], 1.0)
        side = x * self.forward[1] - y * self.forward[0]
        return np.stack([self.centre_x + self.focal * side / depth, self.horizon - self.focal * z / depth], 1)


@dataclass(frozen=True)
class _Scene:
    """A picture that is being drawn: its canvas, and what all parts of the drawing need."""

    canvas: Image.Image
    rng: Generator
    landmark: Landmark
    hour: _Hour
    camera: _Camera
    colours: Floats  # [P, 3], of the building's polygons in the light of the hour


def photograph(landmark: Landmark, rng: Generator) -> Image.Image:
    """Return an RGB picture, `LONGEST_SIDE` pixels wide or high; viewpoint, light and surroundings come from `rng`."""
    spread = landmark.high.max(0) - landmark.low.min(0)
    portrait = rng.random() < (0.75 if spread[2] > spread[0] * 1.3 else 0.1)
    short = int(rng.choice([600, 533, 640] if portrait else [600, 533, 450]))
    size = (short, LONGEST_SIDE) if portrait else (LONGEST_SIDE, short)
    canvas = (round(size[0] * _SUPERSAMPLING), round(size[1] * _SUPERSAMPLING))
    hour = _HOURS[int(rng.integers(10)) % len(_HOURS)]  # the two nights are half as frequent as the days
    camera, sun = _place_camera(landmark, rng, canvas)
    scene = _Scene(_sky(rng, hour, canvas), rng, landmark, hour, camera, _light(landmark, rng, hour, sun))
    if landmark.over_water or rng.random() < 0.12:
        _draw_water(scene)
    else:
        _draw_ground(scene)
    _draw_building(scene, scene.canvas)
    if not landmark.over_water:
        _draw_trees(scene)
    return _develop(scene.canvas, rng, size)


def _place_camera(landmark: Landmark, rng: Generator, canvas: tuple[int, int]) -> tuple[_Camera, Floats]:
    """Return a viewpoint that frames the building, and the direction towards the sun [3]."""
    low, high = landmark.low.min(0), landmark.high.max(0)
    middle, spread = (low + high) / 2, float(np.max(high - low))
    swing = float(np.clip(rng.normal(0, 0.42), -0.85, 0.85))
    distance = spread * rng.uniform(1.15, 2.4)
    raised = rng.uniform(0.12, 0.5) if rng.random() < 0.35 else rng.uniform(0.03, 0.12)
    eye = np.array([middle[0] + distance * sin(swing), middle[1] - distance * cos(swing), spread * raised])
    forward = np.array([-sin(swing), cos(swing)])
    unit = _Camera(eye, forward, 1.0, 0.0, 0.0).project(landmark.vertices)
    (x0, y0), (x1, y1) = unit.min(0), unit.max(0)
    zoom = rng.uniform(0.58, 0.9) if rng.random() < 0.8 else rng.uniform(0.86, 1.2)
    focal = zoom * min(canvas[0] / (x1 - x0), canvas[1] / (y1 - y0))
    centre_x = (canvas[0] + rng.uniform(-0.55, 0.55) * abs(canvas[0] - focal * (x1 - x0)) - focal * (x0 + x1)) / 2
    bottom = canvas[1] * rng.uniform(0.8, 0.93) if zoom < 0.95 else canvas[1] * rng.uniform(0.9, 1.08)
    bottom += np.clip(canvas[1] * 0.06 - (bottom - focal * (y1 - y0)), 0, canvas[1] * 0.1)
    azimuth, rising = -pi / 2 + swing * 0.6 + rng.choice([-1, 1]) * rng.uniform(0.15, 1.05), rng.uniform(0.4, 0.95)
    sun = np.array([cos(azimuth) * cos(rising), sin(azimuth) * cos(rising), sin(rising)])
    return _Camera(eye, forward, focal, centre_x, bottom - focal * y1), sun


def _light(landmark: Landmark, rng: Generator, hour: _Hour, sun: Floats) -> Floats:
    """Return the colour of every polygon, lit from the direction `sun` [3]: float [P, 3], from 0 to 255."""
    facing = np.maximum((landmark.normals * sun).sum(1, keepdims=True), 0)
    sunlight = rng.uniform(0.85, 1.15) * np.array(hour.sun) * facing
    shade = np.array(hour.shade) * (0.86 + 0.14 * landmark.normals[:, 2:])
    colours = landmark.colours[landmark.material] * (shade + sunlight) * rng.uniform(0.97, 1.03, 3)
    glass = np.flatnonzero(landmark.material == GLASS)
    shine = rng.uniform(0.75, 1.25, (len(glass), 1))
    colours[glass] = (landmark.colours[GLASS] * 0.62 + np.array(hour.horizon) * 0.22) * shine
    if hour.night:
        lit = rng.random(len(glass)) < rng.uniform(0.35, 0.8)
        colours[glass[lit]] = np.array([242, 198, 122]) * shine[lit]
    return np.asarray(np.clip(colours, 0, 255))


def _draw_building(scene: _Scene, image: Image.Image, mirrored: bool = False) -> None:
    """Draw the building, or its mirror image in the water: far solids first, and far faces first in each solid."""
    landmark, camera = scene.landmark, scene.camera
    flip = [1, 1, -1 if mirrored else 1]
    eye, starts, host = camera.eye * flip, landmark.starts, landmark.host
    centres = np.add.reduceat(landmark.vertices, starts[:-1]) / np.diff(starts)[:, None]
    seen = (landmark.normals * (eye - landmark.vertices[starts[:-1]])).sum(1) > 0
    distance, rank = ((centres - eye) ** 2).sum(1), _solid_ranks(landmark, eye)[landmark.solid]
    order = np.lexsort((np.arange(len(host)), -distance[host], landmark.layer[host], rank))
    points, ends = camera.project(landmark.vertices * flip).ravel().tolist(), (starts * 2).tolist()
    fills, rims = ([tuple(c) for c in (scene.colours * shade).astype(int).tolist()] for shade in (1, 0.88))
    draw, painted = ImageDraw.Draw(image), (host != np.arange(len(host))).tolist()
    for p in order[seen[order]].tolist():
        draw.polygon(points[ends[p] : ends[p + 1]], fills[p], None if painted[p] else rims[p])


def _solid_ranks(landmark: Landmark, eye: Floats) -> Ints:
    """Return the drawing order of solids [S]: where a plane parts two, the one on the eye's side comes later."""
    low, high = landmark.low, landmark.high
    # before[a, b]: a is drawn before b, because b lies between the eye and a plane that has a behind it.
    before = np.zeros((len(low), len(low)), bool)
    decided = np.zeros_like(before)
    for axis in (1, 0, 2):
        below = high[:, None, axis] <= low[None, :, axis] + 1e-6  # a lies below b along this axis
        pair = below & ~decided & ~decided.T & ~below.T
        eye_above = pair & (eye[axis] >= low[None, :, axis])
        before |= eye_above | (pair & ~eye_above).T
        decided |= pair | pair.T
    distance = (((low + high) / 2 - eye) ** 2).sum(1)
    ranks = np.zeros(len(low), int)
    waiting = before.sum(0).astype(float)
    for rank in range(len(low)):
        free = waiting == waiting.min()  # 0, unless solids overlap one another in a circle
        chosen = int(np.argmax(np.where(free, distance, -1)))
        ranks[chosen] = rank
        waiting[before[chosen]] -= 1
        waiting[chosen] = np.inf
    return ranks


def _noise(rng: Generator, size: tuple[int, int], cells: int, octaves: int = 3) -> NDArray[np.float32]:
    """Return smooth noise around 0 with a deviation near 1, float32 [H, W]; `cells` lumps across."""
    total = np.zeros((size[1], size[0]), np.float32)
    for octave in range(octaves):
        shape = (max(2, cells * 2**octave * size[1] // size[0]) + 1, cells * 2**octave + 1)
        coarse = Image.fromarray(rng.normal(0, 1, shape).astype(np.float32))
        total += np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)) * 0.62**octave
    return total


def _sky(rng: Generator, hour: _Hour, canvas: tuple[int, int]) -> Image.Image:
    """Return a canvas full of sky: a gradient with clouds."""
    small = (canvas[0] // 4, canvas[1] // 4)
    down = np.linspace(0, 1, small[1])[:, None, None] ** rng.uniform(0.7, 1.4)
    sky = np.array(hour.zenith) * (1 - down) + np.array(hour.horizon) * down
    cover = _noise(rng, (small[0], small[1] * 2), int(rng.integers(2, 6)), 4)[::2, :, None] * 0.5
    amount = np.clip((cover + hour.cover + rng.normal(0, 0.25) - 0.45) * 1.4, 0, 0.92)
    puff = np.array(hour.cloud) * np.clip(0.94 + 0.1 * (1 - cover), 0.8, 1.02)
    return _picture(sky * (1 - amount) + puff * amount).resize(canvas, Image.Resampling.BICUBIC)


def _picture(values: NDArray[Any]) -> Image.Image:
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def _lit(colour: Colour, hour: _Hour, brightness: float = 1.0) -> Colour:
    """Return a colour in the light of the hour."""
    light = (np.array(hour.sun) * 0.55 + hour.shade) * brightness * (0.45 if hour.night else 1)
    red, green, blue = np.minimum(colour * light, 255).astype(int).tolist()
    return red, green, blue


def _draw_ground(scene: _Scene) -> None:
    """Draw lawn or paving from the horizon down."""
    (width, height), rng, hour = scene.canvas.size, scene.rng, scene.hour
    top = int(np.clip(scene.camera.horizon, 0, height - 2))
    near = np.array(_lit(_GROUNDS[int(rng.integers(6))], hour), float)
    far = near * 0.75 + np.array(hour.horizon) * (0.1 if hour.night else 0.25)
    small = (width // 6, max(2, (height - top) // 3))
    down = np.linspace(0, 1, small[1])[:, None, None]
    ground = (far * (1 - down) + near * 0.92 * down) * (1 + 0.035 * _noise(rng, small, 24)[..., None])
    scene.canvas.paste(_picture(ground).resize((width, height - top), Image.Resampling.BICUBIC), (0, top))


def _draw_water(scene: _Scene) -> None:
    """Draw water from the horizon down, with sky and building mirrored in it."""
    (width, height), rng = scene.canvas.size, scene.rng
    top = int(np.clip(scene.camera.horizon, 1, height - 2))
    depth = height - top
    mirror = Image.new("RGB", (width, height), scene.hour.zenith)
    above = scene.canvas.crop((0, max(0, top - depth), width, top))
    mirror.paste(above.transpose(Image.Transpose.FLIP_TOP_BOTTOM), (0, top))
    _draw_building(scene, mirror, mirrored=True)
    down = np.arange(depth) / depth
    phase = 90 * np.log1p(down * 12) * rng.uniform(0.5, 0.9)
    shift = (np.sin(phase) + rng.normal(0, 0.4, depth)) * (0.4 + 7 * down) * rng.uniform(0.5, 1.6)
    columns = np.clip(np.arange(width) + shift.astype(int)[:, None], 0, width - 1)
    clear = (rng.uniform(0.4, 0.72) * (1 - 0.35 * down) * (1 + 0.1 * np.sin(phase * 1.7)))[:, None, None]
    wet = np.asarray(mirror)[np.arange(top, height)[:, None], columns] * clear
    scene.canvas.paste(_picture(wet + np.array(_lit((70, 100, 106), scene.hour)) * (1 - clear)), (0, top))


def _draw_trees(scene: _Scene) -> None:
    """Draw up to six trees between camera and building."""
    rng, camera, draw = scene.rng, scene.camera, ImageDraw.Draw(scene.canvas)
    for share in sorted(rng.uniform(0.4, 0.92, int(rng.integers(0, 7))).tolist(), reverse=True):
        unit = camera.focal / (share * float(np.hypot(*camera.eye[:2])))  # pixels
        x, y, tall = scene.canvas.width * rng.random(), camera.horizon + unit * camera.eye[2], unit * rng.uniform(3, 9)
        draw.rectangle((x - 0.03 * tall, y - 0.6 * tall, x + 0.03 * tall, y), _lit((86, 66, 50), scene.hour))
        leaves = _LEAVES[int(rng.integers(len(_LEAVES)))]
        for k, (u, v) in enumerate(_TREE):
            tone = _lit(leaves, scene.hour, 0.7 + 0.015 * k + rng.uniform(0, 0.1))
            left, top = x + (u - 0.12) * tall, y - (v + 0.1) * tall
            draw.ellipse((left, top, left + 0.24 * tall, top + 0.2 * tall), tone)


def _develop(image: Image.Image, rng: Generator, size: tuple[int, int]) -> Image.Image:
    """Return the canvas tilted and shrunk to `size`, with a focus, an exposure and grain of its own."""
    tilt, lean = rng.normal(0, 0.018), rng.uniform(-0.05, 0.05)
    scale = 1 / (1.05 + abs(tilt) * 1.4 + abs(lean) / 2)
    middle, half = np.array(image.size) / 2, np.array(image.size) / 2 * scale
    corners = np.array([(lean - 1, -1), (-1, 1), (1, 1), (1 - lean, -1)]) * half
    turned = middle + corners @ [[cos(tilt), sin(tilt)], [-sin(tilt), cos(tilt)]]
    picture = image.transform(size, Image.Transform.QUAD, turned.ravel().tolist(), Image.Resampling.BILINEAR)
    if rng.random() < 0.25:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.3)))
    gain, lift = rng.uniform(0.9, 1.1) * rng.uniform(0.97, 1.03, 3), rng.uniform(-8, 8)
    curve = np.clip(np.arange(256) * gain[:, None] + lift, 0, 255).astype(np.uint8)
    strength = int(rng.integers(1, 6))
    grain = rng.integers(-strength, strength + 1, (size[1], size[0], 1), dtype=np.int16)
    return _picture(np.asarray(picture.point(curve.ravel().tolist()), np.int16) + grain)
