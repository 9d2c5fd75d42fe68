"""GitHub's published description as a check: is this request one that GitHub knows, is this answer one it could give?

It reads a pruned copy of GitHub's OpenAPI description and webhook schemas (`tests/contract/github_description`, made by
`tools/github-description/prune.py`) and holds up requests, responses and webhook payloads against it, both ways: what
Prevue's client asks and what the local GitHub answers. It is stricter than the description in one respect: a field or a
query parameter that the description does not name is a mismatch, because a fake that invents a field hides a bug.
(https://github.com/github/rest-api-description, https://docs.github.com/webhooks/webhook-events-and-payloads)
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

import httpx2
import jsonschema_rs

from prevue.testing.contracts.github_schema import strict_schemas

ANYWHERE = frozenset((304, 401, 403, 404, 422, 429))
"""Statuses that GitHub may give to any request though the description does not list them with each
(https://docs.github.com/rest/using-the-rest-api/troubleshooting-the-rest-api); their body must be GitHub's error object."""

BARE_SERVER_ERROR = 500
"""From here on the body is not checked: GitHub's front answers with HTML or nothing when it fails."""


class ContractMismatch(AssertionError):
    """A request, a response or a webhook is not as GitHub describes it; the message says which and where."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation of the description: its method, its path template, and what stands there."""

    method: str
    template: str
    described: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.method} {self.template}"


class GitHubDescription:
    """The description in `folder`; validators are built once, at construction."""

    def __init__(self, folder: Path) -> None:
        api = json.loads((folder / "api.json").read_text())
        webhooks = json.loads((folder / "webhooks.json").read_text())
        self._api = api
        self._webhooks: dict[str, Any] = webhooks["webhooks"]
        self._api_schemas = strict_schemas(api["components"]["schemas"])
        self._webhook_schemas = strict_schemas(webhooks["components"]["schemas"])
        self._validators: dict[str, jsonschema_rs.Draft202012Validator] = {}
        # A literal segment is more specific than a parameter: /issues/comments before /issues/{issue_number}.
        templates = sorted(api["paths"], key=lambda template: [part.startswith("{") for part in template.split("/")])
        self._paths = [(template, re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", template))) for template in templates]

    # -- requests ---------------------------------------------------------------------------------------------------

    def check_request(
        self, method: str, path: str, query: str = "", body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Operation:
        """Check a request and return its operation. `path` is as on the wire; `headers`, where given, need a user agent.

        Raises:
            ContractMismatch: no such operation, a wrong or unknown parameter, or a wrong body.
        """
        operation, parameters = self._find(method.upper(), path)
        declared = self._parameters(operation)
        for name, text in parameters.items():
            self._check_parameter(operation, declared, "path", name, text)
        for name, text in parse_qsl(query, keep_blank_values=True):
            self._check_parameter(operation, declared, "query", name, text)
        self._check_request_body(operation, body)
        if headers is not None and not any(name.lower() == "user-agent" for name in headers):
            # https://docs.github.com/rest/using-the-rest-api/getting-started-with-the-rest-api#user-agent
            raise ContractMismatch(f"{operation}: no User-Agent; GitHub refuses such requests")
        return operation

    def _find(self, method: str, path: str) -> tuple[Operation, dict[str, str]]:
        # Not in the description, but what GitHub's own Link headers use: a repository by its id.
        named = re.sub(r"^/repositories/\d+(?=/|$)", "/repos/owner/repo", path)
        for template, pattern in self._paths:
            if match := pattern.fullmatch(named):
                described = self._api["paths"][template].get(method.lower())
                if described is not None:
                    operation = Operation(method=method, template=template, described=described)
                    return operation, {name: unquote(text) for name, text in match.groupdict().items()}
        raise ContractMismatch(f"{method} {path} is not in GitHub's description (as pruned for Prevue)")

    def _parameters(self, operation: Operation) -> dict[tuple[str, str], Any]:
        listed = [self._resolve(parameter) for parameter in operation.described.get("parameters", ())]
        return {(parameter["in"], parameter["name"]): parameter for parameter in listed}

    def _resolve(self, node: Any) -> Any:
        while "$ref" in node:
            _, _, kind, name = node["$ref"].split("/")
            node = self._api["components"][kind][name]
        return node

    def _check_parameter(self, operation: Operation, declared: Mapping[tuple[str, str], Any], where: str, name: str, text: str) -> None:
        parameter = declared.get((where, name))
        if parameter is None:
            raise ContractMismatch(f"{operation}: GitHub knows no {where} parameter {name!r}")
        schema = parameter["schema"]
        self._check(f"{operation}: {where} parameter {name}", schema, _from_text(text, schema), self._api_schemas)

    def _check_request_body(self, operation: Operation, body: bytes) -> None:
        described = operation.described.get("requestBody")
        if described is None:
            if body.strip():
                raise ContractMismatch(f"{operation} takes no body, and got one")
            return
        described = self._resolve(described)
        if not body.strip():
            if described.get("required"):
                raise ContractMismatch(f"{operation} needs a body")
            return
        schema = described["content"]["application/json"]["schema"]
        self._check(f"{operation}: request body", schema, _decode(operation, body), self._api_schemas)

    # -- responses --------------------------------------------------------------------------------------------------

    def check_response(self, operation: Operation, status: int, body: bytes = b"") -> None:
        """Check what was answered to a request of that operation.

        Raises:
            ContractMismatch: a status that GitHub does not give here, or a body that is not as described.
        """
        if status >= BARE_SERVER_ERROR:
            return
        described = operation.described["responses"].get(str(status))
        what = f"{operation}: response {status}"
        if described is None:
            if status not in ANYWHERE:
                raise ContractMismatch(f"{what} is not one that GitHub gives")
            schema = None if status == 304 else {"$ref": "#/components/schemas/basic-error"}
        else:
            content = self._resolve(described).get("content", {})
            schema = content.get("application/json", {}).get("schema")
        if schema is None:
            if body.strip():
                raise ContractMismatch(f"{what} has no body, and this one has")
            return
        value = _decode(operation, body)
        if status >= 400 and isinstance(value, dict):
            # GitHub sends `status` with every error; the description has it with some of them only.
            value = {name: item for name, item in value.items() if name != "status" or not isinstance(item, str)}
        self._check(what, schema, value, self._api_schemas)

    # -- webhooks ---------------------------------------------------------------------------------------------------

    def check_webhook(self, event: str, payload: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Check a webhook's payload, and its headers where given.

        Raises:
            ContractMismatch: an event or action that is not described, a wrong payload, or a missing header.
        """
        value = json.loads(payload)
        name = f"{event}-{value.get('action')}".replace("_", "-")
        if name not in self._webhooks:
            raise ContractMismatch(f"the webhook {name} is not in GitHub's description (as pruned for Prevue)")
        described = self._webhooks[name]["post"]
        if headers is not None:
            given = {header.lower() for header in headers}
            wanted = {p["name"].lower() for p in described["parameters"] if p.get("required") and p["in"] == "header"}
            if missing := wanted - given:
                raise ContractMismatch(f"webhook {name}: without the headers {', '.join(sorted(missing))}")
        schema = described["requestBody"]["content"]["application/json"]["schema"]
        self._check(f"webhook {name}", schema, value, self._webhook_schemas)

    # -- the check itself -------------------------------------------------------------------------------------------

    def _check(self, what: str, schema: Any, value: Any, schemas: Mapping[str, Any]) -> None:
        key = f"{id(schemas)} {json.dumps(schema, sort_keys=True)}"
        validator = self._validators.get(key)
        if validator is None:
            root = strict_schemas({"root": schema})
            whole = {"$ref": "#/$defs/root", "$defs": {**schemas, **root}}
            validator = jsonschema_rs.Draft202012Validator(whole, validate_formats=True, mask="what is there")
            self._validators[key] = validator
        problems = [_explain(error) for error in validator.iter_errors(value)]
        if problems:
            raise ContractMismatch(f"{what} is not as GitHub describes it: " + "; ".join(problems[:5]))


def _explain(error: jsonschema_rs.ValidationError) -> str:
    where = "/".join(str(step) for step in error.instance_path) or "the whole"
    return f"at {where}: {error.message[:300]}"


def _from_text(text: str, schema: Mapping[str, Any]) -> Any:
    """Return a parameter's text as the type that its schema names, or as it is where it cannot be that."""
    kinds = schema.get("type")
    if kinds == "integer" and re.fullmatch(r"-?\d+", text):
        return int(text)
    if kinds == "boolean" and text in ("true", "false"):
        return text == "true"
    if kinds == "array":
        return text.split(",")
    return text


def _decode(operation: Operation, body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError as exc:
        raise ContractMismatch(f"{operation}: the body is not JSON: {body[:80]!r}") from exc


class ValidatingTransport(httpx2.AsyncBaseTransport):
    """An httpx2 transport that checks every request before it goes out and every response that comes back.

    Put it around the transport of a client under test. A mismatch is raised, and kept in `mismatches` as well, so that
    a test sees it even where the client under test swallows exceptions: end with `assert transport.mismatches == []`.
    `base_path` is stripped first (a GitHub Enterprise Server has `/api/v3`).
    """

    def __init__(self, description: GitHubDescription, inner: httpx2.AsyncBaseTransport, *, base_path: str = "") -> None:
        self._description = description
        self._inner = inner
        self._base_path = base_path
        self.mismatches: list[str] = []
        self.checked: list[str] = []
        """The operations that were seen, `METHOD template`, in order."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request through, checking both ways.

        Raises:
            ContractMismatch: the request or the response is not as GitHub describes it.
        """
        try:
            path, _, query = request.url.raw_path.decode("ascii").partition("?")
            body = await request.aread()
            operation = self._description.check_request(request.method, path.removeprefix(self._base_path), query, body, request.headers)
            self.checked.append(str(operation))
            response = await self._inner.handle_async_request(request)
            content = await response.aread()
            self._description.check_response(operation, response.status_code, content)
        except ContractMismatch as mismatch:
            self.mismatches.append(str(mismatch))
            raise
        headers = [(n, v) for n, v in response.headers.raw if n.lower() not in (b"content-encoding", b"transfer-encoding")]
        return httpx2.Response(response.status_code, headers=headers, content=content, request=request, extensions=response.extensions)

    async def aclose(self) -> None:
        """Close the inner transport."""
        await self._inner.aclose()


def load_examples(folder: Path, event: str) -> dict[str, bytes]:
    """Return the community's example payloads of an event, file name → bytes."""
    return {path.name: path.read_bytes() for path in sorted((folder / "examples").glob(f"{event}.*.json"))}
