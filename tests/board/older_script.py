"""A script for the pool of the original demo, whose interface this project keeps.

    PYTHONPATH=. python3 tests/board/older_script.py MODEL VIDEO

It puts TPEs + 1 frames, then puts one and gets one until the video ends; TPEs + 1 results are never
fetched. Its func passes a frame without a batch axis. Prints the number of each frame and the
shapes of its outputs. It needs only rknnpool.py.
"""

import sys

import cv2
from numbered import read_number

from rknnpool import rknnPoolExecutor

modelPath = sys.argv[1]
TPEs = 3


def myFunc(rknn_lite, IMG):
    number = read_number(IMG)
    IMG = cv2.cvtColor(IMG, cv2.COLOR_BGR2RGB)
    IMG = cv2.resize(IMG, (640, 640))
    outputs = rknn_lite.inference(inputs=[IMG])
    return number, [output.shape for output in outputs]


cap = cv2.VideoCapture(sys.argv[2])
pool = rknnPoolExecutor(rknnModel=modelPath, TPEs=TPEs, func=myFunc)
for _ in range(TPEs + 1):
    ret, frame = cap.read()
    if not ret:
        sys.exit("the video is too short")
    pool.put(frame)
while cap.isOpened():
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
