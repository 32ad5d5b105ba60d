"""The faults of the public release that concern training, by name: ours must have none of them.

One short test per fault on a whole small run; the modules' own tests go further.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import runs
from drivekd.data.formats.readers import read
from drivekd.distill import objective
from drivekd.distill import plan as plans
from drivekd.distill.objective import batch_of, losses
from drivekd.distill.order import projection_order, windows
from drivekd.distill.run import Run, prepare
from drivekd.distill.step import step
from drivekd.distill.teachers import attention
from drivekd.distill.train import train
from drivekd.method.signals import head_mean
from drivekd.models import vlm as vlms
from drivekd.models.batch import encode, flat
from drivekd.models.vlm import Vlm


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def teachers() -> dict[str, Vlm]:
    return runs.tiny_teachers()


def prepared(data: Path, teachers: dict[str, Vlm], /, **changes: Any) -> Run:
    recipe = runs.recipe(data, Path("unused"), **changes)
    return prepare(plans.build(recipe, runs.tiny_student(), teachers))


def test_paths_of_further_images_are_not_fed_as_text(data: Path) -> None:
    """… and text between images is not lost."""
    student = runs.tiny_student()
    encoded = encode(student, next(iter(read(data))))
    text = student.tokenizer.decode(encoded.input_ids)
    assert ".png" not in text
    assert text.index("CAM_FRONT: <img>") < text.index("\nCAM_BACK: <img>")
    assert len(encoded.images) == 2


def test_out_of_memory_is_not_a_loss_of_zero(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Tensor:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(objective, "forward", full)
    recipe = runs.recipe(data, tmp_path, capabilities={})
    with pytest.raises(RuntimeError, match=r"step 1, samples s.*: out of memory"):
        train(recipe, student=runs.tiny_student())
    assert not (tmp_path / "log.jsonl").read_text()


def test_an_error_while_saving_is_not_swallowed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full)
    settings = {"max_steps": 2, "save_steps": 1}
    recipe = runs.recipe(data, tmp_path, capabilities={}, train=settings)
    with pytest.raises(OSError, match=r"checkpoint-1 .*no space left"):
        train(recipe, student=runs.tiny_student())


def test_a_run_can_be_resumed(data: Path, tmp_path: Path) -> None:
    settings = {"max_steps": 2, "save_steps": 1}
    recipe = runs.recipe(data, tmp_path, capabilities={}, train=settings)
    final = train(recipe, student=runs.tiny_student())
    weights = (final / "model.safetensors").read_bytes()
    place = tmp_path / "checkpoint-1"
    assert train(recipe, resume=place, student=runs.tiny_student()) == final
    assert (final / "model.safetensors").read_bytes() == weights


def test_training_with_cross_entropy_only_is_possible(data: Path) -> None:
    run = prepared(data, {}, capabilities={})
    before = run.plan.trained.parameters[0].clone()
    step(run, next(windows(run.plan.schedule.order, 0, 1)))
    assert not torch.equal(run.plan.trained.parameters[0], before)


@pytest.mark.parametrize("taught", [("perception",), ("perception", "planning")])
def test_one_or_two_teachers_train_something(
    data: Path, teachers: dict[str, Vlm], taught: tuple[str, ...]
) -> None:
    whole = runs.recipe(data, Path("unused")).model_dump()["capabilities"]
    run = prepared(
        data,
        teachers,
        capabilities={name: whole[name] for name in taught},
        mixing={name: dict.fromkeys(taught, 1.0) for name in runs.CAPABILITIES},
    )
    plain = prepared(data, {}, capabilities={})
    for each in (run, plain):
        step(each, next(windows(each.plan.schedule.order, 0, 1)))
    assert all(run.totals[f"lambda/{name}"][0] > 0 for name in taught)
    direction = torch.nn.functional.cosine_similarity(run.update, plain.update, dim=0)
    assert direction < 0.99  # cross-entropy alone would move the same weights


def test_half_precision_is_refused(data: Path) -> None:
    """In it two of three losses are exactly 0, because the count of map entries overflows."""
    with pytest.raises(ValueError, match="fp16"):
        runs.recipe(data, Path("unused"), train={"fp16": True})


def test_the_cosine_schedule_moves(data: Path, tmp_path: Path) -> None:
    settings = {"max_steps": 4, "lr_scheduler_type": "cosine"}
    train(runs.recipe(data, tmp_path, capabilities={}, train=settings), student=runs.tiny_student())
    rates = [line["lr"] for line in runs.lines(tmp_path)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 1e-3
    assert rates[-1] == pytest.approx(1e-5)


def test_the_last_short_window_is_not_scaled_down(data: Path) -> None:
    """Three scenes in windows of two: the second step has one, and the mean of its five samples."""
    sizes = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    run = prepared(data, {}, capabilities={}, train={**sizes, "max_grad_norm": None})
    for window in windows(run.plan.schedule.order, 0, 2):
        step(run, window)
    assert len(run.unit.indices) == 5
    torch.testing.assert_close(run.update, run.unit.gradients[0] / 5)


def test_the_shuffle_of_the_projection_does_not_draw_from_the_datas_stream(
    data: Path, teachers: dict[str, Vlm]
) -> None:
    state = torch.get_rng_state()
    assert sorted(projection_order(0, (3, 0), 3)) == [0, 1, 2]
    assert torch.equal(torch.get_rng_state(), state)
    orders = [
        list(
            windows(
                prepared(data, teachers, combine={"combiner": combiner}).plan.schedule.order, 0, 5
            )
        )
        for combiner in ("agp", "sum")
    ]
    assert orders[0] == orders[1]


def test_the_attention_backend_is_forced(data: Path, teachers: dict[str, Vlm]) -> None:
    """Whatever a model came with, maps are there, and of the layers that were asked for."""
    student = runs.tiny_student()
    student.model.set_attn_implementation("eager")
    plan = plans.build(runs.recipe(data, Path("unused")), student, teachers)
    assert student.model.config.get_text_config()._attn_implementation == attention.NAME
    assert [list(term.matches) for term in plan.models.terms] == [[0], [0, 1], [1]]
    with losses(plan.models, batch_of(plan, [(0,)])) as found:
        assert bool((torch.stack(found.terms) > 0).all())


def test_no_third_party_source_is_rewritten(
    data: Path, teachers: dict[str, Vlm], tmp_path: Path
) -> None:
    student = runs.tiny_student()
    parts = {type(student.model), type(vlms.language_model(student))}
    files = [Path(inspect.getsourcefile(part) or "") for part in parts]
    before = [(file.read_bytes(), file.stat().st_mtime_ns) for file in files]
    train(runs.recipe(data, tmp_path, train={"max_steps": 1}), student=student, teachers=teachers)
    assert [(file.read_bytes(), file.stat().st_mtime_ns) for file in files] == before


def test_code_that_comes_with_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    vlms.save(runs.tiny_student(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoModelForImageTextToText": "theirs.Theirs"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    mark = tmp_path / "ran"
    (tmp_path / "theirs.py").write_text(f"open({str(mark)!r}, 'w')\nclass Theirs: ...\n")
    assert vlms.load(tmp_path).family.name == "internvl"
    assert not mark.exists()


def test_the_vision_tower_is_frozen(data: Path, teachers: dict[str, Vlm]) -> None:
    run = prepared(data, teachers)
    weights = [p for part in vlms.vision_parts(run.plan.models.student) for p in part.parameters()]
    before = [weight.clone() for weight in weights]
    step(run, next(windows(run.plan.schedule.order, 0, 1)))
    assert not any(weight.requires_grad for weight in weights)
    assert all(torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))


def test_a_batch_holds_more_than_one_sample(data: Path, teachers: dict[str, Vlm]) -> None:
    """Three in rows of their own, of different lengths, with a loss each."""
    plan = prepared(data, teachers, data={"pack": False}).plan
    batch = batch_of(plan, runs.rows(plan, [0, 1, 4]))
    assert len(batch.input_ids) == 3
    assert not bool(batch.valid.all())
    with losses(plan.models, batch) as found:
        assert [len(values) for values in (found.answers, *found.terms)] == [3] * 4


def test_no_layer_keeps_the_attention_of_every_head(
    data: Path, teachers: dict[str, Vlm], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between forward and backward no tensor [B, heads, n, n] is alive, not even of used layers."""
    monkeypatch.setattr(head_mean, "KEPT_ENTRIES", 0)  # as if the maps were large
    plan = prepared(data, teachers).plan
    batch = batch_of(plan, runs.rows(plan, range(5)))
    n, kept = batch.input_ids.shape[1], []

    def keep(x: Tensor) -> Tensor:
        kept.append(tuple(x.shape))
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), losses(plan.models, batch):
        pass
    heads = plan.models.student.model.config.get_text_config().num_attention_heads
    assert heads > 1
    assert kept
    assert not [shape for shape in kept if shape[-2:] == (n, n) and heads in shape[:-2]]


def test_a_batch_takes_one_backward_per_loss(
    data: Path, teachers: dict[str, Vlm], monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 + K of them, and one flat gradient each; no copy of all of them for a stage."""
    run = prepared(data, teachers)
    first, second = windows(run.plan.schedule.order, 0, 2)
    step(run, first)  # which also makes the optimizer's state
    calls, grad = [], torch.autograd.grad

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return grad(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    monkeypatch.setattr(Tensor, "backward", None)
    before = run.unit.gradients.data_ptr()
    with Copies(run.plan.trained.parameters) as copies:
        step(run, second)
    assert len(calls) == 4
    assert run.unit.gradients.data_ptr() == before
    assert len(run.unit.gradients) == 4
    assert copies.count <= copies.size  # the update; in the release 1 + 2 K times all of them


class Copies(TorchDispatchMode):
    """Counts numbers in copies that are shaped as parameters are, or as all of them in a row."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        super().__init__()
        self.shapes = {parameter.shape for parameter in parameters}
        self.size = sum(parameter.numel() for parameter in parameters)
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in ("clone", "zeros_like", "empty_like", "cat"):
            flat = made.ndim == 1 and made.numel() >= self.size
            self.count += made.numel() if flat or made.shape in self.shapes else 0
        return made


class Synchronisations(TorchDispatchMode):
    """Counts operations after which Python has to wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.count += name in ("_local_scalar_dense", "nonzero", "masked_select", "_unique2")
        return func(*args, **(kwargs or {}))


def test_a_sample_costs_few_device_synchronisations(data: Path, teachers: dict[str, Vlm]) -> None:
    """The release: more than 10⁴."""
    run = prepared(data, teachers)
    plans.fill_caches(run.plan)
    window = next(windows(run.plan.schedule.order, 0, 1))
    with Synchronisations() as seen:
        step(run, window)
    assert 0 < seen.count < 30 * len(flat(window.batches))
