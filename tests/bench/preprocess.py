"""What preprocess costs per OP, besides the command itself."""

import subprocess
from collections.abc import Iterator

import yaml

from tests.bench import load
from tests.bench.measure import Figure, Place, l2inv, measurement, seconds

OPS = 1000


@measurement
def preprocess(place: Place) -> Iterator[Figure]:
    """Measure 1,000 OPs with a command that does nothing beside a shell that starts it: 0.45 of 24, where it came from."""
    made = [_invertible(life) for life in load.lives(place.url, place.folder)]
    with place.connect() as connection:
        load.fill(connection, [life for life in made if life], OPS)
    config = place.config()
    settings = yaml.safe_load(config.read_text())
    settings["preprocess"] |= {"command": ["/bin/true"], "work_dir": str(place.folder / "preprocess")}
    config.write_text(yaml.safe_dump(settings))
    none = l2inv(config, "retry").seconds  # start of the program and connection
    took = l2inv(config, "preprocess").seconds - none
    floor = seconds(
        lambda: [subprocess.run(["/bin/sh", "-c", "/bin/true; :"], check=True) for _ in range(OPS)]
    )
    yield Figure("preprocess, an OP", took / OPS * 1000, "ms")
    yield Figure("preprocess, an OP", took / floor, "x (sh and true)", 11)


def _invertible(life: load.Life) -> load.Life | None:
    """Return an OP as it was when it was judged invertible, if it ever was."""
    states = [state for _, state, *_ in life.events]
    return (
        life._replace(events=life.events[: states.index("invertible") + 1])
        if "invertible" in states
        else None
    )
