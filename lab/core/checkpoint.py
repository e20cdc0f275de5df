"""Models in files, as Hugging Face lays them out: config.json, *.safetensors, tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from lab.core.config import ModelConfig, from_hugging_face, to_hugging_face
from lab.files import replacing, write_text

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHIPPED = Path(__file__).parents[1] / "models"  # a folder for each model that comes with `lab`


class CheckpointError(ValueError):
    """A folder that a model cannot be loaded from; the message names the file, and the tensor if it is one's fault."""


def read_config(folder: Path) -> ModelConfig:
    """The config.json of `folder`. Raises CheckpointError."""
    path = folder / "config.json"
    raw = _json(path)
    try:
        return from_hugging_face(raw)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def read_weights(
    folder: Path, shapes: Mapping[str, torch.Size], dtype: torch.dtype | None, device: torch.device
) -> dict[str, Tensor]:
    """The tensors named in `shapes`, out of model.safetensors or the files that its index names. All are there and of
    those shapes, or it raises CheckpointError.

    dtype: None means that of the first tensor of `shapes`, the embedding.
    """
    files = _files(folder)
    weights: dict[str, Tensor] = {}
    stored_as: dict[str, str] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                for stored in file.keys():  # noqa: SIM118  it is no dict
                    name = stored.removeprefix("model.")
                    if name.endswith("rotary_emb.inv_freq"):  # in old checkpoints; follows from the config
                        continue
                    weights[name], stored_as[name] = file.get_tensor(stored), stored
        except SafetensorError as error:
            raise CheckpointError(f"{path}: is not a complete safetensors file: {error}") from error
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from error
    where = files[0] if len(files) == 1 else folder / INDEX
    _drop_tied_head(weights, shapes, where)
    for name in (*shapes, *weights):
        if name not in weights:
            raise CheckpointError(f"{where}: tensor {_stored(name)} is missing")
        if name not in shapes:
            raise CheckpointError(f"{where}: tensor {stored_as[name]} has no place in this model")
        if weights[name].shape != shapes[name]:
            raise CheckpointError(
                f"{where}: tensor {_stored(name)} has shape {tuple(weights[name].shape)}; expected "
                f"{tuple(shapes[name])}, as config.json says"
            )
        if not weights[name].is_floating_point() or weights[name].dtype.itemsize < 2:
            raise CheckpointError(
                f"{where}: tensor {_stored(name)} has dtype {weights[name].dtype}; "
                "expected floating point of 16 bits or more"
            )
    dtype = dtype or weights[next(iter(shapes))].dtype
    return {name: weight.to(dtype) for name, weight in weights.items()}


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer.json of `folder`, if it has one. Raises CheckpointError."""
    path = folder / "tokenizer.json"
    if not path.exists():
        return None
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no class of its own
        raise CheckpointError(f"{path}: is not a tokenizer: {error}") from error


def write(folder: Path, config: ModelConfig, weights: Mapping[str, Tensor], tokenizer: Tokenizer | None) -> None:
    """Write what the readers above read; each file is complete or not there, the weights in one.

    Raises CheckpointError if the folder holds a model in several files: it would be read and not this one."""
    if (folder / INDEX).exists():
        raise CheckpointError(f"{folder / INDEX}: is there already; expected a folder without a model in several files")
    stored = {_stored(name): weight.detach().contiguous() for name, weight in weights.items()}
    with replacing(folder / WEIGHTS) as path:
        save_file(stored, path, metadata={"format": "pt"})
    if tokenizer is None:
        (folder / "tokenizer.json").unlink(missing_ok=True)  # it would be taken for this model's
    else:
        with replacing(folder / "tokenizer.json") as path:
            tokenizer.save(str(path))
    dtype = next(iter(stored.values())).dtype
    write_text(folder / "config.json", json.dumps(to_hugging_face(config, dtype), indent=2) + "\n")


def _files(folder: Path) -> list[Path]:
    """The safetensors files of the model."""
    if (folder / INDEX).exists():
        places = _json(folder / INDEX).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
            raise CheckpointError(f"{folder / INDEX}: weight_map is missing; expected a file name for each tensor")
        names = sorted(set(places.values()))
        for name in names:
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise CheckpointError(f"{folder / INDEX}: names {name!r}; expected a *.safetensors file of this folder")
            if not (folder / name).exists():
                raise CheckpointError(f"{folder / name}: is missing; {INDEX} names it")
        return [folder / name for name in names]
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    pickles = [path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in sorted(folder.glob(pattern))]
    why = f"; {pickles[0]} is a pickle, which can run any code and is not read" if pickles else ""
    raise CheckpointError(f"{folder}: has no {WEIGHTS} and no {INDEX}{why}")


def _drop_tied_head(weights: dict[str, Tensor], shapes: Mapping[str, torch.Size], where: Path) -> None:
    """Some files hold a tied head a second time."""
    if "lm_head.weight" in weights and "lm_head.weight" not in shapes:
        head, embedding = weights.pop("lm_head.weight"), weights.get("embed_tokens.weight")
        if embedding is None or not torch.equal(head, embedding):
            raise CheckpointError(
                f"{where}: tensor lm_head.weight differs from model.embed_tokens.weight, but config.json says "
                "tie_word_embeddings"
            )


def _stored(name: str) -> str:
    """A weight's name in a file."""
    return name if name.startswith("lm_head.") else f"model.{name}"


def _json(path: Path) -> dict:
    try:
        raw = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: is not there") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: holds a {type(raw).__name__}; expected an object")
    return raw
