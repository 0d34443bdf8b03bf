"""The critic that comes with the package: small, whole, and honest about what it is."""

import json

from rahf import config as config_lib
from rahf.core import shipped
from rahf.critic.export import archive, read


def test_the_shipped_critic_is_what_its_card_says():
    file = shipped.names()["lite"]
    assert file.stat().st_size <= 12e6
    manifest, parts = archive.read_archive(file)  # checks every checksum
    config = config_lib.from_json(parts[read.CONFIG].decode())
    assert config.model.tower == "efficientnet" and manifest["weights"]["dtype"] == "bfloat16"
    assert manifest["weights"]["count"] <= 8e6 and set(manifest["functions"]) == {"scores", "heatmaps", "predict"}
    card = parts["README.md"].decode()
    assert "No person rated anything that this model was trained on" in card
    assert manifest["weight_license"] == "Apache-2.0" and "heatmaps/implausibility/cc" in card
    assert "/" not in json.dumps(config.workdir) and not config.start.vision
