"""Getting data: the part of a box from public STAC catalogs, as files that rsfuse reads."""

from rsfuse.fetch.download import Fetched, fetch
from rsfuse.fetch.search import Query, parse_bbox, parse_dates
from rsfuse.fetch.sources import Source, read_sources

__all__ = ["Fetched", "Query", "Source", "fetch", "parse_bbox", "parse_dates", "read_sources"]
