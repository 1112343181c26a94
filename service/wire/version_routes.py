"""Which version of a model answers a request for its plain name, as far as one front-end knows the workers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

from model.model_name import SEPARATOR, base_name, version_of
from service.traffic_split import ALL, TrafficSplit
from service.types import ModelStatus

_HASH_BYTES = 8


Shares = Sequence[tuple[ModelStatus, float]]
"""Versions with their percentages."""


@dataclass(frozen=True, slots=True)
class Route:
    """The versions that answer requests for a name; never none.

    `only`: the version, where there is one. `main`: the one with the largest share, which describes the model.
    """

    shares: Shares
    only: ModelStatus | None
    main: ModelStatus

    @classmethod
    def of(cls, shares: Shares) -> Route:
        return cls(shares, shares[0][0] if len(shares) == 1 else None, max(shares, key=itemgetter(1))[0])

    @property
    def ready(self) -> bool:
        """Whether a version can answer."""
        return any(version.ready for version, _ in self.shares)

    @property
    def unready(self) -> tuple[str, ...]:
        """The names of the versions whose share goes to others, or would if one of them were ready."""
        return () if self.only else tuple(version.config.name for version, _ in self.shares if not version.ready)

    def share(self, model: ModelStatus) -> float:
        """The share of one of the served versions, 0 to 1."""
        percent = sum(percent for version, percent in self.shares if version.config.name == model.config.name)
        return percent / sum(percent for _, percent in self.shares)

    def choose(self, request_id: str) -> tuple[ModelStatus, ModelStatus]:
        """The version for a request, and the one that the shares give it: another one, where that is not ready.

        The choice depends only on the request's id and the versions that are ready: a request that is sent again under
        its id gets the same version. An id of this service is random, so that the shares hold over many requests.
        """
        meant = _choose(self.shares, request_id, b"split")
        if meant.ready:
            return meant, meant
        # With a hash of its own: the requests of a version that is not ready spread over all the others.
        ready = [share for share in self.shares if share[0].ready]
        return (_choose(ready, request_id, b"other") if ready else meant), meant


def make_routes(models: Iterable[ModelStatus], splits: Mapping[str, TrafficSplit]) -> dict[str, Route]:
    """By what a request may name: `NAME`, and `NAME@VERSION` of each served version.

    Without a split, or where none of its versions is served, the first served version answers for the name. `models`
    are in the order in which they are served.
    """
    by_name: dict[str, dict[str, ModelStatus]] = {}
    routes: dict[str, Route] = {}
    for model in models:
        name, version = base_name(model.config.name), version_of(model.config.name)
        by_name.setdefault(name, {})[version] = model
        routes[f"{name}{SEPARATOR}{version}"] = Route.of([(model, ALL)])
    for name, served in by_name.items():
        split = splits.get(name, {})
        shares = [(served[version], percent) for version, percent in split.items() if version in served]
        routes[name] = Route.of(shares or [(next(iter(served.values())), ALL)])
    return routes


def _choose(shares: Shares, request_id: str, purpose: bytes) -> ModelStatus:
    digest = hashlib.blake2b(request_id.encode(), digest_size=_HASH_BYTES, person=purpose).digest()
    left = int.from_bytes(digest, "big") / 2 ** (8 * _HASH_BYTES) * sum(percent for _, percent in shares)
    for model, percent in shares:
        left -= percent
        if left < 0:
            return model
    return shares[-1][0]
