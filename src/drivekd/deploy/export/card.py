"""The model card of an exported folder: its source's card with a section on the export."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drivekd.deploy.serving.production import commands

HEADING = "## Export"


def text(card: str | None, facts: Mapping[str, Any], folder: Path) -> str:
    """Write the card of an export from its source's, None where that has none.

    `facts` are those of `export.json`; `folder` is the one that the export gets.
    """
    card = _new_card(facts, folder) if card is None else _without_section(card)
    return f"{card.rstrip()}\n\n{HEADING}\n\n{_section(facts, folder)}\n"


def _new_card(facts: Mapping[str, Any], folder: Path) -> str:
    """Write the head of a card; a model of the hub is named in the way that the hub links."""
    meta = {"library_name": "transformers", "pipeline_tag": "image-text-to-text"}
    if re.fullmatch(r"[\w.-]+/[\w.-]+", facts["source"]) and not Path(facts["source"]).exists():
        meta = {"base_model": facts["source"], **meta}
    lines = "\n".join(f"{name}: {value}" for name, value in meta.items())
    return f"---\n{lines}\ntags: [drivekd, autonomous-driving]\n---\n\n# {_code(folder.name)}"


def _without_section(card: str) -> str:
    return re.sub(rf"(?ms)^{HEADING}\n.*?(?=^## |\Z)", "", card)


def _section(facts: Mapping[str, Any], folder: Path) -> str:
    before, after = (facts["weights_mb"][side] for side in ("source", "export"))
    rows = [
        ("model", _code(facts["source"])),
        *([("adapter, added to its weights", _code(facts["adapter"]))] if facts["adapter"] else []),
        ("layout", _LAYOUTS[facts["format"]]),
        ("type of the weights", f"{facts['dtype']} (the source's: {facts['source_dtype']})"),
        ("quantised", _quantised(facts)),
        ("weights on disk", f"{after:.1f} MB (the source's: {before:.1f} MB)"),
        ("checked", checked(facts)),
        ("by", f"drivekd {facts['drivekd']}, transformers {facts['transformers']}"),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"| | |\n| --- | --- |\n{table}\n\n{_use(facts, folder)}"


_LAYOUTS = {
    "hf": "that of transformers",
    "internvl-chat": "`InternVLChatModel`, the code on the hub",
}


def _quantised(facts: Mapping[str, Any]) -> str:
    if facts["quantise"] is None:
        return "no"
    left = ", ".join(_code(name) for name in facts["unquantised"])
    return (
        f"{facts['quantise']} by bitsandbytes: the decoder's {facts['quantised_layers']} linear "
        f"layers, weights only, without calibration; as they were: {left}, embeddings and norms"
    )


def checked(facts: Mapping[str, Any]) -> str:
    """Say what reading the folder back has shown."""
    check = facts["check"]
    if check is None:
        return "no"
    if "round_trip" in check:
        return f"{check['round_trip']} tensors read back and renamed to transformers' are bit-equal"
    same = f"{check['equal']} of {check['questions']} greedy answers in plain transformers"
    return f"{same} equal the source's ({check['tokens']} of {check['of']} tokens)"


def _use(facts: Mapping[str, Any], folder: Path) -> str:
    place = folder.name
    if facts["format"] == "internvl-chat":
        return (
            "This layout needs the code of the original InternVL3 or 3.5 repository of its size: "
            "copy its `*.py` files here. Servers that read it take\n\n"
            f"{_shell(commands(place, facts['family'], code=True))}{_NOT_RUN}"
        )
    tiles = ""
    if facts["family"] == "internvl":
        tiles = (
            " It was trained on one tile per picture, and the class of its processor makes several "
            "by default: pass `crop_to_patches=False` to `AutoProcessor`'s call."
        )
    served = commands(place, facts["family"], quantised=facts["quantise"] is not None)
    return (
        "Plain transformers loads it with `AutoModelForImageTextToText.from_pretrained`"
        f"{', and bitsandbytes beside it' if facts['quantise'] else ''}.{tiles} Servers take\n\n"
        f"{_shell(served)}{_NOT_RUN}"
    )


def _shell(lines: list[str]) -> str:
    return "```sh\n" + "\n".join(lines) + "\n```\n\n"


_NOT_RUN = "These servers were not run with this folder; `drivekd export` checks no server."


def _code(value: object) -> str:
    flat = " ".join(str(value).split()).replace("|", r"\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", flat)), default=0))
    return f"{fence}{flat}{fence}"
