"""How large the Sun appears."""

from datetime import UTC, datetime
from math import asin, cos, degrees, radians

RADIUS_KM = 695_700.0  # nominal solar radius, IAU 2015 Resolution B3
AU_KM = 149_597_870.7  # IAU 2012 Resolution B2
_J2000 = datetime(2000, 1, 1, 12, tzinfo=UTC)


def apparent_radius_arcsec(time: datetime) -> float:
    """Return the Sun's apparent radius in arcsec, seen from Earth's center, at a time with an offset from UTC.

    The distance is that of the low-precision formulas for the Sun in the Astronomical Almanac (section C).
    In 2015 to 2035 the radius is within 0.1 arcsec of the full ephemeris. Raise ValueError for a naive time.
    """
    if time.utcoffset() is None:
        raise ValueError(f"{time.isoformat()} has no offset from UTC")
    days = (time - _J2000).total_seconds() / 86_400
    anomaly = radians(357.528 + 0.9856003 * days)
    distance_au = 1.00014 - 0.01671 * cos(anomaly) - 0.00014 * cos(2 * anomaly)
    return degrees(asin(RADIUS_KM / (distance_au * AU_KM))) * 3600
