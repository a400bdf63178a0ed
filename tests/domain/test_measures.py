"""The measures of an OP, from datasets as in the store."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2inv.config.settings import Qualification
from l2inv.domain import lines, measures
from l2inv.domain.inventory import Dataset, Distribution
from l2inv.domain.measures import Measures, measure, r0_class

RULES = Qualification()
START = datetime(2024, 10, 15, 19, 25, tzinfo=UTC)  # the Sun's radius is 962 arcsec


def dataset(**fields: Any) -> Dataset:
    """An iron dataset that qualifies, but for what is named."""
    usual: dict[str, Any] = {
        "dataset_id": "BLKGA",
        "observing_program_execution_id": "eid_1",
        "create_date": START,
        "instrument_name": "VISP",
        "wavelength_min": 629.5,
        "wavelength_max": 631.1,
        "spectral_lines": ["Fe I (630.15 nm)", "Fe I (630.25 nm)"],
        "start_time": START,
        "end_time": START + timedelta(minutes=16),
        "frame_count": 1700,
        "ao_locked": 1600,
        "exposure_time": 10.0,
        "bounding_box": "(30,40),(-30,-40)",
        "fried_parameter": Distribution(p25=0.05, med=0.08, p75=0.1),
        "browse_movie_url": "https://movies.example/BLKGA",
    }
    return Dataset(**(usual | fields))


def test_an_op_is_measured_by_the_datasets_to_be_inverted_and_its_seeing_by_all() -> None:
    sodium = dataset(
        wavelength_min=588.0, wavelength_max=590.6, spectral_lines=["Na I D1 (589.59 nm)"], ao_locked=1700,
        exposure_time=15.0, start_time=START - timedelta(minutes=1), bounding_box="(30,40),(-20,-40)",
    )  # fmt: skip
    image = dataset(
        instrument_name="VBI", frame_count=9, ao_locked=0, exposure_time=99.0, spectral_lines=["H alpha (656.28 nm)"],
        end_time=START + timedelta(days=1), fried_parameter=Distribution(med=0.04), browse_movie_url=None,
    )  # fmt: skip
    assert measure([dataset(), sodium, image], RULES) == Measures(
        fried_parameter_p25_m=0.05,
        fried_parameter_med_m=0.08,
        fried_parameter_p75_m=0.1,
        r0_class="good",
        ao_fraction=1600 / 1700,
        minutes=17.0,
        frame_count=1700,
        lines=["Fe I (630.15 nm)", "Fe I (630.25 nm)", "Na I D1 (589.59 nm)"],
        more_lines=["Na I D1 (589.59 nm)"],
        mu=1.0,
        exposure_min_ms=10.0,
        exposure_max_ms=15.0,
        field_x_arcsec=50.0,
        field_y_arcsec=80.0,
        odd=[],
        movie_urls=["https://movies.example/BLKGA"],
    )
    assert measure([image], RULES).frame_count == 9  # where none qualifies, all are measured


def test_what_is_odd_is_reported_and_what_is_unknown_is_null() -> None:
    assert measure([dataset(bounding_box="(30,40),(29.9,-40)")], RULES).odd == ['field 0.1" wide']
    assert measure([dataset(bounding_box="(30,40),(-30,39.8)")], RULES).odd == ['field 0.2" high']
    assert measure([dataset(wavelength_min=630.239)], RULES).odd == ["Fe I 630.3 narrow"]
    beyond = measure([dataset(bounding_box="(1200,900),(1100,800)")], RULES)
    assert (beyond.mu, beyond.field_x_arcsec) == (None, 100.0)
    nothing = Dataset(
        dataset_id="A", observing_program_execution_id="o", create_date=START, instrument_name="VISP"
    )
    assert measure([nothing], RULES) == Measures(odd=["field unknown"])
    assert measure([], RULES) == Measures()
    assert measure([dataset(bounding_box="(NaN,NaN),(NaN,NaN)")], RULES).odd == ["field unknown"]
    assert measure([dataset(fried_parameter=Distribution(med=float("nan")))], RULES).r0_class == "unknown"


@pytest.mark.parametrize("nm", [630.3, 854.2, 589.0])
def test_a_line_that_is_taken_to_be_observed_can_be_named_in_a_ready_event(nm: float) -> None:
    ranges = [(nm - 0.5, nm + 0.5)]
    (line,) = measures.observed_lines(
        dataset(spectral_lines=None, wavelength_min=nm - 0.5, wavelength_max=nm + 0.5)
    )
    assert lines.mistakes([line], [], ranges) == []


def test_mu_is_the_cosine_at_the_fields_center() -> None:
    assert measure([dataset(bounding_box="(510,0),(452,0)")], RULES).mu == pytest.approx(0.866, abs=0.002)


@pytest.mark.parametrize(
    ("low", "high", "line"),
    [
        (630.239, 631.1, "Fe I (630.15 nm)"),  # within 0.5 nm of the range
        (853.2, 855.2, "Ca II (854.21 nm)"),
        (588.3, 590.3, "Na I D2 (589.0 nm)"),
        (516.6, 517.7, "517.2 nm"),
    ],
)
def test_a_dataset_that_names_no_line_observes_what_the_data_center_takes_it_to(
    low: float, high: float, line: str
) -> None:
    unnamed = dataset(wavelength_min=low, wavelength_max=high, spectral_lines=None)
    assert measure([unnamed], RULES).lines == [line]


@given(st.floats() | st.none())
def test_the_word_for_the_seeing_is_that_of_the_number_shown(metres: float | None) -> None:
    word = r0_class(metres)
    shown = f"{metres * 100:.1f}" if metres is not None else "nan"
    if word == "unknown":
        assert shown in ("nan", "inf", "-inf")
    else:
        assert word == ("good" if float(shown) >= 7 else "fair" if float(shown) >= 5 else "poor")
