"""The settings of a decoder: the model's own, or defaults for what the model does not say."""
from __future__ import annotations

import sys
import threading
from typing import Any, Collection, Dict, NamedTuple, Optional, Sequence, Tuple, Union

from vision.coco import COCO_CLASSES
from vision.errors import ModelError

Size = Union[int, Tuple[int, int]]             # of a square, or (width, height)
Names = Union[Sequence[str], Dict[int, str]]   # class names by number

_printed: set = set()
_printing = threading.Lock()


class Settings(NamedTuple):
    """What decoders and NMS need to know."""
    size: Tuple[int, int] = (640, 640)             # width and height of the model's input in pixels
    conf: float = 0.25                             # minimum score of a detection
    iou: float = 0.45                              # maximum overlap of two boxes of one class
    class_ids: Optional[Collection[int]] = None    # the classes to keep; None: all


def settings_of(model: Any, size: Size = 640, conf: float = 0.25, iou: float = 0.45) -> Settings:
    """The settings for a model.

    model: a vision.model.Model, or None if nothing is known. Its own size, conf, iou and class_ids
    override the arguments.
    """
    def own(name: str, default: Any) -> Any:
        value = getattr(model, name, None)
        return default if value is None else value

    return Settings(pair(own("size", size)), own("conf", conf), own("iou", iou),
                    own("class_ids", None))


def pair(size: Size) -> Tuple[int, int]:
    """(width, height) of a size that may be one number."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def names_of(model: Any, count: Optional[int], names: Names = COCO_CLASSES) -> Names:
    """The class names of a model with `count` classes (None: unknown).

    The model's own names come first. Otherwise `names` is returned if it has `count` entries. If
    not, it belongs to other classes: a message is printed once and () is returned, so that class
    numbers are shown. Raises ModelError if `names` is a string.
    """
    own = getattr(model, "names", None)
    if own:
        return own
    if isinstance(names, str):  # ("helmet") is a string; ("helmet",) is a tuple
        raise ModelError(f'CLASSES is the string "{names}" instead of a tuple of names. Write '
                         f'CLASSES = ("{names}",), with the comma')
    if count is None or len(names) == count:
        return names
    print_once(f"The model has {count} classes without names, and CLASSES has {len(names)} names: "
               "class numbers are shown. To show names, write them into names.txt beside the "
               "model, one per line, or give --names FILE.")
    return ()


def names_with_keypoints(model: Any, count: Optional[int], points: int) -> Names:
    """names_of() for a model that finds `points` key points: COCO's 17 are those of a person."""
    return names_of(model, count, ("person",) if (count, points) == (1, 17) else COCO_CLASSES)


def print_once(text: str) -> None:
    """Print a message to stderr unless this process has printed it before."""
    with _printing:
        if text not in _printed:
            _printed.add(text)
            print(text, file=sys.stderr)
