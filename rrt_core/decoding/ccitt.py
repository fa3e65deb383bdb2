"""Whether fax-compressed rows (ITU-T T.4 and T.6) are whole.

libtiff goes on after bad codes and leaves the rows behind an early end as the memory was, without
an error; so every code is followed here before its pixels are believed.
"""

from __future__ import annotations

from collections.abc import Iterator

RLE, GROUP_3, GROUP_4 = 2, 3, 4  # values of TIFF's tag Compression

# Codes of run lengths 0..63, then of 64, 128 .. 1728; those of 1792 .. 2560 are of both colours.
_WHITE = (
    "00110101 000111 0111 1000 1011 1100 1110 1111 10011 10100 00111 01000 001000 000011 110100 "
    "110101 101010 101011 0100111 0001100 0001000 0010111 0000011 0000100 0101000 0101011 0010011 "
    "0100100 0011000 00000010 00000011 00011010 00011011 00010010 00010011 00010100 00010101 "
    "00010110 00010111 00101000 00101001 00101010 00101011 00101100 00101101 00000100 00000101 "
    "00001010 00001011 01010010 01010011 01010100 01010101 00100100 00100101 01011000 01011001 "
    "01011010 01011011 01001010 01001011 00110010 00110011 00110100 "
    "11011 10010 010111 0110111 00110110 00110111 01100100 01100101 01101000 01100111 011001100 "
    "011001101 011010010 011010011 011010100 011010101 011010110 011010111 011011000 011011001 "
    "011011010 011011011 010011000 010011001 010011010 011000 010011011"
)
_BLACK = (
    "0000110111 010 11 10 011 0011 0010 00011 000101 000100 0000100 0000101 0000111 00000100 "
    "00000111 000011000 0000010111 0000011000 0000001000 00001100111 00001101000 00001101100 "
    "00000110111 00000101000 00000010111 00000011000 000011001010 000011001011 000011001100 "
    "000011001101 000001101000 000001101001 000001101010 000001101011 000011010010 000011010011 "
    "000011010100 000011010101 000011010110 000011010111 000001101100 000001101101 000011011010 "
    "000011011011 000001010100 000001010101 000001010110 000001010111 000001100100 000001100101 "
    "000001010010 000001010011 000000100100 000000110111 000000111000 000000100111 000000101000 "
    "000001011000 000001011001 000000101011 000000101100 000001011010 000001100110 000001100111 "
    "0000001111 000011001000 000011001001 000001011011 000000110011 000000110100 000000110101 "
    "0000001101100 0000001101101 0000001001010 0000001001011 0000001001100 0000001001101 "
    "0000001110010 0000001110011 0000001110100 0000001110101 0000001110110 0000001110111 "
    "0000001010010 0000001010011 0000001010100 0000001010101 0000001011010 0000001011011 "
    "0000001100100 0000001100101"
)
_LONG = (
    "00000001000 00000001100 00000001101 000000010010 000000010011 000000010100 000000010101 "
    "000000010110 000000010111 000000011100 000000011101 000000011110 000000011111"
)

_PASS, _HORIZONTAL = 100, 101
_MODES = {
    "0000010": -3,
    "000010": -2,
    "010": -1,
    "1": 0,
    "011": 1,
    "000011": 2,
    "0000011": 3,
    "0001": _PASS,
    "001": _HORIZONTAL,
}
_LOOK = 13  # bits of the longest code
_Table = list[tuple[int, int]]  # of the next bits: how many a code takes, and its value


def _table(codes: dict[str, int]) -> _Table:
    table = [(0, 0)] * (1 << _LOOK)
    for code, value in codes.items():
        first = int(code, 2) << (_LOOK - len(code))
        table[first : first + (1 << (_LOOK - len(code)))] = [(len(code), value)] * (
            1 << (_LOOK - len(code))
        )
    return table


def _runs(codes: str) -> _Table:
    lengths = [*range(64), *range(64, 2561, 64)]
    return _table(dict(zip((codes + " " + _LONG).split(), lengths, strict=True)))


_RUN = (_runs(_WHITE), _runs(_BLACK))
_MODE = _table(_MODES)


class Damaged(Exception):
    """The codes make no row; the text says what is wrong."""


def whole_rows(strip: bytes, width: int, rows: int, compression: int, two_dimensional: bool) -> int:
    """How many of the rows a strip holds, up to the first bad code: `rows` where it is whole.

    strip            bytes with the highest bit first
    two_dimensional  of GROUP_3: whether each row says after its end-of-line how it is coded
    """
    good = 0
    try:
        for _ in _rows(strip, width, rows, compression, two_dimensional):
            good += 1
    except Damaged:
        pass
    return good


def _rows(
    strip: bytes, width: int, rows: int, compression: int, two_dimensional: bool
) -> Iterator[list[int]]:
    """The rows as the columns at which the colour changes, white first. Raises Damaged."""
    place, reference = 0, [width]
    for _ in range(rows):
        plain = compression != GROUP_4
        if compression == RLE:
            place = -(-place // 8) * 8
        elif compression == GROUP_3:
            place = _behind_end_of_line(strip, place)
            if two_dimensional:
                plain = _bits(strip, place) >> (_LOOK - 1) == 1
                place += 1

        if plain:
            place, reference = _plain_row(strip, place, width)
        else:
            place, reference = _row_by_reference(strip, place, width, reference)
        if place > 8 * len(strip):
            raise Damaged("it ends within a row")
        yield reference


def _bits(strip: bytes, place: int) -> int:
    """The next bits; zeros behind the end."""
    four = strip[place >> 3 : (place >> 3) + 4]
    word = int.from_bytes(four, "big") << (8 * (4 - len(four)))
    return (word >> (32 - _LOOK - (place & 7))) & ((1 << _LOOK) - 1)


def _behind_end_of_line(strip: bytes, place: int) -> int:
    zeros = 0
    while place < 8 * len(strip):
        bit = strip[place >> 3] >> (7 - (place & 7)) & 1
        place += 1
        if bit:
            if zeros < 11:
                break
            return place
        zeros += 1
    raise Damaged("a row does not begin with an end-of-line")


def _run(strip: bytes, place: int, colour: int) -> tuple[int, int]:
    """The place behind a run's codes, and its length."""
    table, total = _RUN[colour], 0
    while True:
        taken, length = table[_bits(strip, place)]
        if not taken:
            raise Damaged("bad code of a run")
        place, total = place + taken, total + length
        if length < 64:
            return place, total


def _plain_row(strip: bytes, place: int, width: int) -> tuple[int, list[int]]:
    changes: list[int] = []
    at = colour = 0
    while at < width:
        place, length = _run(strip, place, colour)
        at, colour = at + length, 1 - colour
        changes.append(at)
        if at > width or (not length and len(changes) > 1):
            raise Damaged("a row of another width")
    return place, changes


def _row_by_reference(
    strip: bytes, place: int, width: int, reference: list[int]
) -> tuple[int, list[int]]:
    """A row coded by what differs from the one above."""
    above = [*reference, width, width, width, width]
    changes: list[int] = []
    at, colour, index = -1, 0, 0
    while at < width:
        index = max(0, index - 2)
        index += (index ^ colour) & 1
        while above[index] <= at and above[index] < width:
            index += 2

        taken, mode = _MODE[_bits(strip, place)]
        if not taken:
            raise Damaged("bad code of a mode")
        place += taken
        if mode == _PASS:
            at = above[index + 1]
        elif mode == _HORIZONTAL:
            at = max(at, 0)
            for one in (colour, 1 - colour):
                place, length = _run(strip, place, one)
                at += length
                changes.append(at)
        else:
            before, at = at, above[index] + mode
            if at < max(before, 0):
                raise Damaged("a row that goes back")
            changes.append(at)
            colour = 1 - colour
        if at > width:
            raise Damaged("a row of another width")
    return place, _without_empty_runs(changes)


def _without_empty_runs(changes: list[int]) -> list[int]:
    """Two changes at one column are none; but a row may begin with black."""
    kept: list[int] = []
    for change in changes:
        if kept and kept[-1] == change:
            kept.pop()
        else:
            kept.append(change)
    return kept
