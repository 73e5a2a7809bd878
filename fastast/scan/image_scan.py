"""Scans files before a decoder sees them: their kind, their length, and their header (`image_headers`)."""

from __future__ import annotations

import os
import re
import stat

from fastast.scan.image_headers import Header, ReadAt, Refused, scan_jpeg, scan_png

MAX_BYTES = 512 * 2**20
"""Largest file that is read, bytes: a batch of encoded files is held in memory."""

_HEAD_BYTES = 4096  # one read covers most headers
_PACK_CONVERTS = "`fastast pack SRC OUT` converts it"

_EMPTY = "empty file (0 bytes); copy or download it again"
_LOST = "cannot be opened: the link leads nowhere or the file is gone"


def scan_file(path: str | bytes) -> Header:
    """Scans a file. Never raises, never blocks on a pipe, never opens a device.

    Args:
        path: any path, even of nothing.
    """
    try:
        status = os.stat(path)
        reason = refuse_kind(status)
        if reason is not None:
            return Header(0, 0, 0, reason)
        # O_NONBLOCK: the path may have become a pipe since the stat.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return Header(0, 0, 0, describe_error(error))
    try:
        head = os.pread(descriptor, _HEAD_BYTES, 0)

        def read_at(offset: int, count: int) -> bytes:
            if offset + count <= len(head):
                return head[offset : offset + count]
            return os.pread(descriptor, count, offset)

        return _scan(read_at, status.st_size)
    except OSError as error:
        return Header(0, 0, 0, describe_error(error))
    finally:
        os.close(descriptor)


def scan_bytes(data: bytes | memoryview) -> Header:
    """Scans a whole file that is already in memory."""
    view = memoryview(data)
    return _scan(lambda offset, count: bytes(view[offset : offset + count]), len(view))


def refuse_kind(status: os.stat_result) -> str | None:
    """Why a file of this kind or length is not read; None for a regular file of sane length."""
    if stat.S_ISDIR(status.st_mode):
        return "a folder with a picture's name; move its contents up or rename it"
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file (pipe, socket or device)"
    if status.st_size == 0:
        return _EMPTY
    if status.st_size > MAX_BYTES:
        return f"over {MAX_BYTES >> 20} MiB; re-encode it smaller"
    return None


def describe_error(error: OSError) -> str:
    """A system error as one phrase with its remedy."""
    if isinstance(error, FileNotFoundError):
        return _LOST
    if isinstance(error, PermissionError):
        return "permission denied; make it readable (chmod +r)"
    return f"cannot be read: {error.strerror or error}"


def _scan(read_at: ReadAt, size: int) -> Header:
    try:
        head = read_at(0, 64)
        if head[:3] == b"\xff\xd8\xff":
            return scan_jpeg(read_at, size)
        if head[:8] == b"\x89PNG\r\n\x1a\n":
            return scan_png(read_at, size)
        raise Refused(_name_kind(head))
    except Refused as refused:
        return Header(0, 0, 0, str(refused))


# First bytes of kinds that `fastast pack` converts, and of others.
_PACKABLE = {
    rb"GIF8": "GIF",
    rb"BM": "BMP",
    rb"II\*\0|MM\0\*": "TIFF",
    rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51": "JPEG 2000",
    rb"RIFF....WEBP": "WebP",
    rb"....ftypavif": "AVIF",
    rb"P[1-6][\s#]": "PPM, PGM or PBM",
}
_FOREIGN = {
    rb"\0\0\0\x0cJXL |\xff\x0a": "JPEG XL",
    rb"....ftyp": "HEIC, an image sequence or a video",
    rb"8BPS": "Photoshop file",
}


def _name_kind(head: bytes) -> str:
    """Says what a file is that is neither JPEG nor PNG, with the remedy."""
    if not head:
        return _EMPTY
    for pattern, name in _PACKABLE.items():
        if re.match(pattern, head, re.DOTALL):
            return f"{name}, not JPEG or PNG; {_PACK_CONVERTS}"
    for pattern, name in _FOREIGN.items():
        if re.match(pattern, head, re.DOTALL):
            return f"{name}, not JPEG or PNG; convert it"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "a web page, not a picture: a failed download; fetch it again"
    if not any(head):
        return "only zero bytes; copy or download it again"
    if all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in head):
        return "text, not a picture; remove it or fetch it again"
    return "not a JPEG or PNG; convert or remove it"
