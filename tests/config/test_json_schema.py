"""The schema for editors is made from the same fields, rules and sentences as the checks."""

from __future__ import annotations

import dataclasses
import json

from gradlab.config import Experiment, json_schema
from gradlab.config.json_schema import documentation
from gradlab.profiling.options import Profile
from gradlab.taps.rule import Tap


def test_every_setting_has_its_sentence_and_the_schema_is_json():
    schema = json.loads(json.dumps(json_schema()))
    assert list(schema["properties"]) == [field.name for field in dataclasses.fields(Experiment)]
    assert schema["required"] == ["name", "model"]
    records = [schema, *schema["$defs"].values()]
    for record in (option for whole in records for option in whole.get("anyOf", [whole])):
        if record["type"] == "object":
            assert record["additionalProperties"] is False
            assert all(entry["description"] for entry in record["properties"].values()), record


def test_the_sentences_are_those_under_the_fields():
    definitions = json_schema()["$defs"]
    assert definitions["Profile"]["properties"]["wait"] == {
        "type": "integer", "minimum": 0, "description": documentation(Profile)["wait"], "default": 5,
    }  # fmt: skip
    assert definitions["Tap"]["required"] == ["at", "of"]
    assert definitions["Tap"]["properties"]["at"]["description"] == documentation(Tap)["at"]
    assert documentation(Tap)["at"].startswith("A glob over site names")


def test_every_reference_leads_somewhere():
    schema = json_schema()
    text = json.dumps(schema)
    for name in schema["$defs"]:
        assert f'"#/$defs/{name}"' in text
    assert text.count('"$ref"') == sum(text.count(f'"#/$defs/{name}"') for name in schema["$defs"])
