"""Steps per second of A2C with no teachers, for three variants in turns within one run.

- `ours`: this project's loop, with its way to step the copies of a game.
- `plain`: a script of one file in the manner of CleanRL's (`ways/control.py`), with gymnasium's `SyncVectorEnv`.
- `plain_same_games`: the same script with our way to step the copies, so that only the loops differ.

All train the same network with the same losses, optimiser and number of copies and steps. The games are one of ours,
which is played by array operations, and one of Atari, on the emulator. One thread; the seconds are those of the CPU,
since a machine may be busy, and are without those in which the games are made. Ours does more: it continues the value
of episodes that a time limit cuts, counts returns, keeps what it needs to go on after a kill, and starts each episode
of Atari from a seed of its own, for which the emulator loads the game anew.

    python benchmarks/control.py
    python benchmarks/control.py --games kt/Catch-v0 --steps 80000

The last line is JSON: `ratio_plain`, steps per second of `ours` over those of `plain`, and `ratio_loop`, over those of
`plain_same_games`, of the games the worse value each. The lines before it give steps per second.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence

import torch
from ways.control import ARCHS, WAYS

from kt.control.spec import A2C


def main(argv: Sequence[str] | None = None) -> None:
    """Time the variants in turns and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", nargs="+", choices=ARCHS, default=list(ARCHS), help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=16_000, help="of a training (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=5, help="the median counts (default: %(default)s)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    plan = A2C(steps=args.steps, evaluations=1)
    ratios: dict[str, list[float]] = {"ratio_plain": [], "ratio_loop": []}
    for name in args.games:
        speeds: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(args.turns):
            for way, train in WAYS.items():
                speeds[way].append(plan.updates * plan.batch_size / train(name, plan))
        median = {way: statistics.median(each) for way, each in speeds.items()}
        print(f"{name}: steps per second", {way: round(each) for way, each in median.items()})
        ratios["ratio_plain"].append(median["ours"] / median["plain"])
        ratios["ratio_loop"].append(median["ours"] / median["plain_same_games"])
    print(json.dumps({name: round(min(each), 3) for name, each in ratios.items()}))


if __name__ == "__main__":
    main()
