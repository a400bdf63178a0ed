"""What is known of an observing program (OP), as queries return it and --json prints it. Units are in the names."""

from datetime import datetime
from typing import Any, NotRequired, TypedDict

from l2inv.documents import Json
from l2inv.domain.criteria import Verdict
from l2inv.domain.measures import R0Class
from l2inv.domain.states import State


class BriefOp(TypedDict):
    """An OP in a table."""

    op_id: str
    state: State
    since: datetime
    assignee: str | None
    on_hold: bool
    dataset_count: int


class Op(BriefOp):
    """A row of the view op."""

    proposal_id: str | None
    experiment_id: str | None
    priority: int
    instruments: list[str]
    start_time: datetime | None
    fried_parameter_med_m: float | None
    bands: list[str]
    instrument_programs: list[str | None]
    inputs_changed: bool
    overruled: bool
    due_at: datetime | None
    is_embargoed: bool


class MeasuredOp(Op):
    """A row of the view op with the measures of its datasets: see measures.Measures."""

    fried_parameter_p25_m: float | None
    fried_parameter_p75_m: float | None
    r0_class: R0Class
    ao_fraction: float | None
    minutes: float | None
    frame_count: int | None
    lines: list[str]
    more_lines: list[str]
    mu: float | None
    exposure_min_ms: float | None
    exposure_max_ms: float | None
    field_x_arcsec: float | None
    field_y_arcsec: float | None
    odd: list[str]
    movie_urls: list[str]


class OfferedOp(MeasuredOp):
    """An OP that can be claimed, and what ranks it."""

    priority_reason: str | None
    reason: str
    why: str
    warnings: NotRequired[list[Json]]


class HeldOp(Op):
    """An OP that somebody holds, with the names of its inversions."""

    inversions: list[Json]
    overdue: NotRequired[bool]


class WholeOp(MeasuredOp):
    """An OP with its verdict, its datasets and its inversions."""

    verdict: Verdict | None
    error: Json | None  # stage, cause and attempt of its failure
    overruled_by: Json | None  # the detail of the event
    outputs: list[Json] | None
    hold_reason: str | None
    inversions: list[Json]
    datasets: list[Json]
    warnings: NotRequired[list[Json]]
    steps: NotRequired[list[Any]]  # publication.Step
    abandoned: NotRequired[list[Any]]  # publication.Abandoned
