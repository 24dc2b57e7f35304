"""A script as people wrote them for the pool that this project's interface follows: constructor, put, get, release.

    PYTHONPATH=. python3 tests/board/older_script.py VIDEO

It fills the pool with TPEs + 1 frames, then puts one and gets one, and leaves when the video ends, with TPEs + 1
results never fetched. Prints the number of each frame that comes back (record.py's), and the shapes of its outputs.
"""
import sys

import cv2
import numpy as np
from record import read_number

from rknnpool import rknnPoolExecutor

modelPath = "models/yolov5n_emoji.rknn"
TPEs = 3


def myFunc(rknn_lite, IMG):
    picture = cv2.resize(cv2.cvtColor(IMG, cv2.COLOR_BGR2RGB), (640, 640))
    outputs = rknn_lite.inference(inputs=[np.expand_dims(picture, 0)])
    return read_number(IMG), [output.shape for output in outputs]


cap = cv2.VideoCapture(sys.argv[1])
pool = rknnPoolExecutor(rknnModel=modelPath, TPEs=TPEs, func=myFunc)
for _ in range(TPEs + 1):
    ret, frame = cap.read()
    if not ret:
        sys.exit("the video is too short")
    pool.put(frame)
while True:
    ret, frame = cap.read()
    if not ret:
        break
    pool.put(frame)
    (number, shapes), flag = pool.get()
    if not flag:
        break
    print(number, shapes)
cap.release()
pool.release()
