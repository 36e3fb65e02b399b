"""Training runs: ``pretrain`` and ``finetune``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from multimae_eo.api.loading import load_encoder, load_pretrained, load_source
from multimae_eo.errors import ConfigError

if TYPE_CHECKING:
    from multimae_eo.network.multimae import MultiMAE
    from multimae_eo.network.predictor import Predictor
    from multimae_eo.sources.base import Source
    from multimae_eo.train.run import RunResult


def pretrain(
    recipe: str | Path,
    *,
    data: Source | str | Path,
    out: str | Path,
    init: MultiMAE | str | Path | None = None,
    device: str | None = None,
    precision: str | None = None,
    overrides: Sequence[str] = (),
) -> RunResult:
    """Pre-train a masked autoencoder; called again with the same arguments, it resumes.

    Args:
        recipe: Name of a recipe of the package, or path of a YAML file.
        data: A source, or what ``open_source`` opens.
        out: Run folder: ``recipe.yaml``, ``metrics.csv``, ``checkpoints/``, ``model/``,
            ``report.html``.
        init: Model to start from.
        device: auto, cpu, cuda, cuda:N or mps (default: the recipe's ``run.accelerator``).
        precision: auto, 32-true, bf16-mixed or 16-mixed (default: the recipe's ``run.precision``).
        overrides: Options of the recipe, as in ``--optim.lr=3e-4``.

    Returns:
        The run: ``model`` (the folder), ``metrics`` of the last validation, ``seconds``.

    Raises:
        ConfigError: an unknown recipe or option, a recipe that does not fit the data, or another
        run in ``out``. TrainingError: the loss is not finite.
    """
    from multimae_eo.train.pretrain import InitialModel
    from multimae_eo.train.pretrain import pretrain as run
    from multimae_eo.train.recipe import load_recipe
    from multimae_eo.train.resumed import begun_options
    from multimae_eo.train.run import run_options

    options = [*overrides, *begun_options(Path(out), overrides)]
    loaded = load_recipe(str(recipe), [*options, *run_options(device, precision)])
    source, spec = load_source(data)
    start = None
    if init is not None:
        first = load_pretrained(init)
        start = InitialModel(model=first.model, name=first.name, digest=first.digest)
    return run(loaded, source, Path(out), spec=spec, init=start)


def finetune(
    model: MultiMAE | Predictor | str | Path | None,
    *,
    data: Source | str | Path,
    task: str,
    out: str | Path,
    inputs: Sequence[str] | None = None,
    head: str | None = None,
    recipe: str | Path | None = None,
    device: str | None = None,
    precision: str | None = None,
    overrides: Sequence[str] = (),
) -> RunResult:
    """Fine-tune a model on labels; called again with the same arguments, it resumes.

    Args:
        model: A pre-trained or fine-tuned model, or its folder; None for a random initialisation.
        data: A source with labels, or what ``open_source`` opens.
        task: classification, segmentation or regression.
        out: Run folder.
        inputs: Modalities (default: all that model and data share).
        head: linear; for maps also convnext, upernet or dpt (default: the recipe's).
        recipe: Path of a YAML file (default: the defaults of ``FinetuneRecipe``).
        device: auto, cpu, cuda, cuda:N or mps (default: the recipe's ``run.accelerator``).
        precision: auto, 32-true, bf16-mixed or 16-mixed (default: the recipe's ``run.precision``).
        overrides: Options of the recipe, as in ``--optim.lr=3e-4``.

    Returns:
        The run: ``model`` (the folder), ``metrics`` of the best validation, ``seconds``.

    Raises:
        ConfigError: unknown options, a recipe that does not fit the data, or another run in
        ``out``. DataError: no labels, or labels that do not suit the task. TrainingError: the loss
        is not finite.
    """
    from multimae_eo.train.finetune import finetune as run
    from multimae_eo.train.finetune_recipe import load_finetune
    from multimae_eo.train.run import run_options

    given = [f"--task={task}"]
    if inputs is not None:
        given.append(f"--inputs=[{','.join(inputs)}]")
    if head is not None:
        given.append(f"--head.name={head}")
    loaded = load_finetune(
        None if recipe is None else Path(recipe),
        [*given, *overrides, *run_options(device, precision)],
    )
    if model is not None and any(o.startswith("--model.") for o in overrides):
        raise ConfigError("--model.… describes a new encoder: give it with --model none")
    first = None if model is None else load_encoder(model)
    source, spec = load_source(data)
    return run(
        loaded,
        source,
        Path(out),
        model=None if first is None else first.model,
        init={"model": "none", "hash": ""}
        if first is None
        else {"model": first.name, "hash": first.digest},
        spec=spec,
    )
