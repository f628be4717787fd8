"""Which catalogs are asked: a TOML file of endpoints, collections and assets."""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import pydantic

from rsfuse.engine.config import Config, make_config, read_toml
from rsfuse.errors import InputError


class Source(Config):
    """One collection of a STAC API.

    Attributes:
        endpoint: Address of the API.
        collection: Its id.
        assets: Keys of the assets that become bands, in their order.
        token: Address that gives a short-lived token for the files, as the Planetary Computer does;
            empty where they are open.
        licence: Licence and attribution, stored with what is fetched.
    """

    endpoint: str = pydantic.Field(pattern=r"^https?://")
    collection: str
    assets: tuple[str, ...] = pydantic.Field(min_length=1)
    token: str = pydantic.Field("", pattern=r"^(https?://.*)?$")
    licence: str = ""


def read_sources(name: str, path: str | Path | None = None) -> Mapping[str, Source]:
    """Role -> source of a set.

    Args:
        name: The set, for example "s1s2".
        path: A TOML file; the one of the package when None.

    Raises:
        ConfigError: Not TOML, or a key that means nothing.
        InputError: There is no such set.
    """
    where = "the sources of rsfuse" if path is None else str(path)
    place = resources.files("rsfuse") / "fetch" / "sources.toml" if path is None else path
    content = read_toml(str(place))
    roles = content.get(name)
    if not isinstance(roles, dict) or not all(isinstance(row, dict) for row in roles.values()):
        raise InputError(
            f"there is no set {name!r}",
            f"{where} has {', '.join(content) or 'none'}",
            "choose one of them, or add it to a file of your own: --config sources.toml",
        )
    return {role: make_config(Source, row, f"{where}, {role}") for role, row in roles.items()}
