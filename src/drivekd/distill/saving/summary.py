"""What a finished run says at its end: how long, how fast, how the losses fell, what to do next."""

from __future__ import annotations

from pathlib import Path

from drivekd.distill.saving import card
from drivekd.distill.saving.trainer_state import State, read_state
from drivekd.files.progress import duration


def text(final: Path) -> str:
    """A table of a run and the command that evaluates its model.

    Args:
        final: the folder of its final model.

    Raises:
        ValueError: the folder holds no run's model.
    """
    state = read_state(final)
    rows = _rows(state, final)
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    commands = card.evaluation_commands(state.recipe, final)
    return "\n".join([*lines, "", "to evaluate:", *(f"  {each}" for each in commands)])


def _rows(state: State, final: Path) -> list[tuple[str, str]]:
    rows = [("steps", f"{state.step} ({state.epoch:.4g} epochs)")]
    if state.seconds > 0:
        rows.append(("time", duration(state.seconds)))
        rows.append(("samples/s", f"{state.questions / state.seconds:.3g}"))
    for name, (first, last) in card.ends(state.log_history).items():
        rows.append((name, _course(f"{first:.4g}", f"{last:.4g}")))
    rates = [line["lr"] for line in state.log_history if "lr" in line]
    if rates:
        rows.append(("learning rate", _course(f"{rates[0]:.3g}", f"{rates[-1]:.3g}")))
    if state.best_global_step is not None:
        best = f"step {state.best_global_step}, {card.HELD_OUT} {state.best_metric:.4g}"
        rows.append(("weights of", best))
    kept = sorted(final.parent.glob("checkpoint-*"), key=lambda path: (len(path.name), path.name))
    if kept:
        rows.append(("checkpoints", ", ".join(map(str, kept))))
    return rows


def _course(first: str, last: str) -> str:
    """From where to where; of a run so short that it was logged once, that one number."""
    return last if first == last else f"{first} → {last}"
