"""The outputs of a frozen image tower, computed once for every training example and kept on disk.

Without augmentation a frozen tower gives the same output for an example in every epoch. The cache lies in the run
directory, is filled before the first step, goes on where an interrupted run has left it, and is made anew where data,
tower or preprocessing have changed. Training then costs what the heads and the fusion stack cost.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import numpy as np

from data_pipelines.loading.damage import Damage, DamageLog
from data_pipelines.loading.examples import RecordSequence, decode_square
from rahf import images
from rahf.config import Config, CriticConfig
from rahf.core import json_text, tree
from rahf.core.errors import ConfigError, DataError
from rahf.core.files import read_regular, read_regular_text, write_atomically
from rahf.critic.networks.outputs import TowerMaps
from rahf.nn import functional
from rahf.training import trainable
from rahf.training.task import Loader

FOLDER = "tower_cache"
_KEY, _DONE = "key.json", "done.json"
_BATCH = 16  # examples at a time
_SAVED_EVERY = 16  # batches
#: Parts of the network that a cache stands for.
TOWERS = ("tower", "vit")


def check(config: Config) -> None:
    """Refuses a config whose tower gives another output in every epoch, or is trained.

    Raises:
      ConfigError: names the field.
    """
    model = config.model
    if not isinstance(model, CriticConfig) or model.variant != "multi-head":
        raise ConfigError("train.cache_tower: only critics of the variant 'multi-head' have a tower that can be cached")
    if config.data.mix:
        raise ConfigError("train.cache_tower: the examples of several sets are drawn alike; set data.mix to ()")
    if config.data.augment is not None:
        raise ConfigError("train.cache_tower: augmented images are other ones every time; set data.augment to None")
    if model.tower == "vit" and model.vit.dropout:
        raise ConfigError("train.cache_tower: model.vit.dropout gives other outputs every time; set it to 0")
    if jax.process_count() > 1:
        raise ConfigError("train.cache_tower: one process only, found several; leave it out on clusters")


def of_tower(path: str) -> bool:
    """Whether a parameter belongs to the tower."""
    return path.split("/")[0] in TOWERS


def check_frozen(config: Config, params: functional.Params, is_cached: Callable[[str], bool] = of_tower) -> None:
    """Raises ConfigError if `optimizer.trainable` or adapters train what is cached, the tower or a part of it."""
    paths = list(tree.flatten(params))
    trained = paths
    if trainable.is_partial(config.optimizer):
        trained = trainable.matching_paths(paths, config.optimizer.trainable, "optimizer.trainable")
        if config.optimizer.lora.rank:
            trained += trainable.matching_paths(paths, config.optimizer.lora.patterns, "optimizer.lora.patterns")
    moving = [path for path in trained if is_cached(path)]
    if moving:
        raise ConfigError(
            f"train.cache_tower: {moving[0]} is trained; set optimizer.trainable to the other parts, such as "
            "heatmap_* score_* encoder decoder embedding projection"
        )


class TowerCache:
    """Arrays on disk [examples, …] of every output of the tower, float16."""

    #: Fields of the model's config that the outputs depend on, beside the tower's own and the normalisation.
    fields: ClassVar[tuple[str, ...]] = ("finest_skip", "folded_maps", "image_size")

    def __init__(self, config: Config, source: RecordSequence, fingerprint: str):
        """Args: the run's config, its training examples, and a hash that tells them from others."""
        self.config, self.source, self.fingerprint = config, source, fingerprint
        self.folder = pathlib.Path(config.workdir) / FOLDER
        self._arrays: list[np.memmap] = []

    def fill(self, graphdef: Any, params: functional.Params, say: Callable[[str], None]) -> None:
        """Computes what is missing.

        Args:
          graphdef: structure of the network.
          params: all of its parameters.
          say: called with lines for the user.

        Raises:
          ConfigError: the tower is trained.
          DataError: a picture cannot be decoded, or an output does not fit into 16 bits.
        """
        check_frozen(self.config, params, self._is_cached)
        # Only what the tower needs: the compiled function then does not depend on the other parameters.
        maps = jax.jit(lambda params, image: functional.merge(graphdef, params).tower_maps(image))
        count = self._count()
        blank = jax.ShapeDtypeStruct((_BATCH, *self._canvas(), 3), np.uint8)
        shapes = [part.shape[1:] for part in jax.eval_shape(maps, params, blank)]
        done = self._open(self._key(params), [(count, *shape) for shape in shapes])
        if done < count:
            size = sum(array.nbytes for array in self._arrays) / 1e9
            say(f"caching the tower's outputs of {count - done} examples in {self.folder} ({size:.1f} GB)")
        damage = Damage(self.source, str(self.config.data.path))
        for number, first in enumerate(range(done, count, _BATCH), 1):
            last = min(first + _BATCH, count)
            self._write(first, last, jax.device_get(maps(params, self._pixels(first, last, damage.log()))))
            damage.collect(say)
            if number % _SAVED_EVERY == 0 or last == count:
                self._save(last)
                say(f"  cached {last} of {count}")

    def _is_cached(self, path: str) -> bool:
        """Whether the outputs depend on a parameter."""
        return of_tower(path)

    def _count(self) -> int:
        """How many pictures the tower sees."""
        return len(self.source)

    def _canvas(self) -> tuple[int, int]:
        """Height and width of what the tower sees, in pixels."""
        return (self.config.model.image_size,) * 2

    def _picture(self, index: int, on_damage: Callable[[str], None]) -> np.ndarray:
        """uint8 [height,width,3], number `index` of `_count`. Raises ImageError."""
        record = self.source[self._place(index)]
        return decode_square(record, self.config.model.image_size, on_damage=on_damage)

    def _place(self, index: int) -> int:
        """Position in the source of the record that picture number `index` belongs to."""
        return index

    def _pixels(self, first: int, last: int, damage: DamageLog) -> np.ndarray:
        """uint8 [_BATCH,height,width,3]; the last batch is filled up, so that nothing is compiled twice."""
        pixels = np.zeros((_BATCH, *self._canvas(), 3), np.uint8)
        for place, index in enumerate(range(first, last)):
            record, damaged = self._place(index), []
            try:
                pixels[place] = self._picture(index, damaged.append)
            except images.ImageError as error:
                uid = self.source[record].uid
                raise DataError(f"record {record} (uid {uid!r}): {error}; prepare the data again") from error
            if damaged:
                damage.add(record)
        return pixels

    def _write(self, first: int, last: int, outputs: tuple[np.ndarray, ...]) -> None:
        for array, part in zip(self._arrays, outputs):
            if not np.abs(part).max() < np.finfo(np.float16).max:
                raise DataError(f"{self.folder}: an output of the tower is beyond 16 bits; leave train.cache_tower out")
            array[first:last] = part[: last - first]

    def _key(self, params: functional.Params) -> str:
        """What the cached values depend on, as JSON."""
        digest = hashlib.sha256()
        cached = {path: leaf for path, leaf in tree.flatten(params).items() if self._is_cached(path)}
        for path, leaf in sorted(cached.items()):
            digest.update(path.encode() + np.asarray(leaf).tobytes())
        model = dataclasses.asdict(self.config.model)
        names = ("tower", model["tower"], *self.fields, "image_mean", "image_std", "compute_dtype")
        fields = {name: model[name] for name in names}
        key = {"data": self.fingerprint, "count": self._count(), "weights": digest.hexdigest(), "model": fields}
        return json.dumps(key, indent=1, sort_keys=True) + "\n"

    def _open(self, key: str, shapes: list[tuple[int, ...]]) -> int:
        """Opens the arrays, old ones if they have this key; returns how many examples are in them."""
        files = [self.folder / f"output_{number}.npy" for number in range(len(shapes))]
        try:
            done = json_text.parse(read_regular(self.folder / _DONE))
            same = read_regular_text(self.folder / _KEY) == key and isinstance(done, int)
            if same:
                self._arrays = [np.lib.format.open_memmap(file, "r+") for file in files]
                if [array.shape for array in self._arrays] == shapes:
                    return done
        except (OSError, ValueError):
            pass  # none yet, or damaged: made anew
        self._arrays = []
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self._arrays = [np.lib.format.open_memmap(file, "w+", np.float16, shape) for file, shape in zip(files, shapes)]
        write_atomically(self.folder / _KEY, key)
        self._save(0)
        return 0

    def _save(self, done: int) -> None:
        for array in self._arrays:
            array.flush()
        write_atomically(self.folder / _DONE, f"{done}\n")

    def replace_images(self, batch: Any) -> Any:
        """The batch with the tower's outputs in the place of its images."""
        return batch._replace(image=TowerMaps(tuple(array[self._places(batch)] for array in self._arrays)))

    def _places(self, batch: Any) -> np.ndarray:
        """Number of the picture of each example."""
        return batch.index


class CachedLoader:
    """A training loader that gives the tower's outputs in the place of images. Position and errors are the loader's."""

    def __init__(self, loader: Any, cache: TowerCache):
        self._loader, self._cache = loader, cache

    @property
    def report(self) -> Callable[[str], None]:
        return self._loader.report

    @report.setter
    def report(self, value: Callable[[str], None]) -> None:
        self._loader.report = value

    def __enter__(self) -> Loader:
        self._loader.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._loader.__exit__(*exception)

    def __iter__(self) -> CachedLoader:
        return self

    def __next__(self) -> Any:
        return self._cache.replace_images(next(self._loader))

    def get_state(self) -> dict[str, Any]:
        return self._loader.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        self._loader.set_state(state)
