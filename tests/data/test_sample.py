"""The texts that are there when the user gives none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from emb_tool.data.builtin_texts import COUNT, _sentences, sample_texts


def test_sentences_of_the_standard_library() -> None:
    texts = sample_texts()
    assert len(texts) == len(set(texts)) == COUNT
    assert all(len(text.split()) >= 5 and text[-1] in ".!?" for text in texts)
    words = " ".join(texts).lower().split()
    assert len(words) > 10 * COUNT
    assert words.count("the") > len(words) / 50  # as in English
    assert not any(mark in text for text in texts for mark in ("`", "::", ">>>", "http:", "\n"))


def test_prose_is_taken_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        '''"""The first sentence of this module. A second one
is broken into two lines! short one.

>>> example_of(code) is not what we want at all.

A list of things follows this line here:
  - one of them is not a sentence.
"""

class A:
    def f(self, x):
        r"""Return the value of x unless it is `None` or so.

        This paragraph belongs to a method, e.g. of a class.
        """
        "This is a string that nobody documents anything with."
''',
        encoding="utf-8",
    )
    assert list(_sentences(path)) == [
        "The first sentence of this module.",
        "A second one is broken into two lines! short one.",
        "This paragraph belongs to a method, e.g. of a class.",
    ]
    path.write_bytes(b"def broken(")
    assert not list(_sentences(path))


def test_another_process_finds_the_same_and_imports_nothing() -> None:
    code = (
        "import sys; from emb_tool.data.builtin_texts import sample_texts; texts = sample_texts();"
        "assert 'turtle' not in sys.modules and 'torch' not in sys.modules; print(texts[:50])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(sample_texts()[:50])
