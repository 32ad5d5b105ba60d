"""Hub ids while the hub cannot be reached: nothing waits, and a model of the cache loads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

from drivekd.models import hub, tiny, vlm

COMMIT = "0123456789" * 4


@pytest.fixture
def silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache beside a hub where nobody listens; whoever waits to ask again fails the test."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail(f"waits {seconds} s"))
    hub._answers.cache_clear()
    yield tmp_path
    hub._answers.cache_clear()


def test_an_id_that_is_not_at_hand_is_told_at_once(
    silent: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=r"^model 'some/model' .*127\.0\.0\.1"):
        vlm.load("some/model")
    assert capfd.readouterr() == ("", "")


def test_a_model_in_the_cache_is_loaded(silent: Path) -> None:
    made = tiny.tiny_vlm(text_layers=1, vision_layers=1)
    place = silent / "models--some--model"
    vlm.save(made, place / "snapshots" / COMMIT)
    (place / "refs").mkdir()
    (place / "refs/main").write_text(COMMIT)
    again = vlm.load("some/model")
    assert again.source == "some/model"
    assert torch.equal(vlm.head_weight(again), vlm.head_weight(made))
    assert again.tokenizer.get_vocab() == made.tokenizer.get_vocab()


def test_the_hub_is_asked_once_in_a_while_and_never_about_folders(
    silent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    client = huggingface_hub.get_session()
    monkeypatch.setattr(client, "head", lambda url, timeout: asked.append(url))  # it answers
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    for name in ("some/model", str(silent), "some/model"):
        assert hub.at_hand(name) == name
    assert asked == ["http://127.0.0.1:1"]
    now[0] += hub.MEMORY
    assert hub.at_hand("some/model") == "some/model"
    assert len(asked) == 2
