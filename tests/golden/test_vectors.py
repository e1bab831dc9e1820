"""Goal: the golden vectors are those that their generator writes, and it is right itself.

Method: generate them anew and compare; hold the generator against facts published with the
programs it imitates: libmemcached's own test of ketama and the counts of points that its float
arithmetic and libketama's give.
"""

from __future__ import annotations

from pathlib import Path

import make_vectors

FIXTURE: list[tuple[str, float, str | None]] = [
    (f"10.0.1.{i + 1}:11211", weight, None)
    for i, weight in enumerate([600, 300, 200, 350, 1000, 800, 950, 100])
]


def test_the_files_are_fresh() -> None:
    for name, content in make_vectors.files().items():
        assert Path(__file__).with_name(name).read_text(encoding="utf-8") == content


def test_libmemcacheds_own_pool() -> None:
    pool = make_vectors.Pool("libmemcached", FIXTURE)
    assert pool.counts() == [176, 88, 56, 104, 296, 236, 280, 28]
    assert make_vectors.hash_key("libmemcached", b"VDEAAAAA") == 0xFFFCD1B5
    assert make_vectors.find_point(pool, 0xFFFCD1B5) == 0
    assert pool.points[0][0] >> 96 == 2148620


def test_the_points_of_one_string() -> None:
    words = (2431485715, 4123933443, 100894374, 2720740989)
    assert make_vectors.md5_words(b"10.0.1.1:11211-0") == words


def test_counts_of_equal_servers_are_those_of_the_originals() -> None:
    equal = {(profile, n): points for profile, n, points in make_vectors.equal_weights()}
    short: dict[str, list[int]] = {}
    for (profile, n), points in equal.items():
        short.setdefault(profile, []).extend([n] if points == 156 else [])
    assert short["ketama"] == [61, 122]
    assert short["libmemcached"] == short["twemproxy"] == [25, 50, 61, 100, 122]
    assert short["uhashring-ketama"] == []
    assert set(equal.values()) == {156, 160}
