"""Bytes of a file that may be compressed: recognised by content, bounded in size, one line of trouble at most."""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from kbuild.errors import UserError

MAX_BYTES = 256 << 20
"""Of one module, before and after decompression. With debug information `kvm.ko` has tens of MB."""


class MalformedError(Exception):
    """What is wrong with some bytes, without the name of the file that they came from."""


class _Decompressor(Protocol):
    """What zlib, lzma and bz2 share in the standard library."""

    @property
    def eof(self) -> bool: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


def read(path: Path, limit: int = MAX_BYTES) -> bytes:
    """A whole file. Raises UserError in one line, also for what is no regular file."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # Opening a pipe would wait for its writer.
            raise UserError(f"{path}: not a regular file")
        with path.open("rb") as file:
            # To ask for no more than there is saves the memory that the limit would take.
            data = file.read(min(status.st_size, limit) + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > limit:
        raise UserError(f"{path}: larger than {limit >> 20} MiB, which is the limit here")
    return data


def decompressed(data: bytes, limit: int = MAX_BYTES) -> bytes:
    """`data`, decompressed where it begins like a known format; what follows the end of the stream is ignored.

    The formats are those of modules (gzip, xz, zstd) and of a bzImage's payload (also bzip2, LZMA, LZ4's legacy
    frame). Raises MalformedError when the stream is broken, ends early, or gives more than `limit` bytes.
    """
    decompress = next((function for magic, function in _FORMATS.items() if data.startswith(magic)), None)
    return decompress(data, limit) if decompress else data


def _bounded(stream: _Decompressor, data: bytes, limit: int, name: str, error: type[Exception]) -> bytes:
    try:
        out = stream.decompress(data, limit + 1)
    except error as reason:
        raise MalformedError(f"broken {name} data: {reason}") from None
    if len(out) > limit:
        raise _too_large(name, limit)
    if not stream.eof:
        raise MalformedError(f"{name} data ends too early: the file is cut off")
    return out


def _too_large(name: str, limit: int) -> MalformedError:
    return MalformedError(f"{name} data of more than {limit >> 20} MiB, which is the limit here")


def _gzip(data: bytes, limit: int) -> bytes:
    import zlib

    return _bounded(zlib.decompressobj(wbits=31), data, limit, "gzip", zlib.error)


def _xz(data: bytes, limit: int) -> bytes:
    import lzma

    # Without memlimit, a header of a few bytes could ask for a dictionary of 4 GiB.
    return _bounded(lzma.LZMADecompressor(memlimit=MAX_BYTES), data, limit, "xz", lzma.LZMAError)


def _bzip2(data: bytes, limit: int) -> bytes:
    import bz2

    return _bounded(bz2.BZ2Decompressor(), data, limit, "bzip2", OSError)


def _zstd(data: bytes, limit: int) -> bytes:
    import zstandard

    # 128 MiB is zstd's own limit for `--ultra -22 --long=27`, which the kernel's Makefile does not go beyond.
    stream = zstandard.ZstdDecompressor(max_window_size=128 << 20).decompressobj()
    out: list[bytes] = []
    size = 0
    step = 1 << 10  # This interface has no limit on its output: 1 KiB of input gives 32 MiB at most.
    try:
        for start in range(0, len(data), step):
            out.append(stream.decompress(data[start : start + step]))
            size += len(out[-1])
            if size > limit:
                raise _too_large("zstd", limit)
            if stream.eof:
                return b"".join(out)
    except zstandard.ZstdError as reason:
        raise MalformedError(f"broken zstd data: {reason}") from None
    raise MalformedError("zstd data ends too early: the file is cut off")


def _lz4(data: bytes, limit: int) -> bytes:
    """LZ4's legacy frame (`lz4 -l`, arch/x86/boot/compressed/Makefile): blocks of at most 8 MiB, each with its size.

    https://github.com/lz4/lz4/blob/dev/doc/lz4_Frame_format.md, "Legacy frame". No end mark: it ends with the
    data, or with a size that no block has, such as the uncompressed size that the kernel's build appends.
    """
    out = bytearray()
    position = 4
    while position + 4 <= len(data):
        (size,) = struct.unpack_from("<I", data, position)
        position += 4
        if not 0 < size <= len(data) - position:
            break
        _lz4_block(data[position : position + size], out, min(limit, len(out) + (8 << 20)))
        position += size
    return bytes(out)


def _lz4_more(block: bytes, position: int) -> tuple[int, int]:
    """What the bytes that follow add to a length, as long as they are 255 and one more; and where they end."""
    more = 0
    while block[position] == 255:
        more += 255
        position += 1
    return more + block[position], position + 1


def _lz4_block(block: bytes, out: bytearray, limit: int) -> None:
    start = len(out)
    position = 0
    try:
        while True:
            token = block[position]
            position += 1
            length = token >> 4
            if length == 15:
                more, position = _lz4_more(block, position)
                length += more
            if length:
                out += block[position : position + length]
                position += length
            if position >= len(block):
                if position > len(block):
                    raise MalformedError("broken LZ4 data: a literal goes past its block")
                return
            distance = block[position] | block[position + 1] << 8
            position += 2
            length = (token & 15) + 4
            if length == 19:
                more, position = _lz4_more(block, position)
                length += more
            source = len(out) - distance
            if distance == 0 or source < start:
                raise MalformedError("broken LZ4 data: a match before its block")
            if len(out) + length > limit:
                raise MalformedError("broken LZ4 data: a block gives more than it may")
            if distance >= length:
                out += out[source : source + length]
            else:
                out += (out[source:] * (length // distance + 1))[:length]
    except IndexError:
        raise MalformedError("broken LZ4 data: a block ends too early") from None


def _lzma(data: bytes, limit: int) -> bytes:
    import lzma

    stream = lzma.LZMADecompressor(format=lzma.FORMAT_ALONE, memlimit=MAX_BYTES)
    return _bounded(stream, data, limit, "LZMA", lzma.LZMAError)


_FORMATS: dict[bytes, Callable[[bytes, int], bytes]] = {
    b"\x1f\x8b": _gzip,
    b"\xfd7zXZ\x00": _xz,
    b"\x28\xb5\x2f\xfd": _zstd,
    b"BZh": _bzip2,
    b"\x02\x21\x4c\x18": _lz4,
    b"\x5d\x00\x00": _lzma,
}
