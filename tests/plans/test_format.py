"""FORMAT.md names every record and every field of the schema, in the order of the canonical text."""

import dataclasses
import re
from pathlib import Path

import pytest

from plans import acceptance, artifact, fleet, schema

FORMAT = (Path(schema.__file__).parents[1] / "FORMAT.md").read_text()
SECTIONS = dict(re.findall(r"^##+ ([\w.]+)\n(.*?)(?=^##|\Z)", FORMAT, re.DOTALL | re.MULTILINE))
TITLES = {"Plan": "plan.yaml", "Images": "images.yaml"}
RECORDS = [
    *(item for item in vars(schema).values() if dataclasses.is_dataclass(item)),
    *(artifact.Images, artifact.Sources, artifact.Image, artifact.RoundingErrors),
    *(acceptance.Profile, acceptance.Context, acceptance.Level),
    *(fleet.Fleet, fleet.FleetRequest, fleet.FleetTemplate, fleet.Replica, fleet.FleetProof),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_every_field_is_documented_in_order(record: type) -> None:
    section = SECTIONS[TITLES.get(record.__name__, record.__name__)]
    rows = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    documented = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    fields = [field.name for field in dataclasses.fields(record)]
    if record is artifact.Sources:  # its rows combine the fields of base and draft
        documented, fields = sorted(documented), sorted(fields)
    assert documented == fields
