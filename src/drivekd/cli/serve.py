"""`drivekd serve`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

SERVE = "Example: drivekd serve --model out/try/final --served-name driver --key-env SERVE_KEY"


def serve(
    model: Annotated[str, typer.Option("--model", help="Folder, hub id or world:NAME.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; the default is for this machine only.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    key_env: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Variable with the key that clients must send."),
    ] = None,
    served_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="What clients call it; by default MODEL.")
    ] = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 8,
    max_waiting: Annotated[
        int, typer.Option(min=1, help="More that wait; then come 429 and Retry-After.")
    ] = 64,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 512,
    max_context: Annotated[
        int, typer.Option(min=1, help="Longest conversation with its answer [tokens].")
    ] = 8192,
    max_body_mb: Annotated[int, typer.Option(min=1, help="Largest request [MB].")] = 32,
    max_images: Annotated[int, typer.Option(min=1, help="Pictures of a request.")] = 16,
    max_image_pixels: Annotated[
        int, typer.Option(min=1, help="Largest picture, width times height [px].")
    ] = 1 << 24,
    device: Annotated[str, typer.Option(help="Where the model runs, for example cuda.")] = "cpu",
    dtype: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="Of the model's weights.")
    ] = "float32",
) -> None:
    """Answer chat requests in OpenAI's protocol: a small server for machines without vLLM.

    Waiting requests run together; those that come later wait for the end of the batch. Production
    traffic belongs on vLLM or SGLang, with the exported folder:
    `vllm serve FOLDER` or `python -m sglang.launch_server --model-path FOLDER`.
    """
    from drivekd.deploy.serving.limits import Limits
    from drivekd.deploy.serving.serve import serve as run

    limits = Limits(
        max_batch=max_batch,
        max_waiting=max_waiting,
        max_new_tokens=max_new_tokens,
        max_context=max_context,
        max_body_mb=max_body_mb,
        max_images=max_images,
        max_image_pixels=max_image_pixels,
    )
    run(
        model,
        limits,
        host=host,
        port=port,
        key_env=key_env,
        served_name=served_name,
        device=device,
        dtype=dtype,
    )
