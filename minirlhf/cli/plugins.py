"""minirlhf plugins list | show | check | new: components and their plugins, printed. Not here: checks (authoring/)."""

import inspect
import json
from typing import TYPE_CHECKING, Any

import click

from minirlhf.cli.fit import listing, wrapped
from minirlhf.cli.lines import printable, tell
from minirlhf.cli.options import plugin_option
from minirlhf.cli.stdio import columns
from minirlhf.components.component import KINDS

if TYPE_CHECKING:
    from minirlhf.components.component import Built, Component
    from minirlhf.components.registry import Plugin, Registry
    from minirlhf.text.corpus import Prompt


@click.group("plugins")
def command() -> None:
    """List components, show, check or begin one."""


def loaded(plugins: tuple[str, ...]) -> "Registry":
    """Registry with these plugins; warnings of entry points go to stderr."""
    from minirlhf.components.registry import load_plugins

    registry = load_plugins(plugins)
    for warning in registry.warnings:
        tell(f"warning: {warning}")
    return registry


@command.command("list")
@plugin_option
@click.option("--kind", type=click.Choice(KINDS), help="Only this kind, without the plugins.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def list_(plugins: tuple[str, ...], kind: str | None, as_json: bool) -> None:
    """List every component with its owner, its options and what it is; then the plugins that they are from, and those
    that could not be loaded."""
    registry = loaded(plugins)
    rows = [c for c in registry.listing() if kind in (None, c.kind)]
    owners = registry.plugins if kind is None else []
    if as_json:
        for component in rows:
            print(json.dumps(component_facts(component, registry)))
        for plugin in owners:
            print(json.dumps(plugin_facts(plugin, registry)))
        return
    head = ("kind", "name", "owner", "options", "")
    print_columns([head, *((c.kind, c.name, c.owner, ", ".join(c.options), c.doc) for c in rows)])
    if owners:
        print()
        print_columns(
            [
                ("plugin", "version", "source", ""),
                *((p.owner, p.version, p.source, status(p, registry)) for p in owners),
            ]
        )


def print_columns(rows: list[tuple[str, ...]]) -> None:
    """Print rows in aligned columns; the last one, prose, is wrapped on a terminal."""
    for line in listing([[printable(cell) for cell in row] for row in rows], columns()):
        print(line)


def status(plugin: "Plugin", registry: "Registry") -> str:
    """Status of a plugin: loaded with its number of components, or failed with the reason."""
    if plugin.fault:
        return f"failed: {plugin.fault}"
    count = sum(c.owner == plugin.owner for c in registry.components)
    return f"loaded: {count} component{'' if count == 1 else 's'}"


@command.command("show")
@click.argument("name")
@plugin_option
@click.option("--kind", type=click.Choice(KINDS), help="If several have it.")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
def show_component(name: str, plugins: tuple[str, ...], kind: str | None, as_json: bool) -> None:
    """Show what a component takes and what can be set: NAME, OWNER:NAME, FILE.py:FUNCTION with --kind; or a plugin."""
    registry = loaded(plugins)
    known = [c for c in registry.listing() if name in (c.name, f"{c.owner}:{c.name}")]
    owner = next((p for p in registry.plugins if p.owner == name and not known and kind is None), None)
    if owner is not None:
        show_plugin(owner, registry, as_json)
        return
    for component in named(registry, name, kind):
        if as_json:
            print(json.dumps(component_facts(component, registry)))
            continue
        plugin = registry.plugin(component.owner, component.path)
        taken = ", ".join([*component.inputs, *component.columns, *(["**columns"] if component.takes_columns else [])])
        print(f"{component.name}: {component.kind} of plugin {component.owner}")
        print(printable(f"  plugin   {f'{plugin.version}, ' if plugin.version else ''}{plugin.source}"))
        print(f"  defined  {component.where}")
        print(wrapped(taken or "nothing", columns(), "  takes    "))
        for option in component.options.values():
            print(wrapped(str(option), columns(), "  option   "))
        text = inspect.getdoc(component.fn)
        for line in text.split("\n") if text else ():
            print(wrapped(printable(line), columns(), "  ").rstrip())


def show_plugin(plugin: "Plugin", registry: "Registry", as_json: bool) -> None:
    """Print a plugin: its source, its status and its components."""
    if as_json:
        print(json.dumps(plugin_facts(plugin, registry)))
        return
    print(f"{plugin.owner}: plugin{f' {plugin.version}' if plugin.version else ''}, {plugin.source}")
    print(printable(f"  {status(plugin, registry)}"))
    for component in registry.listing():
        if component.owner == plugin.owner:
            print(f"  {component.kind:<9}  {component.name}")


@command.command("new")
@click.argument("name")
@click.option("--kind", type=click.Choice(KINDS), required=True, help="What it is.")
@click.option("--package", is_flag=True, help="A package to install, not a file.")
def new(name: str, kind: str, package: bool) -> None:
    """Begin a plugin here: a file with its test, or a package, that runs as it is written."""
    from pathlib import Path

    from minirlhf.authoring.scaffold import USES, write_plugin
    from minirlhf.errors import UsageError

    if any(c.name == name for c in loaded(()).listing()):
        raise UsageError(f"a component is called {name!r} already", todo="choose another name")
    for path in write_plugin(Path(), name, kind, package=package):
        print(path)
    if package:
        tell(f"next: pip install -e {path.parent}")
    else:
        tell(f"next: minirlhf plugins check {name}.py")
    how = "" if package else f"--plugin {name}.py "
    tell(f"then: minirlhf run {how}{USES[kind].replace('NAME', name)}")


@command.command("check")
@click.argument("name", metavar="NAME|FILE.py|FILE.py:FUNCTION")
@plugin_option
@click.option("--kind", type=click.Choice(KINDS), help="If several have the name.")
@click.option("--prompts", metavar="FILE", help="Prompts with the columns that a reward asks for.")
@click.option("--set", "sets", multiple=True, metavar="OPTION=VALUE", help="An option of the component, repeatable.")
def check_(name: str, plugins: tuple[str, ...], kind: str | None, prompts: str | None, sets: tuple[str, ...]) -> None:
    """Check that a component keeps its contract, on batches that find out what usually goes wrong.

    Of a FILE.py all components are checked. Of an estimator the verdict of `minirlhf audit` is shown below the checks:
    one that is biased is not broken.
    """
    from minirlhf.config.values import setting
    from minirlhf.errors import PluginError, UsageError
    from minirlhf.text.corpus import read_prompts

    whole_file = name.endswith(".py")
    registry = loaded((*plugins, name) if whole_file else plugins)
    components = of_file(registry, name, kind) if whole_file else named(registry, name, kind)
    options = dict(setting(text) or (text, "") for text in sets)
    unknown = [key for key in options if not any(key in component.options for component in components)]
    if unknown and len(components) > 1:
        raise UsageError(f"no component here has an option {unknown[0]!r}", name, "`plugins show NAME` lists them")
    rows = read_prompts(prompts) if prompts else []
    failed, unready = 0, list[UsageError]()
    for component in components:
        # with several components, each gets the options that it has
        own = {k: v for k, v in options.items() if k in component.options} if len(components) > 1 else options
        try:
            failed += print_findings(component, own, rows, registry)
        except UsageError as fault:
            unready.append(fault)
    if failed:
        what = "1 check failed" if failed == 1 else f"{failed} checks failed"
        raise PluginError(what, name, "mend what is marked FAIL above")
    if unready:
        raise unready[0]


def print_findings(component: "Component", options: dict[str, Any], rows: "list[Prompt]", registry: "Registry") -> int:
    """Print the findings of one component; returns the number of failed checks."""
    from itertools import chain

    from minirlhf.testing import check, prepare

    built = prepare(component, options)
    findings = check(built, rows)
    first = next(findings)  # raises here, before anything is printed, if prompts or options are missing
    print(f"{component.kind} {component.name} of {component.owner}, {component.where}")
    failed = 0
    for finding in chain([first], findings):
        failed += not finding.holds
        mark = f"  {'ok  ' if finding.holds else 'FAIL'}  {finding.name:<20}  "
        print(wrapped(printable(finding.found), columns(), mark).rstrip())
        if not finding.holds and finding.todo:
            print(wrapped(finding.todo, columns(), f"        {'':<20}  -> "))
    if not failed and component.kind in ("kl", "advantage", "loss"):
        for verdict in verdicts(built, registry):
            print(wrapped(printable(verdict), columns(), f"  info  {'audit':<20}  "))
    return failed


def verdicts(built: "Built", registry: "Registry") -> list[str]:
    """Verdicts of the audit of an estimator, or the reason why it cannot be audited."""
    from minirlhf.cli.audit import audited
    from minirlhf.config.layers import load_config
    from minirlhf.errors import UserError

    config, _ = load_config(registry_loader=lambda _: registry)
    try:
        return [row["verdict"] for row in audited(built, config, registry) if "verdict" in row]
    except UserError as fault:
        return [f"cannot be made: {fault}"]


def of_file(registry: "Registry", file: str, kind: str | None) -> "list[Component]":
    """Components that a plugin file registers, of one kind or of all; UsageError if there are none."""
    from pathlib import Path

    from minirlhf.errors import UsageError

    path = Path(file).resolve()
    rows = [c for c in registry.listing() if kind in (None, c.kind) and Path(c.path).resolve() == path]
    if not rows:
        raise UsageError(f"{file} registers no {kind}", todo="leave --kind out, or name FILE.py:FUNCTION")
    return rows


def named(registry: "Registry", name: str, kind: str | None) -> "list[Component]":
    """Components of a name, of one kind or of all; UsageError with the existing names if there are none."""
    from minirlhf.errors import UsageError, nearest

    if kind is not None:
        return [registry.find(kind, name)]
    if ".py:" in name:
        raise UsageError(f"of which kind is {name!r}", todo=f"add --kind {'|'.join(KINDS)}")
    rows = [c for c in registry.listing() if name in (c.name, f"{c.owner}:{c.name}")]
    if not rows:
        names = sorted({c.name for c in registry.listing()})
        raise UsageError(f"no component is called {name!r}{nearest(name, names)}", todo=f"there are {', '.join(names)}")
    return rows


def component_facts(component: "Component", registry: "Registry") -> dict[str, Any]:
    """Component as the object that --json prints."""
    plugin = registry.plugin(component.owner, component.path)
    return {
        "kind": component.kind,
        "name": component.name,
        "owner": component.owner,
        "version": plugin.version,
        "source": plugin.source,
        "defined": component.where,
        "inputs": list(component.inputs),
        "columns": list(component.columns),
        "takes_columns": component.takes_columns,
        "options": {name: str(option) for name, option in component.options.items()},
        "doc": component.doc,
    }


def plugin_facts(plugin: "Plugin", registry: "Registry") -> dict[str, Any]:
    """Plugin as the object that --json prints."""
    return {
        "plugin": plugin.owner,
        "version": plugin.version,
        "source": plugin.source,
        "status": "failed" if plugin.fault else "loaded",
        "reason": plugin.fault,
        "components": [f"{c.kind} {c.name}" for c in registry.listing() if c.owner == plugin.owner],
    }
