"""The saliency model that comes with the package."""

from rahf import config as config_lib
from rahf.core import shipped
from rahf.critic.export import archive
from rahf.saliency.export import read


def test_the_shipped_saliency_model_is_what_its_card_says():
    file = shipped.names()["saliency-lite"]
    assert file.stat().st_size <= 10e6
    manifest, parts = archive.read_archive(file)  # checks every checksum
    config = config_lib.from_json(parts[read.CONFIG].decode())
    assert config.model.tower == "efficientnet" and manifest["weights"]["dtype"] == "bfloat16"
    assert manifest["kind"] == "saliency" and manifest["weights"]["count"] <= 4e6
    assert manifest["weights"]["sha256_with_id"] == read.seal(
        manifest["model_id"], parts[read.CONFIG], parts[read.WEIGHTS]
    )
    card = parts["README.md"].decode()
    assert "500 training photographs" in card and "untested" in card
    assert manifest["weight_license"] == "Apache-2.0" and "/" not in config.workdir and not config.start.vision
