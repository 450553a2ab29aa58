"""Compare Bayesian search with random search, on features of a frozen backbone.

    python -m pipelines.bench.tune DATASET [--trials 20] [--seeds 3] [--out FOLDER]

For each seed: `lmk-tune --cached-features --objective loss` with both strategies, EfficientNet-Lite0 and LDAM. Prints
the best validation loss of each, its test accuracy, and the minutes of the whole search. A search of 20 trials takes
about 2 minutes on 500 images and 2 cores. Exits with 1 unless the best of the Bayesian search is at or below that of
random search for two thirds of the seeds, and each search took 15 minutes at most.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

MOST_MINUTES = 15.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("bench-tune"))
    arguments = parser.parse_args()
    print("| seed | strategy | best validation loss | its test accuracy | minutes |\n|---:|---|---:|---:|---:|")
    won, longest = 0, 0.0
    for seed in range(arguments.seeds):
        losses = {}
        for strategy in ("bayesian", "random"):
            out, started = arguments.out / f"{strategy}-{seed}", time.perf_counter()
            command = [Path(sys.executable).parent / "lmk-tune", "--shards", arguments.dataset, "--out", out, "--quiet"]
            chosen = ["--strategy", strategy, "--seed", seed, "--trials", arguments.trials, "--objective", "loss"]
            chosen += ["--model", "efficientnet-lite0", "--loss", "ldam", "--cached-features"]
            subprocess.run([str(word) for word in [*command, *chosen]], check=True)
            minutes = (time.perf_counter() - started) / 60
            longest = max(longest, minutes)
            best = json.loads((out / "best.json").read_text())
            losses[strategy] = best["loss"]
            shown = f"{best['loss']:.4f} | {best['test']['accuracy']:.4f} | {minutes:.1f}"
            print(f"| {seed} | {strategy} | {shown} |", flush=True)
        won += losses["bayesian"] <= losses["random"]
    print(f"\nBayesian at or below random for {won} of {arguments.seeds} seeds; {longest:.1f} minutes at most.")
    if 3 * won < 2 * arguments.seeds or longest > MOST_MINUTES:
        sys.exit("FAILED: Bayesian search must be at or below random for two thirds of the seeds, in 15 minutes each")


if __name__ == "__main__":
    main()
