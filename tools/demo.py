#!/usr/bin/env python3
"""Train and evaluate a small RDSNet on made-up shapes: about five minutes on two CPU cores.

Example:
  python tools/demo.py --output output/demo
  python tools/demo.py --output output/demo --iterations 20   # only to see that all works
"""

import argparse
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIG_FILE = ROOT / "configs" / "small" / "rdsnet_small_shapes.yaml"


def positive(text: str) -> int:
    """A whole number from 1; as argparse type."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return int(text)


def parse_args() -> argparse.Namespace:
    summary, _, example = __doc__.partition("\n")
    parser = argparse.ArgumentParser(
        description=summary,
        epilog=example.strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--output", default="output/demo", metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument(
        "--iterations", type=positive, metavar="N", help="of training (default: as in the config)"
    )
    parser.add_argument(
        "--config-file",
        default=str(CONFIG_FILE),
        metavar="FILE",
        help="model and schedule (default: configs/small/rdsnet_small_shapes.yaml)",
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    # Calls inside Detectron2 that users of the demo can do nothing about.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.jit")
    print("Loading PyTorch and Detectron2 ...", file=sys.stderr, flush=True)
    from demo_run import run_demo

    try:
        demo = run_demo(args.config_file, args.output, args.iterations)
    except (OSError, ValueError) as error:
        sys.exit(f"demo.py: {error}")
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. The next run starts afresh.")
    output = Path(args.output)
    print(f"\n{demo.table()}\n")
    if (report := output / "report.html").is_file():
        print(f"Report:     {report}: open it in a browser; curves, APs, the best and worst images")
    print(f"Pictures:   {output / 'overview.png'}, {output / 'loss_curve.png'}")
    print(f"Figures:    {output / 'results.md'}")
    print(f"Model:      {output / 'model_final.pth'}, {output / 'config.yaml'}")
    minutes, seconds = divmod(round(demo.seconds), 60)
    print(f"Total time: {minutes} min {seconds} s")


if __name__ == "__main__":
    main()
