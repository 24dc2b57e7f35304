"""Why a file is not a video or a picture: it is empty, a text, sound only, or something else."""
from __future__ import annotations

import os
import stat

HEAD_BYTES = 1 << 16
# FFmpeg draws the text of such files as a video.
TEXTS = (".txt", ".asc", ".nfo", ".diz", ".ans", ".vt")
MODELS = (".rknn", ".onnx", ".tflite", ".pt")
# MP3, FLAC, AIFF, AMR, MIDI; frames of MP3 and AAC. They may contain a picture of their cover.
SOUNDS = (b"ID3", b"fLaC", b"FORM", b"#!AMR", b"MThd", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2",
          b"\xff\xf1", b"\xff\xf9")

HEIC = b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1"  # brands in the head of iPhones' photos


def ends_of(path: str) -> tuple[bytes, bytes]:
    """The first and the last bytes of a file; empty if it is not an ordinary file, or unreadable.
    """
    if not os.path.isfile(path):  # a FIFO must not be read
        return b"", b""
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
            file.seek(max(0, os.path.getsize(path) - HEAD_BYTES))
            return head, file.read()
    except OSError:
        return b"", b""


def seems_video(path: str) -> bool:
    """False for text and sound files, although FFmpeg would play them as a video."""
    head, _ = ends_of(path)
    return not (path.lower().endswith(TEXTS) and is_text(head) or is_sound(head, b""))


def reason(path: str, kind: str = "video", reader: str = "OpenCV") -> str:
    """Why a file is not a "video" or "picture": "not a video but a text file", ..."""
    try:
        if stat.S_ISREG(os.stat(path).st_mode):
            open(path, "rb").close()
    except PermissionError:  # of the file, or of a folder on the way
        return "cannot be read (permission denied)"
    except OSError:
        return "a link to a missing file" if os.path.islink(path) else "no such file"
    head, tail = ends_of(path)
    if os.path.isfile(path) and not os.path.getsize(path):
        return f"not a {kind}: the file is empty"
    if path.lower().endswith(MODELS):
        return f"not a {kind} but a model, which main.py takes with --model"
    if head and is_sound(head, tail):
        return f"not a {kind}: it contains only sound"
    if head and is_text(head):
        return f"not a {kind} but a text file"
    if head[4:8] == b"ftyp" and head[8:12] in HEIC:
        return f"a HEIC picture, which {reader} cannot read; convert it to JPEG"
    if head[4:8] == b"ftyp" and b"moov" not in boxes_of(path):
        return (f"not a {kind} that {reader} can read: the end of the file is missing, and with it "
                "the index, as after a power cut or a download that did not finish")
    return f"not a {kind} that {reader} can read"


def is_sound(head: bytes, tail: bytes) -> bool:
    """Whether a file with these ends has sound and no video."""
    if head.startswith(SOUNDS) or head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        return True
    if head[4:8] == b"ftyp":  # MP4: its brand, or the handlers of its tracks
        return head[8:11] == b"M4A" or b"soun" in tail and b"vide" not in head + tail
    if tail and head[:4] == b"OggS":
        return not any(name in head for name in (b"theora", b"OVP80", b"BBCD"))
    if tail and head[:4] == b"\x1aE\xdf\xa3":  # Matroska and WebM: the codecs of their tracks
        return b"A_" in head and b"V_" not in head
    return False


def boxes_of(path: str) -> list[bytes]:
    """The types of an MP4 file's outermost boxes (ISO 14496-12). moov is the index."""
    types, position, length = [], 0, 8
    with open(path, "rb") as file:
        while length >= 8:
            file.seek(position)
            head = file.read(16)
            length = int.from_bytes(head[:4], "big")
            if length == 1:  # it does not fit into four bytes
                length = int.from_bytes(head[8:], "big")
            types.append(head[4:8])
            position += length
    return types


def is_text(head: bytes) -> bool:
    """Whether a file begins with text: UTF-16, or any encoding without control characters."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return True
    return not any(byte < 32 and byte not in b"\t\n\r\f\x1b" or byte == 127 for byte in head)
