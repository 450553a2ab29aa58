"""The frames inside an AVIF, by the sequence headers of its AV1 data: its boxes may state a smaller picture.

ISO/IEC 14496-12 (boxes), 23008-12 (items), and "AV1 bitstream & decoding process specification", sections 5.3 to 5.5.
"""

from collections.abc import Iterator

from lmk_data.decoding.refusal import Refused

_CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl")
_SEQUENCE_HEADER = 1
_HEADER_BYTES = 1024  # more than any sequence header has
_MAX_DEPTH, _MAX_STEPS = 8, 100_000
Path = tuple[bytes, ...]


def av1_pixels(data: bytes) -> int:
    """Return the pixels that decoding an AVIF takes memory for: those of its largest frame, or half those of all.

    A picture with transparency has two frames, and an animated one may have them twice. Counted is the largest frame
    that the sequence headers of each item, and of each track's first sample, allow. 0 without any.

    Raises:
        Refused: it has more boxes, items or units than any picture.
    """
    frames = list(_Avif(data).frames())
    return max(max(frames, default=0), sum(frames) // 2)


class _Avif:
    """The boxes, items and units of an AVIF, of which only so many are looked at."""

    def __init__(self, data: bytes) -> None:
        self._data, self._steps = data, 0

    def frames(self) -> Iterator[int]:
        """Yield the pixels of the largest frame of each item of the type av01 and of each track's first sample."""
        for path, start, end in self._boxes(0, len(self._data), ()):
            if path == (b"meta",):
                yield from self._items(start + 4, end)
            if path[-1] in (b"stco", b"co64"):
                width = 8 if path[-1] == b"co64" else 4
                yield self._largest_frame(self._data, int.from_bytes(self._data[start + 8 : start + 8 + width]))

    def _step(self) -> None:
        self._steps += 1
        if self._steps > _MAX_STEPS:
            raise Refused("corrupt", f"an AVIF of more than {_MAX_STEPS:,} parts")

    def _boxes(self, start: int, end: int, path: Path) -> Iterator[tuple[Path, int, int]]:
        """Yield each box as its path, and the start and end of its content; containers before what they hold."""
        data = self._data
        while end - start >= 8:
            self._step()
            size, kind, header = int.from_bytes(data[start : start + 4]), data[start + 4 : start + 8], 8
            if size == 1:
                size, header = int.from_bytes(data[start + 8 : start + 16]), 16
            stop = end if size == 0 else min(end, start + size)
            if stop < start + header:
                return
            inside = (*path, kind)
            yield inside, start + header, stop
            if kind in _CONTAINERS and len(path) < _MAX_DEPTH:
                yield from self._boxes(start + header, stop, inside)
            start = stop

    def _items(self, start: int, end: int) -> Iterator[int]:
        """Yield the pixels of each item of the type av01, by the boxes of a `meta` box."""
        found = {path[-1]: (first, last) for path, first, last in self._boxes(start, end, ())}
        if b"iloc" not in found or b"iinf" not in found:
            return
        names = self._av1_items(*found[b"iinf"])
        stored = self._data[slice(*found.get(b"idat", (0, 0)))]
        for number, is_in_idat, extents in self._locations(self._data[slice(*found[b"iloc"])]):
            if number in names:
                yield self._largest_frame_of(stored if is_in_idat else self._data, extents)

    def _av1_items(self, start: int, end: int) -> set[int]:
        """Return the numbers of the items whose type is av01."""
        data, numbers = self._data, set()
        for path, first, last in self._boxes(start + (8 if data[start : start + 1] != b"\0" else 6), end, ()):
            width = 4 if data[first : first + 1] == b"\3" else 2
            kind = first + 4 + width + 2
            if path == (b"infe",) and data[kind : min(last, kind + 4)] == b"av01":
                numbers.add(int.from_bytes(data[first + 4 : first + 4 + width]))
        return numbers

    def _locations(self, content: bytes) -> Iterator[tuple[int, bool, list[tuple[int, int]]]]:
        """Yield each item's number, whether it lies in `idat`, and its extents: offsets and sizes (0: to the end)."""
        reader = _Bits(content)
        version = reader.take(8)
        reader.take(24)
        offset_bits, size_bits, base_bits, index_bits = (8 * reader.take(4) for _ in range(4))
        for _ in range(reader.take(16 if version < 2 else 32)):
            number = reader.take(16 if version < 2 else 32)
            method = reader.take(16) & 15 if version else 0
            reader.take(16)
            base, extents = reader.take(base_bits), []
            for _ in range(reader.take(16)):
                self._step()
                reader.take(index_bits if version else 0)
                first = base + reader.take(offset_bits)
                extents.append((first, reader.take(size_bits)))
            if reader.is_over:
                return
            yield number, method == 1, extents

    def _largest_frame_of(self, source: bytes, extents: list[tuple[int, int]]) -> int:
        """Return the pixels of the largest frame of data in parts."""
        if len(extents) == 1:
            return self._largest_frame(source, *extents[0])
        parts = [range(len(source))[first : first + size if size else None] for first, size in extents]
        if sum(map(len, parts)) > len(self._data):
            raise Refused("corrupt", "an AVIF whose parts overlap")
        return self._largest_frame(b"".join(source[part.start : part.stop] for part in parts), 0)

    def _largest_frame(self, data: bytes, position: int, num_bytes: int = 0) -> int:
        """Return the pixels of the largest frame that the sequence headers of AV1 data from `position` on allow."""
        largest, end = 0, min(len(data), position + num_bytes if num_bytes else len(data))
        while position < end:
            self._step()
            header = data[position]
            position += 2 if header & 4 else 1
            size = end - position
            if header & 2:
                size, position = _leb128(data, position)
            if header >> 3 & 15 == _SEQUENCE_HEADER:
                width, height = _frame_size(data[position : position + min(size, _HEADER_BYTES)])
                largest = max(largest, width * height)
            position += size
        return largest


def _leb128(data: bytes, position: int) -> tuple[int, int]:
    """Return a number in groups of seven bits, the lowest first, and the position behind it."""
    value = 0
    for place, byte in enumerate(data[position : position + 8]):
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value, position + place + 1
    return value, position + 8


def _frame_size(header: bytes) -> tuple[int, int]:
    """Return the largest width and height of a frame under a sequence header."""
    bits = _Bits(header)
    bits.take(4)  # profile, still picture
    if bits.take(1):  # the header of a still picture
        bits.take(5)
    else:
        _skip_operating_points(bits)
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    return bits.take(width_bits) + 1, bits.take(height_bits) + 1


def _skip_operating_points(bits: "_Bits") -> None:
    delay_bits = 0
    if bits.take(1):  # timing
        bits.take(64)
        if bits.take(1):
            zeros = 0
            while not bits.is_over and not bits.take(1):
                zeros += 1
            bits.take(zeros)
        if bits.take(1):  # decoder model
            delay_bits = bits.take(5) + 1
            bits.take(42)
    has_model, has_delay = delay_bits > 0, bits.take(1)
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > 7:
            bits.take(1)
        if has_model and bits.take(1):
            bits.take(2 * delay_bits + 1)
        if has_delay and bits.take(1):
            bits.take(4)


class _Bits:
    """The bits of some bytes, the highest first; zeros beyond their end."""

    def __init__(self, data: bytes) -> None:
        self._data, self._position = data, 0

    @property
    def is_over(self) -> bool:
        """Return whether more was taken than there is."""
        return self._position > 8 * len(self._data)

    def take(self, number: int) -> int:
        """Return the next bits as a number."""
        first, last = self._position, self._position + number
        self._position = last
        part = self._data[first // 8 : -(-last // 8)].ljust(-(-last // 8) - first // 8, b"\0")
        return int.from_bytes(part) >> (-last % 8) & ((1 << number) - 1)
