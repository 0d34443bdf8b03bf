"""Whether the compressed pixels of a JPEG are intact, for readers without `simplejpeg`.

Code of our own, because Pillow decodes a JPEG that is damaged in the middle without a word: it drops the warnings of
libjpeg. This module walks over the Huffman codes of all scans, computes no pixel, and finds what libjpeg warns about: a
code that the table does not have, data that end before the last block, data that go on behind it, and a missing restart
marker (ITU-T T.81, annexes B, F and G). Other codings than 8 bit Huffman are not checked.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

_FRAMES, _DHT, _SOS, _DRI, _EOI = (0xC0, 0xC1, 0xC2), 0xC4, 0xDA, 0xDD, 0xD9
_OTHER_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD9))
_MARKER = re.compile(rb"\xff+([\x01-\xfe])")  # within a scan; FF 00 stands for the byte FF
_SPARE = 4  # bytes
_BEHIND = 512  # bytes after the data that a damaged block may reach
_END, _BAD = 64, 255  # steps of a coefficient's number: end of block, no such code


class DamagedScan(Exception):
    """The message says what is wrong."""


class _Component(NamedTuple):
    blocks_of_unit: int  # in an interleaved scan
    blocks: int  # in a scan of its own


class _Frame(NamedTuple):
    progressive: bool
    components: dict[int, _Component]
    units: int  # of an interleaved scan


class _Table(NamedTuple):
    """By the next 16 bits of the data; bytes, because Python indexes them fast."""

    length: bytes  # of the code in bits, 0: there is no such code
    symbol: bytes
    bits: bytes  # of the code and of the value that follows it
    step: bytes  # by which a coefficient's number grows in sequential scans


class _Scan(NamedTuple):
    parts: list[tuple[_Component, _Table | None, _Table | None, list[bytearray]]]
    first: int  # coefficient
    last: int
    refines: bool


def check(data: bytes) -> None:
    """Walks over all scans of a JPEG file.

    Raises:
      DamagedScan: the compressed data do not fit the picture.
    """
    try:
        _walk(data)
    except (struct.error, LookupError, ArithmeticError) as error:
        raise DamagedScan("malformed segment") from error


def _walk(data: bytes) -> None:
    at, frame, restart = 2, None, 0
    tables: dict[tuple[int, int], _Table] = {}
    nonzero: dict[int, list[bytearray]] = {}  # of each block's coefficients so far, by component
    while at + 4 <= len(data):
        marker = data[at + 1]
        if data[at] != 0xFF:
            raise DamagedScan(f"extraneous bytes before byte {at}")
        if marker == 0xFF or marker in _WITHOUT_LENGTH:
            at += 1 if marker == 0xFF else 2
            continue
        if marker == _EOI:
            return
        end = at + 2 + struct.unpack_from(">H", data, at + 2)[0]
        segment = data[at + 4 : end]
        if marker == _DHT:
            _read_tables(segment, tables)
        elif marker == _DRI:
            (restart,) = struct.unpack_from(">H", segment)
        elif marker in _FRAMES:
            if segment[0] != 8:
                return
            frame = _read_frame(segment, marker == 0xC2)
            if frame.progressive:
                nonzero = {name: [bytearray(64) for _ in range(part.blocks)] for name, part in frame.components.items()}
        elif marker in _OTHER_FRAMES:
            return
        elif marker == _SOS:
            if frame is None:
                raise DamagedScan("a scan before its frame")
            scan = _read_scan(segment, frame, tables, nonzero)
            end = _walk_scan(data, end, frame, scan, restart)
        at = end


def _read_frame(segment: bytes, progressive: bool) -> _Frame:
    _, height, width, count = struct.unpack_from(">BHHB", segment)
    parts = [(segment[at], segment[at + 1] >> 4, segment[at + 1] & 15) for at in range(6, 6 + 3 * count, 3)]
    across, down = max(part[1] for part in parts), max(part[2] for part in parts)
    components = {}
    for name, h, v in parts:
        samples = (math.ceil(width * h / across), math.ceil(height * v / down))
        components[name] = _Component(h * v, math.ceil(samples[0] / 8) * math.ceil(samples[1] / 8))
    return _Frame(progressive, components, math.ceil(width / (8 * across)) * math.ceil(height / (8 * down)))


def _read_tables(segment: bytes, tables: dict[tuple[int, int], _Table]) -> None:
    at = 0
    while at < len(segment):
        kind, counts = segment[at], segment[at + 1 : at + 17]
        symbols = segment[at + 17 : at + 17 + sum(counts)]
        length, symbol = np.zeros(1 << 16, np.uint8), np.zeros(1 << 16, np.uint8)
        code = taken = 0
        for bits, count in enumerate(counts, start=1):
            for value in symbols[taken : taken + count]:
                of_code = slice(code << (16 - bits), (code + 1) << (16 - bits))
                length[of_code], symbol[of_code] = bits, value
                code += 1
            taken, code = taken + count, code << 1
        size, run = symbol & 15, symbol >> 4
        step = np.where(size > 0, run + 1, np.where(run == 15, 16, _END)).astype(np.uint8)
        step[length == 0] = _BAD
        tables[kind >> 4, kind & 15] = _Table(*(x.tobytes() for x in (length, symbol, length + size, step)))
        at += 17 + sum(counts)


def _read_scan(segment: bytes, frame: _Frame, tables: dict, nonzero: dict) -> _Scan:
    parts = []
    for at in range(1, 1 + 2 * segment[0], 2):
        name, which = segment[at], segment[at + 1]
        dc, ac = tables.get((0, which >> 4)), tables.get((1, which & 15))
        parts.append((frame.components[name], dc, ac, nonzero.get(name, [])))
    first, last, approximation = segment[-3:]
    return _Scan(parts, first, last, approximation >> 4 > 0)


def _walk_scan(data: bytes, start: int, frame: _Frame, scan: _Scan, restart: int) -> int:
    """Checks the data of a scan and returns where they end."""
    units = frame.units if len(scan.parts) > 1 else scan.parts[0][0].blocks
    pieces = _pieces(data, start)
    for number, first in enumerate(range(0, units, restart or units)):
        piece, marker, end = next(pieces, (None, None, len(data)))
        if piece is None:
            raise DamagedScan("premature end of data")
        last = min(units, first + (restart or units))
        bits, windows = _windows(piece)
        position = _walk_units(windows, bits, range(first, last), frame.progressive, scan)
        # libjpeg does not notice a byte or a few that it has read ahead.
        if bits - position >= 8 * _SPARE:
            raise DamagedScan(f"{(bits - position) // 8} extraneous bytes before byte {end}")
        if last < units and marker != 0xD0 + number % 8:
            raise DamagedScan(f"restart marker {number % 8} is missing before byte {end}")
    if marker is not None and 0xD0 <= marker <= 0xD7:
        raise DamagedScan(f"extraneous data after byte {end}")
    return end


def _pieces(data: bytes, start: int) -> Iterator[tuple[bytes, int, int]]:
    """The data between two restart markers, the marker behind them, and where it stands."""
    for match in _MARKER.finditer(data, start):
        marker = match[1][0]
        yield data[start : match.start()].replace(b"\xff\x00", b"\xff"), marker, match.start()
        if not 0xD0 <= marker <= 0xD7:
            return
        start = match.end()


def _windows(piece: bytes) -> tuple[int, memoryview]:
    """The number of bits, and the 16 bits that begin at each bit."""
    values = np.frombuffer(piece + bytes(_BEHIND), np.uint8).astype(np.uint32)
    words = (values[:-2] << 16) | (values[1:-1] << 8) | values[2:]
    windows = (words[:, None] >> np.arange(8, 0, -1, dtype=np.uint32)).astype(np.uint16)
    return 8 * len(piece), memoryview(windows.reshape(-1))


def _walk_units(windows: memoryview, bits: int, units: range, progressive: bool, scan: _Scan) -> int:
    """The position behind the last block."""
    if progressive and scan.first > 0:
        walk = _refined_coefficients if scan.refines else _coefficients
        return walk(windows, bits, units, scan)
    position = 0
    interleaved = len(scan.parts) > 1
    blocks = [(dc, ac) for part, dc, ac, _ in scan.parts for _ in range(part.blocks_of_unit if interleaved else 1)]
    if progressive and scan.refines:
        position = len(units) * len(blocks)  # one bit each
    else:
        for _ in units:
            for dc, ac in blocks:
                position = _block(windows, position, dc, None if progressive else ac)
                if position > bits:
                    raise DamagedScan("premature end of data")
    if position > bits:
        raise DamagedScan("premature end of data")
    return position


def _block(windows: memoryview, position: int, dc: _Table, ac: _Table | None) -> int:
    window = windows[position]
    if not dc.length[window]:
        raise DamagedScan("bad Huffman code")
    position += dc.bits[window]
    if ac is None:
        return position
    bits, step, k = ac.bits, ac.step, 1
    while k < 64:
        window = windows[position]
        position += bits[window]
        k += step[window]
    if k >= _BAD:
        raise DamagedScan("bad Huffman code")
    return position


def _coefficients(windows: memoryview, bits: int, units: range, scan: _Scan) -> int:
    """First scan of coefficients in a progressive JPEG."""
    (_, _, table, blocks), position, run_of_ends = scan.parts[0], 0, 0
    for unit in units:
        if run_of_ends:
            run_of_ends -= 1
            continue
        k, nonzero = scan.first, blocks[unit]
        while k <= scan.last:
            length, symbol, position = _code(windows, position, bits, table)
            run, size = symbol >> 4, symbol & 15
            if size:
                k += run
                nonzero[min(k, 63)] = 1  # as libjpeg, where damage makes it larger
                k, position = k + 1, position + size
            elif run == 15:
                k += 16
            else:
                run_of_ends = (1 << run) - 1 + (windows[position] >> (16 - run))
                position += run
                break
    return _within(position, bits)


def _refined_coefficients(windows: memoryview, bits: int, units: range, scan: _Scan) -> int:
    """Further scan of coefficients: one bit for each that was not zero, and codes for those that become so."""
    (_, _, table, blocks), position, run_of_ends = scan.parts[0], 0, 0
    for unit in units:
        k, nonzero = scan.first, blocks[unit]
        while not run_of_ends and k <= scan.last:
            _, symbol, position = _code(windows, position, bits, table)
            run, size = symbol >> 4, symbol & 15
            if size > 1:
                raise DamagedScan("bad Huffman code")
            if not size and run < 15:
                run_of_ends = (1 << run) + (windows[position] >> (16 - run))
                position += run
                break
            position += size
            while k <= scan.last:
                if nonzero[k]:
                    position += 1
                elif run == 0:
                    break
                else:
                    run -= 1
                k += 1
            if size:
                nonzero[min(k, 63)] = 1  # as libjpeg, where damage makes it larger
            k += 1
        if run_of_ends:
            position += sum(nonzero[k : scan.last + 1])
            run_of_ends -= 1
    return _within(position, bits)


def _code(windows: memoryview, position: int, bits: int, table: _Table) -> tuple[int, int, int]:
    """Length and symbol of the next code, and the position behind it."""
    window = windows[_within(position, bits)]
    length = table.length[window]
    if not length:
        raise DamagedScan("bad Huffman code")
    return length, table.symbol[window], position + length


def _within(position: int, bits: int) -> int:
    if position > bits:
        raise DamagedScan("premature end of data")
    return position
