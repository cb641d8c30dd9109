"""Lanes and captures of a network of DeiT-tiny's size, with the inside of attention in float and in integers.

``python -m benchmarks.attention``; random weights, 224×224, batch 8. Everything in passes of the float model.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.timing import Ratio, ratio
from qkit.execution.capture import capture
from qkit.execution.lanes import Lane, run_lanes
from qkit.execution.observing import observe
from qkit.graph import build
from qkit.quant.arithmetic import FLOAT_INSIDE, FORMS, FULL_INTEGER
from qkit.quant.calibration import make_plan
from qkit.quant.plan import Plan
from qkit.quant.schemes import scheme_of
from qkit.zoo.attention import Block

WIDTH, HEADS, DEPTH, PATCH = 192, 3, 12, 16


class DeiTTiny(nn.Module):
    """Blocks, widths and tokens of DeiT-tiny (Touvron et al. 2021): 1.3 G multiply-accumulates an image."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH) * 0.02)
        self.position = nn.Parameter(torch.randn(1, (224 // PATCH) ** 2 + 1, WIDTH) * 0.02)
        self.blocks = nn.Sequential(*(Block(WIDTH, HEADS) for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 1000)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat((self.token.expand(len(tokens), -1, -1), tokens), dim=1) + self.position
        out: Tensor = self.head(self.norm(self.blocks(tokens))[:, 0])
        return out


def measure(repeats: int) -> dict[str, Ratio]:
    """Ratios to the float model's pass, by what was measured."""
    torch.manual_seed(0)
    model, x = DeiTTiny().eval(), torch.randn(8, 3, 224, 224)
    graph = build(model, x)
    seen = observe(graph, [x], progress=False)
    plans: dict[str, Plan] = {}
    for scheme in (scheme_of("int8"), scheme_of("int8").at_bits(16)):
        plans[scheme.name] = make_plan(graph, seen, scheme, method="minmax")

    def float_pass() -> None:
        with torch.inference_mode():
            model(x)

    found = {}
    timed = partial(ratio, reference=float_pass, repeats=repeats)
    narrow, wide = plans.values()
    inside = {"float inside": FLOAT_INSIDE}
    inside |= {f"{name} in integers": FLOAT_INSIDE.with_form(name, getattr(FULL_INTEGER, name)) for name in FORMS}
    inside |= {"full integer": FULL_INTEGER}
    for what, arithmetic in inside.items():
        lane = Lane("q", replace(narrow, arithmetic=arithmetic))
        found[f"int8 lane, {what}"] = timed(lambda lane=lane: run_lanes(graph, [lane], (x,)))
    for what, arithmetic in (("float inside", FLOAT_INSIDE), ("full integer", FULL_INTEGER)):
        lanes = {
            "int16": replace(wide, arithmetic=arithmetic.at_bits(16)),
            "int8": replace(narrow, arithmetic=arithmetic),
        }
        found[f"capture of three lanes, {what}"] = timed(lambda lanes=lanes: capture(graph, [x], lanes, progress=False).table())
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    for what, found in measure(parser.parse_args().repeats).items():
        print(f"{what:45} {found}", flush=True)


if __name__ == "__main__":
    main()
