"""Commands on runs: runs, log, show, resume-point, cancel, forget, rebuild."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import click

import journal
from casstore.cli.options import EXIT_DAMAGE, Duration, Out, command, open_both, say, shown_size
from journal import Journal
from journal.event_json import to_json

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def register(cli: click.Group) -> None:
    """Add the commands to the group."""

    @command(cli, "runs")
    @click.option(
        "--status", type=click.Choice(["live", "completed", "failed", "cancelled"]), default=None, help="Only these."
    )
    @click.option("--stale", type=Duration(), metavar="AGE", default=None,
                  help="Live ones whose last event is so old, such as 30d.")  # fmt: skip
    @click.option("--limit", type=click.IntRange(min=1), default=None, help="At most so many.")
    def runs(home: Path, out: Out, status: str | None, stale: int | None, limit: int | None) -> None:
        """List runs, newest first."""
        if stale is not None and status not in (None, "live"):
            raise click.UsageError("--stale is about live runs")
        with open_both(home, read_only=True) as (_, jrn):
            for row in jrn.runs(status=status if stale is None else "live", limit=limit, stale=stale):
                shown = row.status.value if row.status else "live"
                document = {
                    "run_id": str(row.run_id), "status": shown, "op_id": row.op_id, "head": row.head,
                    "started_ms": row.started_ms, "updated_ms": row.updated_ms,
                }  # fmt: skip
                line = f"{row.run_id}  {shown:9}  {row.head:>6} events  {_when(row.updated_ms)}  {row.op_id}"
                out.line(document, line)

    @command(cli, "log")
    @click.argument("run")
    @click.option("--follow", is_flag=True, help="Go on with events as they come, until the run ends.")
    def log(home: Path, out: Out, run: str, follow: bool) -> None:
        """Print the events of a run, oldest first."""
        with open_both(home, read_only=True) as (_, jrn):
            run_id = _known(jrn, run)
            events = jrn.read(run_id)
            for event in events:
                out.line(to_json(event), _line(event))
            if not follow or isinstance(events[-1].event, journal.RunCompleted):
                return
            for event in jrn.feed(after=events[-1].position, follow=True):
                if event.run_id == run_id:
                    out.line(to_json(event), _line(event))
                    if isinstance(event.event, journal.RunCompleted):
                        return

    @command(cli, "show")
    @click.argument("run")
    def show(home: Path, out: Out, run: str) -> None:
        """Show a run: its states and attempts, its checkpoint, what its snapshots take."""
        with open_both(home, read_only=True) as (store, jrn):
            state = jrn.run_state(_known(jrn, run))
            attempts = state.attempts
            steps, sizes = [], [0, 0]
            for event in jrn.read(state.run_id):
                for _, name in journal.links(event.event):
                    if name in store and isinstance(event.event, journal.StateCompleted):
                        found = store.info(name)
                        sizes[0] += found.size_bytes
                        sizes[1] += found.stored_bytes
                steps.append(event)
        document = {
            "run_id": str(state.run_id), "op_id": state.op_id, "status": state.status.value if state.status else "live",
            "head": state.head, "manifest_id": str(state.manifest_id), "checkpoint_id": str(state.checkpoint_id),
            "final_snapshot_id": str(state.final_snapshot_id) if state.final_snapshot_id else None,
            "completed": list(state.completed), "attempts": attempts,
            "open_attempt": state.open_attempt.state_id if state.open_attempt else None,
            "snapshots_bytes": sizes[0], "snapshots_stored_bytes": sizes[1],
        }  # fmt: skip

        def text() -> None:
            say(f"run         {state.run_id}  ({state.op_id}, {document['status']})")
            say(f"manifest    {state.manifest_id}")
            say(f"checkpoint  {state.checkpoint_id}")
            if sizes[0]:
                say(f"snapshots   {shown_size(sizes[0])} of data kept in {shown_size(sizes[1])}")
            for event in steps:
                if not isinstance(event.event, journal.DomainEvent):
                    say(f"  {_line(event)}")

        out.document(document, text)

    @command(cli, "resume-point")
    @click.argument("run")
    def resume_point(home: Path, out: Out, run: str) -> None:
        """Say what a resume of a run would do and append. Changes nothing."""
        with open_both(home, read_only=True) as (_, jrn):
            planned = jrn.resume(_known(jrn, run), dry_run=True)
            decision, events = planned.decision, planned.would_append
        shown = _decision(decision)
        holder = planned.holder
        document = {
            "run_id": str(planned.run_id), "decision": shown, "would_append": [to_json(event) for event in events],
            "holder": None if holder is None else {"owner": holder.owner, "until_ms": holder.until_ms},
        }  # fmt: skip

        def text() -> None:
            if holder is not None:
                until = _when(holder.until_ms)
                say(f"held by {holder.owner} until {until} or longer: only a resume that steals would do this")
            say(" ".join(f"{key}={value}" for key, value in shown.items()))
            for event in events:
                say(f"  would append {json.dumps(to_json(event), ensure_ascii=False)}")

        out.document(document, text)

    @command(cli, "cancel")
    @click.argument("run")
    @click.option("--reason", default="cancelled from the command line", show_default=True, help="Kept in the log.")
    def cancel(home: Path, out: Out, run: str, reason: str) -> None:
        """End a live run as cancelled, whoever runs it: its owner is fenced at its next append."""
        with open_both(home, read_only=False) as (_, jrn):
            run_id = _known(jrn, run)
            jrn.cancel(run_id, reason)
        out.document({"run_id": str(run_id), "status": "cancelled"}, lambda: say(f"cancelled {run_id}"))

    @command(cli, "forget")
    @click.argument("run")
    def forget(home: Path, out: Out, run: str) -> None:
        """Remove the events of a run that has ended, for good; gc then takes what only it named."""
        with open_both(home, read_only=False) as (_, jrn):
            run_id = _known(jrn, run)
            events = jrn.forget(run_id)
        out.document({"run_id": str(run_id), "events": events}, lambda: say(f"forgot {run_id}: {events} events"))

    @command(cli, "rebuild")
    @click.option("--dry-run", is_flag=True, help="Only say what would change.")
    @click.option("--force", is_flag=True, help="Trust the records also where a run's row says they were others.")
    @click.pass_context
    def rebuild(ctx: click.Context, home: Path, out: Out, dry_run: bool, force: bool) -> None:
        """Make the journal's rows and indexes anew from its events."""
        with open_both(home, read_only=dry_run) as (_, jrn):
            report = jrn.rebuild(dry_run=dry_run, force=force)
        document = {
            "dry_run": dry_run, "runs": report.runs, "events": report.events,
            "changes": [
                {"table": table, "what": what, "run_number": number, "run_id": run_id and str(run_id)}
                for table, what, number, run_id in report.changes
            ],
            "left": [
                {"code": code, "run_number": number, "run_id": run_id and str(run_id), "detail": detail}
                for code, number, run_id, detail in report.left
            ],
        }  # fmt: skip

        def text() -> None:
            for table, what, number, run_id in report.changes:
                say(f"{table}: {what}: run {run_id or f'number {number}'}")
            for code, number, run_id, detail in report.left:
                say(f"left alone: run {run_id or f'number {number}'}: {code}: {detail}")
            verb = "would change" if dry_run else "changed"
            say(f"{report.runs} runs, {report.events} events; {len(report.changes)} rows {verb}")

        out.document(document, text)
        if report.left or (dry_run and report.changes):
            ctx.exit(EXIT_DAMAGE)


def _known(jrn: Journal, text: str) -> Any:
    """The run of this id, or the only one whose id begins like that."""
    return jrn.resolve(text)


def _when(ms: int) -> str:
    """The moment, as people write it; beyond the year 9999 the number, which imported events may have."""
    try:
        return (_EPOCH + timedelta(milliseconds=ms)).strftime("%Y-%m-%d %H:%M:%SZ")
    except OverflowError:
        return f"{ms} ms"


def _line(event: journal.RecordedEvent) -> str:
    shown = to_json(event.event)
    name = shown.pop("type")
    if name == "DomainEvent":
        name = shown.pop("name")
        shown = {**shown.pop("payload"), **shown}
    facts = " ".join(f"{key}={_short(value)}" for key, value in shown.items())
    return f"{event.seq:>5}  {_when(event.timestamp_ms)}  {name:18} {facts}"


def _short(value: Any) -> str:
    if isinstance(value, dict) and set(value) == {"/"}:
        value = value["/"]
    if isinstance(value, str):
        return value[:12] if len(value) == 64 else value
    return json.dumps(value, ensure_ascii=False)


def _decision(decision: Any) -> dict[str, Any]:
    document: dict[str, Any] = {"action": type(decision).__name__.lower()}
    for name in decision.__dataclass_fields__:
        value = getattr(decision, name)
        if hasattr(value, "__dataclass_fields__"):
            document[name] = type(value).__name__.lower()
        elif value is not None:
            document[name] = str(getattr(value, "value", value)) if not isinstance(value, int) else value
    return document
