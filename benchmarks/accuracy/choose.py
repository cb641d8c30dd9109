"""``python -m benchmarks.accuracy.choose``: how the settings of training were chosen, on training images alone.

640 of the 800 training images train, 160 tell which settings do best, for the network that has something to recover, with
weights per tensor and with scales that are powers of two, each from the calibrated study. The images that the table's scores
come from are not looked at. The float networks have been trained on all 800, so these scores are no estimate of anything; they
only rank settings. The best setting is that with the lowest held-out loss in its worse case.
"""

from __future__ import annotations

import argparse
import itertools
import math
import multiprocessing
import os
from dataclasses import replace
from functools import partial

from rich.console import Console
from rich.table import Table
from torch.utils.data import TensorDataset
from tqdm.auto import tqdm

from benchmarks.accuracy.compute import BEFORE_TRAINING, Settings, on_images, quiet, train
from qkit import zoo
from qkit.errors import QkitError
from qkit.study import Study
from qkit.zoo.digits import digits, loader

#: Network, scheme, seed.
CASES = (("mobilenet_v2_hostile", "int8-per-tensor", 0), ("mobilenet_v2_hostile", "int8-power-of-two", 1))
FITTED = 640
NORMS = (0, 2)
EPOCHS = 6
RATES = (1e-4, 1e-3)

#: Network, scheme, seed, whether steps are learned, from which epoch on norms are frozen, rate.
Trial = tuple[str, str, int, bool, int, float]


def main() -> None:
    """Train with every setting, print the held-out losses, the lowest worst one first."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--norms", type=int, nargs="+", default=NORMS, help="epochs from which on batch norms are frozen")
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--device")
    options = parser.parse_args()
    ways = list(itertools.product((False, True), options.norms, options.rates))
    trials = [(*case, *way) for case in CASES for way in ways]
    os.environ["OMP_NUM_THREADS"] = "1"
    work = partial(held_out, epochs=options.epochs, device=options.device)
    with multiprocessing.get_context("spawn").Pool(options.jobs, initializer=quiet) as pool:
        found = {}
        for trial, told in tqdm(pool.imap_unordered(work, trials), total=len(trials), unit="training"):
            found[trial] = told
            tqdm.write(f"{trial}: {told}")
    table = Table("steps", "norms frozen from", "rate", *(f"{scheme}: held-out loss (top-1)" for _, scheme, _ in CASES))
    for way in sorted(ways, key=lambda way: max(found[*case, *way][0] for case in CASES)):
        learned, norms, rate = way
        told = [f"{loss:.4f} ({share:.4f})" for loss, share in (found[*case, *way] for case in CASES)]
        table.add_row("learned" if learned else "followed", str(norms), f"{rate:g}", *told)
    Console(width=120).print(table)


def held_out(trial: Trial, epochs: int, device: str | None) -> tuple[Trial, tuple[float, float]]:
    """Loss and top-1 on the 160 images after training on the 640."""
    name, scheme, seed, learned, norms, rate = trial
    images, labels = digits().train.tensors
    seen = TensorDataset(images[:FITTED], labels[:FITTED])
    settings = replace(Settings(), epochs=epochs, rate=rate, learn_steps=learned, freeze_norms_at=norms)
    calibration = loader(TensorDataset(images[:256], labels[:256]))
    start = Study(zoo.load(name).model, calibration, metric="top1", scheme=scheme, device=device)
    start.calibrate(progress=False)
    start = start.ptc(BEFORE_TRAINING, progress=False)
    try:
        trained, _ = train(start, settings, seen, seed, device)
    except QkitError:  # it diverged
        return trial, (math.inf, 0.0)
    return trial, on_images(trained, loader(TensorDataset(images[FITTED:], labels[FITTED:])))


if __name__ == "__main__":
    main()
