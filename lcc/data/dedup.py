"""Near-duplicates by MinHash: sketches propose candidates, the true overlap decides (Broder, 1997)."""

from __future__ import annotations

import zlib
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from lcc.core.progress import Progress
from lcc.data.local_files import Row, text_fields

NUM_BANDS, ROWS_PER_BAND = 16, 4  # two texts of Jaccard 0.8 meet in a band with p = 0.9998
SHINGLE = 4
MAX_COMPARED = 50  # candidates looked at for one row; a crowded bucket is boilerplate
PRIME = (1 << 31) - 1


def without_near_duplicates(rows: list[Row], threshold: float, *, progress: Progress) -> list[Row]:
    """The rows whose source, or whole text, is not nearly that of an earlier kept row.

    `threshold` is the Jaccard similarity of the sets of character 4-grams, digits taken as equal.
    """
    multipliers, offsets = _hash_family()
    buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    kept: list[Row] = []
    sets: list[frozenset[int]] = []
    with progress.track("near-duplicates", len(rows), "row") as bar:
        for row in rows:
            shingles = shingles_of(_compared(row))
            bands = _bands(shingles, multipliers, offsets)
            if not _has_near(shingles, bands, buckets, sets=sets, threshold=threshold):
                for band in bands:
                    buckets[band].append(len(sets))
                sets.append(shingles)
                kept.append(row)
            bar.advance()
    return kept


def shingles_of(text: str) -> frozenset[int]:
    """Hashes of the character 4-grams of `text`, with every digit as 0 and case folded."""
    folded = "".join("0" if c.isdigit() else c for c in text.casefold())
    padded = f" {' '.join(folded.split())} "
    count = max(len(padded) - SHINGLE + 1, 1)
    return frozenset(zlib.crc32(padded[i : i + SHINGLE].encode()) for i in range(count))


def jaccard(one: frozenset[int], other: frozenset[int]) -> float:
    """Size of the intersection over size of the union."""
    common = len(one & other)
    return common / (len(one) + len(other) - common)


def _compared(row: Row) -> str:
    """The source of a pair, since two translations of one sentence are one question."""
    return str(row["source"]) if "source" in row else " ".join(row[n] for n in text_fields(row))


def _has_near(
    shingles: frozenset[int],
    bands: list[tuple[int, bytes]],
    buckets: dict[tuple[int, bytes], list[int]],
    *,
    sets: list[frozenset[int]],
    threshold: float,
) -> bool:
    candidates = {i for band in bands for i in buckets.get(band, ())[-MAX_COMPARED:]}
    return any(jaccard(shingles, sets[i]) >= threshold for i in candidates)


def _bands(
    shingles: frozenset[int], multipliers: NDArray[np.uint64], offsets: NDArray[np.uint64]
) -> list[tuple[int, bytes]]:
    values = np.fromiter(shingles, dtype=np.uint64, count=len(shingles)) % PRIME  # (n,)
    hashed = (multipliers[:, None] * values[None, :] + offsets[:, None]) % PRIME  # (64, n)
    sketch = hashed.min(axis=1).reshape(NUM_BANDS, ROWS_PER_BAND)
    return [(index, band.tobytes()) for index, band in enumerate(sketch)]


def _hash_family() -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """One fixed family of hash functions, so that the same rows always survive."""
    random = np.random.Generator(np.random.PCG64(20_240_601))
    shape = NUM_BANDS * ROWS_PER_BAND
    multipliers = random.integers(1, PRIME, size=shape, dtype=np.uint64)
    return multipliers, random.integers(0, PRIME, size=shape, dtype=np.uint64)
