"""Options that commands have in common, and the settings that they name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from prevue import console
from prevue.settings import Loaded, load
from prevue.settings_check import Process, check

Debug = Annotated[bool, Parameter(help="Show the traceback of an error.")]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Common:
    """Options of every command that reads settings."""

    config: Annotated[Path | None, Parameter(help="The YAML file with the settings.")] = None
    debug: Debug = False


DEFAULTS = Common()
Json = Annotated[bool, Parameter(name="--json", help="Print JSON, for programs.")]


def printing(common: Common) -> Loaded:
    """Settings for a command whose standard output is its result: what its neighbours log goes to standard error."""
    from prevue.telemetry import log_beside_output

    log_beside_output()
    return load(common.config)


def checked(common: Common, process: Process) -> Loaded:
    """As `printing`, and `process` can start with them; warnings go to standard error, too."""
    loaded = printing(common)
    for text in check(loaded.settings, process=process, places=loaded.places):
        console.print_error(f"warning: {text}")
    return loaded


def ready(common: Common, process: Process) -> Loaded:
    """As `checked`, for a process that logs: warnings are log lines."""
    from prevue.telemetry import configure_logging, get_logger

    loaded = load(common.config)
    warnings = check(loaded.settings, process=process, places=loaded.places)
    configure_logging(loaded.settings.log)
    for text in warnings:
        get_logger().warning("setting_doubtful", text=text)
    return loaded
