"""``python -m qkit.zoo``: train a checkpoint of the zoo and write its weights and card."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from qkit.errors import QkitError
from qkit.zoo import checkpoints
from qkit.zoo.cards import DATA, DESCRIPTIONS
from qkit.zoo.digits import digits
from qkit.zoo.models import names
from qkit.zoo.train import scores, train, with_epochs

app = typer.Typer(add_completion=False, no_args_is_help=True, help="The checkpoints that qkit ships and tests with.")


@app.command("list")
def list_names() -> None:
    """List the checkpoints."""
    for name in names():
        typer.echo(f"{name}: {DESCRIPTIONS[name]}")


@app.command("train")
def train_checkpoint(
    name: Annotated[str, typer.Argument(help="The checkpoint to train; `list` shows them.")],
    out: Annotated[Path, typer.Option(help="Folder for the weights and the card.")] = Path("data"),
    seed: Annotated[int, typer.Option(help="Of weights, batches and rescaling.")] = 0,
    epochs: Annotated[int | None, typer.Option(min=1, help="Instead of the recipe's.")] = None,
) -> None:
    """Train a checkpoint on the digits, in minutes on a CPU, and write its weights and card."""
    try:
        recipe = with_epochs(name, epochs)
        model = train(name, seed, recipe)
    except QkitError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    splits, measured = digits(), scores(model)
    card = {
        "name": name,
        "description": DESCRIPTIONS[name],
        "data": DATA,
        "counts": {split: len(getattr(splits, split)) for split in ("train", "calibration", "evaluation")},
        "recipe": asdict(recipe),
        "seed": seed,
        "versions": checkpoints.versions(),
        "scores": measured,
    }
    weights = checkpoints.save(model, name, card, out)
    typer.echo(f"{weights}: top-1 on the evaluation split {measured['evaluation']:.4f}")


if __name__ == "__main__":
    app()
