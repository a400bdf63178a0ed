"""docs/pictures: up to date with the commands."""

from tests import pictures


def test_the_terminals_are_what_the_commands_show() -> None:
    with pictures.demonstrated() as (config, published):
        drawn = pictures.terminals(config, published)
    for name, svg in drawn.items():
        assert (pictures.PICTURES / name).read_text(encoding="utf-8") == svg, (
            f"stale; run: {pictures.COMMAND}"
        )
