"""Annotation files broken at random: each either trains or is refused with a message.

The few examples of a normal run find what is easy to find; ``pytest -m slow`` tries thousands.
"""

import copy
import json
import logging
import warnings

import numpy as np
import pytest
from helpers.counting import assert_work_is_linear
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from rdsnet import get_cfg
from rdsnet.data.coco_json import read_coco_json
from rdsnet.data.datasets import CocoFile, load_coco_file
from rdsnet.data.mapper import RDSNetDatasetMapper
from rdsnet.data.masks import dense_ground_truth_masks

HEIGHT, WIDTH = 24, 32
VALID = {
    "images": [
        {"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH},
        {"id": 2, "file_name": "b.png", "height": HEIGHT, "width": WIDTH},
    ],
    "annotations": [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 3,
            "bbox": [2, 3, 10, 8],
            "area": 80,
            "iscrowd": 0,
            "segmentation": [[2, 3, 12, 3, 12, 11, 2, 11]],
        },
        {
            "id": 2,
            "image_id": 2,
            "category_id": 5,
            "bbox": [0, 0, 1, HEIGHT],
            "area": HEIGHT,
            "iscrowd": 0,
            "segmentation": {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT, (WIDTH - 1) * HEIGHT]},
        },
    ],
    "categories": [{"id": 3, "name": "x"}, {"id": 5, "name": "y"}],
}

numbers = st.one_of(
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, 1, -1, 2, 3, 5, 24, 32, 0.5, 1e-300, 1e300, -0.0, 2**31, 2**63]),
    st.floats(allow_nan=True, allow_infinity=True),
)
leaves = st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=6))
polygons = st.lists(st.lists(numbers, max_size=9), max_size=3)
rle = st.fixed_dictionaries(
    {
        "size": st.one_of(st.just([HEIGHT, WIDTH]), leaves, st.lists(leaves, max_size=3)),
        "counts": st.one_of(
            st.text(max_size=12),
            st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=40),
            st.lists(st.one_of(st.integers(-5, 900), leaves), max_size=6),
            leaves,
        ),
    }
)
anything = st.one_of(
    leaves,
    polygons,
    rle,
    st.lists(numbers, min_size=4, max_size=4),
    st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
        ),
        max_leaves=6,
    ),
)


def places(node, path=()):
    """Paths of everything inside a json."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*path, key))


@st.composite
def broken_files(draw):
    """A valid file with one to three places replaced, removed or doubled."""
    content = copy.deepcopy(VALID)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(content)) or [("images",)]))
        parent = content
        for key in path[:-1]:
            parent = parent[key]
        action = draw(st.sampled_from(["replace", "replace", "replace", "remove", "double"]))
        if action == "remove":
            parent.pop(path[-1], None) if isinstance(parent, dict) else parent.pop(path[-1])
        elif action == "double" and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[path[-1]]))
        else:
            parent[path[-1]] = draw(anything)
    return content


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    for name in ("a.png", "b.png"):
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 90, np.uint8)).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def mapper():
    cfg = get_cfg()
    cfg.MODEL.MASK_ON, cfg.INPUT.MASK_FORMAT = True, "bitmask"
    cfg.INPUT.MIN_SIZE_TRAIN = (24,)
    return RDSNetDatasetMapper(cfg, is_train=True)


def use(content, folder, mapper, on_invalid) -> str:
    """ "trains", or "refused"; anything else is an error of the test."""
    path = folder / "file.json"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(json.dumps(content))
    try:
        records = load_coco_file(CocoFile("hostile", str(path), str(folder), on_invalid))
        samples = [mapper(record) for record in records]
    except (ValueError, FileNotFoundError) as error:
        message = str(error)
        assert "file.json" in message or "image " in message, message
        # Ours: raised by a line of ours, not in the depths of a library.
        trace = error.__traceback__
        while trace.tb_next:
            trace = trace.tb_next
        assert "/rdsnet/" in trace.tb_frame.f_code.co_filename, message
        return "refused"
    for sample in samples:
        instances = sample["instances"]
        masks = dense_ground_truth_masks(instances)
        assert masks.shape == (len(instances), *sample["image"].shape[1:])
        assert instances.gt_boxes.tensor.isfinite().all()
        assert (instances.gt_classes < len(content["categories"])).all()
    return "trains"


def check(content, folder, mapper, on_invalid):
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            use(content, folder, mapper, on_invalid)
    finally:
        logging.disable(logging.NOTSET)


def test_the_file_that_is_broken_is_valid(folder, mapper):
    assert use(VALID, folder, mapper, "error") == "trains"


QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}


@settings(max_examples=40, derandomize=True, **QUIET)
@given(content=broken_files(), on_invalid=st.sampled_from(["error", "skip"]))
def test_a_broken_file_trains_or_is_refused(content, on_invalid, folder, mapper):
    check(content, folder, mapper, on_invalid)


@pytest.mark.slow
@settings(max_examples=1000, derandomize=True, **QUIET)
@given(content=broken_files(), on_invalid=st.sampled_from(["error", "skip"]))
def test_thousands_of_broken_files_train_or_are_refused(content, on_invalid, folder, mapper):
    check(content, folder, mapper, on_invalid)


@settings(max_examples=60, derandomize=True, **QUIET)
@given(data=st.one_of(st.binary(max_size=60), st.integers(0, 10**6)))
def test_a_file_that_is_no_json_is_refused(data, folder):
    text = json.dumps(VALID).encode()
    content = text[: data % len(text)] if isinstance(data, int) else data
    path = folder / "cut.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cut.json"):
        read_coco_json(path)


def test_the_work_of_loading_grows_with_the_number_of_annotations_alone(tmp_path):
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "a.png")

    def load_so_many(count):
        content = {**VALID, "images": [], "annotations": []}
        for i in range(count // 5):
            content["images"].append({**VALID["images"][0], "id": i + 1, "file_name": "a.png"})
        for i in range(count):
            source = VALID["annotations"][i % 2]
            content["annotations"].append({**source, "id": i + 1, "image_id": i // 5 + 1})
        (tmp_path / "many.json").write_text(json.dumps(content))
        records = load_coco_file(CocoFile("many", str(tmp_path / "many.json"), str(tmp_path)))
        assert sum(len(record["annotations"]) for record in records) == count

    assert_work_is_linear(load_so_many, 500)
