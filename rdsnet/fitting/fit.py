"""Fitting MBRM's kernel after everything else has converged (paper, Sec. 3.4).

All other parameters stay as they are, so the network runs once over the data
(:mod:`rdsnet.fitting.profiles`). The kernel is fitted to the mask profiles that it leaves: seconds,
on a CPU as on a GPU.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

from rdsnet.checkpoint import Checkpointer
from rdsnet.checkpoint.changes import check_other_use
from rdsnet.checkpoint.description import save_model
from rdsnet.fitting.choice import Choice, choose_refinement
from rdsnet.fitting.profiles import ImageProfiles, ObjectProfiles, collect_profiles
from rdsnet.modeling.mbrm import MBRM
from rdsnet.modeling.refinement import build_refinement

logger = logging.getLogger(__name__)

# Iterations between two states on disk.
CHECKPOINT_PERIOD = 100


@dataclass
class KernelFit:
    """A fitted kernel and how well it does on what it was fitted to.

    Losses are means of -log P(X = true edge), in nats per edge within reach of the prior.
    """

    weight: list[float]
    bias: float
    objects: int
    edges: int  # four per object
    edges_within_reach: int
    # Median distance of the regressed edges from the true ones as a share of the box's side, times
    # 1.48: their standard deviation if they are normally distributed, which is what gamma stands
    # for. On training images it is smaller than on others.
    edge_spread: float
    loss_prior: float  # of a kernel of zeros: the prior alone
    loss_initial: float  # of the kernel that MBRM starts with when it is not fitted
    loss: float
    # What suits the model with this kernel (MODEL.RDSNET.MBRM.FIT.CHOOSE); None: as configured.
    choice: Choice | None = None


def fit_mbrm(cfg: CfgNode, trust_checkpoint: bool = False) -> tuple[MBRM, KernelFit]:
    """Fit the kernel of a trained model and write a checkpoint that has it.

    With ``MODEL.RDSNET.MBRM.FIT.CHOOSE`` gamma and readout are chosen too, or no refinement at all.
    Into ``OUTPUT_DIR/mbrm`` go ``model_final.pth`` (``MODEL.WEIGHTS`` with the new kernel, all else
    unchanged), a ``config.yaml`` to use it with, ``kernel.json`` (a :class:`KernelFit`) and the
    profiles of ``DATASETS.TRAIN``. The same call after an interruption goes on where it stopped.

    Args:
        cfg: of the trained model, with ``MODEL.WEIGHTS``. ``MODEL.RDSNET.MBRM`` says which prior,
            radius and readout, ``MODEL.RDSNET.MBRM.FIT`` how long.

    Raises:
        ValueError: if there are no weights or no training set, or the model finds no object.
    """
    mbrm = build_mbrm(cfg)
    folder = output_folder(cfg)
    model = load_unrefined_model(cfg, trust_checkpoint)
    objects = training_objects(cfg, model)
    mbrm.to(model.device)
    fit = fit_kernel(mbrm, objects, cfg.MODEL.RDSNET.MBRM.FIT, state_file=folder / "unfinished.pth")
    if cfg.MODEL.RDSNET.MBRM.FIT.CHOOSE:
        fit.choice = choose_refinement(mbrm, _images_to_choose_on(cfg, model))
        logger.info(fit.choice.text())
    weights = with_kernel(model.state_dict(), mbrm, fit.choice)
    fitted_cfg = _write_config(cfg, folder, fit.choice)
    save_model(folder / "model_final.pth", weights, fitted_cfg)
    (folder / "kernel.json").write_text(json.dumps(asdict(fit), indent=2) + "\n")
    return mbrm, fit


def fit_kernel(
    mbrm: MBRM,
    objects: ObjectProfiles,
    schedule: CfgNode,
    *,
    state_file: Path | None = None,
) -> KernelFit:
    """Minimise L_refine from a kernel of zeros; ``mbrm`` gets the result.

    Args:
        mbrm: gives the prior and the radius.
        objects: what to fit to.
        schedule: ``MODEL.RDSNET.MBRM.FIT``.
        state_file: where to keep the state every 100 iterations, and to go on from if it is there
            and belongs to the same fit. Removed in the end.
    """
    loss_initial, _ = _mean_loss(mbrm, objects)
    with torch.no_grad():
        mbrm.weight.zero_()
        mbrm.bias.zero_()
    loss_prior, within_reach = _mean_loss(mbrm, objects)
    share = within_reach / (4 * len(objects))
    logger.info(
        f"{len(objects)} detections have found an object; of their {4 * len(objects)} edges "
        f"{share:.1%} are where the prior is above 0. The others cannot be found with this "
        "MODEL.RDSNET.MBRM.GAMMA and are left out."
    )
    optimizer = torch.optim.Adam(mbrm.parameters(), lr=schedule.BASE_LR)
    scheduler = torch.optim.lr_scheduler.LinearLR(
        optimizer, start_factor=1.0, end_factor=0.0, total_iters=schedule.MAX_ITER
    )
    parts = {"mbrm": mbrm, "optimizer": optimizer, "scheduler": scheduler}
    identity = [len(objects), mbrm.gamma, mbrm.min_sigma, loss_prior, *schedule.values()]
    start = _load_state(state_file, identity, parts)
    for iteration in range(start, schedule.MAX_ITER):
        # Seeded by the iteration, so that a resumed fit draws what an uninterrupted one would.
        generator = torch.Generator().manual_seed(iteration)
        index = torch.randint(len(objects), (schedule.OBJECTS_PER_BATCH,), generator=generator)
        loss, _ = _batch_loss(mbrm, objects, index)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        if (iteration + 1) % CHECKPOINT_PERIOD == 0:
            logger.info(f"iteration {iteration + 1}: loss {loss.item():.4f}")
            _save_state(state_file, identity, parts, iteration + 1)
    final_loss, _ = _mean_loss(mbrm, objects)
    if state_file is not None:
        state_file.unlink(missing_ok=True)
    return KernelFit(
        [round(w, 4) for w in mbrm.weight.flatten().tolist()],
        round(mbrm.bias.item(), 4),
        len(objects),
        4 * len(objects),
        within_reach,
        edge_spread(objects),
        loss_prior,
        loss_initial,
        final_loss,
    )


@torch.no_grad()
def _mean_loss(mbrm: MBRM, objects: ObjectProfiles) -> tuple[float, int]:
    """L_refine over all objects, and the number of edges within reach of the prior."""
    total, edges = 0.0, 0
    for index in torch.arange(len(objects)).split(1024):
        loss, reached = _batch_loss(mbrm, objects, index)
        total, edges = total + loss.item() * reached.item(), edges + reached.item()
    return total / max(edges, 1), edges


def edge_spread(objects: ObjectProfiles) -> float:
    """See :class:`KernelFit`."""
    boxes, gt_boxes = objects.boxes[objects.objects], objects.gt_boxes[objects.objects]
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    return 1.4826 * ((boxes - gt_boxes) / sides).abs().median().item()


def output_folder(cfg: CfgNode) -> Path:
    """``OUTPUT_DIR/mbrm``, made if missing."""
    folder = Path(cfg.OUTPUT_DIR) / "mbrm"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def load_unrefined_model(cfg: CfgNode, trust_checkpoint: bool = False) -> nn.Module:
    """The model with ``MODEL.WEIGHTS`` and without MBRM, in evaluation mode.

    Raises:
        ValueError: if no weights are given, or they do not fit.
        FileNotFoundError: if the checkpoint does not exist.
    """
    weights = cfg.MODEL.WEIGHTS
    if not weights:
        raise ValueError(
            "MODEL.WEIGHTS is empty. MBRM is fitted to a trained model: give its checkpoint."
        )
    if "://" not in weights and not Path(weights).is_file():
        raise FileNotFoundError(f"MODEL.WEIGHTS '{weights}' does not exist")
    check_other_use(cfg, weights)
    model = build_model(_with_mbrm(cfg, METHOD="none")).eval()
    checkpointer = Checkpointer(model, trust=trust_checkpoint)
    # It would warn about the kernel in the checkpoint. Weights that are missing raise an error.
    checkpointer.logger = logging.getLogger(f"{__name__}.checkpointer")
    checkpointer.logger.setLevel(logging.ERROR)
    checkpointer.load(weights)
    return model


def build_mbrm(cfg: CfgNode, **keys) -> MBRM:
    """The MBRM of a config, whatever its METHOD, with some keys of MODEL.RDSNET.MBRM changed."""
    return build_refinement(_with_mbrm(cfg, ENABLED=True, METHOD="mbrm", **keys))


def training_objects(cfg: CfgNode, model: nn.Module) -> ObjectProfiles:
    """What the model finds in ``DATASETS.TRAIN``.

    Raises:
        ValueError: if there is no training set, or the model finds no object in it.
    """
    if not cfg.DATASETS.TRAIN:
        raise ValueError(
            "DATASETS.TRAIN is empty. MBRM is fitted to the images that the model was trained on."
        )
    return ObjectProfiles(_profiles(cfg, model, cfg.DATASETS.TRAIN), model.device)


def _images_to_choose_on(cfg: CfgNode, model: nn.Module) -> list[ImageProfiles]:
    """Validation images if the model finds anything in them, else those it was trained on."""
    images = _profiles(cfg, model, cfg.DATASETS.TEST)
    if any(not image.gt_boxes.isnan().all() for image in images):
        return images
    return _profiles(cfg, model, cfg.DATASETS.TRAIN)


def _profiles(cfg: CfgNode, model: nn.Module, names: Sequence[str]) -> list[ImageProfiles]:
    images: list[ImageProfiles] = []
    for name in names:
        maximum = cfg.MODEL.RDSNET.MBRM.FIT.MAX_IMAGES
        images += collect_profiles(cfg, model, name, output_folder(cfg) / "profiles", maximum)
    return images


def _with_mbrm(cfg: CfgNode, **keys) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.RDSNET.MBRM.update(keys)
    return cfg


def with_kernel(
    weights: Mapping[str, Tensor], mbrm: MBRM, choice: Choice | None
) -> dict[str, Tensor]:
    """Weights of a model with the kernel of ``mbrm``, or with none where that was chosen."""
    others = {name: w for name, w in weights.items() if not name.startswith("mbrm.")}
    if choice is not None and choice.best.gamma is None:
        return others
    return {**others, **mbrm.cpu().state_dict(prefix="mbrm.")}


def with_refinement(cfg: CfgNode, choice: Choice | None) -> CfgNode:
    """A copy of a config that refines by MBRM, or as was chosen."""
    keys = {"METHOD": "mbrm"} if choice is None else choice.best.keys()
    return _with_mbrm(cfg, ENABLED=True, **keys)


def _write_config(cfg: CfgNode, folder: Path, choice: Choice | None) -> CfgNode:
    """A config with which the checkpoint in the same folder is evaluated or used."""
    cfg = with_refinement(cfg, choice)
    cfg.MODEL.WEIGHTS = str(folder / "model_final.pth")
    # Detectron2 writes the config of every run, with its options, into the run's OUTPUT_DIR.
    cfg.OUTPUT_DIR = str(folder / "evaluation")
    (folder / "config.yaml").write_text(cfg.dump())
    return cfg


def _batch_loss(mbrm: MBRM, objects: ObjectProfiles, index: Tensor) -> tuple[Tensor, Tensor]:
    columns, rows, boxes, gt_boxes, sizes = objects.batch(index.to(objects.device))
    return mbrm.loss(columns, rows, boxes, gt_boxes, sizes)


def _save_state(
    path: Path | None, identity: list, parts: Mapping[str, object], iteration: int
) -> None:
    if path is None:
        return
    state = {name: part.state_dict() for name, part in parts.items()}
    unfinished = path.with_suffix(".tmp")
    torch.save({"identity": identity, "iteration": iteration, **state}, unfinished)
    unfinished.replace(path)


def _load_state(path: Path | None, identity: list, parts: Mapping[str, object]) -> int:
    """The iteration to go on from: 0 when there is no state, or it is of another fit."""
    if path is None or not path.is_file():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["identity"] != identity:
        return 0
    for name, part in parts.items():
        part.load_state_dict(state[name])
    logger.info(f"Going on from iteration {state['iteration']}, kept in {path}")
    return state["iteration"]
