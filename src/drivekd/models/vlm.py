"""Model families as rows of data; loading, saving and the named parts of a loaded model.

Only checkpoints in transformers' layout are read (`*-hf` InternVL3 and 3.5, Qwen2.5-VL, Qwen3-VL),
so everything saved here loads in plain transformers and the other way round.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerFast as Tokenizer

from drivekd.files.writing import write_json
from drivekd.models import hub
from drivekd.models.offload import refuse_absent
from drivekd.models.quiet import hush_quantised, quiet

ASSETS = Path(__file__).resolve().parent.parent / "assets"
WORLD = "world:"


@dataclass(frozen=True, slots=True)
class Family:
    """The differences between model families, as data.

    Attributes:
        name: how recipes and errors call the family.
        model_type: `config.model_type` of its checkpoints.
        image_start: token in front of every image.
        image_token: the token that is repeated once per visual token.
        image_end: token behind every image.
        image_processor: class of the Pillow back end (the other one needs torchvision).
        processor: class named in the saved processor file, for users of `AutoProcessor`.
        video_processor: the same for videos.
        vision: modules that turn pixels into visual tokens, in order.
        rope_axes: 1 for plain positions, 3 for time, height and width.
        one_size: True where every image is resized to one square and takes equally many tokens.
        crossed: True where separate decoder layers attend to images, which then are one token
            each in the sequence: such models answer (models/crossed.py), nothing else.
    """

    name: str
    model_type: str
    image_start: str
    image_token: str
    image_end: str
    image_processor: str
    processor: str
    video_processor: str
    vision: tuple[str, ...]
    rope_axes: int
    one_size: bool
    crossed: bool = False


_INTERNVL = Family(  # InternVL3 with Qwen2 and InternVL3.5 with Qwen3 as decoder
    name="internvl",
    model_type="internvl",
    image_start="<img>",
    image_token="<IMG_CONTEXT>",  # noqa: S106  a marker, no secret
    image_end="</img>",
    image_processor="GotOcr2ImageProcessorPil",
    processor="InternVLProcessor",
    video_processor="InternVLVideoProcessor",
    vision=("model.vision_tower", "model.multi_modal_projector"),
    rope_axes=1,
    one_size=True,
)
_QWEN2_5 = Family(
    name="qwen2_5_vl",
    model_type="qwen2_5_vl",
    image_start="<|vision_start|>",
    image_token="<|image_pad|>",  # noqa: S106
    image_end="<|vision_end|>",
    image_processor="Qwen2VLImageProcessorPil",
    processor="Qwen2_5_VLProcessor",
    video_processor="Qwen2VLVideoProcessor",
    vision=("model.visual",),
    rope_axes=3,
    one_size=False,
)
_QWEN3 = replace(
    _QWEN2_5,
    name="qwen3_vl",
    model_type="qwen3_vl",
    processor="Qwen3VLProcessor",
    video_processor="Qwen3VLVideoProcessor",
)
#: students and teachers
FAMILIES = {family.name: family for family in (_INTERNVL, _QWEN2_5, _QWEN3)}

#: asked and scored only, for comparison
LLAMA = Family(  # Llama-3.2-Vision
    name="llama3_2_vision",
    model_type="mllama",
    image_start="",
    image_token="<|image|>",  # noqa: S106
    image_end="",
    image_processor="MllamaImageProcessorPil",
    processor="MllamaProcessor",
    video_processor="",
    vision=("model.vision_model", "model.multi_modal_projector"),
    rope_axes=1,
    one_size=False,
    crossed=True,
)


@dataclass(frozen=True, slots=True)
class Vlm:
    """A model with all that is needed to feed it."""

    model: PreTrainedModel
    tokenizer: Tokenizer
    image_processor: Any
    family: Family
    source: str

    @property
    def device(self) -> torch.device:
        """Where the input embeddings live; batches are made there."""
        embeddings: Any = self.model.get_input_embeddings()
        return torch.device(embeddings.weight.device)

    @property
    def image_token_id(self) -> int:
        """Id of the token that is repeated once per visual token."""
        return int(self.model.config.image_token_id)


def load(
    source: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    num_layers: int | None = None,
    max_image_tokens: int = 256,
    head: bool = True,
    answering: bool = False,
) -> Vlm:
    """Load a model, its tokenizer and its image processor, in evaluation mode.

    Code that comes with a checkpoint is never run.

    Args:
        source: a folder, a hub id, or `world:NAME` for a model shipped with this package.
        device: where the weights go.
        dtype: of the weights.
        num_layers: keep only that many decoder layers, whose attention is unchanged [ours].
        max_image_tokens: cap on visual tokens per image where the family adapts to the size of
            the image; without it Qwen2.5-VL spends 1,222 on a 1600x900 camera [ours].
        head: refuse a checkpoint without language-model head; transformers would fill it with
            random numbers [ours]. A teacher of attention needs none.
        answering: accept a family that can answer but not be trained.

    Raises:
        ValueError: the source is no model, the family is not supported, or the model lacks so many
            layers or the head.
    """
    config, place = config_of(source, answering=answering), hub.at_hand(locate(source))
    family = family_of(config, str(source), answering=answering)
    if num_layers is not None:
        cut_layers(config.text_config, num_layers, str(source))
    refuse_absent(device)
    if getattr(config, "quantization_config", None):
        hush_quantised()
    with quiet(), _complete(source):
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            place,
            config=config,
            dtype=dtype,
            attn_implementation="sdpa",
            trust_remote_code=False,
            output_loading_info=True,
        )
        tokenizer: Any = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        # By name: AutoImageProcessor of older releases asks for torchvision.
        image_processor = getattr(transformers, family.image_processor).from_pretrained(place)
    model, report = loaded
    if head and any(name.startswith("lm_head.") for name in report["missing_keys"]):
        raise ValueError(
            f"model {str(source)!r} has no language-model head: its checkpoint lacks "
            "lm_head.weight and does not tie it to the embeddings; expected a complete model"
        )
    tokenizer.padding_side = "right"
    _single_tile(image_processor, family, config, max_image_tokens)
    return Vlm(model.to(device).eval(), tokenizer, image_processor, family, str(source))


@contextmanager
def _complete(source: str | Path) -> Iterator[None]:
    """Name the model whose weights are missing or cut off."""
    try:
        yield
    except OSError as error:
        if "no file named" not in str(error):
            raise
        raise ValueError(
            f"model {str(source)!r} has no weights: expected model.safetensors, or several with "
            "model.safetensors.index.json; copy or download it again"
        ) from error
    except SafetensorError as error:
        raise ValueError(
            f"model {str(source)!r}: its weights are damaged or cut off ({error}); copy or "
            "download it again, or take an earlier checkpoint"
        ) from error


def save(
    vlm: Vlm,
    folder: str | Path,
    weights: Mapping[str, torch.Tensor] | None = None,
    *,
    shard_size: str = "50GB",
) -> None:
    """Write model (safetensors), tokenizer, image processor and processor files into a folder.

    The processor files make `AutoProcessor` work for users who have torchvision; they are written
    by hand because the processor classes cannot be built without it. `weights` are given by name
    where the model itself does not hold all of them.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with quiet():
        state = dict(weights) if weights else None
        vlm.model.save_pretrained(folder, state_dict=state, max_shard_size=shard_size)
    save_readers(vlm, folder)


def save_readers(vlm: Vlm, folder: Path) -> None:
    """Write the tokenizer and the processors, and nothing of the model."""
    vlm.tokenizer.save_pretrained(folder)
    vlm.image_processor.save_pretrained(folder)
    processor: dict[str, Any] = {"processor_class": vlm.family.processor}
    video: dict[str, Any] = {"video_processor_type": vlm.family.video_processor}
    if vlm.family.one_size:
        processor["image_seq_length"] = vlm.model.config.image_seq_length
        video["size"] = _square(vlm.model.config)
    else:
        for name in ("patch_size", "temporal_patch_size", "merge_size"):
            video[name] = getattr(vlm.image_processor, name)
    for name, content in (("processor_config", processor), ("video_preprocessor_config", video)):
        write_json(folder / f"{name}.json", content)


def locate(source: str | Path) -> str:
    """Resolve `world:NAME` to the folder inside this package; leave everything else alone."""
    text = str(source)
    if not text.startswith(WORLD):
        return text
    folder = ASSETS / text.removeprefix(WORLD)
    if not (folder / "config.json").is_file():
        shipped = sorted(p.parent.name for p in ASSETS.glob("*/config.json"))
        raise ValueError(
            f"model {text!r}: no model of that name is shipped; "
            f"expected one of {', '.join(WORLD + name for name in shipped) or '(none)'}"
        )
    return str(folder)


def family_of(config: Any, source: str, *, answering: bool = False) -> Family:
    """Return the family of a model configuration; a ValueError refuses unsupported ones."""
    for family in FAMILIES.values():
        if config.model_type == family.model_type:
            return family
    supported = ", ".join(f.model_type for f in FAMILIES.values())
    if config.model_type == LLAMA.model_type:
        if answering:
            return LLAMA
        raise ValueError(
            f"model {source!r}: Llama-3.2-Vision is not supported for training, and its attention "
            "cannot be read: its image tokens are outside the sequence, in cross-attention layers, "
            "so no text row of its self-attention reaches an image. It can be asked and evaluated; "
            f"here use a model of one of {supported}"
        )
    raise ValueError(
        f"model {source!r}: model_type {config.model_type!r} is not supported; expected one of "
        f"{supported}. Use a checkpoint in transformers' own layout (its name often ends in -hf)."
    )


def language_model(vlm: Vlm) -> nn.Module:
    """Return the decoder without its head."""
    return vlm.model.get_submodule("model.language_model")


def decoder_layers(vlm: Vlm) -> nn.ModuleList:
    """Return the decoder's layers, first to last."""
    layers = vlm.model.get_submodule("model.language_model.layers")
    assert isinstance(layers, nn.ModuleList)
    return layers


def lm_head(vlm: Vlm) -> nn.Module:
    """Return the map from hidden states to vocabulary logits."""
    return vlm.model.get_submodule("lm_head")


def head_weight(vlm: Vlm) -> torch.Tensor:
    """Return the weight [V, d] of the language-model head, which has no bias in any family."""
    weight = lm_head(vlm).weight
    assert isinstance(weight, torch.Tensor)
    return weight


def vision_parts(vlm: Vlm) -> list[nn.Module]:
    """Return the modules that turn pixels into visual tokens (vision tower and projector)."""
    return [vlm.model.get_submodule(name) for name in vlm.family.vision]


def config_of(source: str | Path, *, answering: bool = False) -> Any:
    """Read the configuration of a model; a ValueError refuses no model and other families."""
    place = hub.at_hand(locate(source))
    try:
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(
            f"model {str(source)!r} cannot be read; expected a folder with config.json, a hub id "
            f"or world:NAME ({first})"
        ) from error
    family_of(config, str(source), answering=answering)
    return config


def cut_layers(text_config: Any, num_layers: int, source: str) -> None:
    """Let a configuration describe the lower layers only."""
    depth = text_config.num_hidden_layers
    if not 1 <= num_layers <= depth:
        raise ValueError(
            f"model {source!r}: num_layers={num_layers}, expected 1 to {depth}, which it has"
        )
    text_config.num_hidden_layers = num_layers
    if getattr(text_config, "layer_types", None):
        text_config.layer_types = list(text_config.layer_types)[:num_layers]


def _single_tile(image_processor: Any, family: Family, config: Any, max_image_tokens: int) -> None:
    """Set one tile per image at the tower's size, or a cap on the number of visual tokens."""
    if family.crossed:  # its tiles take no room in the sequence
        return
    if family.one_size:
        image_processor.crop_to_patches = False
        image_processor.size = type(image_processor)(size=_square(config)).size
        return
    cell = (image_processor.patch_size * image_processor.merge_size) ** 2
    longest = min(int(image_processor.size["longest_edge"]), max_image_tokens * cell)
    shortest = min(int(image_processor.size["shortest_edge"]), longest)
    size = {"shortest_edge": shortest, "longest_edge": longest}
    image_processor.size = type(image_processor)(size=size).size


def _square(config: Any) -> dict[str, int]:
    height, width = config.vision_config.image_size
    return {"height": int(height), "width": int(width)}
