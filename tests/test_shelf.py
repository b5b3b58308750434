"""The store behind the pages stays within its budget."""

from pipelines.ui.shelf import Shelf


def test_oldest_use_goes_first():
    shelf = Shelf(100)
    a, b = shelf.put("a", 40), shelf.put("b", 40)
    assert shelf.get(a) == "a"  # now newer than b
    c = shelf.put("c", 40)
    assert [shelf.get(ticket) for ticket in (a, b, c)] == ["a", None, "c"]
    big = shelf.put("big", 1000)
    assert shelf.get(big) == "big" and shelf.get(a) is None
    shelf.drop(big)
    shelf.drop(None)
    assert shelf.get(big) is None and shelf.get(None) is None
