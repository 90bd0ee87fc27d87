#!/usr/bin/env python3
"""Train or evaluate RDSNet, in the manner of Detectron2's tools/train_net.py.

python train_net.py --config-file configs/COCO-InstanceSegmentation/rdsnet_R_50_FPN_1x.yaml \\
    --num-gpus 4
python train_net.py --config-file output/config.yaml --eval-only \\
    MODEL.WEIGHTS output/model_final.pth
"""

import warnings

from rdsnet import openmp

openmp.prepare()  # before torch is loaded
# Calls inside Detectron2 that users can do nothing about.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.jit")
warnings.filterwarnings("ignore", message="torch.meshgrid")

from rdsnet.training import argument_parser, run  # noqa: E402

if __name__ == "__main__":
    run(argument_parser(epilog=__doc__).parse_args())
