#!/usr/bin/env python3
"""Train or evaluate with the authors' arithmetic and their data pipeline.

Like train_net.py of the repository, but images and ground truth come from AuthorsDatasetMapper:

python projects/AuthorsCompat/train_net.py --eval-only \
    --config-file projects/AuthorsCompat/configs/rdsnet_R_50_FPN_mmdet.yaml \
    MODEL.WEIGHTS rdsnet.pth
"""

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import default_argument_parser, launch

from rdsnet import engine
from rdsnet.projects.authors_compat.mapper import AuthorsDatasetMapper


class Trainer(engine.Trainer):
    """rdsnet's trainer on the authors' data pipeline."""

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        mapper = AuthorsDatasetMapper.from_config(cfg, is_train=True)
        return build_detection_train_loader(cfg, mapper=mapper)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        mapper = AuthorsDatasetMapper.from_config(cfg, is_train=False)
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)


def main(args):
    cfg = engine.setup(args)
    if args.eval_only:
        model = Trainer.build_model(cfg).eval()
        DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
        return Trainer.test(cfg, model)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    args = default_argument_parser(epilog=__doc__).parse_args()
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
