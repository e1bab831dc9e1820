/*
 * Goal: lookup_bounded gives the first node of the walk that has room, and always one; every
 * function answers misuse with a status and writes nothing. Method: the definition, computed from
 * the walk that replicas give without zones; each argument wrong in turn.
 */
#include <math.h>

#include "rings.h"

enum { NODES = 7 };

static rh_ring *a_ring(unsigned profile)
{
    rh_node nodes[] = {a_node("c", NULL, 1), a_node("a", NULL, 2), a_node("b", NULL, 3),
                       a_node("e", NULL, 0), a_node("f", NULL, 1), a_node("d", NULL, 5),
                       a_node("x", NULL, 4)};
    rh_ring_change change = {RH_RING_REMOVE, a_node("x", NULL, 0)};
    rh_ring *ring = ring_made_of(nodes, NODES, profile), *edited = NULL;

    REQUIRE_OK(rh_ring_edit(ring, &change, 1, &edited));
    rh_ring_free(ring);
    return edited;
}

static uint32_t model(const rh_ring *ring, rh_ring_position position, const double *loads,
                      double bound)
{
    static const uint32_t by_name[] = {1, 2, 0, 5, 3, 4};
    uint32_t walk[NODES] = {0};
    double total = 0, weights = 0;

    REQUIRE_OK(rh_ring_replicas(ring, position, 5, NULL, walk, NULL));
    for (size_t i = 0; i < 6; i++) {
        rh_ring_member member = {0};

        REQUIRE_OK(rh_ring_get_member(ring, by_name[i], &member));
        total += loads[by_name[i]];
        weights += member.node.weight;
    }
    for (size_t i = 0; i < 5; i++) {
        rh_ring_member member = {0};
        double limit;

        REQUIRE_OK(rh_ring_get_member(ring, walk[i], &member));
        limit = ceil(bound * (total + 1) * member.node.weight / weights);
        if (loads[walk[i]] < limit) {
            return walk[i];
        }
    }
    return NODES;
}

static void the_first_node_with_room_is_given(void)
{
    static const double bounds[] = {1, 1.25, 2, 1e300};

    for (unsigned profile = 0; profile < PROFILES; profile++) {
        rh_ring *ring = a_ring(profile);
        unsigned passed_over = 0;

        for (uint64_t sample = 0; sample < 200; sample++) {
            rh_ring_position position = {0};
            double loads[NODES], bound = bounds[sample % 4];
            uint32_t out = NODES, owner = NODES;

            for (size_t i = 0; i < NODES; i++) {
                loads[i] = (double)(hash_of(sample * NODES + i) % 1000) / 8;
            }
            REQUIRE_OK(rh_ring_locate(ring, &sample, sizeof sample, &position));
            CHECK_STATUS(rh_ring_lookup(ring, &sample, sizeof sample, &owner), RH_OK);
            CHECK_STATUS(rh_ring_lookup_bounded(ring, position, loads, bound, &out), RH_OK);
            CHECK_EQUAL(out, model(ring, position, loads, bound));
            passed_over += out != owner;
        }
        CHECK(passed_over > 20);
        rh_ring_free(ring);
    }
}

/* Keys put where they are told to go: no node ever holds more than its share allows. */
static void loads_stay_within_the_bound(void)
{
    rh_ring *ring = a_ring(RH_RING_RINGHOLD);
    static const double weights[] = {1, 2, 3, 0, 1, 5, 0};
    double loads[NODES] = {0};

    for (uint64_t key = 0; key < 1200; key++) {
        rh_ring_position position = {0};
        uint32_t out = 0;

        REQUIRE_OK(rh_ring_locate(ring, &key, sizeof key, &position));
        REQUIRE_OK(rh_ring_lookup_bounded(ring, position, loads, 1, &out));
        loads[out] += 1;
    }
    for (size_t i = 0; i < NODES; i++) {
        CHECK(loads[i] >= 100 * weights[i] - 4 && loads[i] <= 100 * weights[i] + 1);
    }
    rh_ring_free(ring);
}

/* Beyond 2^53 a load plus one is itself, and no node would have room. */
static void some_node_is_found_even_where_rounding_hides_the_room(void)
{
    static const double loads_of_all[] = {0, 1e17, 1e300, 1.7e308};
    rh_node node = a_node("a", NULL, 1);
    rh_ring *lone = ring_made_of(&node, 1, 0), *ring = a_ring(0);
    rh_ring_position position = {0};

    for (size_t i = 0; i < sizeof loads_of_all / sizeof *loads_of_all; i++) {
        double loads[NODES];
        uint32_t out = NODES;

        for (size_t k = 0; k < NODES; k++) {
            loads[k] = loads_of_all[i];
        }
        CHECK_STATUS(rh_ring_lookup_bounded(lone, position, loads, 1, &out), RH_OK);
        CHECK_EQUAL(out, 0);
        CHECK_STATUS(rh_ring_lookup_bounded(ring, position, loads, 1, &out), RH_OK);
        CHECK(out < NODES && out != 3 && out != 6);
    }
    rh_ring_free(ring);
    rh_ring_free(lone);
}

static void impossible_bounds_and_loads_are_refused(void)
{
    static const double bounds[] = {0.999, 0, -1, (double)NAN, (double)INFINITY};
    static const double wrong[] = {-1, -1e-300, (double)NAN, (double)INFINITY};
    rh_ring *ring = a_ring(0), *empty = ring_made_of(NULL, 0, 0);
    rh_ring_position position = {0};
    double loads[NODES] = {0};
    uint32_t out = NODES;

    for (size_t i = 0; i < sizeof bounds / sizeof *bounds; i++) {
        CHECK_STATUS(rh_ring_lookup_bounded(ring, position, loads, bounds[i], &out),
                     RH_INVALID_ARGUMENT);
    }
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        loads[4] = wrong[i];
        CHECK_STATUS(rh_ring_lookup_bounded(ring, position, loads, 1, &out), RH_INVALID_ARGUMENT);
    }
    CHECK_STATUS(rh_ring_lookup_bounded(ring, position, NULL, 1, &out), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_ring_lookup_bounded(empty, position, NULL, 1, &out), RH_EMPTY_RING);
    CHECK_EQUAL(out, NODES);
    rh_ring_free(empty);
    rh_ring_free(ring);
}

static void null_is_refused_where_something_is_needed(void)
{
    rh_ring *ring = a_ring(0), *none = NULL;
    rh_ring_position position = {0};
    rh_ring_replicas_options excludes = {NULL, 1};
    const void *keys[2] = {"key", NULL};
    size_t sizes[2] = {3, 1}, size = 9;
    uint64_t hash = 1;
    uint32_t out[2] = {NODES, NODES};
    double loads[NODES] = {0};
    uint8_t digest[RH_RING_DIGEST_BYTES];
    rh_ring_info info;
    rh_ring_member member;
    rh_ring_points points;
    void *data = NULL;

#define REFUSED(call) CHECK_STATUS(call, RH_INVALID_ARGUMENT)
    REFUSED(rh_ring_new(NULL, 0, NULL, NULL));
    REFUSED(rh_ring_new(NULL, 1, NULL, &none));
    REFUSED(rh_ring_edit(NULL, NULL, 0, &none));
    REFUSED(rh_ring_edit(ring, NULL, 0, NULL));
    REFUSED(rh_ring_get_info(NULL, &info));
    REFUSED(rh_ring_get_info(ring, NULL));
    REFUSED(rh_ring_get_member(NULL, 0, &member));
    REFUSED(rh_ring_get_member(ring, 0, NULL));
    REFUSED(rh_ring_find(NULL, "a", 1, out));
    REFUSED(rh_ring_find(ring, NULL, 1, out));
    REFUSED(rh_ring_find(ring, "a", 1, NULL));
    REFUSED(rh_ring_get_points(NULL, &points));
    REFUSED(rh_ring_get_points(ring, NULL));
    REFUSED(rh_ring_locate(NULL, "a", 1, &position));
    REFUSED(rh_ring_locate(ring, NULL, 1, &position));
    REFUSED(rh_ring_locate(ring, "a", 1, NULL));
    REFUSED(rh_ring_locate_hash(NULL, 1, &position));
    REFUSED(rh_ring_locate_hash(ring, 1, NULL));
    REFUSED(rh_ring_find_point(NULL, position, &size));
    REFUSED(rh_ring_find_point(ring, position, NULL));
    REFUSED(rh_ring_lookup(NULL, "a", 1, out));
    REFUSED(rh_ring_lookup(ring, NULL, 1, out));
    REFUSED(rh_ring_lookup(ring, "a", 1, NULL));
    REFUSED(rh_ring_lookup_hash(NULL, 1, out));
    REFUSED(rh_ring_lookup_hash(ring, 1, NULL));
    REFUSED(rh_ring_lookup_keys(NULL, keys, sizes, 1, out));
    REFUSED(rh_ring_lookup_keys(ring, NULL, sizes, 1, out));
    REFUSED(rh_ring_lookup_keys(ring, keys, NULL, 1, out));
    REFUSED(rh_ring_lookup_keys(ring, keys, sizes, 1, NULL));
    REFUSED(rh_ring_lookup_keys(ring, keys, sizes, 2, out));
    REFUSED(rh_ring_lookup_hashes(NULL, &hash, 1, out));
    REFUSED(rh_ring_lookup_hashes(ring, NULL, 1, out));
    REFUSED(rh_ring_lookup_hashes(ring, &hash, 1, NULL));
    REFUSED(rh_ring_replicas(NULL, position, 1, NULL, out, NULL));
    REFUSED(rh_ring_replicas(ring, position, 1, NULL, NULL, NULL));
    REFUSED(rh_ring_replicas(ring, position, 1, &excludes, out, NULL));
    REFUSED(rh_ring_lookup_bounded(NULL, position, loads, 1, out));
    REFUSED(rh_ring_lookup_bounded(ring, position, loads, 1, NULL));
    REFUSED(rh_ring_digest(NULL, digest));
    REFUSED(rh_ring_digest(ring, NULL));
    REFUSED(rh_ring_dumps(NULL, &data, &size));
    REFUSED(rh_ring_dumps(ring, NULL, &size));
    REFUSED(rh_ring_dumps(ring, &data, NULL));
    REFUSED(rh_ring_loads(NULL, 1, &none));
    REFUSED(rh_ring_loads("", 0, NULL));
    CHECK(none == NULL && data == NULL && size == 9);
    CHECK(out[0] == NODES && out[1] == NODES);
    CHECK_STATUS(rh_ring_lookup_keys(ring, NULL, NULL, 0, NULL), RH_OK);
    CHECK_STATUS(rh_ring_lookup_hashes(ring, NULL, 0, NULL), RH_OK);
    CHECK_STATUS(rh_ring_replicas(ring, position, 0, NULL, NULL, NULL), RH_OK);
    CHECK_STATUS(rh_ring_lookup(ring, NULL, 0, out), RH_OK);
    rh_ring_free(ring);
}

int main(void)
{
    RUN(the_first_node_with_room_is_given);
    RUN(loads_stay_within_the_bound);
    RUN(some_node_is_found_even_where_rounding_hides_the_room);
    RUN(impossible_bounds_and_loads_are_refused);
    RUN(null_is_refused_where_something_is_needed);
    return rh_test_result();
}
