"""RDSNetDatasetMapper: Detectron2's output, for data as it is found."""

import contextlib

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper, build_detection_train_loader
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, BoxMode, PolygonMasks
from PIL import Image

import rdsnet
from rdsnet.data.datasets import register_coco_files
from rdsnet.data.mapper import RDSNetDatasetMapper
from rdsnet.data.masks import dense_ground_truth_masks

H, W = 40, 60


def config(mask_format="polygon", size=80, crop=None, flip="none"):
    cfg = rdsnet.get_cfg()
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MASK_FORMAT = mask_format
    cfg.INPUT.MIN_SIZE_TRAIN = (size,)
    cfg.INPUT.RANDOM_FLIP = flip
    if crop:
        cfg.INPUT.CROP.ENABLED = True
        cfg.INPUT.CROP.TYPE = "absolute"
        cfg.INPUT.CROP.SIZE = list(crop)
    return cfg


def rectangle(x1, y1, x2, y2):
    """Polygon of a rectangle that covers the pixels x1 .. x2-1, y1 .. y2-1."""
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]


def run_lengths(x1, y1, x2, y2):
    """The same rectangle as uncompressed RLE, counted by hand, in an image of 40 x 60."""
    counts = [x1 * H + y1]
    for _ in range(x1, x2):
        counts += [y2 - y1, H - (y2 - y1)]
    counts[-1] += (W - x2) * H - y1
    return {"size": [H, W], "counts": counts}


@pytest.fixture
def image_dict(tmp_path):
    """Writes an image of 40 x 60 and gives the dataset dict with these objects."""

    def make(*objects, pixels=None):
        path = str(tmp_path / "image.png")
        Image.fromarray(np.zeros((H, W, 3), np.uint8) if pixels is None else pixels).save(path)
        annotations = [
            {
                "bbox": list(box),
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": i % 3,
                "iscrowd": 0,
                "segmentation": segmentation,
            }
            for i, (box, segmentation) in enumerate(objects)
        ]
        record = {"file_name": path, "height": H, "width": W, "image_id": 1}
        return {**record, "annotations": annotations}

    return make


A, B = (10, 5, 30, 20), (40, 20, 55, 35)


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_polygons_and_rle_mixed_give_the_same_masks(image_dict, mask_format):
    record = image_dict((A, rectangle(*A)), (B, run_lengths(*B)))
    instances = RDSNetDatasetMapper(config(mask_format), True)(record)["instances"]
    expected = np.zeros((2, 80, 120), bool)  # everything is twice as large
    expected[0, 10:40, 20:60] = True
    expected[1, 40:70, 80:110] = True
    assert isinstance(instances.gt_masks, BitMasks)
    np.testing.assert_array_equal(instances.gt_masks.tensor, expected)
    assert instances.gt_boxes.tensor.tolist() == [[20, 10, 60, 40], [80, 40, 110, 70]]
    assert instances.gt_classes.tolist() == [0, 1]


def test_the_mix_is_what_detectron2_fails_on(image_dict):
    record = image_dict((A, rectangle(*A)), (B, run_lengths(*B)))
    with pytest.raises(Exception):  # noqa: B017  (which one depends on its version)
        DatasetMapper(config("polygon"), True)(record)


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
@pytest.mark.parametrize("flip", ["none", "horizontal"])
def test_output_for_polygons_is_that_of_detectron2(image_dict, mask_format, flip):
    pixels = np.random.default_rng(0).integers(0, 256, (H, W, 3), np.uint8)
    triangle = [[3.5, 2.0, 25.0, 7.5, 11.0, 33.0]]
    a_as_floats = [[float(x) for x in rectangle(*A)[0]]]
    record = image_dict((A, a_as_floats), ((3.5, 2, 25, 33), triangle), pixels=pixels)
    cfg = config(mask_format, size=57, flip=flip)
    for seed in range(4):
        outputs = []
        for mapper in (DatasetMapper, RDSNetDatasetMapper):
            np.random.seed(seed)
            outputs.append(mapper(cfg, True)(record))
        theirs, ours = outputs
        assert set(ours) == set(theirs)
        assert torch.equal(ours["image"], theirs["image"])
        ours, theirs = ours["instances"], theirs["instances"]
        assert torch.equal(ours.gt_boxes.tensor, theirs.gt_boxes.tensor)
        assert torch.equal(ours.gt_classes, theirs.gt_classes)
        assert type(ours.gt_masks) is type(theirs.gt_masks)
        assert torch.equal(dense_ground_truth_masks(ours), dense_ground_truth_masks(theirs))


@pytest.mark.parametrize("crop", [None, (40, 60)])
def test_polygon_in_whole_pixels_is_not_rounded_when_resized(image_dict, crop):
    record = image_dict(((1, 1, 31, 21), rectangle(1, 1, 31, 21)))
    mapper = RDSNetDatasetMapper(config("polygon", size=64, crop=crop), True)  # 1.6 times as large
    masks = mapper(record)["instances"].gt_masks
    assert isinstance(masks, BitMasks if crop else PolygonMasks)
    if crop is None:
        expected = np.array(rectangle(1, 1, 31, 21)[0]) * 1.6
        np.testing.assert_allclose(masks.polygons[0][0], expected)
    expected = np.array([1.6, 1.6, 49.6, 33.6])
    np.testing.assert_allclose(masks.get_bounding_boxes().tensor[0], expected, atol=0.5)


def test_flipped_rle_is_the_mirrored_mask(image_dict):
    record = image_dict((B, run_lengths(*B)))
    mapper = RDSNetDatasetMapper(
        is_train=True,
        augmentations=[T.RandomFlip(prob=1.0)],
        image_format="RGB",
        use_instance_mask=True,
        instance_mask_format="bitmask",
    )
    instances = mapper(record)["instances"]
    expected = np.zeros((1, H, W), bool)
    expected[0, 20:35, 5:20] = True
    np.testing.assert_array_equal(instances.gt_masks.tensor, expected)
    assert instances.gt_boxes.tensor.tolist() == [[5, 20, 20, 35]]


@pytest.mark.parametrize("mask_format, kind", [("polygon", PolygonMasks), ("bitmask", BitMasks)])
@pytest.mark.parametrize("crop", [None, (20, 20)])
def test_image_without_objects_has_empty_masks(image_dict, mask_format, kind, crop):
    output = RDSNetDatasetMapper(config(mask_format, crop=crop), True)(image_dict())
    instances = output["instances"]
    assert len(instances) == len(instances.gt_masks) == 0
    assert instances.gt_boxes.tensor.shape == (0, 4)
    assert isinstance(instances.gt_masks, BitMasks if crop else kind)
    assert dense_ground_truth_masks(instances).shape == (0, *output["image"].shape[1:])


def test_image_with_crowds_only_has_empty_masks(image_dict):
    record = image_dict((A, run_lengths(*A)))
    record["annotations"][0]["iscrowd"] = 1
    instances = RDSNetDatasetMapper(config("bitmask"), True)(record)["instances"]
    assert instances.gt_masks.tensor.shape == (0, 80, 120)


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_cropped_boxes_are_tight_around_cropped_masks(image_dict, mask_format):
    triangle = [[0.0, 0.0, 60.0, 0.0, 0.0, 40.0]]
    record = image_dict(((0, 0, 60, 40), triangle), (B, run_lengths(*B)), (A, rectangle(*A)))
    mapper = RDSNetDatasetMapper(config(mask_format, size=24, crop=(24, 32)), True)
    seen = set()
    for seed in range(20):
        np.random.seed(seed)
        instances = mapper(record)["instances"]
        assert instances.image_size == (24, 32)
        masks = dense_ground_truth_masks(instances).numpy()
        for box, mask in zip(instances.gt_boxes.tensor.tolist(), masks, strict=True):
            rows, columns = np.nonzero(mask)
            assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        seen.add(len(instances))
    assert len(seen) > 1  # objects outside some of the crops are gone


def test_cropped_polygon_keeps_its_pixels(image_dict):
    """Each crop of the mask of the whole image is the mask of the crop."""
    pixels = np.zeros((H, W, 3), np.uint8)
    pixels[5:20, 10:30] = 255
    record = image_dict((A, rectangle(*A)), pixels=pixels)
    mapper = RDSNetDatasetMapper(config("polygon", size=24, crop=(24, 32)), True)
    for seed in range(10):
        np.random.seed(seed)
        output = mapper(record)
        seen = output["image"][0].numpy() == 255
        masks = dense_ground_truth_masks(output["instances"]).numpy()
        np.testing.assert_array_equal(masks.any(0), seen)


def test_mapping_leaves_the_dataset_dict_as_it_was(image_dict):
    record = image_dict((A, rectangle(*A)), (B, run_lengths(*B)))
    before = repr(record)
    RDSNetDatasetMapper(config(), True)(record)
    assert repr(record) == before


def test_inference_gives_the_image_alone(image_dict):
    record = image_dict((A, rectangle(*A)))
    output = RDSNetDatasetMapper(config(), False)(record)
    assert set(output) == {"file_name", "height", "width", "image_id", "image"}


# Broken data ----------------------------------------------------------------------------------


def map_file(path, size=(H, W)):
    record = {"file_name": str(path), "height": size[0], "width": size[1], "annotations": []}
    return RDSNetDatasetMapper(config(), True)(record)


def test_missing_image_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.png does not exist"):
        map_file(tmp_path / "nowhere.png")


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tif", "gif", "webp"])
def test_cut_off_image_is_named_with_the_remedy(tmp_path, suffix):
    whole, path = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
    pixels = np.random.default_rng(0).integers(0, 256, (H, W, 3), np.uint8)
    Image.fromarray(pixels).save(whole)
    data = whole.read_bytes()
    for share in (0.9, 0.5, 0.1):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(ValueError, match=f"cut.{suffix} cannot be read.*replace it, or remove"):
            map_file(path)


@pytest.mark.parametrize("data", [b"", b"not an image"])
def test_file_that_is_no_image_is_named(tmp_path, data):
    path = tmp_path / "odd.jpg"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="odd.jpg cannot be read.*not an image"):
        map_file(path)


def test_image_of_another_size_than_declared_is_named(image_dict):
    record = image_dict()
    with pytest.raises(
        ValueError, match="image.png is 60 x 40 pixels.*'width' and 'height' say 61 x 40"
    ):
        map_file(record["file_name"], (H, W + 1))


def test_object_without_mask_is_an_error_that_names_the_image(image_dict):
    record = image_dict((A, rectangle(*A)), (B, rectangle(*B)))
    record["annotations"][1].pop("segmentation")
    with pytest.raises(ValueError, match="image.png.*no 'segmentation'"):
        RDSNetDatasetMapper(config(), True)(record)


def test_mask_of_another_size_than_the_image_names_the_image(image_dict):
    record = image_dict((A, {"size": [W, H], "counts": [W * H - 5, 5]}))
    with pytest.raises(ValueError, match=r"image.png.*\(60, 40\) pixels, the image \(40, 60\)"):
        RDSNetDatasetMapper(config("bitmask"), True)(record)


# Batches --------------------------------------------------------------------------------------


def batches(cfg, count):
    np.random.seed(0)
    loader = build_detection_train_loader(cfg, mapper=RDSNetDatasetMapper(cfg, True))
    iterator = iter(loader)
    yield from (next(iterator) for _ in range(count))
    with contextlib.suppress(AttributeError):
        iterator._shutdown_workers()


def assert_complete(output):
    instances = output["instances"]
    assert instances.image_size == tuple(output["image"].shape[1:])
    masks = dense_ground_truth_masks(instances)
    assert instances.has("gt_masks")
    assert masks.shape == (len(instances), *instances.image_size)
    assert (instances.gt_boxes.area() > 0).all()
    return len(instances)


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
@pytest.mark.parametrize("crop", [None, (36, 54)])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_mixed_annotations_are_complete(coco, mask_format, crop, workers):
    coco.write()
    cfg = config(mask_format, size=48, crop=crop, flip="horizontal")
    cfg.DATASETS.COCO_FILES = [["mine", coco.json_file, coco.image_root]]
    cfg.DATASETS.TRAIN = ("mine",)
    cfg.DATALOADER.NUM_WORKERS = workers
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SEED = 1
    register_coco_files(cfg)
    seen = {}
    for batch in batches(cfg, 16):
        assert len(batch) == 2
        for output in batch:
            seen[output["image_id"]] = max(seen.get(output["image_id"], 0), assert_complete(output))
    # Of eight annotations, one is a crowd; image 4 has none.
    assert seen == {3: 2, 4: 0, 5: 2, 7: 2, 9: 1}


@pytest.mark.parametrize("name", ["tiny_coco", "nuclei"])
def test_real_images_give_complete_batches(real_data, name):
    folder = real_data / name
    json_file, images = {
        "tiny_coco": (folder / "annotations" / "instances_train2017.json", folder / "train2017"),
        "nuclei": (folder / "val.json", folder / "images"),
    }[name]
    cfg = config("polygon", size=128, crop=(200, 200), flip="horizontal")
    cfg.DATASETS.COCO_FILES = [["real", str(json_file), str(images)]]
    cfg.DATASETS.TRAIN = ("real",)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 4
    register_coco_files(cfg)
    objects = sum(assert_complete(output) for batch in batches(cfg, 5) for output in batch)
    assert objects > 20
