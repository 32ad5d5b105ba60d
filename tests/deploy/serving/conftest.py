"""One tiny model, which never ends by itself, and a server of it."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from deploy.serving.chat_service import Service, serving
from drivekd.models.tiny import tiny_vlm
from drivekd.models.vlm import Vlm


@pytest.fixture(scope="session")
def vlm() -> Vlm:
    """A random model whose outputs vary."""
    return tiny_vlm("qwen2_5_vl", initializer_range=0.15, vision_hidden=32, image_size=48)


@pytest.fixture(scope="session")
def shared(vlm: Vlm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A server with room for everybody."""
    with serving(vlm, tmp_path_factory.mktemp("pictures")) as running:
        yield running


@pytest.fixture
def service(shared: Service) -> Iterator[Service]:
    """The same, at full speed; whatever a test did with it, all places are free again after."""
    shared.pause = 0.0
    shared.steps.clear()
    yield shared
    shared.pause = 0.0
    assert shared.quiet()


@pytest.fixture
def client(service: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=service.url, api_key="none", max_retries=0) as made:
        yield made
