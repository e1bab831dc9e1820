/*
 * Goal: what holds for the ring holds in every profile: an edited ring is the one made afresh, ties
 * are broken as the profile says, and what the original program has no notion of is refused.
 * Method: long chains of random edits beside rings made anew, with names that collide; equal upper
 * halves, which chance does not bring in 128 bits, put into a ring by hand. That the points are
 * right in themselves is for test_golden.c.
 */
#include <math.h>

#include "ring_internal.h"
#include "rings.h"

enum { NAMES = 12 };

/* In libmemcached the first two have all points in common, elsewhere the second two have one. */
static const char *const names[NAMES] = {"a",   "a:11211", "n975",   "n81", "b:80", "[::1]:11211",
                                         "::1", "c",       "d:port", ":",   "",     "e:99999"};

static void edited_rings_equal_rings_made_afresh(void)
{
    for (unsigned profile = 0; profile < PROFILES; profile++) {
        rh_node present[NAMES], nodes[NAMES];
        bool is_present[NAMES] = {false};
        rh_ring *ring;

        for (size_t i = 0; i < NAMES; i++) {
            nodes[i] = a_node(names[i], i % 3 ? "zone" : NULL, 1);
            is_present[i] = true;
        }
        ring = ring_made_of(nodes, NAMES, profile);
        for (uint64_t step = 0; step < 200; step++) {
            size_t i = hash_of(step) % NAMES, count = 0;
            bool reweight = hash_of(step + 1000) % 3 == 0;
            rh_ring_change change = {.kind = !is_present[i] ? RH_RING_ADD
                                             : reweight     ? RH_RING_REWEIGHT
                                                            : RH_RING_REMOVE};
            rh_ring *edited = NULL, *afresh;

            nodes[i].weight = (double)(hash_of(step + 2000) % 5);
            change.node = nodes[i];
            is_present[i] = change.kind != RH_RING_REMOVE;
            REQUIRE_OK(rh_ring_edit(ring, &change, 1, &edited));
            rh_ring_free(ring);
            ring = edited;
            for (size_t k = 0; k < NAMES; k++) {
                if (is_present[k]) {
                    present[count++] = nodes[k];
                }
            }
            afresh = ring_made_of(present, count, profile);
            CHECK(same_placement(ring, afresh));
            rh_ring_free(afresh);
        }
        rh_ring_free(ring);
    }
}

static void several_changes_at_once_are_one_edit(void)
{
    for (unsigned profile = 0; profile < PROFILES; profile++) {
        rh_node before[] = {a_node("a", NULL, 2), a_node("b", NULL, 1), a_node("c", "z", 3)};
        rh_ring_change changes[] = {{RH_RING_REWEIGHT, a_node("c", "other", 5)},
                                    {RH_RING_ADD, a_node("d", NULL, 1)},
                                    {RH_RING_REMOVE, a_node("a", NULL, 0)}};
        rh_node after[] = {a_node("b", NULL, 1), a_node("c", "z", 5), a_node("d", NULL, 1)};
        rh_ring *ring = ring_made_of(before, 3, profile);
        rh_ring *afresh = ring_made_of(after, 3, profile), *edited = NULL;
        rh_ring_member member = {0};

        REQUIRE_OK(rh_ring_edit(ring, changes, 3, &edited));
        CHECK(same_placement(edited, afresh));
        CHECK_STATUS(rh_ring_get_member(edited, 2, &member), RH_OK);
        CHECK(member.node.weight == 5);
        CHECK(same_bytes(member.node.zone, member.node.zone_bytes, "z", 1));
        rh_ring_free(edited);
        rh_ring_free(afresh);
        rh_ring_free(ring);
    }
}

static rh_status reweight(const rh_ring *ring, const char *name, double weight)
{
    rh_ring_change change = {RH_RING_REWEIGHT, a_node(name, NULL, weight)};
    rh_ring *edited = NULL;
    rh_status status = rh_ring_edit(ring, &change, 1, &edited);

    CHECK((edited != NULL) == (status == RH_OK));
    rh_ring_free(edited);
    return status;
}

static void impossible_reweights_are_refused(void)
{
    rh_node nodes[] = {a_node("a", NULL, 1), a_node("b", NULL, 0)};
    rh_ring_change remove = {RH_RING_REMOVE, a_node("a", NULL, 0)};
    rh_ring_change unknown = {(rh_ring_change_kind)9, a_node("a", NULL, 0)};
    rh_ring *ring = ring_made_of(nodes, 2, RH_RING_RINGHOLD), *edited = NULL;

    CHECK_STATUS(reweight(ring, "a", 2.5), RH_OK);
    CHECK_STATUS(reweight(ring, "b", 2.5), RH_OK);
    CHECK_STATUS(reweight(ring, "a", 0), RH_OK);
    CHECK_STATUS(reweight(ring, "c", 1), RH_UNKNOWN_NODE);
    CHECK_STATUS(reweight(ring, "a", -1), RH_INVALID_ARGUMENT);
    CHECK_STATUS(reweight(ring, "a", (double)NAN), RH_INVALID_ARGUMENT);
    CHECK_STATUS(reweight(ring, "a", 1e300), RH_TOO_LARGE);
    CHECK_STATUS(rh_ring_edit(ring, &unknown, 1, &edited), RH_INVALID_ARGUMENT);
    REQUIRE_OK(rh_ring_edit(ring, &remove, 1, &edited));
    CHECK_STATUS(reweight(edited, "a", 1), RH_UNKNOWN_NODE);
    rh_ring_free(edited);
    rh_ring_free(ring);
}

/* In the profiles whose points are the node's own, nobody else's points or keys move. */
static void a_weight_moves_only_keys_of_its_node(void)
{
    static const rh_ring_profile own[] = {RH_RING_RINGHOLD, RH_RING_UHASHRING};

    for (size_t k = 0; k < 2; k++) {
        rh_node nodes[] = {a_node("a", NULL, 1), a_node("b", NULL, 2), a_node("c", NULL, 1)};
        rh_ring_change change = {RH_RING_REWEIGHT, a_node("a", NULL, 3)};
        rh_ring *ring = ring_made_of(nodes, 3, own[k]), *heavy = NULL;
        unsigned moved = 0;

        REQUIRE_OK(rh_ring_edit(ring, &change, 1, &heavy));
        for (uint64_t key = 0; key < 2000; key++) {
            uint32_t before = 9, after = 9;

            CHECK_STATUS(rh_ring_lookup(ring, &key, sizeof key, &before), RH_OK);
            CHECK_STATUS(rh_ring_lookup(heavy, &key, sizeof key, &after), RH_OK);
            CHECK(before == after || after == 0);
            moved += before != after;
        }
        CHECK(moved > 300);
        rh_ring_free(heavy);
        rh_ring_free(ring);
    }
}

static rh_status make(unsigned profile, uint32_t vnodes, const rh_node *nodes, size_t count)
{
    rh_ring_options options = {vnodes, (rh_ring_profile)profile};
    rh_ring *ring = NULL;
    rh_status status = rh_ring_new(nodes, count, &options, &ring);

    CHECK((ring != NULL) == (status == RH_OK));
    rh_ring_free(ring);
    return status;
}

static void what_the_originals_do_not_know_is_refused(void)
{
    const double wrong[] = {0.5, 1e-9, 4294967296.0, 1e300, -1, (double)NAN, (double)INFINITY};
    rh_node node = a_node("a", NULL, 1);
    rh_node heavy[] = {a_node("a", NULL, 4294967295.0), a_node("b", NULL, 1)};

    for (unsigned profile = 1; profile < PROFILES; profile++) {
        bool any_vnodes = profile == RH_RING_UHASHRING;

        CHECK_STATUS(make(profile, 0, &node, 1), RH_OK);
        CHECK_STATUS(make(profile, 160, &node, 1), RH_OK);
        CHECK_STATUS(make(profile, 100, &node, 1), any_vnodes ? RH_OK : RH_INVALID_ARGUMENT);
        for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
            rh_node other = a_node("a", NULL, wrong[i]);

            CHECK_STATUS(make(profile, 0, &other, 1), RH_INVALID_ARGUMENT);
        }
    }
    CHECK_STATUS(make(RH_RING_UHASHRING, 0, heavy, 2), RH_TOO_LARGE);
    CHECK_STATUS(make(RH_RING_TWEMPROXY, 0, heavy, 1), RH_OK);
    CHECK_STATUS(make(RH_RING_TWEMPROXY, 0, heavy, 2), RH_INVALID_ARGUMENT);
    CHECK_STATUS(make(RH_RING_KETAMA, 0, heavy, 2), RH_OK);
    CHECK_STATUS(make(RH_RING_UHASHRING_KETAMA, 0, heavy, 2), RH_OK);
    CHECK_STATUS(make(PROFILES, 0, &node, 1), RH_INVALID_ARGUMENT);
    CHECK_STATUS(make(UINT32_MAX, 0, &node, 1), RH_INVALID_ARGUMENT);
}

static void drained_nodes_own_nothing(void)
{
    for (unsigned profile = 0; profile < PROFILES; profile++) {
        rh_node nodes[] = {a_node("a", NULL, 0), a_node("b", NULL, 0)};
        rh_ring *ring = ring_made_of(nodes, 2, profile);
        rh_ring_info info = {0};
        const void *keys[] = {"k"};
        size_t sizes[] = {1}, point = 9;
        uint64_t hash = 1;
        uint32_t owner = 9;

        CHECK_STATUS(rh_ring_get_info(ring, &info), RH_OK);
        CHECK_EQUAL(info.nodes, 2);
        CHECK_EQUAL(info.usable, 0);
        CHECK_EQUAL(info.points, 0);
        CHECK_EQUAL(info.profile, profile);
        CHECK_STATUS(rh_ring_lookup(ring, "k", 1, &owner), RH_EMPTY_RING);
        CHECK_EQUAL(owner, 9);
        CHECK_STATUS(rh_ring_find_point(ring, (rh_ring_position){0}, &point), RH_EMPTY_RING);
        CHECK_STATUS(rh_ring_lookup_keys(ring, keys, sizes, 1, &owner), RH_EMPTY_RING);
        if (profile != RH_RING_UHASHRING) {
            CHECK_STATUS(rh_ring_lookup_hash(ring, 1, &owner), RH_EMPTY_RING);
            CHECK_STATUS(rh_ring_lookup_hashes(ring, &hash, 1, &owner), RH_EMPTY_RING);
        }
        rh_ring_free(ring);
    }
}

static void hashes_have_the_bits_of_the_profile(void)
{
    rh_node nodes[] = {a_node("a", NULL, 1), a_node("b", NULL, 1)};
    const uint64_t hashes[] = {5, UINT64_C(1) << 32};

    for (unsigned profile = 0; profile < PROFILES; profile++) {
        rh_ring *ring = ring_made_of(nodes, 2, profile);
        rh_status wide = profile == RH_RING_RINGHOLD    ? RH_OK
                         : profile == RH_RING_UHASHRING ? RH_NOT_SUPPORTED
                                                        : RH_INVALID_ARGUMENT;
        rh_status narrow = profile == RH_RING_UHASHRING ? RH_NOT_SUPPORTED : RH_OK;
        rh_ring_position position = {7, 7};
        uint32_t out[2] = {7, 7};

        CHECK_STATUS(rh_ring_lookup_hashes(ring, hashes, 2, out), wide);
        CHECK(wide == RH_OK || (out[0] == 7 && out[1] == 7));
        CHECK_STATUS(rh_ring_lookup_hash(ring, hashes[1], out), wide);
        CHECK_STATUS(rh_ring_locate_hash(ring, hashes[1], &position), wide);
        CHECK(wide == RH_OK || position.high == 7);
        CHECK_STATUS(rh_ring_lookup_hash(ring, hashes[0], out), narrow);
        CHECK_STATUS(rh_ring_lookup_hashes(ring, hashes, 1, out), narrow);
        rh_ring_free(ring);
    }
}

static void batches_equal_single_lookups(void)
{
    enum { COUNT = 77 };
    rh_node nodes[] = {a_node("a", NULL, 1), a_node("b", NULL, 3), a_node("c", NULL, 2)};

    for (unsigned profile = 0; profile < PROFILES; profile++) {
        rh_ring *ring = ring_made_of(nodes, 3, profile);
        uint64_t keys[COUNT], hashes[COUNT];
        const void *pointers[COUNT];
        size_t sizes[COUNT];
        uint32_t out[COUNT], by_hash[COUNT];
        rh_ring_info info = {0};

        CHECK_STATUS(rh_ring_get_info(ring, &info), RH_OK);
        for (size_t i = 0; i < COUNT; i++) {
            rh_ring_position position = {0};

            keys[i] = i;
            pointers[i] = &keys[i];
            sizes[i] = i % (sizeof keys[i] + 1);
            CHECK_STATUS(rh_ring_locate(ring, pointers[i], sizes[i], &position), RH_OK);
            hashes[i] = info.hash_bits == 32 ? position.high >> 32 : position.high;
        }
        CHECK_STATUS(rh_ring_lookup_keys(ring, pointers, sizes, COUNT, out), RH_OK);
        if (info.hash_bits <= 64) {
            CHECK_STATUS(rh_ring_lookup_hashes(ring, hashes, COUNT, by_hash), RH_OK);
            CHECK(memcmp(out, by_hash, sizeof out) == 0);
        }
        for (size_t i = 0; i < COUNT; i++) {
            uint32_t owner = 9;

            CHECK_STATUS(rh_ring_lookup(ring, pointers[i], sizes[i], &owner), RH_OK);
            CHECK_EQUAL(owner, out[i]);
        }
        rh_ring_free(ring);
    }
}

/* The first point beyond is searched for: lows 10, 20, 30 of one upper half. */
static void lower_halves_decide_between_equal_upper_ones(void)
{
    static const struct {
        uint64_t low;
        size_t point;
    } expected[] = {{0, 0}, {9, 0}, {10, 1}, {19, 1}, {20, 2}, {29, 2}, {30, 3}, {UINT64_MAX, 3}};
    rh_node node = a_node("a", NULL, 1);
    rh_ring *ring = ring_made_of(&node, 1, RH_RING_UHASHRING);

    for (size_t i = 0; i < 3; i++) {
        ring->points[i] = ring->points[0];
        ring->low[i] = 10 * (i + 1);
    }
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        rh_ring_position position = {ring->points[0], expected[i].low};
        size_t found = 99;

        CHECK_STATUS(rh_ring_find_point(ring, position, &found), RH_OK);
        CHECK_EQUAL(found, expected[i].point);
    }
    rh_ring_free(ring);
}

/* All points in one directory entry, as somebody's own hashes might lie. */
static void crowded_points_are_found(void)
{
    rh_node node = a_node("a", NULL, 1);
    rh_ring *ring = ring_made_of(&node, 1, RH_RING_RINGHOLD);
    size_t entries = (size_t)1 << (64 - ring->shift), count = ring->point_count;

    for (size_t i = 0; i < count; i++) {
        ring->points[i] = 2 * i + 1;
    }
    for (size_t i = 1; i <= entries; i++) {
        ring->directory[i] = (uint32_t)count;
    }
    for (uint64_t hash = 0; hash < 2 * count + 9; hash++) {
        CHECK_EQUAL(rh_ring_search(ring, hash), hash / 2 < count ? hash / 2 : count);
    }
    rh_ring_free(ring);
}

static void what_cannot_be_counted_is_refused(void)
{
    rh_node nodes[] = {a_node("a", NULL, 1), a_node("b", NULL, 1)};
    rh_node endless[] = {{"a", SIZE_MAX, NULL, 0, 1}, {"b", 1, NULL, 0, 1}};
    rh_ring_options many = {.vnodes = (uint32_t)RH_RING_POINTS_MAX};
    rh_ring_change changes[] = {{RH_RING_ADD, {NULL, 1, NULL, 0, 1}},
                                {RH_RING_ADD, a_node("big", NULL, (double)(1 << 28) / 160 - 1)}};
    rh_ring *ring = ring_made_of(nodes, 2, RH_RING_RINGHOLD), *out = NULL;

    CHECK_STATUS(rh_ring_new(nodes, UINT32_MAX, NULL, &out), RH_TOO_LARGE);
    CHECK_STATUS(rh_ring_new(endless, 2, NULL, &out), RH_TOO_LARGE);
    CHECK_STATUS(rh_ring_new(nodes, 2, &many, &out), RH_TOO_LARGE);
    CHECK_STATUS(rh_ring_edit(ring, changes, UINT32_MAX, &out), RH_TOO_LARGE);
    CHECK_STATUS(rh_ring_edit(ring, changes, 1, &out), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_ring_edit(ring, changes + 1, 1, &out), RH_TOO_LARGE);
    CHECK(out == NULL);
    rh_ring_free(ring);
}

static void merging_and_sorting_look_at_lower_halves(void)
{
    uint64_t low[] = {5, 3, 4, 3};
    struct ring_point points[] = {{8, 0, 0}, {9, 1, 1}, {8, 2, 2}, {9, 3, 3}}, scratch[4];
    const struct ring_point *sorted = rh_ring_sort_points(points, scratch, 4, low);
    rh_node nodes[] = {a_node("b", NULL, 1), a_node("a", NULL, 1)};
    rh_ring_options options = {1, RH_RING_UHASHRING};

    CHECK_EQUAL(sorted[0].owner, 2);
    CHECK_EQUAL(sorted[1].owner, 0);
    CHECK_EQUAL(sorted[2].owner, 1);
    CHECK_EQUAL(sorted[3].owner, 3);
    for (int step = -1; step <= 1; step++) {
        rh_ring_change add = {RH_RING_ADD, nodes[1]};
        rh_ring *ring = NULL, *lone = NULL, *both = NULL;

        REQUIRE_OK(rh_ring_new(nodes, 1, &options, &ring));
        REQUIRE_OK(rh_ring_new(nodes + 1, 1, &options, &lone));
        ring->points[0] = lone->points[0];
        ring->low[0] = lone->low[0] + (uint64_t)step;
        ring->directory[1] = lone->directory[1];
        REQUIRE_OK(rh_ring_edit(ring, &add, 1, &both));
        CHECK_EQUAL(both->owners[0], step < 0 ? 0 : 1); /* equal: "a", the smaller name */
        CHECK(both->low[0] <= both->low[1]);
        rh_ring_free(both);
        rh_ring_free(lone);
        rh_ring_free(ring);
    }
}

int main(void)
{
    RUN(edited_rings_equal_rings_made_afresh);
    RUN(several_changes_at_once_are_one_edit);
    RUN(impossible_reweights_are_refused);
    RUN(a_weight_moves_only_keys_of_its_node);
    RUN(what_the_originals_do_not_know_is_refused);
    RUN(drained_nodes_own_nothing);
    RUN(hashes_have_the_bits_of_the_profile);
    RUN(batches_equal_single_lookups);
    RUN(lower_halves_decide_between_equal_upper_ones);
    RUN(crowded_points_are_found);
    RUN(what_cannot_be_counted_is_refused);
    RUN(merging_and_sorting_look_at_lower_halves);
    return rh_test_result();
}
