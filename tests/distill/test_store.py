"""Shards appear whole, list themselves, and say so when they are damaged."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch

from drivekd.distill.targets import store
from drivekd.distill.targets.store_format import Packed, pack, unpack
from drivekd.distill.targets.whose import check_same

MASK = torch.ones(3, 5, dtype=torch.bool).tril(2)


def parts(*keys: str, dtype: str = "float16") -> dict[str, dict[str, Packed]]:
    return {key: {"planning": pack(torch.rand(2, 3, 5), MASK, dtype)} for key in keys}


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
def test_what_is_written_is_read(tmp_path: Path, dtype: str) -> None:
    written = parts("a", "b", dtype=dtype)
    path = store.write_shard(tmp_path, written, {"/a.png": "1"})
    store.write_shard(tmp_path, parts("c", dtype=dtype), {"/b.png": "2"})
    found = store.scan(tmp_path)
    assert found.shards.keys() == {"a", "b", "c"}
    assert found.pictures == {"/a.png": "1", "/b.png": "2"}
    assert found.bytes == sum(each.stat().st_size for each in tmp_path.iterdir())
    for key in ("a", "b", "a"):
        read, wanted = store.get(found, key, "planning"), written[key]["planning"]
        assert torch.equal(read.values, wanted.values)
        assert (read.scale is None) is (dtype == "float16")
        assert wanted.scale is None or torch.equal(read.scale, wanted.scale)
    assert list(found.opened) == [path]


def test_a_sample_without_pictures_has_no_prefix(tmp_path: Path) -> None:
    nothing = torch.zeros(0, 0, dtype=torch.bool)
    for dtype in ("float16", "uint8"):
        packed = pack(torch.zeros(2, 0, 0), nothing, dtype)
        store.write_shard(tmp_path, {dtype: {"planning": packed}}, {})
        read = store.get(store.scan(tmp_path), dtype, "planning")
        assert unpack(read, nothing).shape == (2, 0, 0)


def test_few_shards_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "OPEN", 2)
    for key in "abcd":
        store.write_shard(tmp_path, parts(key), {})
    found = store.scan(tmp_path)
    for key in "abcab":
        store.get(found, key, "planning")
    assert list(found.opened) == [found.shards["a"], found.shards["b"]]


@pytest.mark.parametrize("left", [0, 7, -3])
def test_a_damaged_shard_is_named(tmp_path: Path, left: int) -> None:
    store.write_shard(tmp_path, parts("a"), {})
    path = store.write_shard(tmp_path, parts("b"), {})
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ValueError, match=path.name) as caught:
        store.scan(tmp_path)
    assert "\n" not in str(caught.value)
    path.unlink()
    assert store.scan(tmp_path).shards.keys() == {"a"}


def test_a_full_disk_leaves_whole_shards_alone(tmp_path: Path) -> None:
    kept = store.write_shard(tmp_path, parts("a"), {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match=r"shard-.*File too large"):
            store.write_shard(tmp_path, parts("b"), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == [kept]


def test_drafts_of_the_dead_are_no_shards(tmp_path: Path) -> None:
    draft = tmp_path / ".shard-0123.safetensors.partial"
    draft.write_bytes(b"half")
    assert not store.scan(tmp_path).shards
    store.remove_drafts(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_manifest_is_of_this_version_or_refused(tmp_path: Path) -> None:
    assert store.read_manifest(tmp_path) is None
    manifest = {"version": store.VERSION, "dtype": "uint8"}
    store.write_manifest(tmp_path, manifest)
    assert store.read_manifest(tmp_path) == manifest
    store.write_manifest(tmp_path, {"version": 0})
    with pytest.raises(ValueError, match="is of version 0, expected 2"):
        store.read_manifest(tmp_path)
    (tmp_path / store.MANIFEST).write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json.*cache\.dir"):
        store.read_manifest(tmp_path)


def test_every_difference_is_named(tmp_path: Path) -> None:
    def manifest(layers: list[int], sha: str, source: str) -> dict[str, object]:
        of = {"source": source, "sha256": sha, "files": {source: sha}}
        return {"capabilities": {"planning": {"layers": {"2": layers}, "teacher": of}}}

    one = manifest([3], "1" * 64, "a")
    check_same(one, manifest([3], "1" * 64, "moved"), tmp_path)
    message = (
        r"planning.layers.2: \[3\] there, \[2, 3\] here; "
        r"capabilities.planning.teacher.sha256: 1{12} there, 2{12} here"
    )
    with pytest.raises(ValueError, match=message):
        check_same(one, manifest([2, 3], "2" * 64, "a"), tmp_path)
    with pytest.raises(ValueError, match=r"layers\.2: .3. .*none"):
        check_same(one, {"capabilities": {}}, tmp_path)
