"""The command line: parse, load and check settings, hand over to a process's wiring, print.

A process's wiring is imported inside its command, so that `prevue --help` is quick and each process loads only what it may touch.
Errors are one clear line on standard error: exit code 2 for a wrong command line or configuration, 1 for everything else, 130 after
Ctrl-C; a traceback only with --debug.
"""

from __future__ import annotations

import asyncio
import os
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, CycloptsError, Parameter

from prevue import console
from prevue.cli_options import DEFAULTS, Common, Debug, Json, checked, printing, ready
from prevue.errors import ConfigError, PrevueError
from prevue.settings import Loaded, config_error, load, to_yaml
from prevue.settings_check import Process, problems

app = App(
    name="prevue",
    help="A running preview on Kubernetes for every GitHub pull request: never missed, never twice.",
    version=lambda: f"prevue {version('prevue')}",
    version_flags=["--version"],
    help_format="plaintext",
    default_parameter=Parameter(negative=""),
    help_epilogue="Settings: --config FILE, PREVUE_CONFIG, ./prevue.yaml or .prevue/prevue.yaml, and PREVUE_SECTION__NAME over them.",
)
previews = App(name="previews", help="Show previews.")
dead_letters = App(name="dead-letters", help="Requests whose attempts are spent: show, replay, drop.")
queue = App(name="queue", help="The queue between GitHub App and deployers.")
config = App(name="config", help="Check and show the settings.")
dev = App(name="dev", help="The whole stack on this machine: PostgreSQL, cluster, GitHub, App and deployer.")


PollDeliveries = Annotated[
    bool, Parameter(help="Read webhook deliveries from GitHub's log instead of having them sent: needs no public address.")
]
Limit = Annotated[int, Parameter(help="At most so many.")]


@app.command(name="github-app")
def github_app(*, common: Common = DEFAULTS) -> None:
    """Run the GitHub App: takes webhooks, enqueues requests, acknowledges them."""
    loaded = ready(common, "github-app")
    from prevue.wiring.github_app import run

    run(loaded.settings)


@app.command
def deployer(*, poll_deliveries: PollDeliveries = False, common: Common = DEFAULTS) -> None:
    """Run a deployer: takes requests from the queue and carries them out; with a sweeper beside it (deployer.sweeper)."""
    loaded = ready(common, "deployer")
    if poll_deliveries and not loaded.settings.deployer.sweeper:
        raise ConfigError("--poll-deliveries: deployer.sweeper is false here; give the option to `prevue sweeper`")
    from prevue.wiring.deployer import run

    run(loaded.settings, poll_deliveries=poll_deliveries)


@app.command
def sweeper(*, poll_deliveries: PollDeliveries = False, common: Common = DEFAULTS) -> None:
    """Run a sweeper by itself: repairs what was lost, removes what should not stand, tells what is to be told; one is active at a time."""
    loaded = ready(common, "sweeper")
    from prevue.wiring.sweeper import run

    run(loaded.settings, poll_deliveries=poll_deliveries)


@app.command
def migrate(*, app_role: str | None = None, app_password_file: Path | None = None, common: Common = DEFAULTS) -> None:
    """Bring the database to this version's schema; harmless where it is there already.

    Parameters
    ----------
    app_role
        Also make this database role for the GitHub App: it may insert into the queue and nothing else.
    app_password_file
        File with that role's password.
    """
    loaded = checked(common, "operator")
    from prevue.wiring import operator

    head = asyncio.run(operator.migrate(loaded.settings, app_role=app_role, app_password_file=app_password_file))
    console.print_text(f"the database has schema {head}")


@previews.command(name="list")
def previews_list(*, repo: str | None = None, limit: Limit = 100, json: Json = False, common: Common = DEFAULTS) -> None:
    """Previews, the one that changed last first.

    Parameters
    ----------
    repo
        Only those of this repository (owner/name).
    """
    loaded = checked(common, "operator")
    from prevue.wiring import operator

    found = asyncio.run(operator.previews(loaded.settings, repo=repo, limit=limit))
    if json:
        console.print_json([operator.preview_row(view) for view in found])
        return
    rows = [(f"{view.repo}#{view.pr_number}", view.state, view.commit_sha[:7], view.url, view.attempts, view.error) for view in found]
    console.print_table(("PULL REQUEST", "STATE", "COMMIT", "URL", "ATTEMPTS", "ERROR"), rows, empty="no previews")


@previews.command(name="show")
def previews_show(repo: str, pr: int, /, *, ledger: bool = False, json: Json = False, common: Common = DEFAULTS) -> None:
    """One preview, with its requests.

    Parameters
    ----------
    repo
        The repository, owner/name.
    pr
        The pull request's number.
    ledger
        What happened to each request, step by step: claims, tokens, Helm, comments; with --json all of it as recorded.
    """
    loaded = checked(common, "operator")
    from prevue.wiring import operator

    view, events = asyncio.run(operator.preview(loaded.settings, repo, pr))
    if json:
        more = {"requests": view.requests, "ledger": events} if ledger else {}
        console.print_json(operator.preview_row(view) | more)
        return
    console.print_facts(list(operator.preview_row(view).items()))
    console.print_text("")
    if ledger:
        console.print_ledger(view.requests, events)
        return
    rows = [(one.id, one.action, one.state, one.commit_sha[:7], one.requested_by, one.registered_at, one.error) for one in view.requests]
    console.print_table(("REQUEST", "ACTION", "STATE", "COMMIT", "BY", "REGISTERED", "ERROR"), rows, empty="no requests")


@dead_letters.command(name="list")
def dead_letters_list(*, group: bool = False, limit: Limit = 100, json: Json = False, common: Common = DEFAULTS) -> None:
    """Dead letters, newest first, without those that were replayed or dropped.

    Parameters
    ----------
    group
        By cause instead: how many there are of each.
    """
    loaded = checked(common, "operator")
    from prevue.wiring import dead_letters as wiring
    from prevue.wiring import operator

    if group:
        groups = asyncio.run(wiring.groups(loaded.settings))[:limit]
        if json:
            console.print_json(groups)
            return
        lines = [(one.group, one.count, one.newest, one.cause) for one in groups]
        console.print_table(("GROUP", "COUNT", "NEWEST", "CAUSE"), lines, empty="no dead letters")
        return
    found = asyncio.run(operator.dead_letters(loaded.settings, limit=limit))
    if json:
        console.print_json([operator.dead_letter_row(request, view) for request, view in found])
        return
    rows = [(one.id, f"{one.repo}#{one.pr_number}", one.commit_sha[:7], one.attempts, one.finished_at, one.error) for one, _ in found]
    console.print_table(("ID", "PULL REQUEST", "COMMIT", "ATTEMPTS", "DEAD SINCE", "ERROR"), rows, empty="no dead letters")


@dead_letters.command(name="show")
def dead_letters_show(id_: Annotated[int, Parameter(name="ID")], /, *, json: Json = False, common: Common = DEFAULTS) -> None:
    """One dead letter.

    Parameters
    ----------
    id_
        Its number, from `prevue dead-letters list`.
    """
    loaded = checked(common, "operator")
    from prevue.wiring import operator

    row = operator.dead_letter_row(*asyncio.run(operator.dead_letter(loaded.settings, id_)))
    if json:
        console.print_json(row)
    else:
        console.print_facts(list(row.items()))


Ids = Annotated[tuple[int, ...], Parameter(name="ID", help="Their numbers, from `prevue dead-letters list`.")]
GroupName = Annotated[str | None, Parameter(help="All of this group, from `prevue dead-letters list --group`.")]


@dead_letters.command(name="replay")
def dead_letters_replay(
    ids: Ids = (), /, *, group: GroupName = None, rate: str = "30/minute", json: Json = False, common: Common = DEFAULTS
) -> None:
    """Ask for them once more, each as a new request of the same order: a newer command still wins.

    Parameters
    ----------
    rate
        At most so many: 30/minute, 2/second, 100/hour.
    """
    loaded = checked(common, "operator")
    asyncio.run(_settle(loaded, ids, group, rate=rate, json=json))


@dead_letters.command(name="drop")
def dead_letters_drop(ids: Ids = (), /, *, group: GroupName = None, json: Json = False, common: Common = DEFAULTS) -> None:
    """Take them off the list; they stay in the ledger, and nothing else changes."""
    loaded = checked(common, "operator")
    asyncio.run(_settle(loaded, ids, group, rate=None, json=json))


async def _settle(loaded: Loaded, ids: tuple[int, ...], group: str | None, *, rate: str | None, json: bool) -> None:
    """Replay at `rate`, or drop where there is none; each is printed as it is done."""
    from contextlib import AsyncExitStack

    from prevue.wiring import dead_letters as wiring

    async with AsyncExitStack() as stack:
        if rate is not None:
            wiring.seconds_between(rate)  # a wrong rate is said before anything is opened
        store = await stack.enter_async_context(wiring.open_store(loaded.settings))
        letters = await wiring.choose(store, ids, group)
        if rate is None:
            settled = wiring.drop(store, letters)
        else:
            enqueuer = await stack.enter_async_context(wiring.open_queue(loaded.settings))
            settled = wiring.replay(store, enqueuer, letters, rate=rate)
        done = []
        async for one in settled:
            done.append(one)
            if not json:
                console.print_text(f"{one.id}  {one.repo}#{one.pr_number}  {one.result}")
        if json:
            console.print_json(done)


@app.command
def doctor(*, process: Literal["all", "github-app", "deployer"] = "all", json: Json = False, common: Common = DEFAULTS) -> int:
    """Check settings, App identity, queue, statestore, Helm, the cluster's rights and the fence; exit code 1 if one fails.

    Parameters
    ----------
    process
        Only what this process needs.
    """
    loaded = printing(common)
    return asyncio.run(_doctor(loaded, ("github-app", "deployer") if process == "all" else (process,), json=json))


async def _doctor(loaded: Loaded, processes: tuple[Process, ...], *, json: bool) -> int:
    from prevue.wiring import doctor as wiring

    lines = []
    async for line in wiring.examine(loaded.settings, processes=processes, places=loaded.places):
        lines.append(line)
        if not json:
            console.print_text(f"{line.level:<4}  {line.name}: {console.printable(line.text, newlines=True)}")
            if line.next_step:
                console.print_text(f"      → {line.next_step}")
    if json:
        console.print_json(lines)
    return 1 if any(line.level is wiring.Level.FAIL for line in lines) else 0


@app.command
def verify(
    *,
    quiet: bool = False,
    open_seconds: float = 3600,
    told_seconds: float = 600,
    no_conversations: bool = False,
    json: Json = False,
    common: Common = DEFAULTS,
) -> int:
    """Check the promised invariants on the live statestore, cluster and conversations; exit code 1 with the rows that break one.

    Parameters
    ----------
    quiet
        Nothing should be under way: whatever is open or not told yet is a violation too.
    open_seconds
        How long a request may be open.
    told_seconds
        How long an outcome may be untold, and a closed pull request's preview stand.
    no_conversations
        Do not read the pull requests' comments: a call to GitHub each.
    """
    loaded = checked(common, "sweeper")
    from prevue.verify.invariants import Patience
    from prevue.wiring.verify import verify as run

    patience = Patience(open_seconds=open_seconds, told_seconds=told_seconds, is_quiet=quiet)
    report = asyncio.run(run(loaded.settings, patience=patience, conversations=not no_conversations))
    if json:
        console.print_json(report)
    else:
        console.print_report(report)
    return 0 if report.ok else 1


@queue.command(name="depth")
def queue_depth(*, json: Json = False, common: Common = DEFAULTS) -> None:
    """How many messages are not settled, and the age of the oldest in seconds; "unknown" where the queue cannot say."""
    loaded = checked(common, "queue")
    from prevue.wiring.queues import depth

    found = asyncio.run(depth(loaded.settings.queue))
    if json:
        console.print_json(found)
        return
    age = None if found.oldest_seconds is None else round(found.oldest_seconds, 1)
    facts = (("messages", found.messages), ("oldest_seconds", age))
    console.print_facts([(name, "unknown" if value is None else str(value)) for name, value in facts])


@queue.command(name="create")
def queue_create(*, deployers: int = 1, check: bool = False, json: Json = False, common: Common = DEFAULTS) -> int:
    """Make a queue at Google, or change what differs: Cloud Tasks' queue, Pub/Sub's topic and subscription. Twice is harmless.

    Parameters
    ----------
    deployers
        How many deployers there are: Cloud Tasks hands out no more at once than they have slots together.
    check
        Change nothing; exit code 1 if something differs.
    """
    loaded = checked(common, "queue")
    from prevue.wiring.queues import create

    slots = loaded.settings.deployer.slots * deployers
    changes = asyncio.run(create(loaded.settings.queue, slots=slots, check=check))
    if json:
        console.print_json(changes)
    else:
        rows = [(change.resource, change.setting, change.found, change.wanted) for change in changes]
        console.print_table(("RESOURCE", "SETTING", "FOUND", "WANTED"), rows, empty="all is as it should be")
    return 1 if check and changes else 0


@config.command(name="check")
def config_check(*, process: Literal["all", "github-app", "deployer"] = "all", common: Common = DEFAULTS) -> None:
    """Check the settings without contacting anything.

    Parameters
    ----------
    process
        Only what this process needs.
    """
    loaded = load(common.config)
    processes: tuple[Process, ...] = ("github-app", "deployer") if process == "all" else (process,)
    found = [problems(loaded.settings, process=one, places=loaded.places) for one in processes]
    for text in dict.fromkeys(text for _, warnings in found for text in warnings):
        console.print_error(f"warning: {text}")
    if errors := list(dict.fromkeys(text for errors, _ in found for text in errors)):
        raise config_error(errors)
    console.print_text(f"ok: {loaded.file or 'no file'} and the environment suit {' and '.join(processes)}")


@config.command(name="show")
def config_show(*, common: Common = DEFAULTS) -> None:
    """Print the settings in force as YAML, secrets masked."""
    loaded = load(common.config)
    console.print_text(f"# {loaded.file or 'no file'}, the environment over it, defaults below\n{to_yaml(loaded.settings)}")


@app.command
def render(repo: str, pr: int, /, *, installation: int | None = None, common: Common = DEFAULTS) -> None:
    """Print the manifests, URL and namespace that a deploy of the pull request's head would have; writes nothing.

    Parameters
    ----------
    repo
        The repository, owner/name.
    pr
        The pull request's number.
    installation
        The App's installation; otherwise GitHub is asked.
    """
    loaded = checked(common, "render")
    from prevue.wiring.render import render as run

    result = asyncio.run(run(loaded.settings, repo, pr, installation_id=installation))
    pull = result.pull_request
    state = "open" if pull.is_open else "closed"
    url = result.url or f"known after the deploy, from the cluster ({result.url_source})"
    console.print_text(
        f"# pull request: {pull.repo}#{pull.number} ({state}), {console.printable(pull.head_ref)} at {pull.head_sha}\n"
        f"# namespace: {result.namespace}\n# release: {result.release}\n# url: {url}\n{result.manifest}"
    )


@dev.command(name="up")
def dev_up(
    *,
    detach: bool = False,
    deployers: int = 1,
    queue: Literal["postgresql", "redis", "cloudtasks", "pubsub"] = "postgresql",
    kubeconfig: Path | None = None,
    image_loader: str | None = None,
    debug: Debug = False,  # noqa: ARG001  `main` looks for it
) -> int:
    """Start the stack in this folder's .prevue.

    Parameters
    ----------
    detach
        Return when all of it is ready; otherwise it runs until Ctrl-C.
    deployers
        How many deployers.
    queue
        The queue between App and deployers.
    kubeconfig
        Use this cluster instead of building one.
    image_loader
        With --kubeconfig: a command that brings the example's images, as an archive, into that cluster.
    """
    from prevue.local.dev import up

    return up(detach=detach, deployers=deployers, queue=queue, kubeconfig=kubeconfig, image_loader=image_loader)


@dev.command(name="down")
def dev_down(*, debug: Debug = False) -> int:  # noqa: ARG001  `main` looks for it
    """Stop the stack of this folder; nothing of it stays."""
    from prevue.local.dev import down

    return down()


@dev.command(name="status")
def dev_status(*, debug: Debug = False) -> int:  # noqa: ARG001  `main` looks for it
    """Show what runs."""
    from prevue.local.dev import status

    return status()


for group in (previews, dead_letters, queue, config, dev):
    app.command(group)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    try:
        result = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as exc:
        return _fail(exc, tokens, 2, _usage_error(exc))
    except ConfigError as exc:
        return _fail(exc, tokens, 2, str(exc))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader went away (`| head`): nothing more to say, and the interpreter must not complain about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as exc:  # noqa: BLE001  the last place that can turn an error into one line
        first = _first(exc)
        if isinstance(first, ConfigError):
            return _fail(exc, tokens, 2, str(first))
        text = str(first) if isinstance(first, PrevueError) else f"unexpected {type(first).__name__}: {first}; --debug shows where"
        return _fail(exc, tokens, 1, text)
    return result if isinstance(result, int) else 0


def _first(exc: BaseException) -> BaseException:
    """The error itself, out of a task group's."""
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return exc


def _usage_error(exc: CycloptsError) -> str:
    return " ".join(str(exc).split()).rstrip(".") + "; --help shows what is accepted"


def _fail(exc: BaseException, tokens: list[str], code: int, text: str) -> int:
    if "--debug" in tokens:
        traceback.print_exception(exc)
    console.print_error(text)
    return code
