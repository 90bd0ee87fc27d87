"""Processes that are no forks of the one that has made the config, as CUDA needs them.

    python tests/reliability/spawned.py rdsnet|detectron2 spawn|forkserver CONFIG WORKERS

Makes a config in this process, as users of this package or of Detectron2 alone do it, merges a
config file, and sends it to a new process. That one imports nothing of rdsnet by itself; it builds
the model and loads a batch by workers of its own. Prints what it has built and loaded.
"""

import multiprocessing
import sys


def work(cfg, own_loader: bool) -> None:
    from detectron2.modeling import build_model

    model = type(build_model(cfg)).__name__
    print("built", model, "frozen" if cfg.is_frozen() else "not frozen", flush=True)
    if own_loader:
        from rdsnet.training import Trainer

        batch = next(iter(Trainer.build_train_loader(cfg)))
        print("loaded", len(batch), "images with", sorted(batch[0]["instances"].get_fields()))


def main(made_by: str, method: str, config_file: str, workers: str) -> None:
    import rdsnet

    if made_by == "rdsnet":
        cfg = rdsnet.get_cfg()
    else:
        from detectron2.config import get_cfg

        cfg = get_cfg()
        rdsnet.add_rdsnet_config(cfg)
    cfg.merge_from_file(config_file)
    cfg.MODEL.DEVICE = "cpu"
    cfg.DATALOADER.NUM_WORKERS = int(workers)
    cfg = cfg.clone()
    cfg.freeze()
    multiprocessing.set_start_method(method)  # of the loader's workers, too
    process = multiprocessing.Process(target=work, args=(cfg, workers != "0"))
    process.start()
    process.join()
    sys.exit(process.exitcode)


if __name__ == "__main__":
    main(*sys.argv[1:])
