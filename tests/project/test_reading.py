"""How the reading ease of pages is counted, and that README.md stays short and plain."""

from __future__ import annotations

import pytest

from tests import reading
from tests.support.pages import read

PAGE = """# A title

Some words, `code --with options` and [a link](docs/data.md):

- one item
  that goes on
- another one

| a table | is left out |
```bash
python -m nothing
```
![a picture](picture.svg)
<!-- a comment -->
**The end**
"""


def test_prose_is_sentences_without_code_tables_and_pictures():
    assert reading.find_prose(PAGE).splitlines() == [
        "A title.",
        "Some words, word and a link.",
        "one item that goes on.",
        "another one.",
        "The end.",
    ]


def test_short_words_read_more_easily_than_long_ones():
    easy = reading.measure_ease("The cat sat on the mat. It was a good cat.\n")
    hard = reading.measure_ease("Institutional considerations necessitate deliberate evaluation.\n")
    assert easy > 90 and hard < 0


def test_width_is_of_text_and_not_of_tables_and_code():
    assert reading.measure_width(f"12345\n| {'x' * 200} |\n```bash\n{'x' * 200}\n```\n") == 5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text + "\n" * 150, "README.md has "),
        (lambda text: text + "x" * 101, "README.md is 101 columns wide"),
        (lambda text: "Institutional considerations necessitate evaluation.\n", "reads too hard"),
    ],
)
def test_a_page_that_misses_a_goal_ends_the_lint(change, said, monkeypatch, capsys):
    monkeypatch.setattr(reading, "read", lambda page: change(read(page)))
    assert reading.main() == 1
    assert said in capsys.readouterr().out


def test_the_pages_reach_the_goals(capsys):
    assert reading.main() == 0, capsys.readouterr().out
