"""An exported folder is whole, holds the right bits and answers as its source in transformers."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoTokenizer

import children
from deploy.test_layouts import stock
from drivekd.deploy.export import export as exporting
from drivekd.deploy.export import verify
from drivekd.deploy.export.adapter import merge
from drivekd.deploy.export.export import export, summary
from drivekd.deploy.export.job import job
from drivekd.deploy.export.layouts import from_chat, same
from drivekd.deploy.export.quantise import refuse_unready
from drivekd.deploy.export.verify import agreement, plainly_loaded, questions, replies
from drivekd.distill.saving import lora
from drivekd.distill.trained import load_student
from drivekd.models import vlm as vlms
from drivekd.models.tiny import KINDS, tiny_vlm
from drivekd.models.vlm import Vlm
from drivekd.recipe import Lora, parse

DECODER = "model.language_model.layers."


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers of five tokens tell models apart in a third of the time."""
    monkeypatch.setattr(verify, "NEW_TOKENS", 5)


def made(kind: str = "internvl", **sizes: Any) -> Vlm:
    return tiny_vlm(kind, vision_hidden=32, image_size=48, initializer_range=0.15, seed=5, **sizes)


def saved(folder: Path, vlm: Vlm | None = None) -> Path:
    vlms.save(made() if vlm is None else vlm, folder)
    (folder / "README.md").write_text("# It\n\n## Limits\n\nmany\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_exported_it_answers_alike_in_plain_transformers(tmp_path: Path, kind: str) -> None:
    vlm = made(kind)
    source = saved(tmp_path / "final", vlm)
    facts = export(source, tmp_path / "out")
    assert facts["check"]["equal"] == facts["check"]["questions"] == 6
    assert "6 of 6 greedy answers" in summary(facts)

    read = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval()
    assert same(vlm.model.state_dict(), read.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == vlm.tokenizer.chat_template
    samples = questions(tmp_path / "pictures")
    answers = replies(vlm, samples)
    assert replies(replace(vlm, model=read, tokenizer=tokenizer), samples) == answers
    assert len({tuple(tokens) for tokens in answers}) > 1
    for name in ("generation_config", "processor_config", "preprocessor_config", "export"):
        assert (tmp_path / f"out/{name}.json").is_file()


@pytest.mark.parametrize(("kind", "scheme"), [("internvl", "int8"), ("qwen2_5_vl", "nf4")])
def test_quantised_it_loads_and_sees_as_before(tmp_path: Path, kind: str, scheme: Any) -> None:
    pytest.importorskip("bitsandbytes")
    vlm = made(kind)
    facts = export(saved(tmp_path / "final", vlm), tmp_path / "out", quantise=scheme)
    read = plainly_loaded(tmp_path / "out", vlm.family)
    found, before = read.model.state_dict(), vlm.model.state_dict()
    rounded = {name for name in before if not torch.equal(before[name], found[name])}
    linear = {
        f"{name}.weight"
        for name, module in vlm.model.named_modules()
        if name.startswith(DECODER) and isinstance(module, torch.nn.Linear)
    }
    assert rounded == linear  # so vision tower, projector, head, embeddings and norms are as before
    assert facts["quantised_layers"] == len(linear)
    assert facts["weights_mb"]["export"] < facts["weights_mb"]["source"]
    assert not (tmp_path / "out/plain").exists()
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert f"{scheme} by bitsandbytes" in card and "were not run" in card and "many" in card

    # What was rounded: each weight by less than the coarsest step of its row or block.
    name = next(iter(sorted(linear)))
    layer = read.model.get_submodule(name.removesuffix(".weight"))
    inputs = torch.eye(before[name].shape[1])
    bias = 0.0 if layer.bias is None else layer.bias
    seen = (layer(inputs) - bias).T
    step = {"int8": 0.02, "nf4": 0.2}[scheme]
    assert (seen - before[name]).abs().max() <= step * before[name].abs().max()
    assert not torch.equal(seen, before[name])

    ours = vlms.load(tmp_path / "out")  # as `drivekd evaluate` and `ask` do
    samples = questions(tmp_path / "pictures")[:2]
    assert replies(ours, samples) == replies(read, samples)
    with pytest.raises(ValueError, match="quantised already"):
        export(tmp_path / "out", tmp_path / "again")
    recipe = parse({"name": "n", "student": str(tmp_path / "out"), "output_dir": "o",
                    "data": {"train": ["t"]}, "capabilities": {}})  # fmt: skip
    with pytest.raises(ValueError, match="is quantised, and rounded weights cannot be trained"):
        load_student(recipe)


def test_another_type_changes_the_weights_and_no_more(tmp_path: Path) -> None:
    vlm = made()
    source = saved(tmp_path / "final", vlm)
    facts = export(source, tmp_path / "out", dtype="bfloat16")
    read = plainly_loaded(tmp_path / "out", vlm.family).model
    wanted = {name: value.bfloat16() for name, value in vlm.model.state_dict().items()}
    assert same(wanted, read.state_dict())
    assert facts["weights_mb"]["export"] == pytest.approx(
        facts["weights_mb"]["source"] / 2, rel=0.1
    )
    again = export(
        tmp_path / "out", tmp_path / "again", verify=False
    )  # its own type is the default
    assert (again["source_dtype"], again["dtype"]) == ("bfloat16", "bfloat16")
    card = (tmp_path / "again/README.md").read_text(encoding="utf-8")
    assert card.count("## Export") == 1 and "## Limits" in card

    with torch.no_grad():
        vlm.model.get_parameter("lm_head.weight")[0, 0] = 1e6
    with pytest.raises(ValueError, match=r"lm_head\.weight has numbers that are not finite"):
        export(saved(tmp_path / "large", vlm), tmp_path / "no", dtype="float16")
    assert not (tmp_path / "no").exists()


def test_an_adapter_is_added(tmp_path: Path) -> None:
    base = saved(tmp_path / "base", made("qwen2_5_vl"))
    adapted = made("qwen2_5_vl")
    lora.attach(adapted, Lora(), 0)
    for weight in lora.parameters(adapted).values():
        torch.nn.init.normal_(weight, std=0.2)
    adapted.model.eval()
    lora.write(adapted, tmp_path / "adapter")
    samples = questions(tmp_path / "pictures")[:3]
    answers = replies(adapted, samples)
    assert answers != replies(made("qwen2_5_vl"), samples)

    facts = export(base, tmp_path / "out", adapter=tmp_path / "adapter")
    read = plainly_loaded(tmp_path / "out", adapted.family)
    assert replies(read, samples) == answers
    assert same(lora.merged(adapted), read.model.state_dict())
    assert facts["adapter"] == str(tmp_path / "adapter")

    for other in (made("qwen2_5_vl", text_layers=1), made("qwen2_5_vl", text_hidden=32)):
        with pytest.raises(ValueError, match="does not fit model"):
            merge(other, tmp_path / "adapter")
    with pytest.raises(ValueError, match="is an adapter alone; name the model"):
        export(tmp_path / "adapter", tmp_path / "no")
    shutil.copytree(tmp_path / "adapter", base / "adapter")
    with pytest.raises(ValueError, match="the sum already"):
        export(base, tmp_path / "no", adapter=base / "adapter")
    config = tmp_path / "adapter/adapter_config.json"
    config.write_text(json.dumps({"peft_type": "IA3"}), encoding="utf-8")
    with pytest.raises(ValueError, match="of kind 'IA3', expected 'LORA'"):
        merge(made("qwen2_5_vl"), tmp_path / "adapter")
    config.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="is damaged"):
        merge(made("qwen2_5_vl"), tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"no adapter_config\.json there"):
        merge(made("qwen2_5_vl"), tmp_path / "nowhere")


def test_the_other_layout_of_internvl(tmp_path: Path) -> None:
    vlm = stock(tie_embeddings=True)
    source = saved(tmp_path / "final", vlm)
    facts = export(source, tmp_path / "out", format="internvl-chat")
    found = from_chat(load_file(tmp_path / "out/model.safetensors"))
    wanted = {k: v for k, v in vlm.model.state_dict().items() if k != "lm_head.weight"}
    assert same(wanted, found)
    assert facts["check"] == {"round_trip": len(found)}
    config = json.loads((tmp_path / "out/config.json").read_text(encoding="utf-8"))
    assert (config["model_type"], config["torch_dtype"]) == ("internvl_chat", "float32")
    assert config["tie_word_embeddings"] and config["llm_config"]["tie_word_embeddings"]
    assert (tmp_path / "out/tokenizer.json").is_file()
    assert "trust-remote-code" in (tmp_path / "out/README.md").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="for --format hf only"):
        export(source, tmp_path / "no", format="internvl-chat", quantise="int8")


def test_large_weights_lie_in_several_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "_SHARD", "100KB")
    vlm = stock()
    source = saved(tmp_path / "final", vlm)
    export(source, tmp_path / "out", verify=False)
    export(source, tmp_path / "chat", format="internvl-chat")
    for folder in ("out", "chat"):
        assert len(list((tmp_path / folder).glob("model-*.safetensors"))) > 1
        assert (tmp_path / folder / "model.safetensors.index.json").is_file()


def test_killed_it_leaves_no_folder_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saved(tmp_path / "final")

    def work() -> None:  # in the child: the weights are written, the rest is not
        monkeypatch.setattr(vlms, "save_readers", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        export(source, tmp_path / "out", verify=False)

    assert children.ended(children.start(work, tmp_path / "said")) == -signal.SIGKILL
    assert (tmp_path / ".out.partial/model.safetensors").is_file()
    assert not (tmp_path / "out").exists()
    assert export(source, tmp_path / "out", verify=False)["check"] is None
    assert not (tmp_path / ".out.partial").exists()


def test_what_fails_leaves_the_earlier_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saved(tmp_path / "final")
    export(source, tmp_path / "out", dtype="float16", verify=False)
    before = (tmp_path / "out/model.safetensors").read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("I/O error: No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(vlms, "save", full)
        with pytest.raises(OSError, match="nothing of it is left"):
            export(source, tmp_path / "out")
    with monkeypatch.context() as writing:
        # The embeddings of one token are lost on the way to the disk.
        def wrong(vlm: Vlm, folder: Path, **more: Any) -> None:
            vlms_save(vlm, folder, {k: v * 0 for k, v in vlm.model.state_dict().items()}, **more)

        vlms_save = vlms.save
        writing.setattr(vlms, "save", wrong)
        with pytest.raises(RuntimeError, match="its tensors are not those of the model"):
            export(source, tmp_path / "out")
    with monkeypatch.context() as reading:
        reading.setattr(exporting, "replies", lambda vlm, samples: [[id(vlm)]] * 6)
        with pytest.raises(RuntimeError, match="6 of 6 greedy answers differ"):
            export(source, tmp_path / "out")
        export(source, tmp_path / "other", dtype="bfloat16")  # counted only
    assert (tmp_path / "out/model.safetensors").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["final", "other", "out"]


def test_what_cannot_be_done_is_refused_in_one_sentence(tmp_path: Path) -> None:
    source = saved(tmp_path / "final")
    for name, pattern in (
        ("preprocessor_config.json", r"has no preprocessor_config\.json, so nothing can read"),
        ("tokenizer.json", r"has no tokenizer\.json"),
    ):
        bare = tmp_path / f"without-{name}"
        shutil.copytree(source, bare)
        (bare / name).unlink()
        with pytest.raises(ValueError, match=pattern):
            export(bare, tmp_path / "no")
    typeless = shutil.copytree(source, tmp_path / "typeless")
    config = json.loads((typeless / "config.json").read_text(encoding="utf-8"))
    (typeless / "config.json").write_text(json.dumps(config | {"dtype": "float64"}))
    with pytest.raises(ValueError, match="gives float64 as the type"):
        export(typeless, tmp_path / "no")
    with pytest.raises(ValueError, match="dtype 'float8' is unknown; expected one of bfloat16"):
        job(source, tmp_path / "no", "hf", None, "float8", None, "cpu")
    with pytest.raises(ValueError, match="format 'gguf' is unknown; expected one of hf"):
        job(source, tmp_path / "no", "gguf", None, None, None, "cpu")
    with pytest.raises(ValueError, match="quantise 'int3' is unknown; expected one of int8"):
        refuse_unready("int3")
    with pytest.raises(ValueError, match="device 'abacus' is unknown"):
        export(source, tmp_path / "no", device="abacus")
    with pytest.raises(ValueError, match="cannot be read"):
        export(tmp_path / "nowhere", tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_no_folder_is_lost(tmp_path: Path) -> None:
    source = saved(tmp_path / "run/final")
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/one.txt").write_text("dear", encoding="utf-8")
    (tmp_path / "file").write_text("", encoding="utf-8")
    for out, message in (
        (source, "lie one within the other"),
        (source / "inside", "lie one within the other"),
        (tmp_path / "run", "lie one within the other"),
        (tmp_path / "letters", "not empty and no earlier export"),
        (tmp_path / "file", "is a file, and a folder is needed"),
    ):
        with pytest.raises(ValueError, match=message):
            export(source, out)
    assert (tmp_path / "letters/one.txt").read_text(encoding="utf-8") == "dear"
    assert (source / "model.safetensors").is_file()


def test_quantising_asks_for_its_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'drivekd\[quantise\]'"):
        export(tmp_path / "any", tmp_path / "out", quantise="nf4")


def test_agreement_counts_answers_and_tokens() -> None:
    counted = agreement([[1, 2, 3], [4, 5], [6]], [[1, 2, 9], [4, 5], []])
    assert counted == {"questions": 3, "equal": 1, "tokens": 4, "of": 6}
