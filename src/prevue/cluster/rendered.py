"""A rendered manifest as Helm gives it: which objects it names, in its order. Nothing is trusted to be there, or of the right type."""

from __future__ import annotations

from functools import lru_cache

import msgspec
import yaml

from prevue.errors import ChartInvalid

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class RenderedObject(msgspec.Struct, frozen=True, kw_only=True):
    """One object of a manifest."""

    api_version: str
    kind: str
    name: str


@lru_cache(maxsize=64)
def rendered_objects(manifest: str) -> tuple[RenderedObject, ...]:
    """The objects of `manifest` (YAML documents; a List is opened), in order; one preview's manifest is read three times in a row.

    Raises:
        ChartInvalid: it is not YAML.
    """
    try:
        documents = list(yaml.load_all(manifest, Loader=_Loader))  # the C form of the safe loader
    except yaml.YAMLError as exc:
        raise ChartInvalid("the chart's manifest is not YAML") from exc
    found: list[RenderedObject] = []
    while documents:
        document = documents.pop(0)
        if not isinstance(document, dict):
            continue
        if str(document.get("kind", "")).endswith("List") and isinstance(document.get("items"), list):
            documents[:0] = document["items"]
            continue
        metadata = document.get("metadata")
        name = str(metadata.get("name", "")) if isinstance(metadata, dict) else ""
        if name:
            found.append(RenderedObject(api_version=str(document.get("apiVersion", "")), kind=str(document.get("kind", "")), name=name))
    return tuple(found)
