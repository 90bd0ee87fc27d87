"""What tests of ``rdsnet predict`` share."""

import json

import cv2
import numpy as np

OBJECTS = 7  # per image: TEST.DETECTIONS_PER_IMAGE of the model in cli/conftest.py


def picture(height=60, width=90, seed=0):
    """Noise, (H, W, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def load_coco(out):
    """images.json and the results of an output folder."""
    images = json.loads((out / "images.json").read_text())
    return images, json.loads((out / "coco_instances_results.json").read_text())


def write_video(path, frames, size=(96, 64), rate=12.0):
    """Noise, as OpenCV writes it."""
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), rate, size)
    for k in range(frames):
        video.write(picture(size[1], size[0], seed=k))
    video.release()
