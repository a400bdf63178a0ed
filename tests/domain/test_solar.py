"""The reference values were made with sunpy 7.0.5 and astropy 8.0.2, one every 129 d 7 h 19 min:

sunpy.coordinates.sun.angular_radius(astropy.time.Time("2015-01-03T06:30:00")).to_value("arcsec")
"""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from l2inv.domain.solar import apparent_radius_arcsec

REFERENCE = [
    ("2015-01-03T06:30:00Z", 975.542),
    ("2015-05-12T13:49:00Z", 949.554),
    ("2015-09-18T21:08:00Z", 954.655),
    ("2016-01-26T04:27:00Z", 974.342),
    ("2016-06-03T11:46:00Z", 945.552),
    ("2016-10-10T19:05:00Z", 960.848),
    ("2017-02-17T02:24:00Z", 970.747),
    ("2017-06-26T09:43:00Z", 943.618),
    ("2017-11-02T17:02:00Z", 966.880),
    ("2018-03-12T00:21:00Z", 965.432),
    ("2018-07-19T07:40:00Z", 943.906),
    ("2018-11-25T14:59:00Z", 971.824),
    ("2019-04-03T22:18:00Z", 959.298),
    ("2019-08-11T05:37:00Z", 946.361),
    ("2019-12-18T12:56:00Z", 974.871),
    ("2020-04-25T20:15:00Z", 953.244),
    ("2020-09-02T03:34:00Z", 950.756),
    ("2021-01-09T10:53:00Z", 975.434),
    ("2021-05-18T18:12:00Z", 948.198),
    ("2021-09-25T01:31:00Z", 956.434),
    ("2022-02-01T08:50:00Z", 973.477),
    ("2022-06-10T16:09:00Z", 944.839),
    ("2022-10-17T23:28:00Z", 962.589),
    ("2023-02-24T06:47:00Z", 969.356),
    ("2023-07-03T14:06:00Z", 943.510),
    ("2023-11-09T21:25:00Z", 968.400),
    ("2024-03-18T04:44:00Z", 963.724),
    ("2024-07-25T12:03:00Z", 944.426),
    ("2024-12-01T19:22:00Z", 972.867),
    ("2025-04-10T02:41:00Z", 957.528),
    ("2025-08-17T10:00:00Z", 947.499),
    ("2025-12-24T17:19:00Z", 975.218),
    ("2026-05-03T00:38:00Z", 951.714),
    ("2026-09-09T07:57:00Z", 952.283),
    ("2027-01-16T15:16:00Z", 975.121),
    ("2027-05-25T22:35:00Z", 947.037),
    ("2027-10-02T05:54:00Z", 958.199),
    ("2028-02-08T13:13:00Z", 972.504),
    ("2028-06-16T20:32:00Z", 944.166),
    ("2028-10-24T03:51:00Z", 964.436),
    ("2029-03-02T11:10:00Z", 967.809),
    ("2029-07-09T18:29:00Z", 943.496),
    ("2029-11-16T01:48:00Z", 969.956),
    ("2030-03-25T09:07:00Z", 961.920),
    ("2030-08-01T16:26:00Z", 945.064),
    ("2030-12-08T23:45:00Z", 973.878),
    ("2031-04-17T07:04:00Z", 955.709),
    ("2031-08-24T14:23:00Z", 948.694),
    ("2031-12-31T21:42:00Z", 975.560),
    ("2032-05-09T05:01:00Z", 950.102),
    ("2032-09-15T12:20:00Z", 953.950),
    ("2033-01-22T19:39:00Z", 974.624),
    ("2033-06-01T02:58:00Z", 945.970),
    ("2033-10-08T10:17:00Z", 960.054),
    ("2034-02-14T17:36:00Z", 971.290),
    ("2034-06-24T00:55:00Z", 943.780),
    ("2034-10-31T08:14:00Z", 966.122),
    ("2035-03-09T15:33:00Z", 966.180),
    ("2035-07-16T22:52:00Z", 943.761),
    ("2035-11-23T06:11:00Z", 971.244),
]


@pytest.mark.parametrize(("time", "arcsec"), REFERENCE)
def test_the_radius_agrees_with_the_full_ephemeris_to_a_tenth_of_an_arcsecond(
    time: str, arcsec: float
) -> None:
    assert apparent_radius_arcsec(datetime.fromisoformat(time)) == pytest.approx(arcsec, abs=0.1)


def test_the_sun_is_largest_in_early_january_and_smallest_in_early_july() -> None:
    days = [datetime(2025, 1, 1, tzinfo=UTC) + timedelta(days=n) for n in range(365)]
    largest, smallest = max(days, key=apparent_radius_arcsec), min(days, key=apparent_radius_arcsec)
    assert (largest.month, smallest.month) == (1, 7)
    assert apparent_radius_arcsec(largest) == pytest.approx(975.6, abs=0.1)
    assert apparent_radius_arcsec(smallest) == pytest.approx(943.4, abs=0.1)


def test_the_offset_of_a_time_is_honoured() -> None:
    noon = datetime(2025, 4, 1, 12, tzinfo=UTC)
    in_hawaii = noon.astimezone(timezone(timedelta(hours=-10)))
    assert apparent_radius_arcsec(in_hawaii) == apparent_radius_arcsec(noon)


def test_a_time_without_an_offset_is_refused() -> None:
    with pytest.raises(ValueError, match="offset"):
        apparent_radius_arcsec(datetime(2025, 4, 1, 12))


@pytest.mark.parametrize("time", [datetime.min, datetime.max])
def test_no_time_is_too_far_away(time: datetime) -> None:
    assert 900 < apparent_radius_arcsec(time.replace(tzinfo=UTC)) < 1000
