"""Photographs of imaginary landmarks: camera, light, sky, ground, passers-by. Pure: seeds in, pictures out.

A photograph projects the polygons of a landmark through a camera of its own, orders the solids by the planes between
them, shades every polygon by the light, and puts sky, ground and whatever stood in the way around them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi, sin, tau

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter

from lmk_data.sample.solids import GLASS, Array, Colour, Flat, Landmark

LONGEST_SIDE = 800


_SUPERSAMPLING = 1.5


@dataclass(frozen=True)
class _Hour:
    """The light of an hour: colours of the sky (zenith, horizon), of the sun and the shade, and how cloudy it is."""

    zenith: Colour
    horizon: Colour
    sun: tuple[float, float, float]
    shade: tuple[float, float, float]
    cloud: Colour
    cover: float
    night: bool = False


_HOURS = (
    _Hour((58, 122, 196), (178, 212, 236), (0.62, 0.59, 0.50), (0.56, 0.60, 0.67), (250, 250, 250), 0.25),
    _Hour((82, 148, 210), (206, 226, 238), (0.55, 0.53, 0.47), (0.60, 0.63, 0.67), (246, 246, 248), 0.55),
    _Hour((150, 164, 178), (208, 214, 220), (0.20, 0.20, 0.20), (0.78, 0.80, 0.83), (182, 188, 196), 0.85),
    _Hour((74, 96, 158), (250, 190, 124), (0.74, 0.52, 0.30), (0.50, 0.46, 0.52), (250, 176, 140), 0.45),
    _Hour((120, 160, 204), (246, 232, 206), (0.62, 0.54, 0.40), (0.56, 0.57, 0.59), (255, 244, 226), 0.35),
    _Hour((44, 54, 104), (214, 120, 116), (0.50, 0.38, 0.30), (0.46, 0.42, 0.52), (150, 88, 118), 0.5, True),
    _Hour((12, 18, 44), (48, 58, 98), (0.92, 0.74, 0.46), (0.30, 0.30, 0.40), (40, 46, 72), 0.4, True),
)


_HOUR_ODDS = (0.24, 0.2, 0.16, 0.13, 0.13, 0.07, 0.07)


_GREENS: tuple[Colour, ...] = ((116, 160, 78), (98, 146, 70), (146, 164, 88), (104, 150, 92))


_LEAVES: tuple[Colour, ...] = ((74, 110, 56), (92, 120, 52), (56, 92, 58), (150, 112, 50))


_PAVINGS: tuple[Colour, ...] = ((198, 190, 176), (178, 180, 184), (214, 198, 168), (172, 166, 164))


@dataclass(frozen=True)
class _Camera:
    """Stands at `eye` [3] and looks level along `forward` [2]; verticals stay vertical, as with a shift lens."""

    eye: Array
    forward: Array
    focal: float
    centre_x: float
    horizon: float

    def project(self, points: Array) -> Array:
        """Canvas x, y and depth: float [N, 3]."""
        x, y, z = (points - self.eye).T
        depth = np.maximum(x * self.forward[0] + y * self.forward[1], 1.0)
        side = x * self.forward[1] - y * self.forward[0]
        return np.stack([self.centre_x + self.focal * side / depth, self.horizon - self.focal * z / depth, depth], 1)

    def ground(self, x: float, depth: float) -> Flat:
        """Where the ground `depth` units away and `x` units to the right appears."""
        return self.centre_x + self.focal * x / depth, self.horizon + self.focal * float(self.eye[2]) / depth


def photograph(landmark: Landmark, rng: Generator) -> Image.Image:
    """A picture of the landmark: RGB, its longest side `LONGEST_SIDE` pixels; everything else is drawn from `rng`."""
    spread = landmark.high.max(0) - landmark.low.min(0)
    portrait = rng.random() < (0.75 if spread[2] > spread[0] * 1.3 else 0.2 if spread[2] > spread[0] * 0.7 else 0.04)
    short = int(rng.choice([600, 533, 600, 450 if not portrait else 640]))
    width, height = (short, LONGEST_SIDE) if portrait else (LONGEST_SIDE, short)
    canvas = (round(width * _SUPERSAMPLING), round(height * _SUPERSAMPLING))
    hour = _HOURS[int(rng.choice(len(_HOURS), p=_HOUR_ODDS))]
    camera, sun = _place_camera(landmark, rng, canvas)
    image = _sky(rng, hour, canvas)
    _hills(image, rng, hour, camera)
    colours = _light(landmark, rng, hour, sun)
    if landmark.over_water or rng.random() < 0.12:
        _water(image, rng, hour, camera, landmark, colours)
    else:
        _ground(image, rng, hour, camera, landmark, sun)
    _paint(image, landmark, camera, colours)
    _bystanders(image, rng, hour, camera, landmark.over_water)
    return _develop(image, rng, (width, height))


def _place_camera(landmark: Landmark, rng: Generator, canvas: tuple[int, int]) -> tuple[_Camera, Array]:
    """A viewpoint that frames the building, and the direction towards the sun."""
    low, high = landmark.low.min(0), landmark.high.max(0)
    middle, spread = (low + high) / 2, float(np.max(high - low))
    swing = float(np.clip(rng.normal(0, 0.42), -0.85, 0.85))
    distance = spread * rng.uniform(1.15, 2.4)
    raised = rng.uniform(0.12, 0.5) if rng.random() < 0.35 else rng.uniform(0.03, 0.12)
    eye = np.array([middle[0] + distance * sin(swing), middle[1] - distance * cos(swing), spread * raised])
    forward = np.array([-sin(swing), cos(swing)])
    first = _Camera(eye, forward, 1.0, 0.0, 0.0).project(landmark.vertices)
    (x0, y0), (x1, y1) = first[:, :2].min(0), first[:, :2].max(0)
    zoom = rng.uniform(0.58, 0.9) if rng.random() < 0.8 else rng.uniform(0.86, 1.2)
    focal = zoom * min(canvas[0] / (x1 - x0), canvas[1] / (y1 - y0))
    loose = (canvas[0] - focal * (x1 - x0)) / 2
    centre_x = canvas[0] / 2 + rng.uniform(-0.55, 0.55) * abs(loose) - focal * (x0 + x1) / 2
    bottom = canvas[1] * rng.uniform(0.78, 0.93) if zoom < 0.95 else canvas[1] * rng.uniform(0.9, 1.08)
    top = bottom - focal * (y1 - y0)
    if top < canvas[1] * 0.06:
        bottom += min(canvas[1] * 0.06 - top, canvas[1] * 0.1)
    camera = _Camera(eye, forward, focal, centre_x, bottom - focal * y1)
    azimuth, rising = -pi / 2 + swing * 0.6 + rng.choice([-1, 1]) * rng.uniform(0.15, 1.05), rng.uniform(0.4, 0.95)
    return camera, np.array([cos(azimuth) * cos(rising), sin(azimuth) * cos(rising), sin(rising)])


def _light(landmark: Landmark, rng: Generator, hour: _Hour, sun: Array) -> Array:
    """The colour of every polygon in this light: float [P, 3]."""
    facing = np.maximum((landmark.normals * sun).sum(1), 0)
    facing[landmark.width > 0] = 0.45
    strength = rng.uniform(0.85, 1.15)
    light = (
        np.array(hour.shade) * (0.86 + 0.14 * landmark.normals[:, 2:]) + strength * np.array(hour.sun) * facing[:, None]
    )
    colours = landmark.colours[landmark.material] * light * rng.uniform(0.97, 1.03, 3)
    glass = landmark.material == GLASS
    shine = rng.uniform(0.75, 1.25, (int(glass.sum()), 1))
    colours[glass] = (landmark.colours[GLASS] * 0.62 + np.array(hour.horizon) * 0.22) * shine
    if hour.night:
        lit = rng.random(len(shine)) < rng.uniform(0.35, 0.8)
        colours[np.flatnonzero(glass)[lit]] = np.array([255, 208, 128]) * shine[lit] * 0.95
    haze = rng.uniform(0, 0.1)
    return np.asarray(np.clip(colours * (1 - haze) + np.array(hour.horizon) * haze, 0, 255))


def _paint(image: Image.Image, landmark: Landmark, camera: _Camera, colours: Array, mirrored: bool = False) -> None:
    """Draw the building, or its mirror image in the water: far solids first, and in each its far faces first."""
    eye = camera.eye * [1, 1, -1] if mirrored else camera.eye
    vertices = landmark.vertices * [1, 1, -1] if mirrored else landmark.vertices
    flat = camera.project(vertices)
    starts = landmark.starts
    first = landmark.vertices[starts[:-1]]
    centres = np.add.reduceat(landmark.vertices, starts[:-1]) / np.diff(starts)[:, None]
    beam = landmark.width > 0
    seen = beam | ((landmark.normals * (eye - first)).sum(1) > 0)
    distance = ((centres - eye) ** 2).sum(1)
    rank = _solid_ranks(landmark, eye)[landmark.solid]
    host = landmark.host
    order = np.lexsort((np.arange(len(host)), -distance[host], landmark.layer[host], rank))
    order = order[seen[order]]
    widths = np.maximum(np.round(camera.focal * landmark.width / flat[starts[:-1], 2]), 1).astype(int).tolist()
    points, ends = flat[:, :2].ravel().tolist(), (starts * 2).tolist()
    fills = [tuple(c) for c in colours.astype(int).tolist()]
    rims = [tuple(c) for c in (colours * 0.88).astype(int).tolist()]
    plain = (beam | (landmark.host != np.arange(len(host)))).tolist()
    draw = ImageDraw.Draw(image)
    for p in order.tolist():
        outline = points[ends[p] : ends[p + 1]]
        if len(outline) == 4:
            draw.line(outline, fills[p], widths[p])
        else:
            draw.polygon(outline, fills[p], None if plain[p] else rims[p])


def _solid_ranks(landmark: Landmark, eye: Array) -> Array:
    """The order to draw solids in: where a plane parts two of them, the one on the eye's side comes later."""
    low, high = landmark.low, landmark.high
    # before[a, b]: a must be drawn before b, as b lies between the eye and some plane that has a behind it.
    before = np.zeros((len(low), len(low)), bool)
    decided = np.zeros_like(before)
    for axis in (1, 0, 2):
        below = high[:, None, axis] <= low[None, :, axis] + 1e-6  # a lies below b along this axis
        plane = low[None, :, axis]
        pair = below & ~decided & ~decided.T & ~below.T
        eye_above = pair & (eye[axis] >= plane)
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


def _blotches(rng: Generator, size: tuple[int, int], cells: int, octaves: int = 3) -> Array:
    """Smooth noise about 0 with a deviation near 1, float32 [H, W]; `cells` lumps across."""
    total = np.zeros((size[1], size[0]), np.float32)
    for octave in range(octaves):
        shape = (max(2, cells * 2**octave * size[1] // size[0]) + 1, cells * 2**octave + 1)
        coarse = Image.fromarray(rng.normal(0, 1, shape).astype(np.float32))
        total += np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)) * 0.62**octave
    return total


def _sky(rng: Generator, hour: _Hour, canvas: tuple[int, int]) -> Image.Image:
    """Sky over the whole canvas: a gradient with clouds, stars at night."""
    small = (canvas[0] // 4, canvas[1] // 4)
    down = np.linspace(0, 1, small[1])[:, None, None] ** rng.uniform(0.7, 1.4)
    sky = np.array(hour.zenith) * (1 - down) + np.array(hour.horizon) * down + np.zeros((1, small[0], 1))
    cover = _blotches(rng, (small[0], small[1] * 2), int(rng.integers(2, 6)), 4)[::2] * 0.5
    amount = np.clip((cover + hour.cover + rng.normal(0, 0.25) - 0.45) * 1.4, 0, 0.92)[..., None]
    puff = np.array(hour.cloud) * np.clip(0.94 + 0.1 * (1 - cover), 0.8, 1.02)[..., None]
    image = Image.fromarray(np.clip(sky * (1 - amount) + puff * amount, 0, 255).astype(np.uint8))
    image = image.resize(canvas, Image.Resampling.BICUBIC)
    if hour.night:
        draw = ImageDraw.Draw(image)
        for x, y, glow in rng.random((60, 3)).tolist():
            radius = 0.6 + glow
            draw.ellipse(_disc(x * canvas[0], y * canvas[1] * 0.6, radius), (200, 205, 220))
    return image


def _disc(x: float, y: float, radius: float, squash: float = 1.0) -> tuple[float, float, float, float]:
    return x - radius, y - radius * squash, x + radius, y + radius * squash


def _mixed(a: Sequence[float], b: Sequence[float], share: float) -> Colour:
    """`share` of b in a."""
    red, green, blue = (round(p + (q - p) * share) for p, q in zip(a, b, strict=True))
    return red, green, blue


def _shaded(colour: Sequence[float], hour: _Hour, strength: float = 1.0) -> Colour:
    """A thing's colour in the light of the hour."""
    light = (s * 0.55 + a for s, a in zip(hour.sun, hour.shade, strict=True))
    red, green, blue = (
        min(255, round(c * part * strength * (0.45 if hour.night else 1)))
        for c, part in zip(colour, light, strict=True)
    )
    return red, green, blue


def _hills(image: Image.Image, rng: Generator, hour: _Hour, camera: _Camera) -> None:
    """What closes the horizon: hills, woods or a town, pale with distance."""
    width, height = image.size
    draw = ImageDraw.Draw(image)
    for layer in range(int(rng.integers(1, 4))):
        tall = height * rng.uniform(0.02, 0.1)
        tone = _mixed(
            _shaded((96, 116, 96) if rng.random() < 0.7 else (130, 126, 130), hour), hour.horizon, 0.72 - 0.22 * layer
        )
        if rng.random() < 0.3:
            x = 0.0
            while x < width:
                wide, high = rng.uniform(0.01, 0.05) * width, tall * rng.uniform(0.2, 1)
                draw.rectangle((x, camera.horizon - high, x + wide, camera.horizon + 4), tone)
                x += wide * rng.uniform(0.8, 1.3)
        else:
            xs = np.linspace(0, width, 60)
            ridge = sum(np.sin(xs / width * tau * f + rng.uniform(0, tau)) / f for f in rng.uniform(0.5, 9, 5).tolist())
            ys = camera.horizon - tall * (0.6 + 0.25 * ridge)
            outline = np.stack([xs, np.minimum(ys, camera.horizon + 2)], 1).ravel().tolist()
            draw.polygon([*outline, width, camera.horizon + 4, 0, camera.horizon + 4], tone)


def _ground(image: Image.Image, rng: Generator, hour: _Hour, camera: _Camera, landmark: Landmark, sun: Array) -> None:
    """Lawn or paving from the horizon down, and the building's shadow on it."""
    width, height = image.size
    top = int(np.clip(camera.horizon, 0, height - 2))
    paved = rng.random() < 0.5
    tones = _PAVINGS if paved else _GREENS
    near = np.array(_shaded(tones[int(rng.integers(len(tones)))], hour), float)
    small = (width // 6, max(2, (height - top) // 3))
    down = np.linspace(0, 1, small[1])[:, None, None]
    far = near * 0.75 + np.array(hour.horizon) * (0.25 if not hour.night else 0.1)
    patch = 1 + 0.035 * _blotches(rng, small, 24)[..., None]
    ground = np.clip((far * (1 - down) + near * 0.92 * down) * patch, 0, 255).astype(np.uint8)
    image.paste(Image.fromarray(ground).resize((width, height - top), Image.Resampling.BICUBIC), (0, top))
    draw = ImageDraw.Draw(image)
    reach = float(np.hypot(*camera.eye[:2]))
    if paved:
        tone, pitch = _mixed(near.tolist(), (40, 40, 44), 0.16), rng.uniform(2, 5)
        for k in range(-40, 41):
            draw.line([camera.ground(k * pitch, reach * 0.25), camera.ground(k * pitch, reach * 3)], tone, 1)
        for k in range(1, 40):
            y = camera.ground(0, reach * 0.25 + k * pitch)[1]
            draw.line([(0, y), (width, y)], tone, 1)
    elif rng.random() < 0.6:
        tone, wide, away = _shaded((206, 190, 160), hour), rng.uniform(1.5, 4), rng.uniform(-14, 14)
        path = [camera.ground(away - wide, reach * 0.2), camera.ground(away + wide, reach * 0.2)]
        draw.polygon([*path, camera.ground(wide, reach), camera.ground(-wide, reach)], tone)
    if hour.sun[0] > 0.3 and not hour.night:
        _cast_shadow(image, camera, landmark, sun)


def _cast_shadow(image: Image.Image, camera: _Camera, landmark: Landmark, sun: Array) -> None:
    fallen = landmark.vertices - sun * (landmark.vertices[:, 2:] / sun[2])
    points, ends = (camera.project(fallen)[:, :2] / 3).ravel().tolist(), (landmark.starts * 2).tolist()
    mask = Image.new("L", (image.width // 3, image.height // 3))
    draw = ImageDraw.Draw(mask)
    for p in np.flatnonzero((landmark.host == np.arange(len(landmark.host))) & (landmark.normals @ sun >= 0)).tolist():
        outline = points[ends[p] : ends[p + 1]]
        if len(outline) == 4:
            draw.line(outline, 95, 1)
        else:
            draw.polygon(outline, 95)
    mask = mask.filter(ImageFilter.GaussianBlur(1.2)).resize(image.size, Image.Resampling.BILINEAR)
    image.paste((28, 32, 44), (0, 0), mask)


def _water(
    image: Image.Image, rng: Generator, hour: _Hour, camera: _Camera, landmark: Landmark, colours: Array
) -> None:
    """Water from the horizon down, with sky, hills and building mirrored in it."""
    width, height = image.size
    top = int(np.clip(camera.horizon, 1, height - 2))
    depth = height - top
    mirror = Image.new("RGB", (width, height), hour.zenith)
    above = image.crop((0, max(0, top - depth), width, top)).transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    mirror.paste(above, (0, top))
    _paint(mirror, landmark, camera, colours, mirrored=True)
    seen = np.asarray(mirror)[top:]
    rows = np.arange(depth)
    swell = (0.4 + 7 * rows / depth) * rng.uniform(0.5, 1.6)
    phase = 90 * np.log1p(rows / depth * 12) * rng.uniform(0.5, 0.9)
    shift = (np.sin(phase) * swell + rng.normal(0, 1, depth) * swell * 0.4).astype(int)
    columns = np.clip(np.arange(width)[None] + shift[:, None], 0, width - 1)
    tint = np.array(_shaded(((52, 92, 106), (70, 104, 96), (86, 108, 120))[int(rng.integers(3))], hour), float)
    clear = rng.uniform(0.4, 0.72)
    fade = (clear * (1 - 0.35 * rows / depth) * (1 + 0.1 * np.sin(phase * 1.7)))[:, None, None]
    wet = seen[rows[:, None], columns].astype(np.float32) * fade.astype(np.float32)
    wet += (tint * (1 - fade)).astype(np.float32)
    image.paste(Image.fromarray(np.clip(wet, 0, 255).astype(np.uint8)), (0, top))


def _bystanders(image: Image.Image, rng: Generator, hour: _Hour, camera: _Camera, afloat: bool) -> None:
    """Whatever stands between camera and building: trees, people, lamp-posts; boats on water."""
    draw = ImageDraw.Draw(image)
    reach = float(np.hypot(*camera.eye[:2]))
    span = image.width / camera.focal
    things = [(rng.uniform(0.3, 0.92), rng.uniform(-0.5, 0.5)) for _ in range(int(rng.integers(0, 9)))]
    for share, side in sorted(things, reverse=True):
        depth = reach * share
        x, y = camera.ground(0, depth)
        x = image.width * (0.5 + side)
        unit = camera.focal / depth
        if y > image.height * 1.15 or (afloat and share < 0.55):
            continue
        if afloat:
            _boat(draw, rng, hour, x, y, unit)
        elif rng.random() < 0.42:
            _tree(draw, rng, hour, x, y, unit * rng.uniform(4, 11) * min(1.0, span))
        elif rng.random() < 0.7:
            for _ in range(int(rng.integers(1, 4))):
                _person(draw, rng, hour, x + rng.normal(0, 2.5) * unit, y, unit * rng.uniform(1.5, 2))
        else:
            _lamp(draw, hour, x, y, unit * 5)
    if rng.random() < 0.12:
        edge = image.width * float(rng.choice([0.02, 0.98]))
        _tree(draw, rng, hour, edge, image.height * rng.uniform(1, 1.2), image.height * rng.uniform(0.6, 1))


def _tree(draw: ImageDraw.ImageDraw, rng: Generator, hour: _Hour, x: float, y: float, tall: float) -> None:
    green = np.array(_LEAVES[int(rng.choice(len(_LEAVES), p=(0.35, 0.3, 0.25, 0.1)))], float)
    trunk = [x - tall * 0.035, y, x + tall * 0.035, y, x + tall * 0.02, y - tall * 0.5, x - tall * 0.02, y - tall * 0.5]
    draw.polygon(trunk, _shaded((86, 66, 50), hour))
    if rng.random() < 0.3:
        for k in range(5):
            wide, low = tall * (0.26 - 0.045 * k), y - tall * (0.14 + 0.16 * k)
            draw.polygon(
                [x - wide, low, x + wide, low, x, low - tall * 0.3], _shaded(green.tolist(), hour, 0.7 + 0.07 * k)
            )
        return
    puffs = np.clip(rng.normal(0, 0.9, (30, 2)), -1.5, 1.5) * [0.15, 0.13]
    for k, (dx, dy) in enumerate(sorted(puffs.tolist(), key=lambda p: -p[1])):
        tone = _shaded(green.tolist(), hour, 0.72 + 0.02 * k + rng.uniform(-0.05, 0.05))
        draw.ellipse(_disc(x + dx * tall, y - tall * 0.68 + dy * tall, tall * rng.uniform(0.07, 0.14), 0.85), tone)


def _person(draw: ImageDraw.ImageDraw, rng: Generator, hour: _Hour, x: float, y: float, tall: float) -> None:
    coat, legs = (_shaded(rng.uniform(30, 225, 3).tolist(), hour, 0.9), _shaded(rng.uniform(30, 90, 3).tolist(), hour))
    draw.polygon(
        [x - tall * 0.11, y, x + tall * 0.11, y, x + tall * 0.1, y - tall * 0.5, x - tall * 0.1, y - tall * 0.5], legs
    )
    draw.ellipse((x - tall * 0.15, y - tall * 0.84, x + tall * 0.15, y - tall * 0.38), coat)
    skin = ((236, 196, 166), (186, 136, 102), (120, 82, 60))[int(rng.integers(3))]
    draw.ellipse(_disc(x, y - tall * 0.91, tall * 0.09), _shaded(skin, hour))


def _lamp(draw: ImageDraw.ImageDraw, hour: _Hour, x: float, y: float, tall: float) -> None:
    draw.line([(x, y), (x, y - tall)], _shaded((60, 64, 66), hour), max(1, round(tall * 0.035)))
    glow = (255, 226, 160) if hour.night else _shaded((226, 224, 214), hour)
    draw.ellipse(_disc(x, y - tall, tall * 0.07), glow, _shaded((60, 64, 66), hour))


def _boat(draw: ImageDraw.ImageDraw, rng: Generator, hour: _Hour, x: float, y: float, unit: float) -> None:
    long = unit * rng.uniform(2, 5)
    hull = _shaded(((200, 198, 190), (130, 70, 56), (60, 80, 104))[int(rng.integers(3))], hour)
    draw.polygon([x - long, y - long * 0.25, x + long, y - long * 0.3, x + long * 0.7, y, x - long * 0.75, y], hull)
    if rng.random() < 0.5:
        sail = _shaded((240, 236, 224), hour)
        draw.polygon([x, y - long * 0.32, x + long * 0.75, y - long * 0.38, x, y - long * 2], sail)
    else:
        draw.rectangle(
            (x - long * 0.4, y - long * 0.6, x + long * 0.3, y - long * 0.26), _shaded((222, 222, 218), hour)
        )


def _develop(image: Image.Image, rng: Generator, size: tuple[int, int]) -> Image.Image:
    """Tilt and keystone the canvas while it shrinks to `size`, then focus, exposure and grain."""
    (wide, high), (width, height) = image.size, size
    tilt, lean = rng.normal(0, 0.018), rng.uniform(-0.05, 0.05)
    margin = 1.05 + abs(tilt) * 1.4 + abs(lean) / 2
    scale = wide / width / margin
    a, b = scale * cos(tilt), scale * sin(tilt)
    # Maps output to canvas pixels: a turn about the middle over a denominator that changes from top to bottom.
    g = lean / height
    mx, my = width / 2, height / 2
    norm = 1 - g * my
    rows = [[a, b, -a * mx - b * my], [-b, a, b * mx - a * my], [0, g, norm]]
    move = np.array([[1, 0, wide / 2], [0, 1, high / 2], [0, 0, 1]]) @ np.array(rows)
    coefficients = (move / move[2, 2]).ravel()[:8].tolist()
    picture = image.transform(size, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BILINEAR)
    if rng.random() < 0.25:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.3)))
    gain, lift = rng.uniform(0.9, 1.1) * rng.uniform(0.97, 1.03, 3), rng.uniform(-8, 8)
    values = np.arange(256)[None] * gain[:, None] + lift
    picture = picture.point(np.clip(values, 0, 255).astype(np.uint8).ravel().tolist())
    strength = int(rng.integers(1, 6))
    grain = rng.integers(-strength, strength + 1, (height, width, 1), dtype=np.int16)
    return Image.fromarray(np.clip(np.asarray(picture, np.int16) + grain, 0, 255).astype(np.uint8))
