#!/usr/bin/env python3
"""Train or evaluate with the authors' arithmetic and their data pipeline.

Like train_net.py of the repository, but images and ground truth come from AuthorsDatasetMapper:

python projects/AuthorsCompat/train_net.py --eval-only \
    --config-file projects/AuthorsCompat/configs/rdsnet_R_50_FPN_mmdet.yaml \
    MODEL.WEIGHTS rdsnet.pth
"""

from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader

from rdsnet import training
from rdsnet.data.train_loader import TrainLoader, build_train_loader
from rdsnet.projects.authors_compat.mapper import AuthorsDatasetMapper
from rdsnet.training.launch import argument_parser


class Trainer(training.Trainer):
    """rdsnet's trainer on the authors' data pipeline."""

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
        return build_train_loader(cfg, AuthorsDatasetMapper.from_config(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        mapper = AuthorsDatasetMapper.from_config(cfg, is_train=False)
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)


if __name__ == "__main__":
    training.run(argument_parser(epilog=__doc__).parse_args(), Trainer)
