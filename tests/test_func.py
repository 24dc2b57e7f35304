"""What func.py promises: geometry, decoding against a plain reference, and drawing."""
import numpy as np
import pytest

import func


def plain_decode(outputs, image_size=640):
    """The usual way, as a reference: decode all 25,200 anchors, then filter. Same results as func.decode, in its order
    of heads."""
    boxes, classes, scores = [], [], []
    for head in outputs:
        _, channels, rows, columns = head.shape
        stride = image_size // columns
        cells = head.reshape(3, channels // 3, rows, columns).transpose(0, 2, 3, 1)  # (3, rows, columns, 5 + classes)
        grid = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1)
        centre = (cells[..., :2] * 2 - 0.5 + grid) * stride
        size = (cells[..., 2:4] * 2) ** 2 * np.array(func.ANCHORS[stride])[:, None, None]
        score = cells[..., 4:5] * cells[..., 5:]
        boxes.append(np.concatenate([centre - size / 2, centre + size / 2], -1).reshape(-1, 4))
        classes.append(score.argmax(-1).ravel())
        scores.append(score.max(-1).ravel())
    boxes, classes, scores = map(np.concatenate, (boxes, classes, scores))
    keep = scores >= func.OBJ_THRESH
    return boxes[keep], classes[keep], scores[keep]


def random_heads(seed, share=0.01):
    """Heads as a network gives them: objectness low but for a share of the cells. Three (1, 255, n, n) float32."""
    rng = np.random.default_rng(seed)
    heads = []
    for size in (80, 40, 20):
        head = rng.random((3, 85, size, size), dtype=np.float32)
        head[:, 4] = np.where(rng.random((3, size, size)) < share, head[:, 4], head[:, 4] * 0.2)
        heads.append(head.reshape(1, 255, size, size))
    return heads


class Context:
    """An RKNNLite context that answers with these outputs and keeps what it was fed."""

    def __init__(self, outputs):
        self.outputs = outputs

    def inference(self, inputs):
        self.inputs = inputs
        return self.outputs


@pytest.mark.parametrize("seed, share", [(0, 0.0), (1, 0.001), (2, 0.01), (3, 0.2)])
def test_decoding_gives_the_boxes_of_the_plain_reference(seed, share):
    heads = random_heads(seed, share)
    expected_boxes, expected_classes, expected_scores = plain_decode(heads)
    boxes, classes, scores = func.decode(heads)
    assert len(boxes) == len(expected_boxes)
    np.testing.assert_allclose(boxes, expected_boxes, atol=1e-3)
    np.testing.assert_array_equal(classes, expected_classes)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-6)


def test_exports_without_the_sigmoid_give_the_same_boxes():
    heads = [head.clip(1e-6, 1 - 1e-6) for head in random_heads(2)]
    expected = func.decode(heads)
    found = func.decode([np.log(head / (1 - head)) for head in heads])
    for values, wanted in zip(found, expected):
        np.testing.assert_allclose(values, wanted, atol=1e-3)
    assert len(expected[0]) > 10


def test_heads_may_come_in_any_order():
    heads = random_heads(1)
    assert len(func.decode(heads[::-1])[0]) == len(func.decode(heads)[0]) > 0


@pytest.mark.parametrize("width, height",
                         [(1280, 720), (720, 1280), (640, 640), (640, 360), (1, 1), (1, 4000), (4000, 1), (333, 77)])
def test_a_frame_is_letterboxed_never_distorted(width, height):
    square, (left, top, x_scale, y_scale) = func.letterbox(np.zeros((height, width, 3), np.uint8), 640)
    assert square.shape == (640, 640, 3) and square.dtype == np.uint8
    rows, columns = np.nonzero((square != 114).all(2))
    assert (columns.min(), rows.min()) == (left, top)
    picture = np.array([columns.max() + 1 - left, rows.max() + 1 - top])
    assert picture.max() == 640
    # to the pixel of the frame's proportions
    np.testing.assert_allclose(picture, np.maximum(1, np.array([width, height]) * 640 / max(width, height)), atol=0.51)
    np.testing.assert_allclose(picture, [width * x_scale, height * y_scale])


def test_the_model_sees_rgb():
    square, _ = func.letterbox(np.full((640, 640, 3), (10, 20, 30), np.uint8), 640)
    assert square[320, 320].tolist() == [30, 20, 10]


@pytest.mark.parametrize("width, height", [(1280, 720), (720, 1280), (501, 1203)])
def test_boxes_come_back_in_pixels_of_the_frame(width, height):
    IMG = np.zeros((height, width, 3), np.uint8)
    _, placed = func.letterbox(IMG, 640)
    boxes = np.float32([[width * 0.25, height * 0.5, width * 0.75, height], [0, 0, 10, 10]])
    left, top, x_scale, y_scale = placed
    in_square = boxes * np.float32([x_scale, y_scale, x_scale, y_scale]) + np.float32([left, top, left, top])
    np.testing.assert_allclose(func.unletterbox(in_square, placed, IMG), boxes, atol=1e-3)


def test_inference_is_called_with_four_dimensions():
    context = Context(random_heads(0, 0.0))
    func.detect(context, np.zeros((720, 1280, 3), np.uint8))
    assert len(context.inputs) == 1
    assert context.inputs[0].shape == (1, 640, 640, 3)
    assert context.inputs[0].dtype == np.uint8


def test_detections_stay_inside_the_frame_best_first():
    boxes, classes, scores = func.detect(Context(random_heads(5, 0.05)), np.zeros((300, 1000, 3), np.uint8))
    assert len(boxes) == len(classes) == len(scores) > 10
    assert (boxes >= 0).all() and (boxes <= [1000, 300, 1000, 300]).all()
    assert (np.diff(scores) <= 0).all()


def test_boxes_of_one_class_that_overlap_are_reduced_to_the_best():
    boxes = np.float32([[0, 0, 100, 100], [2, 0, 102, 100], [0, 0, 100, 100], [300, 0, 400, 100]])
    classes, scores = np.array([1, 1, 2, 1]), np.float32([0.6, 0.9, 0.5, 0.4])
    boxes, classes, scores = func.nms(boxes, classes, scores)
    assert classes.tolist() == [1, 2, 1]
    np.testing.assert_allclose(scores, [0.9, 0.5, 0.4])
    assert boxes[0, 0] == 2


@pytest.mark.parametrize("outputs, said", [
    ([np.zeros((1, 255, 80, 80), np.float32)], "(1, 255, 80, 80), but func.py reads"),
    ([np.zeros((1, 1000), np.float32)], "(1, 1000), but func.py reads"),
    ([np.zeros((1, 18, n, n), np.float32) for n in (80, 40, 20)],
     "(1, 255, 80, 80), (1, 255, 40, 40), (1, 255, 20, 20)"),
])
def test_outputs_of_another_model_are_named_with_what_was_expected(outputs, said):
    with pytest.raises(func.ModelError) as error:
        func.decode(outputs)
    assert said in str(error.value)


def test_a_failed_inference_is_said_with_the_input_shape():
    with pytest.raises(func.ModelError, match=r"\(1, 640, 640, 3\)"):
        func.detect(Context(None), np.zeros((72, 128, 3), np.uint8))


def test_my_func_returns_the_full_size_frame_with_boxes_drawn():
    IMG = np.zeros((720, 1280, 3), np.uint8)
    result = func.myFunc(Context(random_heads(5, 0.01)), IMG)
    assert result.shape == (720, 1280, 3)
    assert result.any()


def test_each_class_has_a_colour_of_its_own():
    assert len({func.colour(number) for number in range(len(func.CLASSES))}) == len(func.CLASSES)


@pytest.mark.parametrize("box", [(0, 0, 60, 60), (1240, 0, 1280, 50), (1200, 690, 1280, 720), (0, 660, 50, 720),
                                 (600, 712, 700, 720)])
def test_labels_stay_inside_the_frame(box):
    """Wherever the box lies, its label has as many pixels of text as in the middle of the frame."""
    def text_pixels(box):
        IMG = np.full((720, 1280, 3), 255, np.uint8)
        func.draw(IMG, np.float32([box]), np.array([10]), np.float32([0.5]))
        return np.count_nonzero((IMG < 60).all(2))
    assert text_pixels(box) == text_pixels((600, 300, 700, 400)) > 50


def test_line_width_and_text_fit_the_frame():
    def share_painted(width, height):
        IMG = np.zeros((height, width, 3), np.uint8)
        func.draw(IMG, np.float32([[0.25, 0.25, 0.75, 0.75]]) * [width, height, width, height], np.array([0]),
                  np.float32([0.5]))
        return np.count_nonzero(IMG.any(2)) / (width * height)
    assert share_painted(3840, 2160) == pytest.approx(share_painted(1280, 720), rel=0.3)
