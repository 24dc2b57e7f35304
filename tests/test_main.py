"""main.py as a user runs it, in a process of its own. Only input that is refused before anything
runs is given to main() in this process."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import cv2
import onnx
import pytest
from conftest import ROOT, frames_of, number_in, python, write_clip

import results
import rknnpool

OPENCV = tuple(map(int, cv2.__version__.split(".")[:2]))
needs_no_npu = pytest.mark.skipif(
    rknnpool.soc() is not None,
    reason="this machine has an NPU",
)


@pytest.mark.parametrize("name", ["out.mp4", "out.avi", "out.mkv"])
@pytest.mark.slow
def test_every_frame_is_saved_in_order(main_py, clip, tmp_path, plain_func, name):
    done = main_py(
        clip, "--headless", "--threads", 3, "--func", plain_func, "--save", tmp_path / name
    )
    assert done.returncode == 0, done.stderr
    assert [number_in(frame) for frame in frames_of(tmp_path / name)] == list(range(45))


def test_the_rate_is_reported_every_30_frames_and_at_the_end(main_py, clip, plain_func):
    done = main_py(clip, "--headless", "--func", plain_func)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"FPS over the last 30 frames: \d+\.\d", done.stdout)) == 1
    assert re.search(r"clip\.avi: 45 frames in \d+\.\d s, \d+\.\d FPS on average", done.stdout)


@pytest.mark.slow
def test_the_saved_video_shows_the_drawn_boxes(main_py, demo_frames, tmp_path):
    clip = write_clip(tmp_path / "clip.avi", demo_frames[:9])
    assert main_py(clip, "--headless", "--save", tmp_path / "out.avi").returncode == 0
    changed = [
        (before != after).mean()
        for before, after in zip(frames_of(clip), frames_of(tmp_path / "out.avi"))
    ]
    assert len(changed) == 9 and min(changed) > 0.01


def test_without_a_display_main_prints_one_line_and_continues(main_py, clip, plain_func):
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("DISPLAY", "WAYLAND_DISPLAY")
    }
    done = main_py(clip, "--func", plain_func, env=environment)
    assert done.returncode == 0
    printed = [line for line in done.stderr.splitlines() if line.startswith("No display")]
    (line,) = printed
    assert "--save out.mp4" in line and "--web" in line


def test_a_display_that_does_not_answer_counts_as_none_and_is_named(monkeypatch, printed):
    monkeypatch.setenv("DISPLAY", ":987")
    assert results.open_window(SimpleNamespace(save=None, web=None), []) is None
    (line,) = printed
    assert line.startswith("OpenCV opens no window on DISPLAY=:987 (see main.py --doctor): running")
    assert "--save out.mp4" in line and "--web" in line


@needs_no_npu
def test_without_an_npu_one_line_says_what_runs_instead(main_py, clip, plain_func):
    done = main_py(clip, "--headless", "--threads", 3, "--func", plain_func)
    assert (
        done.stderr.count("No Rockchip NPU found: models/yolov5n_emoji.onnx runs on the CPU") == 1
    )


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["there/is/none.mp4"], "there/is/none.mp4: no such file"),
        (["README.md"], "README.md: not a video"),
        (["tests/board"], "tests/board: this folder contains no pictures"),
        (
            ["htp://127.0.0.1/x"],
            "htp://127.0.0.1/x: htp:// is not supported; choose from rtsp",
        ),
        (["rtsp://user:secret@/live"], "rtsp://user:***@/live: the URL names no host"),
        (["rtsp://127.0.0.1:port/live"], "rtsp://127.0.0.1:port/live: not a valid URL"),
        (["gate="], "gate: has no source"),
        ([""], "A source is empty"),
        (["gate=0", "gate=1"], "gate: two streams have this name"),
        (["--classes", "person", "models/demo.mp4"], "write sources before --classes"),
        (["a/b=models/demo.mp4"], "a/b=models/demo.mp4: no such file"),
        (["97"], "97: there is no such camera; main.py --doctor lists the cameras"),
        pytest.param(
            ["models/demo.mp4", "--model", "none.rknn"],
            "none.rknn: no such file, and without an NPU none.onnx",
            marks=needs_no_npu,
        ),
        pytest.param(
            ["models/demo.mp4", "--model", "README.md"],
            "README.md: not an ONNX model",
            marks=needs_no_npu,
        ),
        (["models/demo.mp4", "--threads", "0"], "--threads 0: must be at least 1"),
        (
            ["models/demo.mp4", "--threads", "1000"],
            "--threads 1000: must be at most 64",
        ),
        (["models/demo.mp4", "--threads", "many"], "invalid int value: 'many'"),
        (["models/demo.mp4", "--speed"], "unrecognized arguments: --speed"),
        (["models/demo.mp4", "--func", "none.py"], "--func none.py: no such file"),
        (["models/demo.mp4", "--func", "README.md"], "--func README.md: not a Python file"),
        (
            ["models/demo.mp4", "--func", "runtimes/cpu.py"],
            "runtimes/cpu.py: defines no function myFunc(rknn_lite, IMG)",
        ),
        (
            ["models/demo.mp4", "--save", "main.py/out.mp4"],
            "--save main.py/out.mp4: cannot be written (File exists)",
        ),
        (["models/demo.mp4", "--save", "models"], "--save models: the name must end in"),
        (
            ["models/demo.mp4", "--save", "models/demo.mp4"],
            "--save models/demo.mp4: this video is a source",
        ),
    ],
)
def test_bad_input_ends_in_one_sentence_and_exit_code_2(main_here, arguments, expected):
    done = main_here(*arguments, "--headless")
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert expected in lines[0]
    assert done.stdout == ""


def test_a_syntax_error_in_a_func_file_is_reported_with_file_and_line(main_here, tmp_path):
    (tmp_path / "broken.py").write_text("\ndef myFunc(:\n")
    done = main_here("--func", tmp_path / "broken.py", "--headless")
    assert done.returncode == 2
    assert "broken.py: line 2 is not Python" in done.stderr and "Traceback" not in done.stderr


@needs_no_npu
def test_an_unsupported_model_is_reported_with_its_output_shapes(main_py, tmp_path):
    image = onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, [1, 3, 640, 640])
    same = onnx.helper.make_tensor_value_info("same", onnx.TensorProto.FLOAT, [1, 3, 640, 640])
    node = onnx.helper.make_node("Identity", ["images"], ["same"])
    graph = onnx.helper.make_graph([node], "other", [image], [same])
    onnx.save(
        onnx.helper.make_model(
            graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 12)]
        ),
        tmp_path / "other.onnx",
    )
    done = main_py("--model", tmp_path / "other.rknn", "--headless")
    assert done.returncode == 2
    assert "(1, 3, 640, 640)" in done.stderr and "(1, 255, 80, 80)" in done.stderr
    assert "Traceback" not in done.stderr


@needs_no_npu
def test_a_run_that_cannot_start_creates_no_file_and_no_page(main_py, clip, tmp_path):
    model = onnx.load(str(ROOT / "models/resnet18_emoji.onnx"))
    model.ir_version = 99
    onnx.save(model, str(tmp_path / "m.onnx"))
    done = main_py(
        clip,
        "--model",
        tmp_path / "m.onnx",
        "--headless",
        "--json",
        tmp_path / "o.jsonl",
        "--save",
        tmp_path / "o.avi",
        "--web",
        "0",
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and done.stdout == "", (
        done.stderr
    )
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_frames_before_an_error_are_saved_and_counted(main_py, clip, tmp_path):
    (tmp_path / "fails.py").write_text(
        "from vision.errors import ModelError\nimport itertools\ncount = itertools.count()\n"
        "def myFunc(rknn_lite, IMG):\n    if next(count) == 20:\n"
        "        raise ModelError('frame 20 is bad')\n"
        "    return IMG\n"
    )
    done = main_py(
        clip,
        "--headless",
        "--threads",
        1,
        "--func",
        tmp_path / "fails.py",
        "--save",
        tmp_path / "out.avi",
    )
    assert done.returncode == 2
    assert "frame 20 is bad" in done.stderr and "Traceback" not in done.stderr
    assert "clip.avi: 20 frames in" in done.stdout
    assert len(frames_of(tmp_path / "out.avi")) == 20


WRONG = {
    "myFunc": "def myFunc(rknn_lite, IMG):\n    return IMG + undefined\n",
    "detect": "def detect(rknn_lite, IMG):\n    return undefined\nfrom func import draw\n",
    "draw": "def draw(IMG, detections):\n    undefined\nfrom func import detect\n",
    "import": "import json\njson.loads(undefined)\n",
}


@pytest.mark.parametrize(
    "code, flags",
    [
        ("myFunc", []),
        ("detect", ["--tiles", "2x1"]),
        ("draw", []),
        ("import", []),
    ],
)
def test_an_error_in_the_users_func_has_a_traceback_that_begins_there(
    main_py, clip, tmp_path, code, flags
):
    text = WRONG[code]
    if code in ("detect", "draw"):
        text += "def myFunc(rknn_lite, IMG):\n    return draw(IMG, detect(rknn_lite, IMG))\n"
    (tmp_path / "wrong.py").write_text(text)
    save = ["--save", tmp_path / "out.avi"]
    done = main_py(clip, "--headless", "--func", tmp_path / "wrong.py", *flags, *save)
    assert done.returncode == 1
    trace = done.stderr[done.stderr.index("Traceback") :].splitlines()
    assert 'wrong.py", line 2' in trace[1] and "NameError" in trace[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
@pytest.mark.slow
def test_an_interrupted_run_prints_the_summary_and_closes_the_saved_file(tmp_path, number, code):
    out, func = tmp_path / "out.mp4", tmp_path / "slow.py"
    func.write_text(
        "import time\ndef myFunc(rknn_lite, IMG):\n    time.sleep(0.05)\n    return IMG\n"
    )
    arguments = ["--headless", "--save", out, "--func", func, "--threads", "2"]
    running = subprocess.Popen(
        [sys.executable, "-u", "main.py", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stdout.readline().startswith("FPS over the last 30 frames")
    running.send_signal(number)
    stdout, stderr = running.communicate(timeout=60)
    assert running.returncode == code, stderr
    assert "Traceback" not in stderr
    count = int(re.search(r"demo.mp4: (\d+) frames in", stdout).group(1))
    assert 30 <= count < 600
    assert len(frames_of(out)) == count


def test_a_hung_context_is_named_and_earlier_frames_are_saved(clip, tmp_path):
    (tmp_path / "hangs.py").write_text(
        "import itertools, threading\ncount = itertools.count()\n"
        "def myFunc(rknn_lite, IMG):\n    if next(count) == 20:\n"
        "        print('hangs', flush=True)\n"
        "        threading.Event().wait()\n"
        "    return IMG\n"
    )
    out = tmp_path / "out.avi"
    script = "import main\nmain.GIVE_UP_SECONDS = 0.5\nmain.main()"
    arguments = [
        clip,
        "--headless",
        "--threads",
        "1",
        "--func",
        tmp_path / "hangs.py",
        "--save",
        out,
    ]
    running = subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stdout.readline() == "hangs\n"
    running.send_signal(signal.SIGINT)
    stdout, stderr = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "context 1 of 1 did not finish a frame in time" in stderr and "Traceback" not in stderr
    assert "clip.avi: 20 frames in" in stdout
    assert len(frames_of(out)) == 20


def test_a_full_disk_ends_saving_with_one_sentence_and_keeps_the_saved_frames(
    main_py, clip, tmp_path, plain_func
):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True
    ).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        done = main_py(clip, "--headless", "--func", plain_func, "--save", disk / "out.avi")
        assert done.returncode == 2
        saved = len(frames_of(disk / "out.avi"))
        assert 0 < saved < 45
        assert f"(the disk is full) from frame {saved} of clip.avi on" in done.stderr
        assert f"--save {disk}/out.avi: {45 - saved} frames are missing at the end." in done.stderr
        assert re.search(rf"clip.avi: 45 frames in .*, {45 - saved} not saved", done.stdout)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_closed_pipe_on_stdout_does_not_end_the_run(clip, tmp_path, plain_func):
    out = tmp_path / "out.avi"
    running = subprocess.Popen(
        [
            sys.executable,
            "-u",
            "main.py",
            str(clip),
            "--headless",
            "--func",
            str(plain_func),
            "--save",
            str(out),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    running.stdout.close()
    stderr = running.stderr.read()
    assert running.wait(60) == 0, stderr
    assert "Broken" not in stderr
    assert len(frames_of(out)) == 45


def truncated(clip, folder):
    video = cv2.VideoCapture(str(clip))
    writer = cv2.VideoWriter(
        str(folder / "whole.mkv"), cv2.VideoWriter_fourcc(*"mp4v"), 30, (640, 360)
    )
    while True:
        ok, frame = video.read()
        if not ok:
            break
        writer.write(frame)
    writer.release()
    whole = (folder / "whole.mkv").read_bytes()
    (folder / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    return folder / "cut.mkv"


def test_a_truncated_video_is_processed_to_its_end_with_a_message(
    main_py, clip, tmp_path, plain_func
):
    done = main_py(truncated(clip, tmp_path), "--headless", "--func", plain_func)
    assert done.returncode == 0, done.stderr
    count = int(re.search(r"cut\.mkv: (\d+) frames in", done.stdout).group(1))
    assert 0 < count < 45
    assert f"cut.mkv: ended after {count} of 45 frames." in done.stderr


@pytest.mark.skipif(OPENCV < (4, 13), reason="this OpenCV believes an .avi's header")
def test_a_video_with_a_wrong_length_in_its_header_is_read_to_its_end(
    main_py, clip, tmp_path, plain_func
):
    lying = bytearray(clip.read_bytes())
    header = lying.index(b"avih")  # dwTotalFrames is the fifth number of the AVI's main header
    # and dwLength the ninth of the stream's
    for place in (header + 8 + 16, lying.index(b"strh") + 8 + 32):
        lying[place : place + 4] = (20).to_bytes(4, "little")
    (tmp_path / "lying.avi").write_bytes(lying)
    done = main_py(tmp_path / "lying.avi", "--headless", "--func", plain_func)
    assert done.returncode == 0, done.stderr
    assert "lying.avi: 45 frames in" in done.stdout


@pytest.mark.skipif(OPENCV < (4, 7), reason="this OpenCV gives wrong times for such a source")
def test_frames_that_change_size_are_all_processed_and_saved(main_py, clip, tmp_path, plain_func):
    # A camera whose resolution changes: two joined MJPEG streams of different sizes.
    first, second = tmp_path / "a.mjpeg", b""
    for number, frame in enumerate(frames_of(clip)[:20]):
        second += cv2.imencode(".jpg", frame if number < 10 else cv2.resize(frame, (320, 240)))[
            1
        ].tobytes()
    first.write_bytes(second)
    done = main_py(first, "--headless", "--func", plain_func, "--save", tmp_path / "out.avi")
    assert done.returncode == 0, done.stderr
    assert len(frames_of(tmp_path / "out.avi")) == 20


@pytest.mark.parametrize(
    "returned", ["cv2.cvtColor(IMG, cv2.COLOR_BGR2GRAY)", "cv2.cvtColor(IMG, cv2.COLOR_BGR2BGRA)"]
)
@pytest.mark.slow
def test_grey_and_bgra_frames_are_saved(main_py, clip, tmp_path, returned):
    (tmp_path / "other.py").write_text(
        f"import cv2\ndef myFunc(rknn_lite, IMG):\n    return {returned}\n"
    )
    done = main_py(
        clip, "--headless", "--func", tmp_path / "other.py", "--save", tmp_path / "out.avi"
    )
    assert done.returncode == 0, done.stderr
    assert [number_in(frame) for frame in frames_of(tmp_path / "out.avi")] == list(range(45))


@pytest.mark.parametrize("returned", ["None", "IMG / 255", "(IMG, 1)"])
def test_a_result_that_cannot_be_saved_is_reported(main_py, clip, tmp_path, returned):
    (tmp_path / "other.py").write_text(f"def myFunc(rknn_lite, IMG):\n    return {returned}\n")
    done = main_py(
        clip, "--headless", "--func", tmp_path / "other.py", "--save", tmp_path / "out.avi"
    )
    assert done.returncode == 2
    assert (
        "only uint8 pictures of shape (h, w, 3) can be saved" in done.stderr
        and "Traceback" not in done.stderr
    )


def test_main_can_be_started_in_any_folder(tmp_path, clip):
    (tmp_path / "helper.py").write_text("limit = 1\n")
    (tmp_path / "my.py").write_text("import helper\ndef myFunc(rknn_lite, IMG):\n    return IMG\n")
    done = python(ROOT / "main.py", "--headless", "--func", "my.py", clip, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_source_is_never_overwritten(main_py, clip, tmp_path):
    copy = tmp_path / "copy.avi"
    copy.write_bytes(clip.read_bytes())
    done = main_py(f"file://{copy}", "--headless", "--save", copy)
    assert done.returncode == 2 and "this video is a source" in done.stderr
    assert copy.read_bytes() == clip.read_bytes()


@pytest.mark.slow
def test_ctrl_c_ends_the_run_while_reading_blocks(clip, tmp_path, plain_func):
    fifo, out = tmp_path / "camera.avi", tmp_path / "out.avi"
    os.mkfifo(fifo)
    script = "import main\nmain.GIVE_UP_SECONDS = 0.5\nmain.main()"
    running = subprocess.Popen(
        [
            sys.executable,
            "-u",
            "-c",
            script,
            str(fifo),
            "--headless",
            "--func",
            str(plain_func),
            "--save",
            str(out),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with open(fifo, "wb") as writer:
        content = clip.read_bytes()
        writer.write(content[: -len(content) // 4])
        writer.flush()
        assert "last 30 frames" in running.stdout.readline()  # and now the writer stalls
        running.send_signal(signal.SIGINT)
        stdout, stderr = running.communicate(timeout=60)
    assert running.returncode == 130, stderr
    count = int(re.search(r"camera.avi: (\d+) frames in", stdout).group(1))
    assert len(frames_of(out)) == count >= 30


def test_a_signal_during_the_stop_of_a_stream_ends_the_run():
    """The code that the signal interrupts, Window.step() or another signal's handler, may hold the
    lock of the stream's event."""
    script = """if True:
        import signal, threading, types
        import main, process
        class Stop(threading.Event):
            lock = threading.Lock()
            def set(self):
                with self.lock:
                    super().set()
        stream = types.SimpleNamespace(stop=Stop(), count=0, failed=0)
        signals = process.note_signals()
        with stream.stop.lock:
            signal.raise_signal(signal.SIGTERM)
        thread = threading.Thread(target=stream.stop.wait)
        thread.start()
        print(main.watch([thread], [stream], None, signals), signals == [signal.SIGTERM])"""
    done = python("-c", script)
    assert done.stdout == "True True\n", done.stderr


def test_a_stopped_process_does_not_count_as_a_silent_stream():
    """It is stopped for longer than GIVE_UP_SECONDS while the last frame is processed."""
    script = """if True:
        import sys, threading, types
        import main
        main.GIVE_UP_SECONDS = 2
        stream = types.SimpleNamespace(stop=threading.Event(), count=0, failed=0)
        stream.stop.set()
        thread = threading.Thread(target=sys.stdin.readline)
        thread.start()
        print("ready", flush=True)
        print(main.watch([thread], [stream], None, []))"""
    child = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGSTOP)
    time.sleep(3)
    child.send_signal(signal.SIGCONT)
    assert child.communicate("\n", timeout=60)[0] == "True\n"


@pytest.mark.slow
def test_sighup_does_not_end_a_run_under_nohup(clip, tmp_path, plain_func):
    running = subprocess.Popen(
        ["nohup", sys.executable, "-u", "main.py", "--headless", "--func", str(plain_func)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stdout.readline().startswith("FPS over")
    running.send_signal(signal.SIGHUP)
    stdout, stderr = running.communicate(timeout=100)
    assert running.returncode == 0, stderr
    assert "demo.mp4: 600 frames" in stdout


@pytest.mark.parametrize("elsewhere", [">&-", "2>&-", ">/dev/full"])
@pytest.mark.slow
def test_a_closed_stdout_or_stderr_does_not_end_the_run(clip, tmp_path, plain_func, elsewhere):
    command = f"exec {sys.executable} main.py {clip} --headless --func {plain_func}"
    command += f" --save {tmp_path}/out.avi {elsewhere}"
    assert subprocess.run(["sh", "-c", command], cwd=ROOT, timeout=100).returncode == 0
    assert len(frames_of(tmp_path / "out.avi")) == 45


FIRST_SOURCE_SCRIPT = """
import sys
import cv2
from func import myFunc
from rknnpool import rknnPoolExecutor

cap = cv2.VideoCapture(sys.argv[1])
modelPath = "models/yolov5n_emoji.rknn"
TPEs = 3
pool = rknnPoolExecutor(rknnModel=modelPath, TPEs=TPEs, func=myFunc)
for i in range(TPEs + 1):
    ret, frame = cap.read()
    pool.put(frame)
shown = 0
while cap.isOpened():
    ret, frame = cap.read()
    if not ret:
        break
    pool.put(frame)
    frame, flag = pool.get()
    if flag == False:
        break
    shown += 1
while True:
    frame, flag = pool.get()
    if not flag:
        break
    shown += 1
print(shown, frame)
cap.release()
pool.release()
"""


@pytest.mark.slow
def test_a_script_for_the_original_demos_pool_runs_unchanged(demo_frames, tmp_path):
    clip = write_clip(tmp_path / "clip.avi", demo_frames[:9])
    (tmp_path / "script.py").write_text(FIRST_SOURCE_SCRIPT)
    done = python(tmp_path / "script.py", clip, env=dict(os.environ, PYTHONPATH=str(ROOT)))
    assert done.stdout == "9 None\n", done.stderr


# that main.py cannot do without
PARTS = (
    "main.py arguments.py process.py meter.py limits.py rknnpool.py streams.py vision sources "
    "funcs runtimes models"
)


# ---- func files ----


@pytest.mark.parametrize("body", ["None", "print(end='')"])
def test_a_missing_return_is_reported_once(main_py, clip, tmp_path, body):
    (tmp_path / "mine.py").write_text(f"def myFunc(rknn_lite, IMG):\n    {body}\n")
    done = main_py(clip, "--headless", "--quiet", "--func", tmp_path / "mine.py")
    assert done.returncode == 0 and done.stderr.count("is its return missing?") == 1


def test_outside_the_environment_main_py_names_the_python_to_use():
    done = python("-S", "main.py")
    assert done.returncode == 2 and ".venv" in done.stderr and "Traceback" not in done.stderr


def test_a_func_file_can_import_the_modules_beside_it(main_py, clip, tmp_path):
    (tmp_path / "streams.py").write_text("limit = 7\n")  # has the name of a module of this project
    (tmp_path / "results").mkdir()
    (tmp_path / "results/__init__.py").write_text("size = 3\n")
    (tmp_path / "my.py").write_text(
        "from __future__ import annotations\nimport dataclasses, pickle, sys\n"
        "import results, streams\n"
        "@dataclasses.dataclass\nclass Box:\n    side: int = 1\n"
        "def myFunc(rknn_lite, IMG):\n"
        "    assert pickle.loads(pickle.dumps(Box(streams.limit))).side == 7\n"
        "    assert results.size == 3 and sys.modules[__name__].Box is Box\n    return IMG\n"
    )
    done = main_py(clip, "--headless", "--func", tmp_path / "my.py", "--save", tmp_path / "out.avi")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "content, expected, last",
    [
        (
            "x = 1\ny = x / 0\ndef myFunc(rknn_lite, IMG):\n    return IMG\n",
            'my.py", line 2',
            "ZeroDivisionError",
        ),
        (
            "def myFunc(rknn_lite, IMG):\n    return helper(IMG)\ndef helper(IMG):\n"
            "    return IMG['a']\n",
            'my.py", line 4',
            "IndexError",
        ),
    ],
)
def test_an_error_in_a_func_file_shows_only_the_users_lines(
    main_py, clip, tmp_path, content, expected, last
):
    (tmp_path / "my.py").write_text(content)
    done = main_py(clip, "--headless", "--func", tmp_path / "my.py")
    assert done.returncode == 1
    assert expected in done.stderr and done.stderr.splitlines()[-1].startswith(last)
    files = re.findall(r'File "(.*?)"', done.stderr)
    assert set(files) == {str(tmp_path / "my.py")}


@pytest.mark.parametrize(
    "content, expected",
    [
        ("def myFunc(IMG):\n    return IMG\n", "myFunc must take two arguments, (rknn_lite, IMG)"),
        ("import nonesuch\n", "No module named 'nonesuch'"),
        ("def myFunc(rknn_lite, IMG):\n    return '\0'\n", "null bytes"),
    ],
)
def test_an_unusable_func_file_is_reported(main_py, clip, tmp_path, content, expected):
    (tmp_path / "my.py").write_text(content)
    done = main_py(clip, "--headless", "--func", tmp_path / "my.py")
    assert (
        done.returncode == 2 and expected in done.stderr and len(done.stderr.splitlines()) == 1
    ), done.stderr


def test_a_users_myfunc_runs_although_detect_and_draw_are_imported(main_py, clip, tmp_path):
    (tmp_path / "my.py").write_text(
        "from func import detect, draw\ndef myFunc(rknn_lite, IMG):\n    IMG[:] = 200\n"
        "    return IMG\n"
    )
    done = main_py(clip, "--headless", "--func", tmp_path / "my.py", "--save", tmp_path / "out.avi")
    assert done.returncode == 0, done.stderr
    assert frames_of(tmp_path / "out.avi")[0].mean() == pytest.approx(200, abs=3)


@pytest.mark.slow
def test_the_func_file_is_found_by_the_models_outputs(main_py, clip, tmp_path):
    for model, kind in (("yolov5n", "box"), ("yolov8n", "box"), ("resnet18", "class")):
        done = main_py(
            "models/result.jpg",
            "--headless",
            "--model",
            f"models/{model}_emoji.rknn",
            "--json",
            "-",
        )
        assert done.returncode == 0, done.stderr
        objects = json.loads(done.stdout)["objects"]
        assert objects and kind in objects[0] and (kind == "box" or "box" not in objects[0])


def test_a_func_py_with_only_a_myfunc_works(clip, tmp_path):
    for name in PARTS.split() + ["results"]:
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "func.py").write_text(
        "def myFunc(rknn_lite, IMG):\n    IMG[:] = 200\n    return IMG\n"
    )
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import main; main.main()"
    done = python("-c", script, clip, "--headless", "--save", tmp_path / "out.avi", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert frames_of(tmp_path / "out.avi")[0].mean() == pytest.approx(200, abs=3)


# ---- settings and flags ----


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--conf", "1.5"], "--conf 1.5: must be between 0 and 1"),
        (["--fps", "0"], "--fps 0.0: must be more than 0"),
        (["--classes", "unicorn"], "--classes unicorn: no such class"),
        (["--classes", "80"], "--classes 80: the model has 80 classes, from 0"),
        (["--names", "none.txt"], "--names none.txt: no such file"),
        (["--names", "requirements.txt"], "names, but the model has 80 classes"),
        (["--runtime", "gpu"], "--runtime gpu: unknown; choose from wheel, library, cpu"),
        (["--line", "door:1,2,3"], "--line door:1,2,3: must be a name, a colon and four numbers"),
        (["--mqtt", "http://host"], "--mqtt http://host"),
    ],
)
def test_an_invalid_flag_is_reported(main_py, arguments, expected):
    done = main_py("models/result.jpg", "--headless", *arguments)
    assert done.returncode == 2 and expected in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


def objects_of(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["objects"]


@pytest.mark.slow
def test_conf_classes_and_names_change_what_is_found(main_py, tmp_path):
    picture = ["models/result.jpg", "--headless", "--json", "-"]
    everything = objects_of(main_py(*picture))
    sure = objects_of(main_py(*picture, "--conf", "0.9"))
    assert sure == [one for one in everything if one["score"] >= 0.9] and 0 < len(sure) < len(
        everything
    )
    kind, number = everything[0]["class"], everything[-1]["number"]
    some = objects_of(main_py(*picture, "--classes", kind, number))
    assert some == [one for one in everything if one["class"] == kind or one["number"] == number]
    (tmp_path / "names.txt").write_text("".join(f"thing {number}\n" for number in range(80)))
    named = objects_of(main_py(*picture, "--names", tmp_path / "names.txt"))
    assert [one["class"] for one in named] == [f"thing {one['number']}" for one in everything]


@pytest.mark.slow
def test_a_missing_folder_of_the_project_is_reported_in_one_sentence(clip, tmp_path):
    for name in PARTS.split() + ["func.py"]:
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "results").mkdir()
    for name in (
        "__init__.py",
        "result.py",
        "protocol.py",
        "delivery.py",
        "unsaved.py",
        "queued_sink.py",
        "console.py",
        "status.py",
        "summary.py",
        "wording.py",
    ):
        (tmp_path / "results" / name).symlink_to(ROOT / "results" / name)
    flags = {
        "tracking": "--track",
        "lines": "--line a:1,2,3,4",
        "setup": "--setup site.json",
        "jsonl": "--json -",
        "tiles": "--tiles 3x2",
        "save_paths": "--save x.mp4",
        "web": "--web 0",
    }
    (tmp_path / "script.py").write_text(
        "import contextlib, main, sys\n"
        f"for flags in {[*flags.values(), '']}:\n"
        f"    sys.argv = ['main.py', {str(clip)!r}, '--headless', *flags.split()]\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        main.main()\n"
    )
    done = python(tmp_path / "script.py", cwd=tmp_path)
    assert re.findall(
        r"^--.* needs .*results/(\w+)\.py, which is missing\.$", done.stderr, re.M
    ) == [*flags], done.stderr
    assert "clip.avi: 45 frames in" in done.stdout  # without a flag


@pytest.mark.slow
def test_tracking_and_lines_reach_the_json(main_py):
    done = main_py(
        "models/demo.mp4",
        "--headless",
        "--fps",
        "5",
        "--line",
        "middle:0.5,0,0.5,1",
        "--zone",
        "all:0,0,1,0,1,1,0,1",
        "--json",
        "-",
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 50 and lines[-1]["zones"]["all"]
    crossed = [crossing for line in lines for crossing in line.get("crossings", [])]
    counts = [sum(lines[-1]["lines"]["middle"][way].values()) for way in ("in", "out")]
    assert len(crossed) == sum(counts) > 5
    assert any("id" in one for one in lines[-1]["objects"])


def test_quiet_prints_only_the_summary(main_py, clip, plain_func):
    done = main_py(clip, "--headless", "--func", plain_func, "--quiet")
    assert len(done.stdout.splitlines()) == 1 and "45 frames in" in done.stdout


# ---- an NPU that fails ----

FAILING = """
import main, sys, threading
import rknnpool
rknnpool.HANG_SECONDS = 1

class NPU:
    NPU_CORES = 2
    contexts = []
    def load_rknn(self, path): return 0
    def init_runtime(self, **options):
        self.contexts.append(self); self.number = len(self.contexts); self.runs = 0; return 0
    def inference(self, inputs):
        self.runs += 1
        HOW
        return inputs
    def release(self): pass

main.runtimes.by_name = lambda name: NPU
main.main()
"""


@pytest.fixture
def failing(clip, tmp_path):
    """failing(how, *arguments): run main.py on the clip with an NPU that fails in this way."""
    (tmp_path / "infers.py").write_text(
        "def myFunc(rknn_lite, IMG):\n    rknn_lite.inference([IMG])\n    return IMG\n"
    )

    def run(how, *arguments, threads=2):
        command = [
            sys.executable,
            "-c",
            FAILING.replace("HOW", how),
            *map(str, arguments or (clip,)),
            "--headless",
            "--func",
            str(tmp_path / "infers.py"),
            "--threads",
            str(threads),
        ]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)

    return run


def test_failed_frames_are_counted_and_reported_once_per_context(
    failing,
):
    done = failing("if self.runs in (3, 6): return None", threads=1)
    assert done.returncode == 3
    assert "clip.avi: 43 frames in" in done.stdout and "2 failed" in done.stdout
    assert re.fullmatch(
        r"context 1 of 1, core \d: a run failed on the NPU \(.*\)\.\n",
        done.stderr,
    )


def test_a_frame_that_fails_on_one_core_is_processed_on_another(failing):
    done = failing("if self.number == 2 and self.runs == 3: return None")
    assert done.returncode == 0 and "clip.avi: 45 frames in" in done.stdout
    assert len(done.stderr.splitlines()) == 1 and "core pauses" in done.stderr


def test_a_context_that_hangs_during_the_run_is_named_and_the_others_continue(failing):
    done = failing("if self.number == 1 and self.runs == 3: threading.Event().wait()")
    assert done.returncode == 3
    assert "clip.avi: 44 frames in" in done.stdout and "1 failed" in done.stdout
    assert (
        re.search(r"context 1 of 2, core \d hangs", done.stderr) and "Traceback" not in done.stderr
    )


def test_a_dead_npu_ends_all_streams_and_the_error_is_the_last_line(failing, clip):
    done = failing("if self.runs > 5: return None", clip, clip)
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith("the NPU does not answer")
    assert done.stderr.count("the NPU does not answer") == 1 and "Traceback" not in done.stderr


def test_a_failed_frame_has_a_line_in_the_json(clip, tmp_path):
    (tmp_path / "found.py").write_text(
        "from func import Detections\nimport numpy as np\ndef detect(rknn_lite, IMG):\n"
        "    rknn_lite.inference([IMG])\n"
        "    none = np.zeros(0, np.float32)\n"
        "    return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), none)\n"
        "def draw(IMG, detections):\n    return IMG\n"
        "def myFunc(rknn_lite, IMG):\n    return draw(IMG, detect(rknn_lite, IMG))\n"
    )
    how = "if self.number == 1 and self.runs == 4: return None"
    command = [
        sys.executable,
        "-c",
        FAILING.replace("HOW", how),
        clip,
        "--headless",
        "--threads",
        "1",
        "--func",
        tmp_path / "found.py",
        "--json",
        "-",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["frame"] for line in lines] == list(range(45))
    assert [line["frame"] for line in lines if "error" in line] == [3]
    assert "a run failed on the NPU" in lines[3]["error"]


@pytest.mark.slow
def test_a_hung_context_is_named_in_a_live_stream(tmp_path):
    """Newer results replace the hung one, and the pool's warning names the context."""
    (tmp_path / "infers.py").write_text(
        "def myFunc(rknn_lite, IMG):\n    rknn_lite.inference([IMG])\n    return IMG\n"
    )
    how = "if self.number == 1 and self.runs == 3: threading.Event().wait()"
    script = FAILING.replace("HOW", how).replace("HANG_SECONDS = 1", "HANG_SECONDS = 3")
    server = subprocess.Popen(
        [sys.executable, "tests/mjpeg_server.py", "0", "models/demo.mp4"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        url = f"gate=http://127.0.0.1:{server.stdout.readline().split()[1]}/x"
        command = [
            sys.executable,
            "-c",
            script,
            url,
            "--headless",
            "--func",
            tmp_path / "infers.py",
            "--threads",
            "2",
        ]
        running = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert re.search(r"context 1 of 2, core \d hangs", running.stderr.readline())
        running.send_signal(signal.SIGINT)
        stdout, _ = running.communicate(timeout=60)
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
    assert running.returncode == 3 and re.search(r"gate: \d+ frames in ", stdout)
