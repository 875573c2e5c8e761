"""Tables where the terminal is narrower than they are."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from kdlab.report.summary import titled, with_columns


@pytest.mark.parametrize("width", [20, 60, 80])
def test_no_column_is_lost(width: int) -> None:
    numbers = {f"mode {place}\nno source": ["71.5", "-"] for place in range(9)}
    columns = {"": ["translate_train, texts=back_translated", "musc"], **numbers}
    shown = io.StringIO()
    Console(file=shown, width=width).print(with_columns(titled("title", []), columns, wrap=True), crop=False)
    lines = shown.getvalue().splitlines()
    assert any(line.split()[:1] == ["translate_train,"] and line.count("71.5") == 9 for line in lines)
    assert any(line.split()[:1] == ["musc"] for line in lines)
