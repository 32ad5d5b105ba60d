"""Samples to token ids: the template's ids exactly, labels at the last answer only."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import AddedToken

from drivekd.data.sample import Message, Sample
from drivekd.models import tiny
from drivekd.models.encode import IGNORE, encode, encode_all, placed
from drivekd.models.images import token_grid


def by_template(vlm, sample, *, header=False):
    """Ids of the plain chat template, with the images' tokens written out."""
    sizes = [rows * columns for rows, columns in (token_grid(vlm, p) for p in images_of(sample))]
    turns = []
    for message in sample.messages:
        content = message.content
        while message.role == "user" and "<image>" in content:
            middle = vlm.family.image_token * sizes.pop(0)
            shown = vlm.family.image_start + middle + vlm.family.image_end
            content = content.replace("<image>", shown, 1)
        turns.append({"role": message.role, "content": content})
    return vlm.tokenizer.apply_chat_template(
        turns, tokenize=True, add_generation_prompt=header, return_dict=False
    )


def images_of(sample):
    return list(sample.images.values())


def test_ids_equal_those_of_the_chat_template(vlm, mixed):
    for sample in mixed:
        assert encode(vlm, sample).input_ids.tolist() == by_template(vlm, sample)


@pytest.mark.parametrize("add_answer", [True, False])
def test_many_at_once_are_the_same_tokens(vlm, mixed, make, pictures, add_answer):
    """Sharing texts before images, answers, grids of other pictures; and a text of its own."""
    wide = dataclasses.replace(
        mixed[0], images={c: pictures("w", (96, 48)) for c in mixed[0].images}
    )
    between = Message("user", "before <image> between </img> <image> after")
    odd = Sample("s", (between, Message("assistant", "ok")), mixed[0].images)
    samples = [*mixed, wide, odd, *mixed, make("a", "\u0338e\u0301 joins?", " so ")]
    for sample, found in zip(samples, encode_all(vlm, samples, add_answer=add_answer), strict=True):
        alone = plain(vlm, sample, add_answer=add_answer)
        assert (found.sample, found.images) == (sample, tuple(sample.images.values()))
        assert found.input_ids.tolist() == alone
        assert found.is_image.tolist() == [token == vlm.image_token_id for token in alone]
        answer = vlm.tokenizer(sample.answer, add_special_tokens=False).input_ids
        labels = [label for label in found.labels.tolist() if label != IGNORE]
        assert labels[: len(answer)] == answer[: len(labels)]
        assert len(labels) == (len(answer) + 1) * add_answer


def plain(vlm, sample, *, add_answer):
    """The twin: the whole prompt through the tokenizer, then each image token repeated."""
    shown = vlm.family.image_start + vlm.family.image_token + vlm.family.image_end
    turns = [
        {
            "role": m.role,
            "content": m.content.replace("<image>", shown) if m.role == "user" else m.content,
        }
        for m in placed(sample)
    ]

    def tokens(text):
        return vlm.tokenizer(text, add_special_tokens=False).input_ids if text else []

    def render(turns, header):
        return vlm.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=header
        )

    prompt = render(turns, True)
    sizes = iter(
        [rows * columns for rows, columns in (token_grid(vlm, p) for p in images_of(sample))]
    )
    ids = []
    for token in tokens(prompt):
        ids += [token] * (next(sizes) if token == vlm.image_token_id else 1)
    if add_answer:
        whole = render([*turns, {"role": "assistant", "content": sample.answer}], False)
        ids += tokens(sample.answer) + tokens(whole[len(prompt + sample.answer) :])
    return ids


def test_a_tokenizer_that_joins_over_an_image_is_not_cut_there(make):
    """Its closing token takes the white space behind it along."""
    own = tiny.tiny_vlm(vision_layers=1, text_layers=1)
    end = AddedToken(own.family.image_end, rstrip=True, normalized=False, special=True)
    own.tokenizer.add_tokens([end], special_tokens=True)
    samples = [make("a", "Where?"), make("a", "How many?")]
    for sample, found in zip(samples, encode_all(own, samples), strict=True):
        assert found.input_ids.tolist() == plain(own, sample, add_answer=True)


def test_of_many_the_faulty_one_is_named(vlm, make):
    samples = [make("a", f"{n}?") for n in range(5)]
    samples[3] = dataclasses.replace(samples[3], id="s3", images={})
    with pytest.raises(ValueError, match=r"'s3' .*placeholders"):
        list(encode_all(vlm, samples))


def test_prompt_ends_behind_the_role_header(vlm, make):
    asked = make("a", "Why?", None)
    expected = by_template(vlm, asked, header=True)
    answered = make("a", "Why?", "because")
    assert encode(vlm, asked, add_answer=False).input_ids.tolist() == expected
    assert encode(vlm, answered, add_answer=False).input_ids.tolist() == expected
    assert encode(vlm, answered).input_ids.tolist()[: len(expected)] == expected


@pytest.mark.parametrize("answer", ["yes", "", "two\nlines, 3.5 m <r4>"])
def test_answer_and_end_of_turn_are_supervised_and_nothing_else(vlm, make, answer):
    encoded = encode(vlm, make("a", "Why?", answer))
    supervised = encoded.labels != IGNORE
    text = vlm.tokenizer.decode(encoded.labels[supervised])
    assert text == answer + "<|im_end|>"
    assert torch.equal(encoded.labels[supervised], encoded.input_ids[supervised])
    # One run of tokens, with the line break behind the turn left out.
    assert supervised.nonzero().flatten().diff().eq(1).all()
    assert vlm.tokenizer.decode(encoded.input_ids[supervised.nonzero().max() + 1 :]) == "\n"


def test_white_space_around_an_answer_is_kept(vlm, make):
    encoded = encode(vlm, make("a", "Why?", "\n\n so "))
    assert vlm.tokenizer.decode(encoded.labels[encoded.labels != IGNORE]) == "\n\n so <|im_end|>"


def test_of_several_turns_only_the_last_answer_is_supervised(vlm, make):
    first = make("a", "What is it?", "a car")
    more = (Message("user", "Is it red?"), Message("assistant", "no"))
    sample = dataclasses.replace(
        first, messages=(Message("system", "Be brief."), *first.messages, *more)
    )
    encoded = encode(vlm, sample)
    assert encoded.input_ids.tolist() == by_template(vlm, sample)
    assert vlm.tokenizer.decode(encoded.labels[encoded.labels != IGNORE]) == "no<|im_end|>"


def test_images_stand_where_their_placeholders_stood(vlm, pictures):
    """The release lost text between images and wrote paths instead of images 2, 3, …"""
    images = {name: pictures(name) for name in ("x", "y")}
    asked = Message("user", "before <image> between <image> after")
    encoded = encode(vlm, Sample("s", (asked, Message("assistant", "ok")), images))
    text = vlm.tokenizer.decode(encoded.input_ids)
    count = encoded.grids[0][0] * encoded.grids[0][1]
    shown = vlm.family.image_start + vlm.family.image_token * count + vlm.family.image_end
    assert f"user\nbefore {shown} between {shown} after<|im_end|>" in text
    assert encoded.images == tuple(images.values())
    assert int(encoded.is_image.sum()) == 2 * count


def test_prefix_ends_with_the_last_image(vlm, make):
    one, two = (encode(vlm, make("a", q)) for q in ("Where is it?", "How many?"))
    assert one.prefix == two.prefix > 0
    assert torch.equal(one.input_ids[: one.prefix], two.input_ids[: two.prefix])
    assert vlm.tokenizer.decode(one.input_ids[one.prefix :]).startswith("\nWhere is it?")
    assert vlm.tokenizer.decode(one.input_ids[one.prefix - 1]) == vlm.family.image_end
    assert encode(vlm, make("none", cameras=0)).prefix == 0


def test_images_without_placeholders_go_in_front(vlm, pictures):
    images = {"image_0": pictures("x"), "image_1": pictures("y")}
    turns = (Message("user", "Where?"), Message("assistant", "there"))
    marked = (Message("user", "<image>\n<image>\nWhere?"), turns[1])
    bare, written = (encode(vlm, Sample("s", t, images)) for t in (turns, marked))
    assert torch.equal(bare.input_ids, written.input_ids)


@pytest.mark.parametrize("count", [1, 3])
def test_placeholders_that_do_not_match_the_images_are_named(vlm, pictures, count):
    images = {"image_0": pictures("x"), "image_1": pictures("y")}
    turns = (Message("user", "<image>" * count + "Where?"), Message("assistant", "there"))
    with pytest.raises(ValueError, match=rf"'s7' .*{count} <image> .*2 images"):
        encode(vlm, Sample("s7", turns, images, source="f.jsonl:3"))


def test_image_tokens_in_the_text_are_refused(vlm, make):
    with pytest.raises(ValueError, match="image token"):
        encode(vlm, make("a", f"Is {vlm.family.image_token} a token?"))


def test_placeholder_in_an_answer_is_text(vlm, make):
    encoded = encode(vlm, make("a", "Which?", "the <image>"))
    assert vlm.tokenizer.decode(encoded.labels[encoded.labels != IGNORE]).startswith("the <image>")


def test_nothing_to_train_on_is_named(vlm, make):
    with pytest.raises(ValueError, match=r"'a:Why\?' \(test\.jsonl:1\).*answer"):
        encode(vlm, make("a", "Why?", None))


def test_images_need_a_user_turn(vlm, pictures):
    with pytest.raises(ValueError, match=r"'s' .*user"):
        encode(vlm, Sample("s", (Message("assistant", "so"),), {"image_0": pictures("x")}))


def test_template_that_rewrites_answers_is_refused(make):
    own = tiny.tiny_vlm(vision_layers=1, text_layers=1)
    own.tokenizer.chat_template = own.tokenizer.chat_template.replace(
        "{{ message['content'] }}", "{{ message['content'] | trim }}"
    )
    assert encode(own, make("a", "Why?", "so")).prefix
    with pytest.raises(ValueError, match="answer ' so '"):
        encode(own, make("a", "Why?", " so "))


def test_template_that_takes_no_system_turn_is_named(make):
    own = tiny.tiny_vlm(vision_layers=1, text_layers=1)
    own.tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        + own.tokenizer.chat_template
    )
    sample = make("a", "Why?", "so")
    led = dataclasses.replace(sample, messages=(Message("system", "Be brief."), *sample.messages))
    assert encode(own, sample).prefix
    with pytest.raises(ValueError, match="system, user"):
        encode(own, led, add_answer=False)
