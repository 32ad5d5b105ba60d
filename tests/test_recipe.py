from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from drivekd import recipe as recipes
from drivekd.data.sample import CAPABILITIES
from drivekd.recipe.data import HubData, listed

TEACHERS: dict[str, Any] = {
    "perception": {"teacher": "a", "student_layers": "first", "signal": "text_to_vision"},
    "reasoning": {"teacher": "a", "student_layers": "1..penultimate", "signal": "full"},
    "planning": {"teacher": "b", "student_layers": "penultimate", "signal": "text_to_vision"},
}
BASE: dict[str, Any] = {"name": "n", "student": "s", "output_dir": "o"}


def write(folder: Path, raw: dict[str, Any]) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.mark.parametrize("name", recipes.shipped())
def test_every_shipped_recipe_loads_and_survives_writing(name: str, tmp_path: Path) -> None:
    recipe = recipes.load(name)
    path = tmp_path / "again.yaml"
    path.write_text(recipes.to_yaml(recipe))
    assert recipes.load(path) == recipe


def test_without_capabilities_there_is_no_teacher_and_no_mixing() -> None:
    recipe = recipes.parse(BASE)
    assert recipe.capabilities == {} and recipe.mixing == {}
    assert recipe.train.learning_rate == 5e-5 and recipe.combine.combiner == "agp"


def test_mixing_defaults_to_the_release_and_is_normalised() -> None:
    recipe = recipes.parse(BASE | {"capabilities": TEACHERS})
    assert recipe.mixing["reasoning"] == {"perception": 0.1, "reasoning": 0.8, "planning": 0.1}
    given_rows = {"planning": {"planning": 3, "reasoning": 1}}
    recipe = recipes.parse(BASE | {"capabilities": TEACHERS, "mixing": given_rows})
    assert recipe.mixing["planning"] == {"perception": 0, "reasoning": 0.25, "planning": 0.75}
    assert recipe.mixing["perception"]["perception"] == 0.8


@given(st.lists(st.floats(1e-3, 1e3), min_size=3, max_size=3))
def test_any_mixing_survives_writing(shares: list[float]) -> None:
    row = dict(zip(CAPABILITIES, shares, strict=True))
    recipe = recipes.parse(BASE | {"capabilities": TEACHERS, "mixing": {"planning": row}})
    assert sum(recipe.mixing["planning"].values()) == pytest.approx(1)
    assert recipes.parse(yaml.safe_load(recipes.to_yaml(recipe))) == recipe


def test_teacher_layers_follow_the_students() -> None:
    recipe = recipes.parse(BASE | {"capabilities": TEACHERS})
    assert recipe.capabilities["reasoning"].teacher_layers == "1..penultimate"


def test_a_single_teacher_may_serve_samples_of_every_capability() -> None:
    one = {"perception": TEACHERS["perception"]}
    mixing = {name: {"perception": 1} for name in CAPABILITIES}
    recipe = recipes.parse(BASE | {"capabilities": one, "mixing": mixing})
    assert recipe.mixing["planning"] == {"perception": 1}


def test_overrides_are_read_as_yaml(tmp_path: Path) -> None:
    path = write(tmp_path, BASE)
    recipe = recipes.load(
        path,
        ["train.max_steps=2", "train.learning_rate=3e-4", "data.train=[a, b]", "data.eval=c"],
    )
    assert recipe.train.max_steps == 2 and recipe.train.learning_rate == 3e-4
    assert recipe.data.train == ("a", "b") and recipe.data.eval == ("c",)
    assert recipes.load(path, ["train.save_total_limit=null"]).train.save_total_limit is None


def test_yaml_numbers_with_an_exponent_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("name: n\nstudent: s\noutput_dir: o\ntrain: {learning_rate: 1e-3}\n")
    assert recipes.load(path).train.learning_rate == 1e-3


def test_files_and_datasets_may_stand_side_by_side(tmp_path: Path) -> None:
    data = {"train": ["a", {"path": "O/N", "name": "b"}], "eval": {"path": "O/N", "split": "val"}}
    recipe = recipes.load(write(tmp_path, BASE | {"data": data}), ["data.eval.streaming=false"])
    one, other = HubData(path="O/N", name="b"), HubData(path="O/N", split="val", streaming=False)
    assert recipe.data.train == ("a", one) and recipe.data.eval == (other,)
    assert listed(recipe.data.train) == "a, O/N (b, train)"
    assert recipes.parse(yaml.safe_load(recipes.to_yaml(recipe))) == recipe


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.max_step=2", "unknown key `train.max_step`; did you mean `train.max_steps`?"),
        ("learning_rate=1", "did you mean `train.learning_rate`?"),
        ("capabilities.planning.roh=1", "did you mean `capabilities.planning.rho`?"),
        ("zebra=1", "unknown key `zebra`; known: name, seed"),
        ("train.max_steps=soon", "`train.max_steps`"),
        ("train.fp16=true", "fp16 is refused"),
        ("train.learning_rate=0", "greater than 0"),
        ("train.max_steps=0", "`train.max_steps`: 0 steps train nothing: expected 1 or more"),
        ("train={warmup_steps: 3, warmup_ratio: 0.1}", "3 and warmup_ratio: 0.1 both set the len"),
        ("train.warmup_ratio=1.5", "less than or equal to 1"),
        ("train.lr_scheduler_type=liner", "did you mean 'linear'?"),
        ("train.lora.r=4", "lora has no meaning with trainable: language_model"),
        ("train={trainable: lora, lora: {rank: 4}}", "unknown key `train.lora.rank`; known: train"),
        ("train={trainable: lora, lora: {target_modules: []}}", "`train.lora.target_modules`"),
        ("train={trainable: lora, fsdp: true}", "set fsdp: false"),
        ("train.trainable=lara", "did you mean 'lora'?"),
        ("train={eval_strategy: epoch, eval_steps: 3}", "eval_steps has no meaning with eval_stra"),
        ("train.load_best_model_at_end=true", "by the loss on data.eval, which names no file"),
        ("train={load_best_model_at_end: true, eval_strategy: no}", "Set eval_strategy: steps"),
        (
            "train={load_best_model_at_end: true, save_steps: 5, eval_steps: 2}",
            "expected save_steps to be a multiple of eval_steps, got 5 and 2",
        ),
        ("train.learning_rate=.inf", "finite"),
        ("train.dataloader_num_workers=-1", "greater than or equal to 0"),
        ("train.group_by_length=4", "`train.group_by_length`"),
        ("data.mixture={perception: 1}", "set pack: false, or leave mixture out"),
        ("data={pack: false, mixture: {perception: 0}}", "`data.mixture.perception`: input should"),
        ("data.train=[3]", "`data.train.0`: input should be a valid string, got 3"),
        (
            "data.train=[{path: a, spilt: b}]",
            "unknown key `data.train.0.spilt`; did you mean `data",
        ),
        ("data.train={name: a}", "the key `data.train.0.path` is missing"),
        ("combine.combiner=apg", "did you mean 'agp'?"),
        ("combine.combiner=torchjd", "torchjd:NAME such as torchjd:MGDA"),
        ("combine.combiner='torchjd:'", "'torchjd:' is no combiner"),
        ("combine.refresh=0", "greater than or equal to 1"),
        ("combine={refresh: 4, granularity: micro_batch}", "set granularity: step or refresh: 1"),
        ("combine.missing=zero", "release_projection"),
        ("combine.missing=skip", "release_projection"),
        ("combine.combiner=sum_ce3", "write 'sum_ceK'"),
        ("capabilities.planning.student_layers=frist", "'frist' names no layers"),
        ("capabilities.planning.student_layers=0..", "names no layers"),
        ("capabilities.planning.signal=logits", "got 'logits'; did you mean 'logits_kl'?"),
        ("capabilities.planning.signal=hiden", "did you mean 'hidden'?"),
        ("capabilities.planning.signal=zebra", "'full', 'hidden' or 'logits_kl', got 'zebra'"),
        ("capabilities.planning.student_layers=null", "text_to_vision compares layers: expected"),
        ("capabilities.planning.temperature=2", "temperature has no meaning for signal text_to_v"),
        ("capabilities.planning.temperature=0", "greater than 0"),
        ("mixing.planning.planing=1", "mixing.planning.planing: no such capability"),
        ("mixing.plan.planning=1", "mixing.plan: no such capability"),
        ("mixing.planning.planning=0", "not all zero"),
        ("mixing.planning.planning=-1", "non-negative"),
        ("mixing=3", "`mixing`"),
        ("weighting.mode=fixed", "weighting.fixed lacks a number for perception"),
        ("weighting.mode=online", "'grad_norm'"),
        ("weighting.fixed.planning=1", "fixed has no meaning under mode: grad_norm"),
        ("weighting={mode: fixed, fixed: {plan: 1}}", "weighting.fixed.plan: no such capability"),
        ("weighting={mode: fixed, cap: 2}", "cap has no meaning under mode: fixed"),
        ("combine={combiner: sum, ce_count: once}", "ce_count: once has no meaning for sum"),
        ("student=", "`student`"),
        ("train", "expected KEY=VALUE"),
        ("name.x=1", "name holds a value"),
        ("name=[", "no valid YAML"),
        ("data={[a]: 1}", "no valid YAML"),
    ],
)
def test_a_wrong_recipe_is_one_line_that_names_it(tmp_path: Path, override: str, said: str) -> None:
    path = write(tmp_path, BASE | {"capabilities": TEACHERS})
    with pytest.raises(ValueError) as caught:
        recipes.load(path, [override])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


LOGITS: dict[str, Any] = {"teacher": "a", "signal": "logits_kl"}


def with_planning(raw: dict[str, Any]) -> recipes.Recipe:
    return recipes.parse(BASE | {"capabilities": {"planning": raw}})


def test_distilling_outputs_needs_no_layers() -> None:
    recipe = with_planning(LOGITS | {"temperature": 2})
    found = recipe.capabilities["planning"]
    assert (found.student_layers, found.teacher_layers, found.temperature) == (None, None, 2.0)
    assert recipes.parse(yaml.safe_load(recipes.to_yaml(recipe))) == recipe


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("student_layers", "first", "student_layers has no meaning for signal logits_kl: .* null"),
        ("student_layers", "frist", "'frist' names no layers"),
        ("teacher_layers", "last", "teacher_layers has no meaning"),
        ("loss", "cosine", "loss has no meaning for signal logits_kl: expected mse, got cosine"),
        ("grouping", "proportional", "grouping has no meaning"),
        ("reachable_only", True, "reachable_only has no meaning"),
    ],
)
def test_keys_that_outputs_do_not_read_are_refused(key: str, value: object, said: str) -> None:
    with pytest.raises(ValueError, match=rf"`capabilities\.planning[a-z._]*`: .*{said}") as caught:
        with_planning(LOGITS | {key: value})
    assert "\n" not in str(caught.value)


def test_hidden_states_have_layers_and_no_pairs() -> None:
    hidden = TEACHERS["reasoning"] | {"signal": "hidden", "loss": "cosine"}
    assert with_planning(hidden).capabilities["planning"].teacher_layers == "1..penultimate"
    for key, value in (("reachable_only", True), ("temperature", 2)):
        with pytest.raises(ValueError, match=f"{key} has no meaning for signal hidden"):
            with_planning(hidden | {key: value})


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the key `student` is missing"):
        recipes.load(write(tmp_path, {"name": "n", "output_dir": "o"}))


def test_a_key_written_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("name: n\nname: m\n")
    with pytest.raises(ValueError, match="'name' stands twice"):
        recipes.load(path)


@pytest.mark.parametrize("text", ["", "- a\n", "name: [\n"])
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"run\.yaml"):
        recipes.load(path)


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="did you mean 'demo'"):
        recipes.load("dmeo")
    with pytest.raises(FileNotFoundError, match=r"no recipe file .*gone\.yaml"):
        recipes.load(tmp_path / "gone.yaml")


def test_every_combiner_of_a_recipe_exists() -> None:
    from typing import get_args

    from drivekd.method.combine.projection import COMBINERS
    from drivekd.recipe.combine import Combiner

    assert set(get_args(Combiner)) == {*COMBINERS, "agp_grouped"}


@pytest.mark.parametrize("name", ["torchjd:UPGrad", "torchjd:CAGrad(c=0.4)", "agp_grouped"])
def test_combiners_that_a_recipe_may_name(name: str) -> None:
    recipe = recipes.parse(BASE | {"combine": {"combiner": name, "refresh": 8}})
    assert recipe.combine.combiner == name
    assert recipes.parse(yaml.safe_load(recipes.to_yaml(recipe))) == recipe


@pytest.mark.parametrize(
    "spec", [1, "1", "all", "first..penultimate", "2..penultimate-1", "1,3, last", "LAST"]
)
def test_a_layer_specification_of_a_recipe_can_be_resolved(spec: int | str) -> None:
    from drivekd.method.signals.layers import resolve

    teacher = TEACHERS["planning"] | {"student_layers": spec}
    recipe = recipes.parse(BASE | {"capabilities": {"planning": teacher}})
    assert resolve(recipe.capabilities["planning"].student_layers, 7)


def test_an_unquoted_no_is_a_word(tmp_path: Path) -> None:
    recipe = recipes.load(write(tmp_path, BASE), ["train.eval_strategy=no"])
    assert recipe.train.eval_strategy == "no"
    assert recipes.parse(yaml.safe_load(recipes.to_yaml(recipe))) == recipe


def test_adapters_have_the_names_of_peft(tmp_path: Path) -> None:
    lora = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": "q_proj"}
    recipe = recipes.parse(BASE | {"train": {"trainable": "lora", "lora": lora}})
    assert recipe.train.lora.target_modules == ("q_proj",)
    assert recipes.parse(yaml.safe_load(recipes.to_yaml(recipe))) == recipe


def test_a_recipe_may_be_a_patch_of_another(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "base: demo\nname: mine\nmixing: null\n"
        "capabilities: {planning: {rho: 2}, reasoning: null}\n"
    )
    (tmp_path / "plain.yaml").write_text("base: mine.yaml\ncapabilities: null\n")
    demo, mine = recipes.load("demo"), recipes.load(tmp_path / "mine.yaml", ["seed=3"])
    assert (mine.name, mine.seed, mine.train) == ("mine", 3, demo.train)
    assert list(mine.capabilities) == ["perception", "planning"]
    assert mine.capabilities["planning"].rho == 2
    assert mine.capabilities["planning"].teacher == demo.capabilities["planning"].teacher
    plain = recipes.load(tmp_path / "plain.yaml")
    assert (plain.name, plain.capabilities) == ("mine", {})


def test_a_base_that_is_missing_or_goes_round_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    with pytest.raises(FileNotFoundError, match=r"b\.yaml"):
        recipes.load(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    with pytest.raises(
        ValueError, match=r"round in a circle: \S*a\.yaml → \S*b\.yaml → \S*a\.yaml"
    ):
        recipes.load(tmp_path / "a.yaml")


@pytest.mark.parametrize("signal", ["hidden", "logits_kl"])
def test_only_attention_is_stored(signal: str) -> None:
    layers = None if signal == "logits_kl" else "first"
    teachers = TEACHERS | {"planning": {"teacher": "b", "student_layers": layers, "signal": signal}}
    raw = BASE | {"capabilities": teachers, "cache": {"dir": "c"}}
    with pytest.raises(
        ValueError, match=rf"capabilities.planning has signal {signal}; leave cache"
    ):
        recipes.parse(raw)
    assert recipes.parse(raw | {"cache": {"dtype": "uint8"}}).cache.dir is None
