"""serve: one member. Its options are the settings of `raftkv.server.config`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

import click

from raftkv.cli.output import note
from raftkv.cli.session import credentials, guarded
from raftkv.server import etcd_flags
from raftkv.server.config import SETTINGS, ServerConfig, Setting, load_config, unknown_variables

KEYS: Final = frozenset(setting.key for setting in SETTINGS)
ETCD: Final = "etcd_"
"""Stands before the name of a flag of etcd that is not a setting."""


class ServeCommand(click.Command):
    """A command whose help lists the settings under their groups, and that takes etcd's flags."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        names = {name.lstrip("-") for param in self.params for name in param.opts}
        return super().parse_args(ctx, etcd_flags.unabbreviated(args, names))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        shown = (param for param in self.params if not getattr(param, "hidden", False))
        rows = {param.name: param.get_help_record(ctx) for param in shown}
        for setting in SETTINGS:
            if (row := rows.pop(setting.name, None)) is not None:
                groups.setdefault(setting.group, []).append(row)
        for title, lines in groups.items():
            with formatter.section(title):
                formatter.write_dl(lines)
        with formatter.section("Other"):
            formatter.write_dl([row for row in rows.values() if row is not None])


def setting_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """One option for each setting; values reach `load_config` as text."""
    for setting in reversed(SETTINGS):
        # etcd's switches are given without a value.
        optional: dict[str, Any] = {}
        if setting.default is False:
            optional = {"is_flag": False, "flag_value": "true"}
        command = click.option(
            setting.flag,
            setting.name,
            metavar=setting.placeholder,
            help=setting.help + default_text(setting),
            **optional,
        )(command)
    return command


def etcd_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """An option, not shown in help, for each flag of etcd that is not a setting here."""
    for name in sorted(etcd_flags.NAMES - KEYS - {"config-file"}):
        place = ETCD + name.replace("-", "_")
        command = click.option(f"--{name}", place, hidden=True)(command)
    return command


def split_etcd(flags: dict[str, str | None]) -> tuple[dict[str, str | None], dict[str, str]]:
    """The settings by field name, and the other flags of etcd that were given by their names."""
    settings = {name: value for name, value in flags.items() if not name.startswith(ETCD)}
    others: dict[str, str] = {}
    for place, value in flags.items():
        if not place.startswith(ETCD) or value is None:
            continue
        name = place[len(ETCD) :].replace("_", "-")
        known = etcd_flags.FORMERLY.get(name, "").replace("-", "_")
        if known in settings:
            settings[known] = value if settings[known] is None else settings[known]
        else:
            others[name] = value
    return settings, others


def default_text(setting: Setting) -> str:
    """The default as help shows it; settings whose default is made up later say so themselves."""
    if setting.default in ("", (), False):
        return ""
    value = ",".join(setting.default) if isinstance(setting.default, tuple) else setting.default
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"  [default: {text}]"


@click.command(cls=ServeCommand)
@setting_options
@click.option(
    "--user", "as_user", envvar="RAFTKV_USER", metavar="NAME[:PASSWORD]", help="Log in to --join."
)
@click.option("--token", envvar="RAFTKV_TOKEN", metavar="TOKEN", help="To --join instead.")
@etcd_options
@click.option("--config-file", metavar="PATH", help="A TOML file of settings.")
@click.option("--show-config", is_flag=True, help="Print the settings in effect as TOML, and stop.")
def serve(
    config_file: str | None,
    show_config: bool,
    as_user: str | None,
    token: str | None,
    **flags: str | None,
) -> None:
    """Run one member of a cluster.

    Without options it runs a store of one member on http://127.0.0.1:2379, with its data under
    default.raftkv. Every option is also a variable (RAFTKV_DATA_DIR for --data-dir) and a key of
    the TOML file (data-dir); options win over variables, and those over the file. Flags and
    variables of etcd (ETCD_DATA_DIR) are taken where there is the like.
    """
    settings, others = split_etcd(flags)
    config = guarded(lambda: load_config(settings, os.environ, config_file))
    for name in unknown_variables(os.environ):
        note(f"warning: {name} is set, but there is no such setting")
    for remark in guarded(lambda: list(etcd_flags.remarks(others, os.environ, KEYS))):
        note(f"warning: {remark}")
    if show_config:
        click.echo(as_toml(config), nl=False)
        return
    # Imported late: the whole server, which no other command needs.
    from raftkv.api.serve import run
    from raftkv.server import logs

    logs.configure(config.log_level, config.log_format)
    if config.join:
        from raftkv.cli.joining import joined

        config = joined(config, *credentials(as_user, token))
    guarded(lambda: run(config, lambda member: click.echo(welcome(config))))


def welcome(config: ServerConfig) -> str:
    """What to try next, once the member serves."""
    url = config.advertised_client_urls[0]
    default = url == "http://127.0.0.1:2379"
    command = "raftkv" if default else f"raftkv --endpoints {url}"
    return (
        f"\nraftkv serves on {url} (API: {url}/docs). Try, in another terminal:\n\n"
        f"  {command} put greeting hello\n"
        f"  {command} watch --prefix greet\n"
        f"  {command} service run web --port 8080 --ttl 5 -- python3 -m http.server 8080\n\n"
        "Ctrl-C stops it.\n"
    )


def as_toml(config: ServerConfig) -> str:
    """The whole configuration as a TOML file with the help as comments."""
    lines: list[str] = []
    for setting in SETTINGS:
        value = getattr(config, setting.name)
        lines += [f"# {setting.help}", f"{setting.key} = {_toml(value)}", ""]
    return "\n".join(lines[:-1]) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
