"""The commands with which servers for production take an exported folder; never run here."""

from __future__ import annotations


def commands(place: str, family: str, *, quantised: bool = False, code: bool = False) -> list[str]:
    """One command per server.

    Args:
        place: of the folder, as a shell reads it.
        family: of the model; InternVL's processor makes several tiles of a picture unless told.
        quantised: by bitsandbytes, which SGLang is not offered for.
        code: the folder needs code of its own, as InternVL's layout on the hub does.
    """
    vllm, sglang = f"vllm serve {place}", f"python -m sglang.launch_server --model-path {place}"
    if code:
        return [f"{each} --trust-remote-code" for each in (vllm, sglang)]
    if family == "internvl":
        vllm += """ --mm-processor-kwargs '{"crop_to_patches": false}'"""
    return [vllm] if quantised else [vllm, sglang]
