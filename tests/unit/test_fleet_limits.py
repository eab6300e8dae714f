"""`vram_limit`: what everybody sees of a device that may not be filled."""

from __future__ import annotations

from olol_tui.fleet.limits import Reserved, limited
from olol_tui.fleet.snapshot import Device, Engine, Loaded
from olol_tui.fleet.split_book import SplitBook
from olol_tui.fleet.split_wish import PartWish, SplitWish

GPU = Device("GPU-abc", 0, "GPU", "nvidia", vram_bytes=1000, used_bytes=100)


def test_a_limited_device_is_no_larger_than_its_limit() -> None:
    (one,) = limited((GPU,), {"": 300}, (), {})
    assert (one.vram_bytes, one.used_bytes, one.free_bytes) == (300, 0, 300)


def test_what_our_models_and_splits_take_counts_and_so_does_a_full_device() -> None:
    engine = Engine(
        "n/e", "n", "ollama", "ready", ("GPU-abc",), loaded=(Loaded("m", size_bytes=120),)
    )
    (one,) = limited((GPU,), {"": 300}, (engine,), {"GPU-abc": Reserved(100)})
    assert one.free_bytes == 80
    full = Device("GPU-abc", 0, "GPU", "nvidia", vram_bytes=1000, used_bytes=950)
    (one,) = limited((full,), {"": 300}, (), {})
    assert one.free_bytes == 50


def test_a_limit_may_be_of_one_device() -> None:
    other = Device("GPU-def", 1, "GPU", "nvidia", vram_bytes=1000, used_bytes=0)
    by_index = limited((GPU, other), {"1": 300}, (), {})
    assert [device.vram_bytes for device in by_index] == [1000, 300]
    by_uuid = limited((GPU, other), {"GPU-a": 300, "": 500}, (), {})
    assert [device.vram_bytes for device in by_uuid] == [300, 500]
    assert limited((GPU,), {"": 5000}, (), {}) == (GPU,), "a limit above what there is says nothing"


def test_what_a_split_is_about_to_take_is_taken_already_with_or_without_a_limit() -> None:
    """The device's own account knows of it only when all of it has been loaded."""
    (coming,) = limited((GPU,), {}, (), {"GPU-abc": Reserved(600, 600)})
    assert (coming.free_bytes, coming.lent_bytes) == (300, 600)
    full = Device("GPU-abc", 0, "GPU", "nvidia", vram_bytes=1000, used_bytes=720)
    (loaded,) = limited((full,), {}, (), {"GPU-abc": Reserved(600)})
    assert (loaded.free_bytes, loaded.vram_bytes) == (280, 1000)
    engine = Engine(
        "n/e", "n", "ollama", "ready", ("GPU-abc",), loaded=(Loaded("m", size_bytes=120),)
    )
    idle = Device("GPU-abc", 0, "GPU", "nvidia", vram_bytes=1000, used_bytes=0)
    (beside,) = limited((idle,), {}, (engine,), {"GPU-abc": Reserved(600)})
    assert beside.free_bytes == 280, "a model that is being loaded counts too"
    silent = Device("GPU-abc", 0, "GPU", "nvidia", vram_bytes=1000)
    (one,) = limited((silent,), {}, (), {"GPU-abc": Reserved(600, 600)})
    assert (one.used_bytes, one.lent_bytes) == (None, 600)


def test_a_split_has_its_memory_from_before_room_is_made_until_it_goes() -> None:
    book = SplitBook(lambda: None)
    part = PartWish("n", "GPU-abc", "gpu0", 10, planned_bytes=600)
    wish = SplitWish("split/m", "m", "n", "n/head", "/m.gguf", parts=(part,))
    with book.promised(wish):
        assert book.reserved_on("n") == {"GPU-abc": Reserved(600, 600)}
        book.add(wish)
        assert book.reserved_on("n") == {"GPU-abc": Reserved(600, 600)}, "once"
    assert not book.reserved_on("other") and book.heads() == {"n/head"}
    book.set_loaded(wish.id, True)
    assert book.reserved_on("n") == {"GPU-abc": Reserved(600)}
    book.drop(wish.id)
    assert not book.reserved_on("n")
