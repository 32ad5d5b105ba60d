"""Other wordings of a sample's last question, for studies of how steady a teacher is."""

from __future__ import annotations

from dataclasses import replace

from drivekd.data.sample import Message, Sample


def paraphrased(sample: Sample) -> list[Sample]:
    found = [sample]
    for words in sample.meta.get("paraphrases", ()):
        turns = [
            Message(m.role, m.content.replace(sample.question, words)) if m.role == "user" else m
            for m in sample.messages
        ]
        found.append(replace(sample, messages=tuple(turns)))
    return found
