"""The config: how it travels to other processes, and which files it takes."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from detectron2.config import CfgNode
from detectron2.config import get_cfg as get_detectron2_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultPredictor, DefaultTrainer
from helpers.hanging import HANG
from reliability import tiny

import rdsnet
from rdsnet.checkpoint import load_config
from rdsnet.data.datasets import register_coco_files

HERE = Path(__file__).parent


def detectron2s():
    """The config of people who start from Detectron2's."""
    cfg = get_detectron2_cfg()
    rdsnet.add_rdsnet_config(cfg)
    return cfg


@pytest.fixture
def written(tmp_path):
    """A config.yaml as a training writes it, with tiny data, of two images per batch."""
    data = tiny.make_data(tmp_path / "data", images=4)
    for name in ("tiny_train", "tiny_val"):
        if name in DatasetCatalog:  # of another test
            DatasetCatalog.pop(name)
            MetadataCatalog.pop(name)
    cfg = load_config(tiny.SMALL, tiny.options(data, tmp_path / "out", 1))
    (tmp_path / "config.yaml").write_text(cfg.dump())
    return tmp_path / "config.yaml"


def values(text):
    """Of a config as text; yaml may write the same list once or twice."""
    return yaml.safe_load(text)


def spawned(*words):
    return subprocess.run(
        [sys.executable, "-W", "ignore", str(HERE / "reliability" / "spawned.py"), *words],
        capture_output=True,
        text=True,
        timeout=HANG,
        cwd=tiny.ROOT,
    )


def test_a_spawned_process_builds_the_model_and_loads_the_data(written):
    run = spawned("rdsnet", "spawn", str(written), "1")
    assert run.returncode == 0, run.stderr[-3000:]
    assert "built RDSNet frozen" in run.stdout
    assert "loaded 2 images with ['gt_boxes', 'gt_classes', 'gt_masks']" in run.stdout


def test_a_process_of_a_fork_server_knows_the_projects(tmp_path):
    config = tmp_path / "yolact.yaml"
    base = tiny.ROOT / "projects" / "YOLACT" / "configs" / "rdsnet_s_small_nuclei.yaml"
    config.write_text(f"_BASE_: {base}\nMODEL:\n  RETINANET:\n    NUM_CLASSES: 2\n")
    run = spawned("detectron2", "forkserver", str(config), "0")
    assert run.returncode == 0, run.stderr[-3000:]
    assert "built YOLACT frozen" in run.stdout


@pytest.mark.parametrize("make", [rdsnet.get_cfg, detectron2s])
def test_every_copy_of_a_config_registers_the_model_where_it_is_unpickled(make):
    cfg = make()
    cfg.merge_from_list(["MODEL.RDSNET.REPRESENTATION_DIM", "8"])
    cfg.freeze()
    copies = [cfg, cfg.clone(), copy.copy(cfg), copy.deepcopy(cfg), pickle.loads(pickle.dumps(cfg))]
    for one in copies:
        assert b"_register" in pickle.dumps(one) and type(one) is type(cfg)
        assert one == cfg and one.is_frozen()
        assert "_register" not in one.dump()


@pytest.mark.parametrize("make", [rdsnet.get_cfg, detectron2s])
def test_a_config_that_a_training_has_written_is_taken_whoever_made_the_defaults(make, written):
    cfg = make()
    cfg.merge_from_file(str(written))
    assert cfg.MODEL.AUTHORS_COMPAT.MIN_MASK_AREA == 100
    assert values(cfg.dump()) == values(written.read_text())


def test_detectron2s_own_trainer_and_predictor_take_its_own_config(written, tmp_path):
    cfg = detectron2s()
    cfg.merge_from_file(str(written))
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "norm"  # DefaultTrainer knows no "full_model"
    cfg.OUTPUT_DIR = str(tmp_path)
    register_coco_files(cfg)
    trainer = DefaultTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    cfg.MODEL.WEIGHTS = str(tmp_path / "model_final.pth")
    image = np.random.default_rng(0).integers(0, 255, (64, 80, 3), dtype=np.uint8)
    instances = DefaultPredictor(cfg)(image)["instances"]
    assert instances.pred_masks.shape[1:] == (64, 80)


def test_keys_of_a_project_that_is_not_here_are_named(written, tmp_path):
    content = yaml.safe_load(written.read_text())
    content["MODEL"]["ROSETTE"] = {"PETALS": 5, "CENTER": {"SIZE": 3}}
    content["MODEL"]["RDSNET"]["ROSETTE_WEIGHT"] = 2.0
    path = tmp_path / "rosette.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError) as error:
        load_config(str(path))
    message = str(error.value)
    assert "rosette.yaml' cannot be used: unknown keys" in message
    for key in ("MODEL.RDSNET.ROSETTE_WEIGHT", "MODEL.ROSETTE.CENTER.SIZE", "MODEL.ROSETTE.PETALS"):
        assert key in message
    assert "a project" in message and "authors_compat" in message
    assert "AUTHORS_COMPAT" not in message  # only what is unknown


def test_a_config_from_before_a_project_was_installed_is_taken(written):
    content = yaml.safe_load(written.read_text())
    del content["MODEL"]["FCOS"], content["MODEL"]["RDSNET"]["MASK_ASSEMBLY"]
    cfg = rdsnet.get_cfg()
    cfg.merge_from_other_cfg(CfgNode(content))
    assert values(cfg.dump()) == values(written.read_text())
