"""A made-up inventory with every oddity that real ones have shown, the same every time."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from string import ascii_letters, ascii_uppercase, digits
from typing import Any, NamedTuple

Values = dict[str, Any]

NOW = datetime(2025, 6, 1, 12, tzinfo=UTC)
ACTIVE = "ACTIVE"  # the status of a dataset that a plain query returns

HEALTH = ("good", "bad", "ill", "unknown")
GOS = ("open", "opening", "closed", "closing", "undefined")
NOWHERE = "(NaN,NaN),(NaN,NaN)"


class Arm(NamedTuple):
    """One camera's pass band, in nm, and the spectral lines the store names for it."""

    low_nm: float
    high_nm: float
    lines: tuple[str, ...] | None


FE = Arm(629.52, 630.91, ("Fe I (630.15 nm)", "Fe I (630.25 nm)"))
FE_CENTER = Arm(630.04, 630.46, ("Fe I (630.15 nm)", "Fe I (630.25 nm)"))  # narrow: the center, not the band
FE_RED = Arm(630.24, 634.39, ("Fe I (630.25 nm)",))  # narrow, and not observed by the table published in 2023
FE_BESIDE = Arm(630.36, 631.74, ("Fe I (630.25 nm)",))
CA = Arm(853.12, 855.29, ("Ca II (854.21 nm)",))
CA_849 = Arm(849.08, 850.41, ("Ca II (849.80 nm)",))
NA = Arm(588.93, 590.02, ("Na I D1 (589.59 nm)",))  # narrow
MG = Arm(516.71, 517.68, ("Mg I b1 (517.27 nm)",))
SI = Arm(1082.05, 1083.92, None)
FILTERS = (
    Arm(393, 393, ("Ca II K (393.37 nm)",)),
    Arm(430, 430, None),
    Arm(450, 450, None),
    Arm(486, 486, ("H beta (486.13 nm)",)),
    Arm(656, 656, ("H alpha (656.28 nm)",)),
    Arm(705, 705, None),
)


def _of(names: tuple[str, ...], **frames: int) -> dict[str, int | None]:
    return {name: frames.get(name) for name in names}


def _plain(frames: int) -> Values:
    return {}


def _ao_74(frames: int) -> Values:
    return {"aoLocked": frames * 74 // 100}


def _good_74(frames: int) -> Values:
    good = frames * 74 // 100
    return {"health": _of(HEALTH, good=good, bad=frames - good)}


def _just_enough(frames: int) -> Values:
    enough = frames * 75 // 100
    return {"health": _of(HEALTH, good=enough, ill=frames - enough), "aoLocked": enough}


def _one_closed(frames: int) -> Values:
    return {"gosStatus": _of(GOS, open=frames - 1, closed=1)}


def _poor(frames: int) -> Values:
    return {
        "health": _of(HEALTH, bad=frames),
        "gosStatus": _of(GOS, opening=frames // 2, undefined=frames - frames // 2),
        "aoLocked": frames // 10,
        "friedParameter": None,
    }


def _no_frames(frames: int) -> Values:
    nothing = {"frameCount": 0, "originalFrameCount": 0, "aoLocked": 0}
    return nothing | {"health": _of(HEALTH), "gosStatus": _of(GOS), "friedParameter": None}


def _not_delivered(frames: int) -> Values:
    return {"health": None, "gosStatus": None, "aoLocked": None}


def _intensity_only(frames: int) -> Values:
    return {"stokesParameters": "I", "hasAllStokes": False}


def _off_disk(frames: int) -> Values:
    return {"boundingBox": "(1052.4,118.3),(901.25,-31.6)"}


def _no_box(frames: int) -> Values:
    return {"boundingBox": NOWHERE}


def _unnamed(frames: int) -> Values:
    return {"spectralLines": None, "friedParameter": None, "updateDate": None, "browseMovieUrl": None}


@dataclass(frozen=True)
class _Sort:
    """One kind of OP; `change` returns the fields in which the last dataset of its last program differs."""

    programs: tuple[tuple[Arm, ...], ...] = ((FE, CA),)
    imager: int = 2
    change: Callable[[int], Values] = _plain
    instrument: str = "VISP"
    age_days: float | None = None  # of the newest dataset that is not an imager's; None: random, long quiet
    imager_age_days: float | None = None
    embargoed: bool = False


# Repeated in this order. Some are invertible by the rules, as marked; most others fail one rule.
_SORTS = (
    _Sort(programs=((FE, CA, NA),)),  # invertible
    _Sort(change=_ao_74),
    _Sort(programs=((CA,),), imager=3),
    _Sort(programs=(), imager=4),
    _Sort(
        change=_just_enough, embargoed=True, imager_age_days=2, imager=3, programs=((FE_RED, CA),)
    ),  # invertible
    _Sort(change=_one_closed),
    _Sort(change=_no_box, imager=1, programs=((CA, NA, FE),)),
    _Sort(change=_not_delivered),
    _Sort(programs=((FE, CA), (FE, CA)), change=_ao_74, imager=1),  # invertible by its first program
    _Sort(age_days=3, programs=((FE, CA, MG),)),
    _Sort(change=_off_disk),
    _Sort(change=_intensity_only, embargoed=True),
    _Sort(programs=((FE_CENTER, CA, CA_849),)),  # invertible
    _Sort(programs=((FE_BESIDE, CA),), imager=1),
    _Sort(change=_no_frames),
    _Sort(instrument="CRYO-NIRSP", programs=((SI, SI),), embargoed=True),
    _Sort(change=_unnamed, imager=3, programs=((FE, MG),)),  # invertible
    _Sort(change=_good_74, programs=((FE, CA, NA),)),
    _Sort(programs=((MG, NA),), imager=3),
    _Sort(change=_poor),
)

_LONG = """We propose to follow the “light bridges” of a decaying sunspot over several days, from disk center
(μ ≈ 1.0) outwards, and to ask whether the weak, inclined field above them comes before or after the umbra
breaks up.

Goals:
  1. maps of |B| and χ at 0.1″ in Fe I 6301.5 Å / 6302.5 Å, with a polarimetric noise below 10⁻³ I_c;
  2. the chromosphere's answer in Ca II 8542 Å: "jets", Ellerman bombs, surges of ≥ 30 km/s;
  3. a comparison with the models of Nuñez, Łukasz & 田中 ("what moves first?").

\tThe seeing matters more than the time of day: r₀ ≥ 7 cm is wished for, 5 cm will do.
"""
_DESCRIPTIONS = (
    _LONG
    + "\n"
    + "Each repeat takes about 25 min; four repeats make one visit, and we ask for six visits.\n" * 24,
    "A short one.\\nIts second paragraph begins after a backslash and n, as real ones do.",
    "Quiet Sun at disk center; \"deep\" integrations, 'slow' rasters. Überlappung: 10 %.",
    "<script>alert('x')</script> [bold red]not markup[/bold red] \x1b[31mnot red\x1b[0m\a {{ 7 * 7 }} ${HOME}"
    " %s '; drop table event; -- ../../etc/passwd =1+1\u202egnp.exe\r\n| a | table |\n</dataset>&amp;",
    None,
    "",
)
_INVESTIGATORS = ("Ana Peña", "Jørgen Öst", "Mei-Lin 王", "Pat O'Hara", 'R. "Bob" Doe')


class _Draw(Random):
    """A random generator that draws the same values every time, and no name twice."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.used: set[str] = set()

    def unused(self, drawn: Callable[[], str]) -> str:
        text = drawn()
        while text in self.used:
            text = drawn()
        self.used.add(text)
        return text

    def text(self, letters: str, *lengths: int) -> str:
        return self.unused(lambda: "".join(self.choices(letters, k=self.choice(lengths))))

    def program_id(self) -> str:
        return self.unused(lambda: f"id.{self.randint(70_000, 190_000)}.{self.randint(10_000, 999_999)}")


def make(seed: int = 2024, ops: int = 40, now: datetime = NOW) -> list[Values]:
    """Return the datasets of that many OPs, oldest first, as the store describes them; always the same.

    All times are before `now`, which has an offset. A quarter of the OPs are invertible by the default rules, most others
    fail a single one, and one in twenty is too recent to be judged. Three more datasets cannot be read: one names no
    OP, one an OP with a name of 300 characters, and one contains a NUL character.
    """
    draw = _Draw(seed)
    datasets: list[Values] = []
    for number in range(ops):
        datasets += _op(draw, number, _SORTS[number % len(_SORTS)], now)
    datasets += _strays(draw, ops, now)
    datasets.sort(key=lambda dataset: dataset["createDate"])
    for number, dataset in enumerate(datasets):
        dataset["datasetInventoryId"] = 7001 + number
    return datasets


def _op(draw: _Draw, number: int, sort: _Sort, now: datetime) -> list[Values]:
    """Return the datasets of one OP, the imager's last."""
    proposal = f"{2 + number % 2}_{1 + number // 4}"
    op_id = f"eid_{proposal}_op{draw.text(ascii_letters + digits + '-_', 8)}_R{draw.randint(1, 6):03}"
    op_id += f".{draw.randint(70_000, 190_000)}.{draw.randint(10**6, 2 * 10**7)}"
    about = {
        "observingProgramExecutionId": op_id,
        "primaryProposalId": f"pid_{proposal}",
        "primaryExperimentId": f"eid_{proposal}",
        "contributingProposalIds": [f"pid_{proposal}"],
        "contributingExperimentIds": [f"eid_{proposal}"],
        "experimentDescription": _DESCRIPTIONS[number // 4 % len(_DESCRIPTIONS)],
        "proposalInvestigators": list(_INVESTIGATORS[number // 4 % 4 :][:2]),
        "targetTypes": [draw.choice(("unknown", "quietsun", "sunspot"))],
        **_embargo(draw, sort.embargoed, number, now),
    }
    age_days = sort.age_days or draw.uniform(40, 420)
    imager_age_days = sort.imager_age_days or draw.uniform(1, max(1.5, age_days - 20))
    observed = now - timedelta(days=age_days + draw.uniform(150, 430))
    datasets: list[Values] = []
    for place, arms in enumerate(sort.programs):
        program = about | _pointing(draw) | {"instrumentProgramExecutionId": draw.program_id()}
        program |= {"instrumentName": sort.instrument, "frameCount": 100 * draw.randint(4, 60)}
        start = observed + timedelta(minutes=50 * place)
        for arm in arms:
            created = now - timedelta(days=age_days, minutes=30 * len(datasets))
            datasets.append(_dataset(draw, program, arm, start, created))
    if datasets:
        datasets[-1] |= sort.change(datasets[-1]["frameCount"])
    program = about | _pointing(draw) | {"instrumentProgramExecutionId": draw.program_id()}
    if draw.random() < 0.1:
        program["boundingBox"] = NOWHERE
    for place, arm in enumerate(draw.sample(FILTERS, sort.imager)):
        program |= {"instrumentName": "VBI", "frameCount": draw.randint(80, 40_000)}
        start = observed + timedelta(minutes=9 * place)
        created = now - timedelta(days=imager_age_days, minutes=7 * place)
        datasets.append(_dataset(draw, program, arm, start, created))
    return datasets


def _dataset(draw: _Draw, program: Values, arm: Arm, start: datetime, created: datetime) -> Values:
    """Return a dataset that meets every rule; `program` has the fields shared by its instrument program."""
    instrument, frames = program["instrumentName"], program["frameCount"]
    polarized = instrument != "VBI"
    dataset_id = draw.text(ascii_uppercase, 5, 6)
    folder = f"{program['primaryProposalId']}/{dataset_id}"
    # No two arms cover exactly the same range; an imager's filters are integers of nm.
    shift_nm = draw.uniform(-0.02, 0.02) if polarized else 0
    created += timedelta(seconds=draw.uniform(0, 900))
    if draw.random() < 0.1:
        created = created.replace(microsecond=0)
    recipe_run = draw.randint(200, 90_000)
    return program | {
        "datasetId": dataset_id,
        "productId": "L1-" + draw.text(ascii_uppercase, 5),
        "status": ACTIVE,
        "datasetSize": round(frames * 0.0025, 2),
        "originalFrameCount": frames,
        "recipeId": 1 if polarized else 3,
        "recipeInstanceId": recipe_run - 90,
        "recipeRunId": recipe_run,
        "createDate": _time(created),
        "updateDate": _time(created + timedelta(minutes=draw.uniform(1, 55))),
        "startTime": _time(start + timedelta(milliseconds=draw.randint(0, 40))),
        "endTime": _time(start + timedelta(seconds=draw.uniform(200, 2800))),
        "headerDataUnitCreationDate": _time(created - timedelta(minutes=40)),
        "stokesParameters": "IQUV" if polarized else "I",
        "hasAllStokes": polarized,
        "wavelengthMin": arm.low_nm + shift_nm,
        "wavelengthMax": arm.high_nm + shift_nm,
        "exposureTime": round(draw.uniform(0.3, 400), 6),
        "health": _of(HEALTH, good=frames),
        "gosStatus": _of(GOS, open=frames),
        "aoLocked": frames - draw.randint(0, frames // 20),
        "lightLevel": _distribution(draw, 120, 420),
        "polarimetricAccuracy": None,
        "friedParameter": _distribution(draw, 0.02, draw.choice((0.07, 0.12, 0.2))),
        "spectralLines": None if arm.lines is None else list(arm.lines),
        "asdfObjectKey": f"{folder}/{instrument}_L1_{start:%Y%m%dT%H%M%S}_{dataset_id}.asdf",
        "browseMovieUrl": f"https://movies.example/{dataset_id}",
        "browseMovieObjectKey": f"{folder}/{dataset_id}.mp4",
        "qualityReportObjectKey": f"{folder}/{dataset_id}_quality_report.pdf",
        "qualityDataObjectKey": None,
        "infoUrl": "https://docs.example",
        "headerDocumentationUrl": "https://docs.example/headers",
        "calibrationDocumentationUrl": "https://docs.example/calibration",
        "workflowName": "l0_to_l1_" + instrument.lower(),
        "workflowVersion": f"{draw.randint(1, 3)}.{draw.randint(0, 9)}.0",
        "headerVersion": "4.1.0",
        "highLevelSoftwareVersion": None,
        "hasSpectralAxis": polarized,
        "hasTemporalAxis": True,
        "isManuallyProcessed": draw.choice((False, False, None)),
        "qualityAverageFriedParameter": None,
        "qualityAveragePolarimetricAccuracy": None,
        "averageDatasetSpectralSampling": 0.001 if polarized else None,
        "averageDatasetSpatialSampling": 0.011,
        "averageDatasetTemporalSampling": None,
        "inputDatasetParametersPartId": recipe_run,
        "inputDatasetObserveFramesPartId": recipe_run + 1,
        "inputDatasetCalibrationFramesPartId": None,
        "authorizedAgents": None,
    }


def _strays(draw: _Draw, number: int, now: datetime) -> list[Values]:
    """Return datasets that cannot be read, or belong to no OP."""
    odd: tuple[Values, ...] = (
        {
            "observingProgramExecutionId": None,
            "instrumentProgramExecutionId": None,
            "primaryExperimentId": None,
        },
        {"observingProgramExecutionId": f"eid_2_1_op{'x' * 290}"},
        {"experimentDescription": "ends in a NUL\0"},
    )
    alone = _Sort(imager=1, programs=())
    return [_op(draw, number + place, alone, now)[0] | values for place, values in enumerate(odd)]


def _embargo(draw: _Draw, embargoed: bool, number: int, now: datetime) -> Values:
    if embargoed:
        return {"bucket": "data", "isEmbargoed": True, "embargoEndDate": _time(now + timedelta(days=200))}
    ended = _time(now - timedelta(days=draw.randint(20, 90))) if number % 3 == 0 else None
    return {"bucket": "public", "isEmbargoed": False, "embargoEndDate": ended}


def _pointing(draw: _Draw) -> Values:
    """Return a field of view well within the disk."""
    x, y = draw.uniform(-420, 420), draw.uniform(-420, 420)
    width, height = draw.uniform(50, 170), draw.uniform(50, 170)
    return {"boundingBox": f"({x + width:.2f},{y + height:.2f}),({x:.2f},{y:.2f})"}


def _distribution(draw: _Draw, low: float, high: float) -> Values:
    values = sorted(draw.uniform(low, high) for _ in range(5))
    return dict(zip(("min", "p25", "med", "p75", "max"), values, strict=True))


def _time(time: datetime) -> str:
    return time.astimezone(UTC).replace(tzinfo=None).isoformat()
