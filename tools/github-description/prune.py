"""Cut GitHub's published descriptions down to what the local GitHub answers and sends, for `tests/contract/`.

Run through `make github-description`, or by hand:

    cd tools/github-description && npm install --no-package-lock --ignore-scripts && uv run python prune.py

The operations are those of `prevue.testing.github.routes`: add a route, run it again, and the contract covers it. What
only explains (descriptions, examples, vendor extensions) is left out; nothing that constrains is.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prevue.testing.github.routes import ROUTES

HERE = Path(__file__).parent
MODULES = HERE / "node_modules" / "@octokit"
TARGET = HERE.parent.parent / "tests" / "contract" / "github_description"

WEBHOOKS = (
    "issue-comment-created",
    "issue-comment-deleted",
    "issue-comment-edited",
    "pull-request-closed",
    "pull-request-opened",
    "pull-request-reopened",
    "pull-request-synchronize",
)
EXAMPLES = {
    "issue_comment": {"created", "deleted", "edited"},
    "pull_request": {"opened", "closed", "reopened", "synchronize"},
}
EXPLANATIONS = frozenset(
    ("description", "summary", "title", "example", "examples", "externalDocs", "tags", "operationId", "discriminator", "deprecated")
)
NAMES = frozenset(("properties", "headers", "schemas", "responses", "parameters", "paths", "webhooks", "components", "content"))
"""Keys whose children are named by the document, so that a child called `description` is a field and no explanation."""


def strip(node: Any, *, named: bool = False) -> Any:
    """Return a node without what only explains."""
    if isinstance(node, list):
        return [strip(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        key: strip(value, named=not named and key in NAMES)
        for key, value in node.items()
        if named or (key not in EXPLANATIONS and not key.startswith("x-"))
    }


def references(node: Any) -> Iterator[str]:
    """Yield every `$ref` in a node."""
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def components(document: dict[str, Any], roots: Any) -> dict[str, dict[str, Any]]:
    """Return the components that the roots need, directly or through others."""
    found: dict[str, dict[str, Any]] = {}
    wanted = list(references(roots))
    while wanted:
        _, _, kind, name = wanted.pop().split("/")
        if name not in found.setdefault(kind, {}):
            found[kind][name] = strip(document["components"][kind][name])
            wanted += references(found[kind][name])
    return {kind: dict(sorted(entries.items())) for kind, entries in sorted(found.items())}


def write(name: str, document: Any) -> None:
    """Write a JSON file that shows in a diff what changed."""
    (TARGET / name).write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def prune_api() -> None:
    """Write `api.json`: the operations of the local GitHub."""
    document = json.loads((MODULES / "openapi" / "generated" / "api.github.com.json").read_text())
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = strip(document["paths"][route.path][route.method.lower()])
    # GitHub's description errs here: an inline copy whose account is a user *and* an enterprise, which nothing can be.
    # The component that describes the same object at the App's other paths says "or".
    listed = paths["/app/installations"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    listed["items"] = {"$ref": "#/components/schemas/installation"}
    kept = {"openapi": document["openapi"], "paths": paths, "components": components(document, paths)}
    kept["components"]["schemas"]["basic-error"] = strip(document["components"]["schemas"]["basic-error"])
    write("api.json", kept)


def prune_webhooks() -> None:
    """Write `webhooks.json`: the events that the local GitHub sends."""
    document = json.loads((MODULES / "openapi-webhooks" / "generated" / "api.github.com.json").read_text())
    webhooks = {name: strip(document["webhooks"][name]) for name in WEBHOOKS}
    kept = {"openapi": document["openapi"], "webhooks": webhooks, "components": components(document, webhooks)}
    write("webhooks.json", kept)


def prune_examples() -> None:
    """Write `examples/EVENT.ACTION.N.json`: the payloads that the community collected, word for word."""
    folder = TARGET / "examples"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for event in json.loads((MODULES / "webhooks-examples" / "api.github.com" / "index.json").read_text()):
        counts: dict[str, int] = {}
        for payload in event["examples"]:
            action = payload.get("action")
            if action in EXAMPLES.get(event["name"], ()):
                counts[action] = counts.get(action, 0) + 1
                name = f"{event['name']}.{action}.{counts[action]}.json"
                (folder / name).write_text(json.dumps(payload, indent=1, ensure_ascii=False) + "\n")


def main() -> int:
    """Write everything anew; return the exit status."""
    if not MODULES.is_dir():
        sys.stderr.write("run `npm install --no-package-lock --ignore-scripts` in tools/github-description first\n")
        return 1
    TARGET.mkdir(parents=True, exist_ok=True)
    prune_api()
    prune_webhooks()
    prune_examples()
    shutil.copy(MODULES / "openapi" / "LICENSE", TARGET / "LICENSE")
    shutil.copy(HERE / "package.json", TARGET / "versions.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
