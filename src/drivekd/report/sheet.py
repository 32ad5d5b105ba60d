"""A contact sheet of a data file: pictures with the objects that their questions name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image, ImageDraw

from drivekd.data.pictures import image_or_none
from drivekd.data.sample import CAMERAS, Sample
from drivekd.files.writing import writing
from drivekd.report.figures import Mark, fitted, tile, typeface

#: sizes on the sheet [px]
_TILE, _GAP, _MARGIN, _LINE = 192, 6, 20, 20
_COLUMNS = 6
_PAPER, _INK, _PALE, _RULE = "#fdfdfb", "#1a1d21", "#59616b", "#dcdfe2"
_WIDTH = 2 * _MARGIN + _COLUMNS * (_TILE + _GAP) - _GAP


def refuse_other_files(out: Path) -> None:
    """Raise a ValueError where a sheet would take the place of anything but a PNG picture."""
    if out.suffix.lower() != ".png":
        raise ValueError(f"a contact sheet is a PNG picture, {out} is not: name a file.png")
    if out.is_dir() or (out.exists() and not _is_png(out)):
        raise ValueError(f"{out} exists and is no PNG picture: it is left alone, name a new file")


def _is_png(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(8) == b"\x89PNG\r\n\x1a\n"


def contact_sheet(samples: Iterable[Sample], out: Path, count: int = 12) -> Path:
    """Draw samples as PNG: each with its pictures, its tags on them, question and answer.

    The first sample of a kind (capability and template) that has pictures is drawn, `count`
    samples at most and a third of them of one capability. A picture is squeezed to a square, as a
    model sees it; one that cannot be read leaves an empty frame.

    Raises:
        ValueError: no sample has pictures, or `out` is no PNG picture.
    """
    refuse_other_files(out)
    chosen = list(_chosen(samples, count))
    if not chosen:
        raise ValueError("no sample has pictures to draw: a contact sheet needs at least one")
    heights = [_height(sample) for sample in chosen]
    sheet = Image.new("RGB", (_WIDTH, sum(heights) + _MARGIN), _PAPER)
    top = _MARGIN
    for sample, height in zip(chosen, heights, strict=True):
        _draw(sheet, sample, top)
        top += height
    with writing(out):
        sheet.save(out, format="PNG")
    return out


def _chosen(samples: Iterable[Sample], count: int) -> Iterator[Sample]:
    kinds: set[tuple[str | None, str | None]] = set()
    drawn: Counter[str | None] = Counter()
    for sample in samples:
        kind = (sample.capability, sample.template)
        if sample.images and kind not in kinds and drawn[sample.capability] < max(1, count // 3):
            kinds.add(kind)
            drawn[sample.capability] += 1
            yield sample
        if len(kinds) == count:
            return


def _height(sample: Sample) -> int:
    """Return the height of one sample with the space below it [px]."""
    rows = -(-len(sample.images) // _COLUMNS)
    return rows * (_TILE + _LINE + _GAP) + 3 * _LINE + _MARGIN


def _draw(sheet: Image.Image, sample: Sample, top: int) -> None:
    draw = ImageDraw.Draw(sheet)
    draw.line((_MARGIN, top, _WIDTH - _MARGIN, top), fill=_RULE, width=1)
    about = f"{sample.capability or 'no capability'} · {sample.template or 'no template'}"
    _text(draw, f"{about} · {sample.id}", top + 4, _PALE, 12)
    _text(draw, sample.question, top + 4 + _LINE, _INK, 14)
    _text(draw, f"→ {sample.answer or '(no answer)'}", top + 4 + 2 * _LINE, _INK, 14)
    top += 4 + 3 * _LINE
    for place, (camera, file) in enumerate(sample.images.items()):
        left = _MARGIN + place % _COLUMNS * (_TILE + _GAP)
        upper = top + place // _COLUMNS * (_TILE + _LINE + _GAP)
        name = camera if camera in CAMERAS else file.name
        label = fitted(name, typeface(11), _TILE)
        draw.text((left, upper), label, fill=_PALE, font=typeface(11))
        marks = list(_marks(sample, camera))
        picture = image_or_none(file, 2 * _TILE)
        frame = (left, upper + _LINE, left + _TILE - 1, upper + _LINE + _TILE - 1)
        if picture is None:
            draw.rectangle(frame, outline=_RULE)
            draw.text((left + 8, upper + _LINE + 8), "not there", fill=_PALE, font=typeface(12))
        else:
            sheet.paste(tile(picture, marks=marks, size=_TILE), frame[:2])


def _text(draw: ImageDraw.ImageDraw, text: str, top: int, ink: str, size: int) -> None:
    line = fitted(text[:400], typeface(size), _WIDTH - 2 * _MARGIN)
    draw.text((_MARGIN, top), line, fill=ink, font=typeface(size))


def _marks(sample: Sample, camera: str) -> Iterator[Mark]:
    """Yield the tags of a picture; all of them on the only one whose camera is not known."""
    only = len(sample.images) == 1 and camera not in CAMERAS
    for tag in dict.fromkeys(sample.tags):
        if (only or tag.camera == camera) and tag.place is not None:
            yield Mark(tag.name, *tag.place)
