"""OpenAPI 3.0 and 3.1 schemas as strict JSON Schema (draft 2020-12).

Two things differ from the original. OpenAPI 3.0's `nullable` becomes a type (or a branch) of its own. And an object
that lists its properties takes no others, unless it says `additionalProperties`. The second needs care with
composition: a branch of an `allOf` sees the whole object, so the branch stays open and the whole is closed. Each
component therefore exists twice, as `NAME` (closed) and `NAME~open`.
(https://spec.openapis.org/oas/v3.0.3#schema-object, https://json-schema.org/draft/2020-12/json-schema-core#section-11.3)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OPEN = "-open"
_COMPONENT = "#/components/schemas/"


def strict_schemas(schemas: Mapping[str, Any]) -> dict[str, Any]:
    """Return `$defs` for a document's component schemas: each as `NAME`, closed, and as `NAME-open`."""
    defs: dict[str, Any] = {}
    for name, schema in schemas.items():
        defs[name] = _convert(schema, closed=True)
        defs[name + OPEN] = _convert(schema, closed=False)
    return defs


def _convert(schema: Any, *, closed: bool) -> Any:
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(_COMPONENT)
        return {"$ref": f"#/$defs/{name if closed else name + OPEN}"}
    converted = _without_nullable(schema)
    owns_properties = bool(converted.get("properties")) or "allOf" in converted
    for key, value in list(converted.items()):
        if key == "properties":
            converted[key] = {name: _convert(item, closed=True) for name, item in value.items()}
        elif key in ("items", "additionalProperties", "not"):
            converted[key] = _convert(value, closed=True)
        elif key == "allOf":
            converted[key] = [_convert(branch, closed=False) for branch in value]
        elif key in ("anyOf", "oneOf"):
            # Branches close themselves, unless the object has properties of its own beside them.
            converted[key] = [_convert(branch, closed=closed and not owns_properties) for branch in value]
    if closed and owns_properties and "additionalProperties" not in converted:
        converted["unevaluatedProperties"] = False
    return converted


def _without_nullable(schema: Mapping[str, Any]) -> dict[str, Any]:
    converted = {key: value for key, value in schema.items() if key != "nullable"}
    if not schema.get("nullable"):
        return converted
    if isinstance(converted.get("type"), str):
        converted["type"] = [converted["type"], "null"]
        if "enum" in converted and None not in converted["enum"]:
            converted["enum"] = [*converted["enum"], None]
        return converted
    return {"anyOf": [converted, {"type": "null"}]}
