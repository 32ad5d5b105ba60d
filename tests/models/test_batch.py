"""Rows of samples: what is packed or padded computes what single samples compute."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from drivekd.data.sample import Message
from drivekd.models import batch, tiny
from drivekd.models.features import FeatureCache
from drivekd.models.images import pixels
from drivekd.models.vlm import decoder_layers, vision_parts

# Different kernels for different shapes: a few units in the last place of float32.
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def encoded(vlm, mixed):
    return [batch.encode(vlm, sample) for sample in mixed]


def per_sample(hidden, rows):
    """Hidden states of every sample, cut out of its row."""
    return [hidden[int(r)][members] for r, members in zip(rows.row, rows.members, strict=True)]


@pytest.fixture(scope="module")
def single(vlm, encoded):
    """Hidden states and cross-entropy of every sample run alone, and as transformers runs it."""
    found = []
    for one in encoded:
        rows = batch.collate(vlm, [one])
        with torch.no_grad():
            hidden = batch.forward(vlm, rows)
            loss = batch.answer_loss(vlm, hidden, rows)
        found.append((hidden[0], loss[0]))
    return found


def test_single_samples_agree_with_transformers(vlm, encoded, single):
    for one, (_, loss) in zip(encoded, single, strict=True):
        inputs = dict(pixels(vlm, one.images)) if one.images else {}
        if vlm.family.rope_axes == 3 and one.images:
            inputs["mm_token_type_ids"] = one.is_image[None].int().to(vlm.device)
        ids = one.input_ids[None].to(vlm.device)
        labels = one.labels[None].to(vlm.device)
        with torch.no_grad():
            theirs = vlm.model(
                input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels, **inputs
            ).loss
        assert torch.allclose(loss, theirs, **CLOSE)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(
    ("pack", "limit", "rows"), [(False, None, 6), (True, None, 3), (True, 200, 4), (True, 1, 6)]
)
def test_rows_compute_what_single_samples_compute(vlm, encoded, single, pack, limit, rows, cached):
    formed = batch.rows_of(encoded, pack=pack, max_tokens=limit)
    made, wanted = batch.collate(vlm, encoded, formed), [single[i] for row in formed for i in row]
    assert len(made.input_ids) == rows
    with torch.no_grad():
        hidden = batch.forward(vlm, made, FeatureCache() if cached else None)
        loss = batch.answer_loss(vlm, hidden, made)
    for own, mine, (alone, expected) in zip(per_sample(hidden, made), loss, wanted, strict=True):
        assert torch.allclose(own, alone, **CLOSE)
        assert torch.allclose(mine, expected, **CLOSE)


def test_packing_keeps_the_gradient(vlm, encoded):
    parameters = [p for p in vlm.model.parameters() if p.requires_grad]
    found = []
    for pack in (False, True):
        rows = batch.collate(vlm, encoded, batch.rows_of(encoded, pack=pack))
        loss = batch.answer_loss(vlm, batch.forward(vlm, rows), rows).mean()
        found.append(torch.autograd.grad(loss, parameters, allow_unused=True))
    compared = 0
    for one, two in zip(*found, strict=True):
        assert (one is None) == (two is None)
        if one is not None and two is not None:
            compared += 1
            assert (one - two).norm() <= 1e-4 * max(float(one.norm()), 1e-3)
    assert compared > 20


def test_layout_of_a_packed_batch(vlm, encoded, mixed):
    formed = batch.rows_of(encoded)
    assert formed == ((0, 3, 5), (1, 4), (2,))
    rows = batch.collate(vlm, encoded, formed)
    assert rows.samples == tuple(mixed[i] for row in formed for i in row)
    assert rows.row.tolist() == [0, 0, 0, 1, 1, 2]
    for s, one in enumerate(encoded[i] for row in formed for i in row):
        where = rows.members[s].nonzero().flatten()
        r = int(rows.row[s])
        assert torch.equal(rows.input_ids[r][where].cpu(), one.input_ids)
        assert torch.equal(rows.labels[r][where].cpu(), one.labels)
        assert torch.equal(rows.is_image[r][where].cpu(), one.is_image)
        assert rows.images[r] == one.images
        alone = batch.collate(vlm, [one]).position_ids
        assert torch.equal(rows.position_ids[..., r, :][..., where], alone[..., 0, :])
    covered = torch.stack([rows.members[rows.row == r].any(0) for r in range(3)])
    assert torch.equal(covered, rows.valid)


def test_mask_equals_its_definition(vlm, encoded):
    rows = batch.collate(vlm, encoded, batch.rows_of(encoded))
    b, n = rows.input_ids.shape
    # Plain twin: i sees j iff j is not later and some sample holds both; padding sees itself.
    expected = torch.zeros(b, n, n, dtype=torch.bool)
    for s, members in enumerate(rows.members.cpu()):
        expected[int(rows.row[s])] |= members[:, None] & members[None, :]
    expected = expected.tril() | torch.eye(n, dtype=torch.bool)
    assert torch.equal(rows.attention_mask[:, 0].cpu(), expected)


def test_a_causal_batch_leaves_the_mask_to_sdpa(vlm, encoded):
    for one in encoded:
        rows = batch.collate(vlm, [one], batch.rows_of([one]))
        assert rows.causal
        assert torch.equal(rows.attention_mask, torch.ones_like(rows.attention_mask).tril())
        with torch.no_grad():
            bare = batch.forward(vlm, rows)
            masked = batch.forward(vlm, dataclasses.replace(rows, causal=False))
        assert torch.allclose(bare, masked, **CLOSE)
    for pack in (False, True):
        assert not batch.collate(vlm, encoded, batch.rows_of(encoded, pack=pack)).causal


def test_padding_is_marked_everywhere(vlm, encoded):
    rows = batch.collate(vlm, encoded)
    lengths = torch.tensor([len(e.input_ids) for e in encoded])
    assert torch.equal(rows.valid.sum(1).cpu(), lengths)
    assert torch.equal(rows.members, rows.valid)
    empty = ~rows.valid
    assert (rows.input_ids[empty] == vlm.tokenizer.pad_token_id).all()
    assert (rows.labels[empty] == batch.IGNORE).all()
    assert not rows.is_image[empty].any()


def test_qwen_positions_have_three_axes(vlm, encoded):
    positions = batch.collate(vlm, encoded[:1], batch.rows_of(encoded[:1])).position_ids
    if vlm.family.rope_axes == 1:
        assert torch.equal(positions[0].cpu(), torch.arange(len(encoded[0].input_ids)))
    else:
        assert positions.shape[0] == 3
        assert not torch.equal(positions[1], positions[2])
        # Text behind an image counts on from the larger side of its grid, not its token count.
        assert int(positions.max()) + 1 < len(encoded[0].input_ids)


def test_only_identical_prefixes_and_images_are_packed(vlm, make, pictures):
    one = make("a", "Where?")
    relabelled = Message("user", one.messages[0].content.replace("CAM_FRONT:", "CAM_BACK:", 1))
    others = [
        make("a", "How many?"),
        dataclasses.replace(one, messages=(relabelled, one.messages[1])),
        dataclasses.replace(one, images={n: pictures("z") for n in one.images}),
    ]
    encoded = [batch.encode(vlm, s) for s in (one, *others)]
    rows = batch.collate(vlm, encoded, batch.rows_of(encoded))
    assert rows.row.tolist() == [0, 0, 1, 2]


def test_row_limit_cuts_into_equal_parts(vlm, make):
    encoded = [batch.encode(vlm, make("a", f"Question {k}?")) for k in range(7)]
    one = len(encoded[0].input_ids) - encoded[0].prefix
    limit = encoded[0].prefix + 3 * one
    rows = batch.collate(vlm, encoded, batch.rows_of(encoded, max_tokens=limit))
    assert rows.row.tolist() == [0, 0, 1, 1, 2, 2, 2]
    assert rows.input_ids.shape[1] == limit


@pytest.mark.parametrize("implementation", ["sdpa", "registered_for_a_test"])
def test_the_mask_reaches_attention_unchanged(vlm, encoded, implementation):
    """Otherwise segments would see each other, or padding, without any error."""
    own = tiny.tiny_vlm(vlm.family.name, vision_hidden=32, image_size=48)
    rows = batch.collate(own, encoded, batch.rows_of(encoded))
    seen = []

    def attend(module, query, key, value, attention_mask, **kwargs):
        seen.append(attention_mask)
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)

    if implementation == "sdpa":
        for layer in decoder_layers(own):
            layer.self_attn.register_forward_pre_hook(
                lambda _, args, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True
            )
    else:
        AttentionInterface.register(implementation, attend)
        AttentionMaskInterface.register(implementation, sdpa_mask)
        own.model.set_attn_implementation({"text_config": implementation, "vision_config": "sdpa"})
    with torch.no_grad():
        batch.forward(own, rows)
    assert len(seen) == len(decoder_layers(own))
    assert all(mask is seen[0] for mask in seen)
    assert torch.equal(seen[0] == 0, rows.attention_mask)
    assert torch.equal(seen[0] == -torch.inf, ~rows.attention_mask)


def test_loss_is_the_mean_over_the_answers_tokens(vlm, encoded):
    """The plain twin: all logits, shifted by one, of one sample at a time."""
    rows = batch.collate(vlm, encoded)
    with torch.no_grad():
        hidden = batch.forward(vlm, rows)
        loss = batch.answer_loss(vlm, hidden, rows)
        logits = vlm.model.lm_head(hidden).log_softmax(-1)
    for s, labels in enumerate(rows.labels.tolist()):
        terms = [-logits[s, i - 1, t] for i, t in enumerate(labels) if t != batch.IGNORE]
        assert torch.allclose(loss[s], torch.stack(terms).mean(), **CLOSE)


def test_answer_positions_come_sample_by_sample(vlm, encoded):
    formed = batch.rows_of(encoded)
    rows = batch.collate(vlm, encoded, formed)
    sample, row, position = batch.answer_positions(rows)
    for s, one in enumerate(encoded[i] for row in formed for i in row):
        mine = sample == s
        assert (row[mine] == rows.row[s]).all()
        tokens = rows.input_ids[row[mine], position[mine]].cpu()
        assert torch.equal(tokens, one.labels[one.labels != batch.IGNORE])


def test_no_answer_no_loss(vlm, make):
    asked = [batch.encode(vlm, make("a", "Why?", None), add_answer=False)]
    rows = batch.collate(vlm, asked, batch.rows_of(asked))
    with torch.no_grad(), pytest.raises(ValueError, match=r"'a:Why\?' have no supervised token"):
        batch.answer_loss(vlm, batch.forward(vlm, rows), rows)


def test_no_samples_no_batch(vlm):
    with pytest.raises(ValueError, match="no samples"):
        batch.collate(vlm, [], batch.rows_of([]))


def test_gradient_reaches_the_tower_unless_it_is_frozen(vlm, encoded):
    own = tiny.tiny_vlm(vlm.family.name, vision_hidden=32, image_size=48)
    rows = batch.collate(own, encoded[:1], batch.rows_of(encoded[:1]))
    batch.answer_loss(own, batch.forward(own, rows), rows).sum().backward()
    touched = [n for n, p in own.model.named_parameters() if p.grad is not None and p.grad.any()]
    assert any("vis" in name for name in touched)
    own.model.zero_grad()
    for part in vision_parts(own):
        part.requires_grad_(False)
    batch.answer_loss(own, batch.forward(own, rows, FeatureCache()), rows).sum().backward()
    touched = [n for n, p in own.model.named_parameters() if p.grad is not None and p.grad.any()]
    assert touched
    assert not any("vis" in name for name in touched)
