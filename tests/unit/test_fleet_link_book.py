"""What is known of the ways between nodes."""

from __future__ import annotations

from olol_tui.fleet.link_book import LinkBook
from olol_tui.fleet.snapshot import NodeLink
from olol_tui.placement.split import Link


def test_what_was_measured_last_counts_and_only_news_is_told() -> None:
    told: list[int] = []
    book = LinkBook(lambda: told.append(1))
    book.note("a", "b", bytes_s=1e8)
    assert not book.links([("a", "b")]), "how far it is, nobody knows"
    book.note("a", "b", rtt_s=0.001)
    assert book.links([("a", "b"), ("a", "c")]) == {("a", "b"): Link(0.001, 1e8)}
    assert len(told) == 2
    book.note("b", "a", rtt_s=0.001)
    assert book.links([("b", "a")]) == {("b", "a"): Link(0.001, 1e8)}, "a cable has two ends"
    told.pop()
    book.note("a", "b", rtt_s=0.00101, bytes_s=1.02e8)
    assert len(told) == 2, "about the same"
    book.note("a", "b", bytes_s=5e7)
    assert book.of("a", "b").bytes_s == 5e7 and len(told) == 3
    assert book.seen_from("a") == (NodeLink("b", 0.001, 5e7),)


def test_it_is_kept_and_a_node_that_leaves_is_forgotten() -> None:
    book, again = LinkBook(lambda: None), LinkBook(lambda: None)
    book.note("a", "b", rtt_s=0.001)
    book.note("a", "c", rtt_s=0.002)
    again.adopt(book.kept())
    again.forget_node("b")
    assert [link.node for link in again.seen_from("a")] == ["c"]
    assert [link.node for link in book.seen_from("a")] == ["b", "c"]
