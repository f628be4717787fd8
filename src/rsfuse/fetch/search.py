"""What there is: items of a STAC API over a box, and groups of them close in time."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime
from typing import Any, NamedTuple

import shapely

from rsfuse.errors import InputError, RsfuseError
from rsfuse.fetch.sources import Source

TIMEOUT_S = (10, 60)  # to connect, to answer
TRIES = 5
MOST_ITEMS = 1000  # of one search
SECONDS_PER_DAY = 86_400

Box = tuple[float, float, float, float]


class Query(NamedTuple):
    """What is looked for.

    Attributes:
        bbox: West, south, east, north in degrees.
        dates: First and last day, YYYY-MM-DD.
        max_cloud: Largest cloud cover of an optical item in percent.
        min_cover: Smallest share of the box that an item must cover.
        max_days: Most days between the items of a group.
        limit: Most groups.
    """

    bbox: Box
    dates: tuple[str, str]
    max_cloud: float = 20.0
    min_cover: float = 0.95
    max_days: float = 5.0
    limit: int = 1


class Candidate(NamedTuple):
    """An item over the box.

    Attributes:
        id: Of the item.
        when: Time of the image.
        cover: Share of the box that it covers.
        cloud: Cloud cover in percent; 0 where it says none.
        assets: Key -> address.
        link: Address of the item itself; empty where it has none.
    """

    id: str
    when: datetime
    cover: float
    cloud: float
    assets: Mapping[str, str]
    link: str


def parse_bbox(text: str) -> Box:
    """A box from text such as 3.80,51.40,3.95,51.50.

    Raises:
        InputError: Not west, south, east, north in degrees.
    """
    try:
        west, south, east, north = (float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(
            f"{text!r} is not a box", "west,south,east,north in degrees are needed",
            "for example --bbox 3.80,51.40,3.95,51.50",
        ) from error  # fmt: skip
    if not (-180 <= west <= 180 and -180 <= east <= 180 and -90 <= south < north <= 90):
        raise InputError(
            f"{text!r} is not a box on the earth",
            "longitudes lie in [-180, 180], latitudes in [-90, 90], south before north",
            "the order is west,south,east,north",
        )
    if west >= east:
        raise InputError(
            f"the box {text} begins east of its end",
            "boxes over the 180th meridian are not fetched in one piece",
            "fetch the part up to 180 and the part from -180 on their own",
        )
    return west, south, east, north


def parse_dates(text: str) -> tuple[str, str]:
    """First and last day of text such as 2024-05-01/2024-06-30, or of one day.

    Raises:
        InputError: Not days, or in the wrong order.
    """
    parts = text.split("/")
    days = [part for part in parts if re.fullmatch(r"\d{4}-\d{2}-\d{2}", part)]
    try:
        if len(days) != len(parts) or len(parts) > 2:
            raise ValueError
        first, last = date.fromisoformat(days[0]), date.fromisoformat(days[-1])
    except ValueError as error:
        raise InputError(
            f"{text!r} are no days", "YYYY-MM-DD or YYYY-MM-DD/YYYY-MM-DD is needed",
            "for example --date 2024-05-01/2024-06-30",
        ) from error  # fmt: skip
    if first > last:
        raise InputError(f"{text} ends before it begins", "the first day comes first", "swap them")
    return first.isoformat(), last.isoformat()


def find_groups(sources: Mapping[str, Source], query: Query) -> list[dict[str, Candidate]]:
    """Groups of one item per role, the closest in time first, then the clearest.

    An item leads at most one group.

    Raises:
        InputError: A catalog does not answer, or has nothing for the box.
    """
    found = {role: candidates(source, query) for role, source in sources.items()}
    leader, *others = found
    groups = []
    for first in found[leader]:
        group, gap = {leader: first}, 0.0
        for role in others:
            nearest = min(found[role], key=lambda item: _days(item, first))
            group[role] = nearest
            gap = max(gap, _days(nearest, first))
        if gap <= query.max_days:
            groups.append((gap, first.cloud, first.when, group))
    if not groups:
        raise InputError(
            f"no images of {' and '.join(found)} lie within {query.max_days:g} days of each other",
            ", ".join(f"{role}: {len(items)} images" for role, items in found.items()),
            "give a longer --date, or a larger --max-days",
        )
    groups.sort(key=lambda entry: entry[:3])
    return [group for *_, group in groups[: query.limit]]


def _days(one: Candidate, other: Candidate) -> float:
    return abs((one.when - other.when).total_seconds()) / SECONDS_PER_DAY


def candidates(source: Source, query: Query) -> list[Candidate]:
    """Items that cover enough of the box and are clear enough.

    Raises:
        InputError: The catalog does not answer, or has nothing.
    """
    with _answering(source):
        items = list(_search(source, query))
    usable = [
        item for item in (_candidate(raw, query.bbox) for raw in items)
        if item.cover >= query.min_cover and item.cloud <= query.max_cloud
        and all(key in item.assets for key in source.assets)
    ]  # fmt: skip
    if not usable:
        west, south, east, north = query.bbox
        raise InputError(
            f"{source.collection} at {source.endpoint} has no image for the box",
            f"{len(items)} items from {query.dates[0]} to {query.dates[1]} over {west:g},{south:g},"
            f"{east:g},{north:g}; none covers {query.min_cover:.0%} of it with at most "
            f"{query.max_cloud:g} % cloud and the assets {', '.join(source.assets)}",
            "give other dates, a smaller box, --max-cloud or --min-cover",
        )
    return usable


def _search(source: Source, query: Query) -> Iterator[Any]:
    """The items of a search, all pages."""
    from pystac_client import Client
    from pystac_client.stac_api_io import StacApiIO
    from urllib3 import Retry

    retry = Retry(
        total=TRIES, backoff_factor=0.5, status_forcelist=(429, 500, 502, 503, 504),
        allowed_methods=None, raise_on_status=False,
    )  # fmt: skip
    client = Client.open(source.endpoint, stac_io=StacApiIO(max_retries=retry, timeout=TIMEOUT_S))
    search = client.search(
        collections=[source.collection],
        bbox=list(query.bbox),
        datetime=f"{query.dates[0]}T00:00:00Z/{query.dates[1]}T23:59:59Z",
        limit=100,
        max_items=MOST_ITEMS,
    )
    yield from search.items_as_dicts()


@contextmanager
def _answering(source: Source) -> Iterator[None]:
    """Turn whatever a catalog does wrong into an error that names it."""
    from importlib.util import find_spec

    for package in ("pystac_client", "odc.stac"):
        if find_spec(package) is None:
            raise InputError(
                f"the package {package.replace('_', '-').replace('.', '-')} is not installed",
                "fetching data is an extra of rsfuse",
                'install it: pip install "rsfuse[fetch]"',
            )
    try:
        yield
    except RsfuseError:
        raise
    except Exception as error:  # requests, pystac and pystac_client share no base
        raise InputError(
            f"{source.endpoint} does not answer as a STAC API: {type(error).__name__}: {error}",
            "the catalog is down, has moved, or the network is closed",
            "try again later, or name another with --config",
        ) from error


def _candidate(item: Mapping[str, Any], bbox: Box) -> Candidate:
    properties = item.get("properties", {})
    text = properties.get("datetime") or properties.get("start_datetime") or "1970-01-01"
    when = datetime.fromisoformat(str(text))
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    box = shapely.box(*bbox)
    shape = shapely.geometry.shape(item["geometry"]) if item.get("geometry") else shapely.Point()
    cover = shapely.make_valid(shape).intersection(box).area / box.area
    assets = {
        key: str(asset["href"]) for key, asset in item.get("assets", {}).items() if "href" in asset
    }
    return Candidate(
        str(item.get("id", "")), when, float(cover), float(properties.get("eo:cloud_cover") or 0.0),
        assets, _self_link(item.get("links", ())),
    )  # fmt: skip


def _self_link(links: Sequence[Mapping[str, Any]]) -> str:
    return next((str(link["href"]) for link in links if link.get("rel") == "self"), "")
