"""Choosing OPs: next, list, mine."""

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from l2inv.cli.app import command
from l2inv.cli.arguments import Duration, OneOf, RankBy, Words
from l2inv.cli.claims import due, put_names
from l2inv.cli.context import App
from l2inv.cli.options import json_option
from l2inv.domain.states import STATES

if TYPE_CHECKING:
    from l2inv.database.connection import Connection, Row
    from l2inv.documents import Json
    from l2inv.domain.op import HeldOp, OfferedOp, Op, WholeOp
    from l2inv.queries.filters import Wanted

NOTHING = "nothing is ready to be claimed; see: l2inv status"
NOTHING_FITS = "nothing that is ready matches; see: l2inv next"
F = TypeVar("F", bound=Callable[..., Any])


def filter_options(command: F) -> F:
    """Add the options that select OPs."""
    for option in (
        click.option("--embargoed/--not-embargoed", default=None, help="Only with, or only without, data under embargo."),
        click.option("--min-r0-cm", type=click.FloatRange(0, 1000), metavar="CM", help="Only with a Fried parameter of at least this many cm."),
        click.option("--instrument", type=Words(), metavar="NAME", help="Only with datasets of this instrument, such as VBI."),
        click.option("--line", type=Words(), metavar="NAME", help='Only with this spectral line observed, such as "Na I".'),
        click.option("--band", type=Words(), metavar="NAME", help="Only with this band observed; a part of its name is enough."),
        click.option("--proposal", type=Words(), metavar="ID", help="Only OPs of this proposal."),
    ):  # fmt: skip
        command = option(command)
    return command


def _wanted(*, min_r0_cm: float | None, **filters: Any) -> "Wanted":
    from l2inv.queries.filters import Wanted

    if min_r0_cm is not None and math.isnan(min_r0_cm):
        raise click.UsageError("--min-r0-cm is not a number")
    return Wanted(min_fried_parameter_m=None if min_r0_cm is None else min_r0_cm / 100, **filters)


@command("next")
@click.option(
    "-n",
    "limit",
    type=click.IntRange(1, 100_000),
    metavar="N",
    help="At most this many (default: 10; with --claim: 1).",
)
@click.option("--claim", "claims", is_flag=True, help="Claim the first, or the first N.")
@click.option(
    "--for",
    "duration",
    type=Duration(),
    metavar="DURATION",
    help="With --claim: how long you need it, such as 21d.",
)
@click.option(
    "--rank-by",
    type=RankBy(),
    metavar="WHAT",
    help="The order among OPs of the same priority: r0_class (good, fair, poor), age (waiting time), r0 or fried_parameter, "
    "proposal, ao, minutes, frames, lines, mu, exposure, field, odd or movie (default: the setting next.rank_by).",
)
@filter_options
@json_option
def next_(
    app: App, limit: int | None, claims: bool, duration: timedelta | None, rank_by: str | None, **filters: Any
) -> None:
    """List the OPs to invert next, the most urgent first.

    By priority, then by --rank-by. Each is shown with what decided its rank.
    """
    from l2inv import wording
    from l2inv.queries import observing_programs, verdicts
    from l2inv.queries.filters import Wanted, unmatched
    from l2inv.stages.mark_working import offers

    if duration and not claims:
        raise click.UsageError("--for needs --claim")
    wanted = _wanted(**filters)
    nothing = NOTHING if wanted == Wanted() else NOTHING_FITS
    with app.connected() if claims else app.reading() as (connection, settings):
        rules = settings.qualification
        rank_by = rank_by or settings.next.rank_by
        if claims:
            from l2inv.stages.mark_working import claiming

            due_at = due(settings, duration)
            op_ids = claiming.claim_first(connection, rank_by, rules, wanted, app.actor, due_at, limit or 1)
            found = [observing_programs.show(connection, op_id, rules) for op_id in op_ids]
            for op in found:
                put_names(app, connection, op)
            _add_warnings(found, verdicts.warnings(connection, op_ids, rules))
            unknown = [] if found else unmatched(connection, wanted, rules)
            lines = [
                line
                for op in found
                for line in (
                    f"claimed {op['op_id']} for {app.actor}, due {wording.due(due_at)}",
                    *wording.names(op["inversions"]),
                )
            ]
            claimed: Json = {
                "claimed": found[0] if found else None,
                "ops": found,
                "unmatched": unknown,
            }
            app.result(claimed, lambda: app.summaries(lines or [*unknown, nothing]))
            for op in found:
                for one in op["warnings"]:
                    app.warn(f"{op['op_id']}: {wording.warning(one)}")
            return
        ops, total = offers.offered(connection, rank_by, limit or 10, rules, wanted)
        unknown = [] if ops else unmatched(connection, wanted, rules)
        op_ids = [op["op_id"] for op in ops]
        _add_warnings(ops, verdicts.warnings(connection, op_ids, rules))
        changed = observing_programs.held_with_changed_inputs(connection, app.actor)
        held = observing_programs.held_by(connection, app.actor)
        tails = app.tails(connection, op_ids)
    document = {
        "ops": ops,
        "total": total,
        "rank_by": rank_by,
        "unmatched": unknown,
        "inputs_changed": changed,
    }
    app.result(document, lambda: _print_next(ops, total, rank_by, held, [*unknown, nothing], tails))
    for row in changed:
        app.warn(
            f"{row['op_id']}, which you hold, was judged on other datasets; see: l2inv history {row['op_id']}"
        )


def _add_warnings(ops: "Sequence[OfferedOp] | Sequence[WholeOp]", warnings: "dict[str, list[Json]]") -> None:
    for op in ops:
        op["warnings"] = warnings[op["op_id"]]


NEXT_COLUMNS = (
    "OP", "r0 cm", "AO", "min", "frames", "more lines", "mu", "ms", "arcsec", "odd", "ranked by", "r0 p25-p75", "movie", "waiting since",
    "observed", "proposal", "instruments", "datasets",
)  # fmt: skip


def _print_next(
    ops: "list[OfferedOp]",
    total: int,
    rank_by: str,
    held: "list[HeldOp]",
    nothing: list[str],
    tails: dict[str, str],
) -> None:
    from l2inv import wording
    from l2inv.cli import render
    from l2inv.stages.mark_working import offers

    on_terminal = render.width() is not None
    if held and on_terminal:
        holds = f"{held[0]['op_id']}" if len(held) == 1 else f"{len(held)} OPs"
        first = "the first " if len(held) > 1 else ""
        until = f", {first}due {wording.due(held[0]['due_at'])}" if held[0]["due_at"] else ""
        render.paragraph(f"You hold {holds}{until}; see: l2inv mine")
        click.echo()
    if not ops:
        for line in nothing:
            render.paragraph(line)
        return
    rows = map(_next_row, ops, offers.decided(ops, rank_by))
    render.listing(NEXT_COLUMNS, rows, right=("AO", "min", "frames", "mu"), short=tails)
    click.echo()
    more = f"; all: l2inv next -n {total}" if total > len(ops) else ""
    order = dict.fromkeys(("priority", offers.WORDS.get(rank_by, rank_by), "wait"))
    render.paragraph(f"{len(ops)} of {total}, by {', then '.join(order)}{more}")
    if on_terminal:
        render.paragraph("Take the first: l2inv next --claim; another: l2inv claim OP")


def _next_row(op: "OfferedOp", decided: str) -> tuple[object, ...]:
    from l2inv import wording

    return (
        op["op_id"],
        wording.seeing(op),
        wording.percent(op["ao_fraction"]),
        wording.number(op["minutes"]),
        wording.number(op["frame_count"]),
        ", ".join(map(wording.spectral_line, op["more_lines"])) or "-",
        wording.number(op["mu"], 2),
        wording.interval(op["exposure_min_ms"], op["exposure_max_ms"]),
        wording.field(op),
        ", ".join(op["odd"]) or "-",
        decided,
        wording.quartiles(op),
        "yes" if op["movie_urls"] else "no",
        wording.day(op["since"]),
        wording.day(op["start_time"]),
        op["proposal_id"] or "-",
        ", ".join(op["instruments"]),
        op["dataset_count"],
    )


@command("list")
@click.option("--state", type=OneOf(STATES), help="Only OPs in this state.")
@filter_options
@click.option(
    "--format",
    "form",
    type=OneOf(["table", "json", "ndjson", "csv", "ids"]),
    default="table",
    show_default=True,
    help="As text, one JSON document, a JSON object a line, CSV, or the ids alone.",
)
@json_option
def list_(app: App, state: str | None, form: str, **filters: Any) -> None:
    """List OPs with their present state.

    Each is printed as soon as it is read, in every format.
    """
    from l2inv.queries import export, observing_programs
    from l2inv.queries.filters import unmatched

    if app.json and form not in ("table", "json"):
        raise click.UsageError(f"--json and --format {form} are two formats: leave one out")
    form = "json" if app.json else form
    app.json = form == "json"
    wanted = _wanted(state=state, **filters)
    with app.reading() as (connection, settings):
        rules = settings.qualification
        what: Literal["all", "table", "ids"] = (
            "ids" if form == "ids" else "table" if form == "table" else "all"
        )
        ops = observing_programs.list_ops(connection, wanted, rules, what)
        found = next(ops, None)
        rows = ops if found is None else chain([found], ops)
        if form == "json":
            _print_document(rows)
        elif form == "ndjson":
            export.as_ndjson(rows, sys.stdout)
        elif form == "csv":
            export.as_csv(rows, sys.stdout, observing_programs.LISTED)
        elif form == "ids":
            for op in rows:
                click.echo(op["op_id"])
        else:
            _print_list(app, rows, connection)
        unknown = unmatched(connection, wanted, rules) if found is None else []
    for line in unknown:
        app.warn(line)


def _print_document(ops: "Iterable[Row]") -> None:
    """Print one JSON document, in bounded memory."""
    from l2inv.queries.export import row_as_json

    total = 0
    sys.stdout.write('{"ops": [')
    for total, op in enumerate(ops, 1):
        sys.stdout.write((", " if total > 1 else "") + row_as_json(op))
    sys.stdout.write(f'], "total": {total}}}\n')


def _print_list(app: App, ops: "Iterable[Row]", connection: "Connection") -> None:
    from l2inv import wording
    from l2inv.cli import render

    rows = (
        (
            op["op_id"],
            op["state"] + (", on hold" if op["on_hold"] else ""),
            wording.day(op["since"]),
            op["dataset_count"],
            op["assignee"] or "-",
        )
        for op in ops
    )
    columns = ("OP", "state", "since", "datasets", "assignee")
    render.stream(columns, rows, ("datasets",), lambda op_ids: app.tails(connection, op_ids))


@command("mine")
@json_option
def mine(app: App) -> None:
    """List what you hold, the earliest due date first.

    Then which of them, or of those that you inverted, failed; and what you inverted last.
    """
    from l2inv.queries import observing_programs

    with app.connected() as (connection, _):
        ops = observing_programs.held_by(connection, app.actor)
        inverted = observing_programs.inverted_by(connection, app.actor)
        failed = observing_programs.failed_of(connection, app.actor)
        tails = app.tails(connection, [op["op_id"] for op in (*ops, *inverted, *failed)])
    now = datetime.now(UTC)
    for op in ops:
        op["overdue"] = op["due_at"] is not None and op["due_at"] <= now
    document = {"ops": ops, "inverted": inverted, "failed": failed}
    app.result(document, lambda: _print_mine(app.actor, tails, ops, inverted, failed))


def _print_mine(
    actor: str,
    tails: dict[str, str],
    ops: "list[HeldOp]",
    inverted: "list[Op]",
    failed: "list[Row]",
) -> None:
    from l2inv import wording
    from l2inv.cli import render

    if ops:
        held = [
            (
                op["op_id"],
                wording.due(op["due_at"]) + (" overdue" if op["overdue"] else ""),
                op["state"],
                wording.day(op["since"]),
                op["proposal_id"] or "-",
                ", ".join(one["inversion_id"] for one in op["inversions"]) or "-",
                "changed" if op["inputs_changed"] else "-",
            )
            for op in ops
        ]
        render.table(("OP", "due", "state", "since", "proposal", "inversions", "inputs"), held, short=tails)
    else:
        render.paragraph(f"{actor} holds no OP; see: l2inv next")
    if failed:
        click.echo()
        rows = [(op["op_id"], op["stage"], wording.moment(op["since"]), op["cause"]) for op in failed]
        render.table(("failed", "stage", "since (UTC)", "cause"), rows, short=tails)
    if inverted:
        click.echo()
        rows = [
            (op["op_id"], op["state"], wording.day(op["since"]), op["proposal_id"] or "-") for op in inverted
        ]
        render.table(("inverted", "state", "since", "proposal"), rows, short=tails)
