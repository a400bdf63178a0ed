"""publish: brings each inversion to where the portal serves it, in four recorded steps, and marks the OP published.

transfer, catalog, record, available: each reads on from what the record says was done of it, so that a run that was
killed anywhere is finished by the next. Each inversion is created in the store exactly once: it is recorded before the
request. Before each step the OP is read again: a hold that came meanwhile is obeyed.
"""

import time
from typing import Any

from l2inv import wording
from l2inv.config.settings import Settings
from l2inv.database.connection import Connection
from l2inv.errors import L2invError, StoreError, StoreRefused
from l2inv.queries import publication
from l2inv.services import catalog, metadata_store
from l2inv.stages.publish import abandoned, steps, store, transfer
from l2inv.stages.publish.guard import Changed, Guard, Published, Unpublishable, one_at_a_time
from l2inv.stages.publish.preflight import failed, inverted_ops
from l2inv.stages.publish.store import Store, Unfinished
from l2inv.stages.stage import Progress, opened

_LOOKS = 5  # at one OP in one run: where it changes as often as that, the next run has its turn
_POLL_SECONDS = 1.0


def publish(
    connection: Connection,
    settings: Settings,
    actor: str,
    progress: Progress = lambda done, of: None,
) -> Published:
    """Publish every inverted OP that is not on hold and return the report of the contract.

    An OP whose preflight fails, whose files cannot be brought or are not what they must be, or that the store refuses,
    goes to `error` with what was found. One for which the catalogers are not done stays inverted, and so does one for
    which no good answer comes: the others go on, and the first of these is raised at the end. What concerns every OP
    (StoreError, CatalogError, L2invError of a mount or a disk) is raised at once and fails none. Raise ConfigError
    when the settings name no service, Busy, and DatabaseError.
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
                told = Store(service)
                for done, op_id in enumerate(op_ids, 1):
                    guard = Guard(stage, op_id)
                    try:
                        outcome = _advance(guard, told)
                    except Unfinished as problem:
                        unfinished.append(StoreError(f"OP {op_id}: {problem}", "the next run goes on"))
                    else:
                        if outcome == "recorded":
                            waiting.append(guard)
                        else:
                            stage.count(outcome)
                    progress(done, len(op_ids))
                _finish(waiting, told)
                abandoned.ask(stage, told, watched)
        abandoned.report(stage)
        if unfinished:
            stage.count("skipped", len(unfinished))
            raise unfinished[0]
    return stage.report


def _advance(guard: Guard, told: Store) -> str:
    """Bring an OP up to its record in the store: return recorded, failed or skipped."""
    for _ in range(_LOOKS):
        found = guard.look()
        if found["on_hold"] or not guard.is_inverted:
            return "skipped"
        try:
            return "recorded" if _up_to_the_record(guard, told) else "skipped"
        except Changed:
            continue
        except (StoreRefused, Unpublishable) as problem:
            return "failed" if guard.fail(str(problem)) else "skipped"
        except OSError as problem:
            where = f"{problem.filename}: " if problem.filename else ""
            words = f"publish: {where}{problem.strerror or problem}"
            raise L2invError(words, "no OP failed for it: fix that, then: l2inv publish") from problem
    return "skipped"


def _up_to_the_record(guard: Guard, told: Store) -> bool:
    """Take the steps up to the record, each unless it was taken; False where a job on the cluster still runs."""
    found = guard.found
    begun = [store.begun(guard, told, inversion) for inversion in found["inversions"]]
    guard.inversions = [inversion for inversion, _ in begun]
    if not any(held for _, held in begun):
        if not found["ready"]:
            raise Unpublishable(_cause(found))
        if wrong := steps.products(guard):
            raise Unpublishable(wrong)
    for inversion in guard.inversions:
        if not steps.transfer_files(guard, inversion):
            guard.warn(f"the files of {inversion['inversion_id']} are on their way")
            return False
        steps.tell_catalog(guard, inversion)
    for inversion, held in begun:
        store.record(guard, told, inversion, held)
    return True


def _finish(waiting: list[Guard], told: Store) -> None:
    """Mark the OPs published of which the store serves every file, and wait for the others for as long as is set."""
    if not waiting:
        return
    until = time.monotonic() + waiting[0].settings.publish.catalog.await_seconds
    while waiting:
        waiting = [guard for guard in waiting if not _is_over(guard, told)]
        if not waiting or time.monotonic() >= until:
            break
        time.sleep(min(_POLL_SECONDS, max(until - time.monotonic(), 0)))
    for guard in waiting:
        since = wording.moment(steps.recorded_at(guard))
        guard.warn(f"waiting for the catalog since {since}; the next run looks again")
        guard.stage.count("skipped")


def _is_over(guard: Guard, told: Store) -> bool:
    if not all(steps.is_available(guard, told, inversion) for inversion in guard.inversions):
        return False
    try:
        guard.add("published", "published", {"inversions": guard.inversions}, before=one_at_a_time)
        guard.stage.count("done")
    except Changed:  # put on hold, or its datasets changed: the next run sees to it
        guard.warn("changed while the store was waited for; the next run looks again")
        guard.stage.count("skipped")
    return True


def _cause(found: dict[str, Any]) -> str:
    against = failed(found["checks"])
    words = "; ".join(f"{check['name']}: {check['detail']}" for check in against)
    if any(check["name"] == "superseded" for check in against):
        words += f"; invert it again: l2inv reopen {found['op_id']} --reason WHY"
    return words
