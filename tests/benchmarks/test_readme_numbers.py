"""The numbers in the READMEs are those of the committed result."""

import json

import pytest
from benchmarks.readme import END, PAGES, START, block, details, front_page, replace
from benchmarks.results import Result
from benchmarks.serving_measures import measures
from test_serving import taken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_pages_show_the_committed_result(page):
    text = page.read_text(encoding="utf-8")
    assert replace(text, block(page)) == text


def test_every_load_and_arm_is_in_the_tables(tmp_path):
    cells = {str(cell): cell.count for _, cell in taken()}
    settings = {"arms": ["off", "on", "proxy"], "repeats": 2, "cells": cells}
    path = Result("serving", settings, measures=measures(taken()), notes=["none"]).write(tmp_path)
    record = json.loads(path.read_text())
    front = front_page(record)
    assert "| load | no guard | vauban | same classifier behind a proxy |" in front
    assert "| 512 tokens, 1 client | 10 | +512 | +1,024 |" in front
    for part in (front, details(record)):
        assert all(f"| {cell} |" in part for cell in cells)


def test_marks_must_be_there_once():
    assert replace(f"a\n{START}\nold\n{END}\nb", "new") == f"a\n{START}\n\nnew\n\n{END}\nb"
    for text in ("", START, END, END + START, START + END + START + END):
        with pytest.raises(ValueError, match="once each"):
            replace(text, "new")
