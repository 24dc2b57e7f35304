"""funcs/rockchip.py and rockchip_seg_pose_obb.py, on heads that are built from the demo models'
heads: real detections in the encoding of each model."""

import cv2
import numpy as np
import pytest
from conftest import opened_demo
from layouts import ANGLE, POINTS

import func
import funcs
from funcs import resnet, rockchip, rockchip_seg_pose_obb, ultralytics, yolov5, yolov8
from vision.drawing import draw
from vision.errors import InputError, ModelError
from vision.letterbox import letterbox
from vision.model import Model
from vision.nms import MAX_BOXES, nms
from vision.rotated import corners_of
from vision.settings import Settings

SIZE = 640
STRIDES = (8, 16, 32)


class Context:
    """A context whose inference returns these outputs."""

    def __init__(self, outputs, name="x.rknn", **about):
        self.outputs = outputs
        shapes = [("", output.shape) for output in outputs]
        self.model = Model(name, outputs=shapes, size=(SIZE, SIZE), **about)

    def inference(self, inputs):
        return self.outputs


class Int8(Context):
    """The same with int8 outputs, which the vendor's library can return."""

    def inference_raw(self, inputs):
        found = []
        for output in self.outputs:
            low, high = min(0.0, float(output.min())), max(0.0, float(output.max()))
            scale = (high - low) / 255 or 1.0
            zero = round(-128 - low / scale)
            found.append(
                (np.clip(np.round(output / scale) + zero, -128, 127).astype(np.int8), scale, zero)
            )
        return found


@pytest.fixture(scope="module")
def frame(demo_frames):
    return demo_frames[40]


@pytest.fixture(scope="module")
def heads(frame):
    """The demo models' heads for the frame, and their detections: {name: (outputs, Detections)}."""
    found = {}
    for name, reader in (("yolov8n", yolov8), ("yolov5n", func)):
        context = opened_demo(name)
        outputs = context.inference([letterbox(frame, SIZE)[0][None]])
        found[name] = [output.copy() for output in outputs], reader.detect(context, frame)
    return found


def sides_of(head):
    """Distances of YOLOv8's distributions (1, 64, h, w), in strides: (4, h, w)."""
    weights = np.exp(head[0].reshape(4, 16, *head.shape[2:]).astype(np.float64))
    return ((weights / weights.sum(1, keepdims=True)) * np.arange(16).reshape(1, 16, 1, 1)).sum(1)


def grid_of(head):
    """x and y of the centres of a head's cells, in strides: (2, h, w)."""
    y, x = np.mgrid[: head.shape[2], : head.shape[3]] + 0.5
    return np.stack([x, y])


def distributions(sides, bins=16):
    """Logits (1, 4 bins, h, w) whose means are these distances (4, h, w): two neighbouring bins
    share."""
    sides = sides.clip(0, bins - 1.001)
    low = np.floor(sides).astype(int)
    weights = np.full((4, bins, *sides.shape[1:]), 1e-9)
    np.put_along_axis(weights, low[:, None], 1 - (sides - low)[:, None] + 1e-9, 1)
    np.put_along_axis(weights, low[:, None] + 1, (sides - low)[:, None] + 1e-9, 1)
    return np.log(weights).reshape(1, 4 * bins, *sides.shape[1:]).astype(np.float32)


def logits(scores):
    return np.log(np.clip(scores, 1e-7, 1 - 1e-7) / (1 - np.clip(scores, 1e-7, 1 - 1e-7))).astype(
        np.float32
    )


def xywh_of(head, stride):
    """Boxes of a YOLOv8 head in pixels: x and y of the centre, width, height, (4, h, w)."""
    sides, centres = sides_of(head), grid_of(head)
    low, high = centres - sides[:2], centres + sides[2:]
    return np.concatenate([(low + high) / 2, high - low]) * stride


def ellipse(xywh):
    """Mask coefficients (1, 32, h, w) of the ellipse inside each box, and the prototypes 1, x, y,
    x^2, y^2 for them."""
    x, y, w, h = xywh / SIZE
    a, b = 4 / w**2, 4 / h**2
    coefficients = np.zeros((32, *x.shape), np.float32)
    coefficients[:5] = 1 - a * x * x - b * y * y, 2 * a * x, 2 * b * y, -a, -b
    v, u = (np.mgrid[:160, :160] + 0.5) / 160
    planes = np.zeros((1, 32, 160, 160), np.float32)
    planes[0, :5] = np.ones_like(u), u, v, u * u, v * v
    return coefficients[None], planes


def yolov6(outputs, bins=None, total=True):
    found = []
    for sides, scores, sums in zip(outputs[::3], outputs[1::3], outputs[2::3]):
        sides = sides_of(sides)
        found += [
            distributions(sides, bins) if bins else sides[None].astype(np.float32),
            scores,
        ] + [sums] * total
    return found


def yolox(outputs):
    found = []
    for stride, sides, scores in zip(STRIDES, outputs[::3], outputs[1::3]):
        x, y, w, h = xywh_of(sides, stride) / stride
        corner = grid_of(sides) - 0.5
        best = scores.max(1)
        found.append(
            np.concatenate(
                [
                    [[x - corner[0], y - corner[1], np.log(w), np.log(h)]],
                    best[:, None],
                    scores / np.maximum(best[:, None], 1e-9),
                ],
                1,
            ).astype(np.float32)
        )
    return found


def yolov7(outputs):
    """YOLOv5's heads with YOLOv7's anchors for the same boxes."""
    found = []
    for stride, head in zip(STRIDES, outputs):
        head = head.reshape(1, 3, 85, *head.shape[2:]).copy()
        ratio = np.float32(yolov5.ANCHORS[stride]) / np.float32(rockchip.YOLOV7_ANCHORS[stride])
        head[0, :, 2:4] *= np.sqrt(ratio)[:, :, None, None]
        found.append(head.reshape(1, 255, *head.shape[3:]))
    return found


def segment(outputs, total=True):
    found = []
    for stride, sides, scores, sums in zip(STRIDES, outputs[::3], outputs[1::3], outputs[2::3]):
        coefficients, planes = ellipse(xywh_of(sides, stride))
        found += [sides, scores] + [sums] * total + [coefficients]
    return [*found, planes]


def segment_v5(outputs):
    found = []
    for stride, head in zip(STRIDES, outputs):
        values = head.reshape(3, 85, *head.shape[2:])
        y, x = np.mgrid[: head.shape[2], : head.shape[3]]
        coefficients = []
        for anchor, value in zip(yolov5.ANCHORS[stride], values):
            xy = (2 * value[:2] - 0.5 + np.stack([x, y])) * stride
            part, planes = ellipse(
                np.concatenate([xy, (2 * value[2:4]) ** 2 * np.reshape(anchor, (2, 1, 1))])
            )
            coefficients.append(part)
        found += [head, np.concatenate(coefficients, 1)]
    return [*found, planes]


def pose(outputs):
    found, points = [], []
    for stride, sides, scores in zip(STRIDES, outputs[::3], outputs[1::3]):
        found.append(np.concatenate([sides, logits(scores.max(1, keepdims=True))], 1))
        x, y, w, h = xywh_of(sides, stride).reshape(4, -1)
        points.append(
            np.stack([x + POINTS[:, :1] * w, y + POINTS[:, 1:] * h, np.full((17, len(x)), 0.8)], 1)
        )
    return [*found, np.concatenate(points, 2)[None].astype(np.float32)]


def obb(outputs):
    """The boxes rotated by ANGLE around their centres."""
    found, angles = [], []
    turn = np.array([[np.cos(ANGLE), np.sin(ANGLE)], [-np.sin(ANGLE), np.cos(ANGLE)]])
    for stride, sides, scores in zip(STRIDES, outputs[::3], outputs[1::3]):
        xywh = xywh_of(sides, stride) / stride
        off = np.einsum("ij,jhw->ihw", turn, xywh[:2] - grid_of(sides))
        found.append(
            np.concatenate(
                [
                    distributions(np.concatenate([xywh[2:] / 2 - off, xywh[2:] / 2 + off])),
                    logits(scores),
                ],
                1,
            )
        )
        angles.append(np.full(sides[0, 0].size, ANGLE / np.pi + 0.25))
    return [*found, np.concatenate(angles)[None, None].astype(np.float32)]


BUILT = {
    "yolov6": ("yolov8n", rockchip, yolov6, {}),
    "yolov6, six outputs": ("yolov8n", rockchip, lambda outputs: yolov6(outputs, total=False), {}),
    "yolov6, 17 bins": ("yolov8n", rockchip, lambda outputs: yolov6(outputs, bins=17), {}),
    "yolox": ("yolov8n", rockchip, yolox, {}),
    "yolov7": ("yolov5n", rockchip, yolov7, {"name": "yolov7-tiny.rknn"}),
    "segment": ("yolov8n", rockchip_seg_pose_obb, segment, {}),
    "segment, ten outputs": (
        "yolov8n",
        rockchip_seg_pose_obb,
        lambda outputs: segment(outputs, total=False),
        {},
    ),
    "segment v5": ("yolov5n", rockchip_seg_pose_obb, segment_v5, {}),
    "pose": ("yolov8n", rockchip_seg_pose_obb, pose, {}),
    "obb": ("yolov8n", rockchip_seg_pose_obb, obb, {}),
}


@pytest.fixture(scope="module")
def built(heads):
    """built(name, kind=Context): a context with the outputs of one of BUILT, its reader, and the
    expected detections."""
    cache = {}

    def build(name, kind=Context):
        source, reader, encode, about = BUILT[name]
        outputs, expected = heads[source]
        if name not in cache:
            cache[name] = encode(outputs)
        return kind(cache[name], **about), reader, expected

    return build


@pytest.mark.parametrize("name", BUILT)
def test_exactly_one_file_reads_each_layout(built, name):
    context, reader, _ = built(name)
    every = func, resnet, rockchip, rockchip_seg_pose_obb, ultralytics, yolov8
    assert [module for module in every if module.reads(context.model)] == [reader]


def overlap(a, b):
    inner = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    return inner / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - inner)


def same_objects(found, expected, least=0.98, score=0.01, classes=True):
    assert len(found) == len(expected) > 15
    for box, number, value in zip(*expected):
        assert any(
            overlap(box, other) >= least
            and abs(value - another) <= score
            and (number == one or not classes)
            for other, one, another in zip(*found)
        ), (box, number, value)


@pytest.mark.parametrize("name", [name for name in BUILT if name != "obb"])
def test_the_objects_are_those_of_the_demo_model(built, frame, name):
    context, reader, expected = built(name)
    found = reader.detect(context, frame)
    if name == "pose":  # all of one class, so that NMS keeps one of two overlapping boxes
        stay = nms(expected.boxes, np.zeros(len(expected), int), expected.scores, Settings())
        expected = expected.select(np.sort(stay))
    same_objects(found, expected, classes=name != "pose")


@pytest.mark.parametrize("name", ["yolov6", "yolov6, 17 bins", "yolov7", "pose"])
def test_int8_and_float_outputs_give_the_same_objects(built, frame, name):
    context, reader, _ = built(name, Int8)
    floats = reader.detect(built(name)[0], frame)
    sure = floats.select(floats.scores > 0.5)
    found = reader.detect(context, frame)
    hits = [
        any(
            number == one and overlap(box, other) > 0.6
            for other, one in zip(found.boxes, found.classes)
        )
        for box, number in zip(sure.boxes, sure.classes)
    ]
    assert np.mean(hits) > 0.9 and len(hits) > 10


@pytest.mark.parametrize("name", ["segment", "segment v5"])
def test_masks_are_ellipses_inside_their_boxes(built, frame, name):
    context, reader, _ = built(name)
    found = reader.detect(context, frame)
    h, w = frame.shape[:2]
    y, x = np.mgrid[:h, :w] + 0.5
    checked = 0
    for (x1, y1, x2, y2), (left, top, mask) in zip(found.boxes, found.masks):
        if min(x1, y1) <= 0 or x2 >= w or y2 >= h or min(x2 - x1, y2 - y1) < 20:
            continue
        whole = np.zeros((h, w), bool)
        whole[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
        inside = ((x - (x1 + x2) / 2) / (x2 - x1) * 2) ** 2 + (
            (y - (y1 + y2) / 2) / (y2 - y1) * 2
        ) ** 2 < 1
        assert (whole & inside).sum() / (whole | inside).sum() > 0.95
        checked += 1
    assert checked > 10


def test_key_points_have_the_models_positions(built, frame):
    context, reader, _ = built("pose")
    found = reader.detect(context, frame)
    whole = (found.boxes[:, :2] > 0).all(1) & (found.boxes[:, 2:] < (1280, 720)).all(1)
    boxes = found.boxes[whole]
    expected = ((boxes[:, :2] + boxes[:, 2:]) / 2)[:, None] + POINTS * (
        boxes[:, 2:] - boxes[:, :2]
    )[:, None]
    np.testing.assert_allclose(found.keypoints[whole][..., :2], expected, atol=0.1)
    np.testing.assert_allclose(found.keypoints[..., 2], 0.8, atol=1e-3)
    assert len(boxes) > 10


def test_rotated_boxes_have_the_right_corners(built, frame):
    context, reader, expected = built("obb")
    found, checked = reader.detect(context, frame), 0
    for box, number, score in zip(*expected):
        if box[:2].min() <= 0 or box[2] >= 1280 or box[3] >= 720:
            continue
        place = (np.abs(found.scores - score) + (found.classes != number)).argmin()
        turned = corners_of(
            np.float32([[*(box[:2] + box[2:]) / 2, *box[2:] - box[:2]]]), np.float32([ANGLE])
        )
        np.testing.assert_allclose(found.corners[place], turned[0], atol=1)
        checked += 1
    assert checked > 10


@pytest.mark.parametrize("name", BUILT)
@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 1.0, 1e30])
def test_invalid_outputs_raise_no_exception(built, frame, name, value):
    context, reader, _ = built(name)
    broken = Context([np.full_like(output, value) for output in context.outputs])
    broken.model = context.model
    small = cv2.resize(frame, (320, 180))
    found = reader.detect(broken, small)
    assert len(found) <= MAX_BOXES
    draw(small, found)


@pytest.mark.parametrize("reader", [rockchip, rockchip_seg_pose_obb])
def test_outputs_of_another_model_are_reported(frame, reader):
    with pytest.raises(ModelError, match=r"\(1, 7, 3, 3\)"):
        reader.detect(Context([np.zeros((1, 7, 3, 3), np.float32)]), frame)
    assert not reader.reads(Context([np.zeros((1, 7, 3, 3), np.float32)]).model)
    assert not reader.reads(Model("x.rknn"))


# ---- random heads, compared with plain code ----


def reference(heads, settings):
    """Boxes, classes and scores of all cells, from (sides, scores) of each stride. Sides are
    distances from the cell's centre in strides, or distributions over bins; scores are
    probabilities."""
    boxes, scores = [], []
    for stride, (sides, classes) in zip(STRIDES, heads):
        rows, columns = sides.shape[2:]
        if sides.shape[1] > 4:
            bins = sides.reshape(4, -1, rows, columns).astype(np.float64)
            weights = np.exp(bins - bins.max(1, keepdims=True))
            weights /= weights.sum(1, keepdims=True)
            distance = (weights * np.arange(bins.shape[1])[:, None, None]).sum(1)
        else:
            distance = sides[0]
        for row in range(rows):
            for column in range(columns):
                left, top, right, low = distance[:, row, column] * stride
                x, y = (column + 0.5) * stride, (row + 0.5) * stride
                boxes.append((x - left, y - top, x + right, y + low))
                scores.append(classes[0, :, row, column])
    boxes, scores = np.array(boxes), np.array(scores)
    good = scores.max(1) >= settings.conf
    return boxes[good], scores[good].argmax(1), scores[good].max(1)


def random_heads(channels, classes, size, seed=0):
    """(sides, scores) of each stride, scores above 0.25 in some cells."""
    rng, heads = np.random.default_rng(seed), []
    for stride in STRIDES:
        cells = size[1] // stride, size[0] // stride
        sides = (
            rng.normal(0, 2, (1, channels, *cells))
            if channels > 4
            else rng.random((1, 4, *cells)) * 6
        )
        scores = rng.random((1, classes, *cells)) * 0.2
        seen = rng.random(cells) < 0.1
        scores[0, rng.integers(0, classes, seen.sum()), seen.nonzero()[0], seen.nonzero()[1]] += 0.7
        heads.append((sides.astype(np.float32), scores.astype(np.float32)))
    return heads


@pytest.mark.parametrize("classes", [1, 80])
@pytest.mark.parametrize("size", [(64, 64), (96, 64)])
@pytest.mark.parametrize("total", [True, False])
@pytest.mark.parametrize(
    "channels, before_the_sigmoid",
    [(68, False), (4, True), (4, False), (68, True)],
    ids=["PP-YOLOE", "YOLO26", "YOLOv6", "PP-YOLOE, logits"],
)
def test_heads_give_the_same_boxes_as_plain_code(
    channels, before_the_sigmoid, total, size, classes
):
    heads = random_heads(channels, classes, size)
    outputs = []
    for sides, scores in heads:
        given = logits(scores) if before_the_sigmoid else scores
        outputs += [sides, given] + [given.sum(1, keepdims=True).clip(0, 1)] * total
    context = Context(outputs, task=None)
    context.model.size = size
    assert [
        module
        for module in (func, resnet, rockchip, rockchip_seg_pose_obb, ultralytics, yolov8)
        if module.reads(context.model)
    ] == [rockchip]
    settings = Settings(size=size)
    kind = rockchip.kind_of(context.model, [output.shape for output in outputs])
    found = rockchip.decode(outputs, kind, settings)
    expected = reference(heads, settings)
    assert len(found[0]) == len(expected[0]) > 3
    np.testing.assert_allclose(found[0], expected[0], atol=1e-2)
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_allclose(found[2], expected[2], atol=1e-4)
    assert rockchip.classes_of(context.model) == classes


@pytest.mark.parametrize(
    "channels",
    [
        (80, 64),
        (80, 64, 1),
        (4, 64),
        (68, 64),
        (20, 64),
        (32, 80),
        (60, 80),
        (72, 80),
        (80, 4),
        (8, 80),
        (68, 80, 2),
    ],
)
def test_heads_with_another_order_or_number_of_bins_are_refused(channels):
    """(80, 64): the scores and sides of a YOLOv8, in this order."""
    outputs = [("o", (1, count, side, side)) for side in (80, 40, 20) for count in channels]
    model = Model("x.rknn", outputs=outputs, size=(SIZE, SIZE))
    with pytest.raises(InputError, match=r"func.py and funcs/ cannot decode its outputs"):
        funcs.find(model)
