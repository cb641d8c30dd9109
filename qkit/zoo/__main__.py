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
from qkit.zoo.train import Recipe, scores, train, with_epochs

app = typer.Typer(add_completion=False, no_args_is_help=True, help="The checkpoints that qkit ships and tests with.")


@app.command("list")
def list_names() -> None:
    """List the checkpoints."""
    for name in names():
        typer.echo(f"{name}: {DESCRIPTIONS[name]}")


@app.command("train")
def train_checkpoints(
    wanted: Annotated[list[str], typer.Argument(metavar="NAME...", help="Checkpoints to train, or all; `list` shows them.")],
    out: Annotated[Path, typer.Option(help="Folder for the weights and the cards.")] = Path("data"),
    seed: Annotated[int, typer.Option(help="Of weights and batches.")] = 0,
    epochs: Annotated[int | None, typer.Option(min=1, help="Instead of the recipe's.")] = None,
) -> None:
    """Train checkpoints on the digits, in minutes on a CPU, and write their weights and cards."""
    try:
        recipes = {name: with_epochs(name, epochs) for name in (names() if wanted == ["all"] else wanted)}
        for name, recipe in recipes.items():
            _train(name, recipe, seed, out)
    except QkitError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error


def _train(name: str, recipe: Recipe, seed: int, out: Path) -> None:
    model = train(name, seed, recipe)
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
