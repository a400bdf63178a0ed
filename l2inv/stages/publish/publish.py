"""publish: publishes each inversion in four recorded steps, and marks the OP published.

transfer, catalog, record, available: each step continues from what the event log says was done, so that the next run
finishes one that was killed. Each inversion is created in the store exactly once: it is recorded before the request.
The OP is read again before each step, so that a hold takes effect.
"""

import time

import msgspec

from l2inv import wording
from l2inv.config.settings import Settings
from l2inv.database.connection import Connection
from l2inv.errors import L2invError, StoreError, StoreRefused
from l2inv.queries import publication
from l2inv.services import catalog, metadata_store
from l2inv.stages.publish import abandoned, steps, transfer
from l2inv.stages.publish.guard import Changed, Guard, Published, Unpublishable, one_at_a_time
from l2inv.stages.publish.preflight import Preflight, inverted_ops
from l2inv.stages.publish.store import Store, Unfinished, record, started
from l2inv.stages.stage import Progress, opened

_LOOKS = 5  # attempts at one OP in one run: if it changes as often as that, it is left to the next run
_POLL_SECONDS = 1.0


def publish(
    connection: Connection,
    settings: Settings,
    actor: str,
    progress: Progress = lambda done, of: None,
) -> Published:
    """Publish every inverted OP that is not on hold and return the stage's report.

    An OP goes to `error` with the cause if its preflight fails, its files cannot be transferred or are wrong, or the
    store refuses it. It stays inverted if the catalogers are not done, or the store's answer was lost: then the other
    OPs are published, and the first such error is raised at the end. What concerns every OP (StoreError, CatalogError,
    L2invError of a mount or a disk) is raised at once and fails none. Raise ConfigError if the settings name no
    service, Busy, and DatabaseError.
    """
    with opened(connection, settings, actor, Published(), progress) as stage:
        unfinished: list[L2invError] = []
        waiting: list[Guard] = []
        op_ids, watched = inverted_ops(connection), publication.abandoned(connection)
        if op_ids:
            transfer.check(settings)
            catalog.check(settings.publish.catalog)
        if op_ids or watched:
            with metadata_store.service(settings.metadata_store) as service:
                store = Store(service)
                for done, op_id in enumerate(op_ids, 1):
                    guard = Guard(stage, op_id)
                    try:
                        outcome = _advance(guard, store)
                    except Unfinished as problem:
                        unfinished.append(StoreError(f"OP {op_id}: {problem}", "the next run continues"))
                    else:
                        if outcome == "recorded":
                            waiting.append(guard)
                        else:
                            stage.count(outcome)
                    progress(done, len(op_ids))
                _finish(waiting, store)
                abandoned.ask(stage, store, watched)
        abandoned.report(stage)
        if unfinished:
            stage.count("skipped", len(unfinished))
            raise unfinished[0]
    return stage.report


def _advance(guard: Guard, store: Store) -> str:
    """Take an OP's steps up to its record in the store: return recorded, failed or skipped."""
    for _ in range(_LOOKS):
        guard.look()
        if guard.found.on_hold or not guard.is_inverted:
            return "skipped"
        try:
            return "recorded" if _up_to_the_record(guard, store) else "skipped"
        except Changed:
            continue
        except (StoreRefused, Unpublishable) as problem:
            return "failed" if guard.fail(str(problem)) else "skipped"
        except OSError as problem:
            where = f"{problem.filename}: " if problem.filename else ""
            words = f"publish: {where}{problem.strerror or problem}"
            raise L2invError(words, "no OP failed for it: fix that, then: l2inv publish") from problem
    return "skipped"


def _up_to_the_record(guard: Guard, store: Store) -> bool:
    """Take the steps up to the record that were not taken yet; return False while a job on the cluster runs."""
    found = guard.found
    each = [started(guard, store, inversion) for inversion in found.inversions]
    guard.inversions = [inversion for inversion, _ in each]
    if not any(held for _, held in each):
        if not found.ready:
            raise Unpublishable(_cause(found))
        if wrong := steps.products(guard):
            raise Unpublishable(wrong)
    for inversion in guard.inversions:
        if not steps.transfer_files(guard, inversion):
            guard.warn(f"the files of {inversion.inversion_id} are being transferred")
            return False
        steps.catalog_files(guard, inversion)
    for inversion, held in each:
        record(guard, store, inversion, held)
    return True


def _finish(waiting: list[Guard], store: Store) -> None:
    """Mark the OPs published whose files the store serves, and wait for the others up to catalog.await_seconds."""
    if not waiting:
        return
    until = time.monotonic() + waiting[0].settings.publish.catalog.await_seconds
    while waiting:
        waiting = [guard for guard in waiting if not _is_over(guard, store)]
        if not waiting or time.monotonic() >= until:
            break
        time.sleep(min(_POLL_SECONDS, max(until - time.monotonic(), 0)))
    for guard in waiting:
        since = wording.moment(steps.recorded_at(guard))
        guard.warn(f"waiting for the catalog since {since}; the next run checks again")
        guard.stage.count("skipped")


def _is_over(guard: Guard, store: Store) -> bool:
    if not all(steps.is_available(guard, store, inversion) for inversion in guard.inversions):
        return False
    try:
        guard.add(
            "published",
            "published",
            {"inversions": msgspec.to_builtins(guard.inversions)},
            before=one_at_a_time,
        )
        guard.stage.count("done")
    except Changed:  # put on hold, or its datasets changed: the next run handles it
        guard.warn("changed during the wait for the store; the next run checks again")
        guard.stage.count("skipped")
    return True


def _cause(found: Preflight) -> str:
    words = "; ".join(f"{check.name}: {check.detail}" for check in found.failed)
    if any(check.name == "superseded" for check in found.failed):
        words += f"; invert it again: l2inv reopen {found.op_id} --reason WHY"
    return words
