"""Captured maps equal eager ones, in value and gradient, and cost nothing they need not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from drivekd.distill.teachers import attention
from drivekd.distill.teachers.attention import capture, install, stop_after
from drivekd.method.signals import head_mean as head_mean_module
from drivekd.method.signals.head_mean import head_mean, head_mean_plain

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 61,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
IMAGE = 60


def internvl() -> PreTrainedModel:
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": [16, 16],
        "patch_size": [4, 4],
    }
    config = InternVLConfig(
        vision_config=vision,
        text_config={"model_type": "qwen2", **TEXT},
        image_token_id=IMAGE,
        downsample_ratio=0.5,
        image_seq_length=4,
    )
    return InternVLForConditionalGeneration(config).eval()


def qwen() -> PreTrainedModel:
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_heads": 2,
        "out_hidden_size": TEXT["hidden_size"],
        "patch_size": 4,
        "window_size": 16,
        "fullatt_block_indexes": [0],
    }
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    config = Qwen2_5_VLConfig(
        vision_config=vision,
        text_config={**TEXT, "rope_parameters": rope},
        image_token_id=IMAGE,
        video_token_id=59,
        vision_start_token_id=58,
        vision_end_token_id=57,
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def text_only() -> PreTrainedModel:
    return Qwen2ForCausalLM(Qwen2Config(**TEXT)).eval()


FAMILIES = {"internvl": internvl, "qwen2_5_vl": qwen, "text": text_only}


def layers_of(model: PreTrainedModel) -> torch.nn.ModuleList:
    inner = model.model
    return inner.language_model.layers if hasattr(inner, "language_model") else inner.layers


def inputs_of(name: str, *, padded: bool) -> dict[str, Tensor]:
    """Two samples with one image of four tokens each, the second right-padded if `padded`."""
    ids = torch.randint(3, 50, (2, 13))
    inputs: dict[str, Tensor] = {"input_ids": ids}
    mask = torch.ones_like(ids)
    if padded:
        mask[1, 9:] = 0
        ids[1, 9:] = 0
    inputs["attention_mask"] = mask
    if name == "internvl":
        ids[:, 2:6] = IMAGE
        inputs["pixel_values"] = torch.randn(2, 3, 16, 16)
    if name == "qwen2_5_vl":
        ids[:, 1], ids[:, 2:6], ids[:, 6] = 58, IMAGE, 57
        inputs["pixel_values"] = torch.randn(2 * 16, 3 * 2 * 4 * 4)
        inputs["image_grid_thw"] = torch.tensor([[1, 4, 4]] * 2)
        inputs["mm_token_type_ids"] = (ids == IMAGE).int()
    return inputs


def qkv(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Batch 2, heads 6 on 2 key heads, 7 positions, width 5."""
    return torch.randn(2, 6, 7, 5, dtype=dtype), torch.randn(2, 2, 7, 5, dtype=dtype)


def block_mask() -> Tensor:
    """Causal; the second sample's last two positions are padding that attends itself only."""
    mask = torch.ones(7, 7, dtype=torch.bool).tril().expand(2, 1, 7, 7).clone()
    mask[1, :, 5:] = torch.eye(7, dtype=torch.bool)[5:]
    return mask


def additive(mask: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, -torch.inf)


CAUSAL = additive(torch.ones(1, 1, 7, 7, dtype=torch.bool).tril())
MASKS: dict[str, tuple[Any, bool, Tensor]] = {
    "causal": (None, True, CAUSAL),
    "everything": (None, False, torch.zeros(1, 1, 7, 7, dtype=torch.float64)),
    "boolean": (block_mask(), True, additive(block_mask())),
    "additive": (additive(block_mask()), True, additive(block_mask())),
    "least float": (
        additive(block_mask()).clamp(min=torch.finfo(torch.float32).min),
        True,
        additive(block_mask()),
    ),
}
ROWS = {"all": None, "some": torch.tensor([1, 4, 6]), "unsorted": torch.tensor([6, 0, 5, 3])}


@pytest.mark.parametrize(("at_once", "rows_at_once"), [(1, 99), (150, 3), (250, 2), (2**20, 99)])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", MASKS)
def test_fast_map_equals_its_plain_twin(
    name: str, rows: str, at_once: int, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Value and gradient to 1e-12, one head or few rows at a time, some at a time, all at once."""
    monkeypatch.setattr(head_mean_module, "HEADS_AT_ONCE", at_once)
    monkeypatch.setattr(head_mean_module, "ROWS_AT_ONCE", rows_at_once)
    mask, causal, bias = MASKS[name]
    q, k = (x.requires_grad_() for x in qkv())
    wanted = ROWS[rows]
    plain = head_mean_plain(q, k, bias, 0.3)
    plain = plain if wanted is None else plain[:, wanted]
    fast = head_mean(q, k, mask, scale=0.3, causal=causal, rows=wanted)
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-12)
    weight = torch.randn_like(plain)
    for a, b in zip(
        torch.autograd.grad((fast * weight).sum(), (q, k)),
        torch.autograd.grad((plain * weight).sum(), (q, k)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", ["causal", "boolean", "additive"])
def test_gradcheck(name: str, rows: str) -> None:
    mask, causal, _ = MASKS[name]
    q, k = (x.requires_grad_() for x in qkv())

    def run(q: Tensor, k: Tensor) -> Tensor:
        return head_mean(q, k, mask, causal=causal, rows=ROWS[rows])

    assert gradcheck(run, (q, k))


@pytest.mark.parametrize("form", ["boolean", "additive"])
def test_rows_that_see_nothing_are_zero_and_have_no_gradient(form: str) -> None:
    mask = block_mask()
    mask[1, :, 5:] = False
    q, k = (x.requires_grad_() for x in qkv())
    given = mask if form == "boolean" else additive(mask)
    result = head_mean(q, k, given)
    assert (result[1, 5:] == 0).all()
    torch.testing.assert_close(result[1, :5].sum(-1), torch.ones(5, dtype=torch.float64))
    grad_q, grad_k = torch.autograd.grad((result * torch.randn_like(result)).sum(), (q, k))
    assert (grad_q[1, :, 5:] == 0).all()
    assert torch.isfinite(grad_q).all()
    assert torch.isfinite(grad_k).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_inputs_give_float32_maps(dtype: torch.dtype) -> None:
    """Products are made in float32 even under autocast; gradients come back in the inputs' type."""
    q, k = (x.requires_grad_() for x in qkv(dtype))
    exact = head_mean_plain(q.double(), k.double(), CAUSAL, 5**-0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = head_mean(q, k)
        grads = torch.autograd.grad(result.square().sum(), (q, k))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, exact.float(), rtol=0, atol=1e-6)
    assert [grad.dtype for grad in grads] == [dtype, dtype]


def test_only_q_and_k_are_kept_for_backward_of_large_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing at all without gradient: the teacher's path."""
    kept: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x)
        return x

    monkeypatch.setattr(head_mean_module, "KEPT_ENTRIES", 0)  # as if the map were large
    q, k = (x.requires_grad_() for x in qkv())
    mask = block_mask()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        head_mean(q, k, mask)
    assert {x.data_ptr() for x in kept} == {x.data_ptr() for x in (q, k)}
    kept.clear()
    with torch.no_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        result = head_mean(q, k, mask)
    assert not kept
    assert not result.requires_grad


@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("name", FAMILIES)
def test_captured_maps_equal_eager_output_attentions(name: str, padded: bool) -> None:
    model = FAMILIES[name]()
    inputs = inputs_of(name, padded=padded)
    model.set_attn_implementation("eager")
    eager = model(**inputs, output_attentions=True)
    install(model)
    rows = torch.tensor([0, 7, 8])
    layers = layers_of(model)
    with capture(layers, {0: None, 1: rows, 2: None}) as maps:
        logits = model(**inputs).logits
    valid = inputs["attention_mask"].bool()
    torch.testing.assert_close(logits[valid], eager.logits[valid], rtol=0, atol=1e-5)
    for layer, result in maps.items():
        expected = eager.attentions[layer].mean(dim=1)
        assert result.dtype == torch.float32
        if layer == 1:
            torch.testing.assert_close(result, expected[:, rows], rtol=0, atol=1e-6)
        else:
            torch.testing.assert_close(result[valid], expected[valid], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_gradient_through_the_model_equals_eager(name: str) -> None:
    model = FAMILIES[name]()
    inputs = inputs_of(name, padded=True)
    valid = inputs["attention_mask"].bool()
    parameters = [p for p in layers_of(model).parameters() if p.requires_grad]
    model.set_attn_implementation("eager")
    eager = model(**inputs, output_attentions=True).attentions
    loss = sum(a.mean(dim=1)[valid].square().sum() for a in eager)
    expected = torch.autograd.grad(loss, parameters, allow_unused=True)
    install(model)
    with capture(layers_of(model), dict.fromkeys(range(3))) as maps:
        model(**inputs)
    loss = sum(maps[layer][valid].square().sum() for layer in range(3))
    for a, b in zip(
        torch.autograd.grad(loss, parameters, allow_unused=True), expected, strict=True
    ):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_install_changes_no_bit_and_survives_saving(name: str, tmp_path: Any) -> None:
    model = FAMILIES[name]()
    inputs = inputs_of(name, padded=True)
    with torch.no_grad():
        before = model(**inputs).logits
        install(model)
        install(model)
        after = model(**inputs).logits
        with capture(layers_of(model), {1: None}):
            captured = model(**inputs).logits
    assert torch.equal(before, after)
    assert torch.equal(before, captured)
    assert model.config.get_text_config()._attn_implementation == attention.NAME
    if name != "text":
        assert model.config.vision_config._attn_implementation == "sdpa"
    model.save_pretrained(tmp_path)
    assert attention.NAME not in (tmp_path / "config.json").read_text()
    with torch.no_grad():
        assert torch.equal(type(model).from_pretrained(tmp_path).eval()(**inputs).logits, before)


def test_generation_runs_on_the_tapped_attention() -> None:
    model = internvl()
    inputs = inputs_of("internvl", padded=False)
    expected = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    install(model)
    assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False), expected)


def packed_mask(n: int) -> Tensor:
    """A prefix of 6 tokens and two segments that do not see each other."""
    mask = torch.ones(n, n, dtype=torch.bool).tril()
    mask[10:, 6:10] = False
    return mask.expand(2, 1, n, n)


def test_a_packed_mask_is_respected() -> None:
    model = text_only()
    ids = torch.randint(3, 50, (2, 13))
    install(model)
    with capture(layers_of(model), {0: None, 2: None}) as maps:
        model(input_ids=ids, attention_mask=packed_mask(13))
    for result in maps.values():
        assert (result[:, 10:, 6:10] == 0).all()
        torch.testing.assert_close(result.sum(-1), torch.ones(2, 13))


@pytest.mark.parametrize("name", FAMILIES)
def test_under_checkpointing_values_and_gradients_are_the_same(name: str) -> None:
    """Three losses on one graph, one autograd.grad each, as a training step takes them."""
    model = FAMILIES[name]().train()
    install(model)
    inputs = inputs_of(name, padded=True)
    parameters = [p for p in layers_of(model).parameters() if p.requires_grad]

    def gradients() -> list[Tensor]:
        with capture(layers_of(model), {0: torch.tensor([7, 8]), 2: None}) as maps:
            logits = model(**inputs, use_cache=False).logits
            losses = [logits.square().mean(), maps[0].square().sum(), maps[2].square().sum()]
            first = dict(maps)
            rows = [
                torch.autograd.grad(
                    loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                for loss in losses
            ]
            assert all(maps[layer] is first[layer] for layer in first)
        return [torch.cat([g.flatten() for g in row]) for row in rows]

    expected = gradients()
    assert all(grad.abs().sum() > 0 for grad in expected)
    # newer versions of transformers renamed it and warn about the old name
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
    for a, b in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("last", [0, 1, 2])
@pytest.mark.parametrize("name", FAMILIES)
def test_stopped_maps_are_those_of_the_full_pass(name: str, last: int) -> None:
    model = FAMILIES[name]()
    install(model)
    inputs = inputs_of(name, padded=True)
    layers = layers_of(model)
    ran: list[int] = []
    for index, layer in enumerate(layers):
        layer.mlp.register_forward_hook(lambda *_, index=index: ran.append(index))
    wanted = dict.fromkeys(range(last + 1))
    with torch.no_grad():
        with capture(layers, wanted) as full:
            logits = model(**inputs).logits
        ran.clear()
        with capture(layers, wanted) as short, stop_after(layers, last):
            model.model(**inputs)
        assert ran == list(range(last))
        again = model(**inputs).logits
    assert torch.equal(logits, again)
    assert all(torch.equal(full[layer], short[layer]) for layer in wanted)


def test_capture_says_what_went_wrong() -> None:
    model = text_only()
    layers = layers_of(model)
    ids = torch.randint(3, 50, (2, 5))
    with (
        pytest.raises(ValueError, match=r"layers \[2\]"),
        capture(layers, {1: None}),
    ):
        model(ids)  # still on plain SDPA
    install(model)
    with (
        pytest.raises(ValueError, match=r"layer 4 .*1 to 3"),
        capture(layers, {3: None}),
    ):
        pass
    with capture(layers, {0: None}):
        model(ids)
        with pytest.raises(ValueError, match="layer 1 ran twice"):
            model(ids)
    with (
        pytest.raises(ValueError, match="nested"),
        capture(layers, {0: None}),
        capture(layers, {0: None}),
    ):
        pass
    with pytest.raises(ValueError, match="layer 9"), stop_after(layers, 8):
        pass
    with pytest.raises(RuntimeError, match="theirs"), capture(layers, {0: None}):
        raise RuntimeError("theirs")
    with capture(layers, {0: None}) as maps:  # nothing is left behind by any of the above
        model(ids)
    assert maps[0].shape == (2, 5, 5)


def test_a_packed_row_computes_few_columns_and_looks_at_its_mask_once() -> None:
    """Questions behind one prefix: a block of rows sees the prefix and its own questions only."""
    prefix, own, questions = 64, 40, 8
    n = prefix + own * questions
    segment = torch.cat(
        [torch.zeros(prefix), torch.arange(1, questions + 1).repeat_interleave(own)]
    )
    allowed = (segment[:, None] == segment) | (segment == 0)
    mask = (allowed & torch.ones(n, n, dtype=torch.bool).tril())[None, None]
    q, k = torch.randn(2, 4, n, 8), torch.randn(2, 2, n, 8)
    known: head_mean_module.Blocks = {}
    found = head_mean(q, k, mask, known=known)
    bias = torch.zeros(()).where(mask, -torch.inf)
    torch.testing.assert_close(found, head_mean_plain(q, k, bias, 8**-0.5))
    ((_, _, blocks),) = known.values()
    computed = [len(torch.arange(n)[block.columns]) for block in blocks]
    assert max(computed) <= prefix + own * 5  # 128 rows touch at most five questions
    assert torch.equal(found, head_mean(q, k, mask, known=known))
    assert len(known) == 1
