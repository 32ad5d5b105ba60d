"""Captured states are what leaves a layer, and nothing is left behind by capturing them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from drivekd.distill.teachers.attention import capture as capture_maps
from drivekd.distill.teachers.attention import install, stop_after
from drivekd.distill.teachers.states import capture


def model() -> PreTrainedModel:
    return Qwen2ForCausalLM(
        Qwen2Config(
            hidden_size=20,
            intermediate_size=28,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            vocab_size=61,
        )
    ).eval()


def tokens() -> Tensor:
    return torch.randint(3, 50, (2, 7))


def test_states_are_those_that_transformers_reports() -> None:
    net, ids = model(), tokens()
    with torch.no_grad():
        reported = net(ids, output_hidden_states=True).hidden_states
        with capture(net.model.layers, {0, 1, 2}) as states:
            logits = net(ids).logits
    for layer in (0, 1):  # what transformers reports last is behind the final norm
        assert torch.equal(states[layer], reported[layer + 1])
    assert torch.equal(net.lm_head(net.model.norm(states[2])), logits)
    assert states[0].shape == (2, 7, 20)


def enable_checkpointing(net: PreTrainedModel) -> None:
    # newer versions of transformers renamed it and warn about the old name
    enable = getattr(net, "activation_checkpointing_enable", None)
    (enable or net.gradient_checkpointing_enable)({"use_reentrant": False})


def test_under_checkpointing_values_and_gradients_are_the_same() -> None:
    """Three losses on one graph, one autograd.grad each, as a training step takes them."""
    net, ids = model().train(), tokens()
    parameters = list(net.model.layers.parameters())

    def gradients() -> list[Tensor]:
        with capture(net.model.layers, {0, 2}) as states:
            logits = net(ids, use_cache=False).logits
            losses = [x.square().mean() for x in (logits, states[0], states[2])]
            first = dict(states)
            rows = [
                torch.autograd.grad(
                    loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                for loss in losses
            ]
            assert all(states[layer] is first[layer] for layer in first)
        return [torch.cat([g.flatten() for g in row]) for row in rows]

    expected = gradients()
    assert all(grad.abs().sum() > 0 for grad in expected)
    enable_checkpointing(net)
    for a, b in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("last", [0, 1, 2])
def test_a_pass_that_stops_behind_a_layer_has_its_states(last: int) -> None:
    net, ids = model(), tokens()
    install(net)
    layers = net.model.layers
    ran: list[int] = []
    for index, layer in enumerate(layers):
        layer.register_forward_pre_hook(lambda *_, index=index: ran.append(index))
    wanted = set(range(last + 1))
    with torch.no_grad():
        with capture(layers, wanted) as full, capture_maps(layers, {last: None}) as maps:
            net(ids)
        ran.clear()
        with (
            capture(layers, wanted) as short,
            capture_maps(layers, {last: None}) as short_maps,
            stop_after(layers, last, whole=True),
        ):
            net(ids)
    assert ran == list(range(last + 1))
    assert all(torch.equal(full[layer], short[layer]) for layer in wanted)
    assert torch.equal(maps[last], short_maps[last])


def test_capture_says_what_went_wrong() -> None:
    net, ids = model(), tokens()
    layers = net.model.layers
    with (
        pytest.raises(ValueError, match=r"layer 4 .*1 to 3"),
        capture(layers, {0, 3}),
    ):
        pass
    with pytest.raises(ValueError, match=r"layers \[1, 3\]"), capture(layers, {0, 2}):
        pass
    with capture(layers, {0}):
        net(ids)
        with pytest.raises(ValueError, match="layer 1 ran twice"):
            net(ids)
    with (
        pytest.raises(ValueError, match="nested"),
        capture(layers, {0}),
        capture(layers, {0}),
    ):
        pass
    with pytest.raises(RuntimeError, match="theirs"), capture(layers, {0}):
        raise RuntimeError("theirs")
    assert not any(layer._forward_hooks for layer in layers)  # nothing is left behind
    with capture(layers, {0}) as states:
        net(ids)
    assert list(states) == [0]
    with capture(layers, ()) as none:
        assert none == {}
