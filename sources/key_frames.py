"""Decodes only the key frames of a video if --fps needs no others: frames that need no other frame,
also called I frames."""
from __future__ import annotations

import collections
from typing import Any

REMEMBERED = 10  # distances between key frames; all of them must be short enough


class KeyFrames:
    """Chooses the packets to decode, and decodes them.

    decoder: PyAV's CodecContext. max_fps: how many frames per second will be used, None for all.
    fps: the video's frames per second, 0 if unknown.
    """

    def __init__(self, decoder: Any, max_fps: float | None, fps: float):
        self.decoder = decoder
        half_a_frame = 0.5 / fps if fps else 0.0
        self.needed = 1 / max_fps + half_a_frame if max_fps else 0.0  # seconds between two pictures
        self.restart()

    def restart(self) -> None:
        """The next packet comes from another position of the video."""
        self.keys_only = False           # only key frames are decoded
        self.previous: Any = None        # time of the previous key frame in seconds
        self.between = 0                 # other frames since
        self.distances: collections.deque[float] = collections.deque(maxlen=REMEMBERED)

    def skips(self, packet: Any) -> bool:
        """Whether a packet need not be decoded."""
        if not packet.is_keyframe:
            self.between += 1
            return self.keys_only and packet.size > 0  # an empty packet marks the end
        ticks = packet.pts if packet.pts is not None else packet.dts
        now = None if ticks is None else float(ticks * packet.time_base)
        if now is not None and self.previous is not None:
            self.distances.append(now - self.previous)
            # This changes only at a key frame, because the frames after it need it. A distance that
            # is not above 0 means that the video's times have started again.
            self.keys_only = (self.between > 0 and min(self.distances) > 0
                              and max(self.distances) <= self.needed)
        self.previous, self.between = now, 0
        return False

    def decode(self, packet: Any) -> list[Any]:
        """The frames that a packet completes; a key frame alone is complete at once."""
        if not self.keys_only:
            return packet.decode()
        earlier = self._rest()
        frames = [*packet.decode(), *self._rest()]
        if not frames:  # it needs other frames, although its packet is marked as a key frame
            self.keys_only, self.needed = False, 0.0
        return earlier + frames

    def _rest(self) -> list[Any]:
        """The frames that the decoder holds back, to sort them or to decode several at once."""
        frames = self.decoder.decode(None)
        self.decoder.flush_buffers()  # or it would accept no more packets
        return frames
