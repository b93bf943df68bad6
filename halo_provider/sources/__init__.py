"""Where rows come from: CSV files, lists, DataFrames, SQL queries, and shares of them."""

from halo_provider.sources.csv_file import CsvOptions, CsvSource
from halo_provider.sources.frames import FrameSource
from halo_provider.sources.lists import ListSource
from halo_provider.sources.rows import Row, Source

__all__ = ["CsvOptions", "CsvSource", "FrameSource", "ListSource", "Row", "Source"]
