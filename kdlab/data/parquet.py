"""What is wrong with a Parquet file, as an error of the data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdlab.errors import DataError, first_line


@contextmanager
def readable_parquet(path: Path) -> Iterator[None]:
    """Raises DataError for what pyarrow raises inside."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last two: pyarrow's of a damaged head
        raise DataError(f"The file is no readable Parquet: {first_line(error)}", where=str(path)) from error
