"""A file that is not a video or a picture: the message says what it is instead."""

import contextlib
import os
import struct
import tempfile

import cv2
import numpy as np
import pytest

import funcs
import sources
from sources.names import name_streams
from vision.errors import InputError


def box(kind, *content):
    """A box of an MP4 file."""
    inside = b"".join(content)
    return struct.pack(">I", len(inside) + 8) + kind + inside


WAV = b"RIFF\x24\0\0\0WAVEfmt " + bytes(28)
M4A = box(b"ftyp", b"isom\0\0\2\0") + box(b"moov", box(b"hdlr", bytes(8), b"soun", bytes(13)))
COVER = cv2.imencode(".jpg", np.zeros((64, 64, 3), np.uint8))[1].tobytes()
# ID3v2.3 with one frame, the cover picture. FFmpeg would play it as a video.
PICTURE = b"\0image/jpeg\0\3\0" + COVER
FRAME = b"APIC" + struct.pack(">I", len(PICTURE)) + b"\0\0" + PICTURE
SIZE = bytes(len(FRAME) >> shift & 127 for shift in (21, 14, 7, 0))
MP3 = b"ID3\3\0\0" + SIZE + FRAME + (b"\xff\xfb\x90\0" + bytes(413)) * 20


HEIC = box(b"ftyp", b"heic\0\0\0\0mif1heic") + box(b"meta", bytes(100))
FTYP = box(b"ftyp", b"isom\0\0\2\0")
CUT_OFF = FTYP + box(b"free") + box(b"mdat", bytes(range(256)) * 9)
LONG_BOX = struct.pack(">I4sQ", 1, b"mdat", 24) + bytes(8)  # its length has eight bytes
DAMAGED = "not a video that OpenCV can read."
MISSING_END = (
    "not a video that OpenCV can read: the end of the file is missing, and with it the index, "
    "as after a power cut or a download that did not finish"
)


@pytest.mark.parametrize(
    "name, content, expected",
    [
        ("empty.mp4", b"", "not a video: the file is empty."),
        ("text.mp4", b"not a video\n" * 100, "not a video but a text file."),
        # FFmpeg would play a text as a video of its letters.
        ("notes.txt", "些文字\n".encode() * 100, "not a video but a text file."),
        ("notes16.txt", "text\n".encode("utf-16"), "not a video but a text file."),
        ("sound.wav", WAV, "not a video: it contains only sound."),
        ("sound.mp4", M4A, "not a video: it contains only sound."),
        ("cover.mp3", MP3, "not a video: it contains only sound."),
        ("other.mp4", bytes(range(256)) * 9, "not a video that OpenCV can read."),
        ("m.rknn", b"RKNN\0", "not a video but a model, which main.py takes with --model."),
        ("cut.mp4", CUT_OFF, f"{MISSING_END}."),
        ("damaged.mp4", CUT_OFF + LONG_BOX + box(b"moov", b"\1"), DAMAGED),
    ],
)
def test_the_message_says_what_a_file_is_instead_of_a_video(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        sources.open_source(tmp_path / name)
    assert str(error.value) == f"{tmp_path / name}: {expected}"


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"", "not a picture: the file is empty."),
        (b"<html>\n", "not a picture but a text file."),
        (HEIC, "a HEIC picture, which OpenCV cannot read; convert it to JPEG."),
        (bytes(range(256)), "not a picture that OpenCV can read."),
    ],
)
def test_the_message_says_what_a_file_is_instead_of_a_picture(tmp_path, content, expected):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(InputError) as error:
        sources.open_source(tmp_path / "a.jpg").read()
    assert str(error.value) == f"{tmp_path / 'a.jpg'}: {expected}"


def test_the_heic_photos_of_a_folder_are_not_ignored(tmp_path):
    (tmp_path / "IMG_1.HEIC").write_bytes(HEIC)
    with pytest.raises(InputError, match="IMG_1.HEIC: a HEIC picture"):
        sources.open_source(tmp_path).read()


def test_a_video_for_which_pyav_has_no_decoder_is_reported(tmp_path):
    pytest.importorskip("av", reason="pip install av")
    (tmp_path / "a.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    with pytest.raises(InputError, match="a.svg: not a video but a text file"):
        sources.open_source(tmp_path / "a.svg", "av")


@contextlib.contextmanager
def unprivileged():
    """Root, who may read every file, is nobody until the end of the block."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize(
    "name", ["a.mp4", "closed/a.mp4", "closed/a.jpg", "closed", "closed/*.jpg"]
)
def test_a_file_without_permission_is_named(name):
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        os.mkdir(f"{folder}/closed")
        for file in ("a.mp4", "my.py", "closed/a.mp4", "closed/a.jpg"):
            with open(f"{folder}/{file}", "wb") as out:
                out.write(b"x")
            os.chmod(out.name, 0)
        os.chmod(f"{folder}/closed", 0)
        with unprivileged():
            assert name_streams([(None, f"{folder}/{name}")])
            with pytest.raises(InputError, match="(?i)permission denied|no picture matches"):
                sources.open_source(f"{folder}/{name}")
            with pytest.raises(InputError, match="my.py: cannot be read .permission denied"):
                funcs.load(f"{folder}/my.py")
        os.chmod(f"{folder}/closed", 0o700)
