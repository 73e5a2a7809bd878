"""Numbers as people write them."""

from fastast.number_text import counted


def test_one_of_something_is_singular():
    assert [counted(number, "picture") for number in (0, 1, 1234)] == ["0 pictures", "1 picture", "1,234 pictures"]
    assert [counted(number, "class", "classes") for number in (1, 2)] == ["1 class", "2 classes"]
