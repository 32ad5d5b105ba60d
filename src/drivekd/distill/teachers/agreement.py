"""Whether a teacher reads and writes what the student does, so that the two can be compared."""

from __future__ import annotations

from collections.abc import Sequence

from drivekd.models import vlm as vlms
from drivekd.models.batch import Encoded, encode

#: Samples compared one by one even where student and teacher have the very same tokenizer.
PROBES = 16


def check_agreement(
    student: vlms.Vlm, teacher: vlms.Vlm, name: str, encoded: Sequence[Encoded]
) -> None:
    """Refuse a teacher that reads a sample as another sequence than the student does.

    Raises:
        ValueError: naming the sample and the first position where they part.
    """
    if student.family != teacher.family:
        raise ValueError(
            f"teacher of {name}: {teacher.source} is a {teacher.family.name} model, the student "
            f"{student.source} a {student.family.name} one; attention maps can only be compared "
            f"position by position, so both must be of one family"
        )
    probes = encoded
    if _spelling(student) == _spelling(teacher):
        probes = encoded[:: max(1, len(encoded) // PROBES)]
    for mine in probes:
        theirs = encode(teacher, mine.sample)
        fault = _difference(mine, theirs, student, teacher)
        if fault:
            raise ValueError(
                f"teacher of {name}: {teacher.source} and the student {student.source} read sample "
                f"{mine.sample.id} differently: {fault}. Their tokenizer, chat template and number "
                f"of tokens per image must agree, position by position"
            )


def check_outputs(student: vlms.Vlm, teacher: vlms.Vlm, name: str) -> None:
    """Refuse a teacher whose output distribution cannot be compared with the student's.

    Raises:
        ValueError: it has no language-model head, or an id that both vocabularies have is another
            token in one of them.
    """
    width = teacher.model.config.get_text_config().hidden_size
    head = getattr(teacher.model, "lm_head", None)
    weight = getattr(head, "weight", None)
    if weight is None or weight.ndim != 2 or weight.shape[1] != width:
        raise ValueError(
            f"teacher of {name}: {teacher.source} has no language-model head (lm_head with a "
            f"weight of width {width}), which signal logits_kl compares; give a complete model, or "
            f"choose signal hidden or an attention signal"
        )
    shared = min(len(vlms.head_weight(student)), len(weight))
    mine, theirs = (
        {token: n for token, n in vlm.tokenizer.get_vocab().items() if n < shared}
        for vlm in (student, teacher)
    )
    differing = sorted(mine.items() ^ theirs.items(), key=lambda pair: pair[1])
    if differing:
        place = differing[0][1]
        words = [
            next((repr(token) for token, n in vocabulary.items() if n == place), "nothing")
            for vocabulary in (mine, theirs)
        ]
        raise ValueError(
            f"teacher of {name}: of the {shared} token ids that {teacher.source} and the student "
            f"{student.source} share, {place} is {words[0]} for the student and {words[1]} for the "
            f"teacher; signal logits_kl compares token by token and needs one vocabulary"
        )


def _spelling(vlm: vlms.Vlm) -> tuple[object, ...]:
    """All that decides which tokens a sample becomes."""
    processor = vlm.image_processor
    tiling = [getattr(processor, name, None) for name in ("size", "patch_size", "merge_size")]
    return vlm.tokenizer.backend_tokenizer.to_str(), vlm.tokenizer.chat_template, repr(tiling)


def _difference(mine: Encoded, theirs: Encoded, student: vlms.Vlm, teacher: vlms.Vlm) -> str:
    if len(mine.input_ids) != len(theirs.input_ids):
        return f"{len(mine.input_ids)} tokens for the student, {len(theirs.input_ids)} for it"
    unequal = mine.input_ids.ne(theirs.input_ids) | mine.is_image.ne(theirs.is_image)
    if not unequal.any():
        return ""
    place = int(unequal.nonzero()[0])
    words = [
        repr(vlm.tokenizer.convert_ids_to_tokens(int(each.input_ids[place])))
        for vlm, each in ((student, mine), (teacher, theirs))
    ]
    return f"at position {place} the student reads {words[0]}, it reads {words[1]}"
