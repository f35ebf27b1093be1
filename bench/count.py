"""Launches, bytes, FLOP and milliseconds at the ceilings of an update.  python -m bench.count --what world_model

By class of op, then the largest ops by their name and the shapes of their first two tensors and the last. Nothing is
run: mow/estimate/count.py holds what is counted and the ceilings.
"""

import argparse
from collections.abc import Mapping, Sequence

from bench.learners import action_mask
from mow.estimate.count import PARTS, Work, count
from mow.methods.mow.presets import PRESETS


def table(rows: Mapping[str, Work], most: int) -> str:
    """The largest rows by their milliseconds, in lines."""
    largest = sorted(rows.items(), key=lambda row: -row[1].seconds)[:most]
    return "\n".join(
        f"{work.seconds * 1e3:9.2f} ms {work.launches:6,} launches {work.bytes / 1e9:8.2f} GB {work.flop / 1e12:7.3f} "
        f"TFLOP  {name}"
        for name, work in largest
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.count", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), default="atari26")
    parser.add_argument("--what", choices=PARTS, help="default: all three")
    parser.add_argument("--rows", type=int, default=20, help="ops to list (%(default)s)")
    options = parser.parse_args(arguments)
    config = PRESETS[options.preset]()
    parts = [options.what] if options.what else PARTS
    for part, counted in count(config, action_mask(len(config.tasks)), parts).items():
        print(table({f"{options.preset}, {part}": counted.total}, 1))
        print(table(counted.classes, len(counted.classes)), table(counted.ops, options.rows), "", sep="\n")


if __name__ == "__main__":
    main()
