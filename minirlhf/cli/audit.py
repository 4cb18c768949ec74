"""minirlhf audit: the tables of studies/audit, printed."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from minirlhf.cli.fit import table, wrapped
from minirlhf.cli.options import check_picture, plugin_option, resolve_config
from minirlhf.cli.stdio import columns

if TYPE_CHECKING:
    from minirlhf.components.component import Built
    from minirlhf.components.registry import Registry
    from minirlhf.config.schema import Config

KINDS = ("kl", "advantage", "loss")


@click.command("audit")
@click.argument("what", nargs=-1, metavar="[kl|advantage|loss] [NAME]...")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Such as advantage.whiten=none, kl.coef=0.5")
@plugin_option
@click.option("--svg", type=click.Path(path_type=Path), metavar="FILE", help="Draw bias against variance.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def command(
    what: tuple[str, ...], sets: tuple[str, ...], plugins: tuple[str, ...], svg: Path | None, as_json: bool
) -> None:
    """Hold estimators against exact enumeration: bias, variance, and what their gradient optimises.

    Without a kind, all of them; without a NAME, all components of the kind, those of plugins included. NAME may be
    OWNER:NAME or FILE.py:FUNCTION. With one NAME, --set may give its options.
    """
    kinds, names = kinds_and_names(what)
    # With one name, the config holds this component, and so --set can give its options.
    flags = {kinds[0]: names[0]} if len(names) == 1 else {}
    sets = ("ppo.responses_per_prompt=4", *sets)  # needed by group advantages, used by nothing else
    config, registry = resolve_config(preset=None, rewards=(), sets=sets, plugins=plugins, device=None, **flags)
    rows: list[dict[str, Any]] = []
    if svg is not None:
        check_picture(svg)
    for built in components(config, registry, kinds, names):
        found = list(audited(built, config, registry))
        rows += found
        if as_json:
            from minirlhf.store.jsonl import json_line

            for row in found:
                print(json_line(row))
        else:
            print_table(found)
    if not as_json:
        print(f"\n{wrapped(MEASURED_ON, columns())}\n\nverdicts")
        for row in rows:
            if "verdict" in row:
                print(wrapped(row["verdict"], columns(), f"  {row['kind']:<9} "))
    if svg is not None:
        from minirlhf.store.files import write_text
        from minirlhf.studies.audit.picture import picture

        write_text(svg.absolute(), picture(rows))


def kinds_and_names(what: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Parse the arguments: kinds and names. click.UsageError for names without a kind before them."""
    if what and what[0] not in KINDS:
        raise click.UsageError(f"{what[0]!r} is no kind; say which first: audit {'|'.join(KINDS)} NAME")
    return (what[:1], what[1:]) if what else (KINDS, ())


def components(
    config: "Config", registry: "Registry", kinds: tuple[str, ...], names: tuple[str, ...]
) -> "Iterator[Built]":
    """Components to audit, built; the one that the config names gets the config's options."""
    from minirlhf.config.schema import CHOOSERS

    for kind in kinds:
        section = getattr(config, kind)
        configured = registry.find(kind, getattr(section, CHOOSERS[kind]))
        found = [registry.find(kind, name) for name in names] or [c for c in registry.listing() if c.kind == kind]
        for component in found:
            yield component.build(section.options if component == configured else {}, device="cpu")


def audited(built: "Built", config: "Config", registry: "Registry") -> Iterator[dict[str, Any]]:
    """Rows of the audit of one component, with the whitening of a run of this config."""
    from minirlhf.pipeline.build import whitening
    from minirlhf.studies.audit.advantage import audit_advantage
    from minirlhf.studies.audit.kl import audit_kl
    from minirlhf.studies.audit.loss import audit_loss
    from minirlhf.studies.audit.scene import Scene

    configured = registry.find("advantage", config.advantage.function).build(config.advantage.options, device="cpu")
    audit = {"kl": audit_kl, "advantage": audit_advantage, "loss": audit_loss}[built.component.kind]
    variant = whitening(config.advantage, built if audit is audit_advantage else configured)
    yield from audit(built, config, variant, Scene.of())


COLUMNS = ("value_bias", "value_std", "gradient_bias", "gradient_cosine", "gradient_variance", "held_back")
MEASURED_ON = (
    "by enumeration of one problem of the exact lab (`variable`), the policy 0.4 nats from its reference; gradients "
    "are those of the first update of a rollout unless a distance is given"
)


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print the table of one component."""
    first = rows[0]
    shown = [column for column in COLUMNS if any(column in row for row in rows)]
    print(f"\n{first['kind']} {first['name']} (of {first['owner']})")
    heads = ["", *(column.replace("_", " ") for column in shown)]
    for line in table([heads, *([f"  {row_label(row)}", *(cell(row, c) for c in shown)] for row in rows)], columns()):
        print(line)


def cell(row: dict[str, Any], column: str) -> str:
    """Text of a number, with its standard error if it is sampled; empty where the row has none."""
    if column not in row:
        return ""
    error = row.get(f"{column}_se")
    number = 0.0 if abs(row[column]) < 5e-7 else row[column]
    return f"{number:.4g}" + ("" if error is None else f" +- {error:.1g}")


def row_label(row: dict[str, Any]) -> str:
    """Label of a row: the setting in which it was measured."""
    if "table" in row:
        unit = "Gaussian" if row["table"] == "schulman" else "responses"
        return f"{unit}, KL {row['distance']:g}"
    if "place" in row:
        return f"in {row['place']}"
    if "distance" in row:
        return f"KL {row['distance']:g} from the sampler"
    own = " (own)" if row["own"] else ""
    options = ", ".join(f"{name} {value:g}{own}" for name, value in row["options"].items())
    values = {"unused": "no V", "exact": "exact V", "zero": "V = 0", "noisy": "noisy V"}[row["values"]]
    return f"{options}, {values}" if options else values
