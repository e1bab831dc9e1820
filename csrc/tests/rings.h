/* What the tests of rings share: numbers that look random, nodes, and comparing two rings. */
#ifndef RINGHOLD_TESTS_RINGS_H
#define RINGHOLD_TESTS_RINGS_H

#include <ringhold/checksum.h>
#include <ringhold/ring.h>

#include "rh_test.h"

enum { PROFILES = 8 };

static inline uint64_t hash_of(uint64_t number)
{
    uint64_t hash = 0;

    REQUIRE_OK(rh_checksum(&number, sizeof number, &hash));
    return hash;
}

static inline rh_node a_node(const char *name, const char *zone, double weight)
{
    return (rh_node){name, strlen(name), zone, zone ? strlen(zone) : 0, weight};
}

static inline rh_ring *ring_made_of(const rh_node *nodes, size_t count, unsigned profile)
{
    rh_ring_options options = {.profile = (rh_ring_profile)profile};
    rh_ring *ring = NULL;

    REQUIRE_OK(rh_ring_new(nodes, count, &options, &ring));
    return ring;
}

static inline bool same_bytes(const void *a, size_t a_bytes, const void *b, size_t b_bytes)
{
    return a_bytes == b_bytes && (a_bytes == 0 || memcmp(a, b, a_bytes) == 0);
}

/* Whether two nodes, each by its number in its ring, have the same name. */
static inline bool same_name(const rh_ring *a, size_t in_a, const rh_ring *b, size_t in_b)
{
    rh_ring_member x = {0}, y = {0};

    REQUIRE_OK(rh_ring_get_member(a, in_a, &x));
    REQUIRE_OK(rh_ring_get_member(b, in_b, &y));
    return same_bytes(x.node.name, x.node.name_bytes, y.node.name, y.node.name_bytes);
}

/* Whether all points are equal and owned by nodes of the same names. */
static inline bool same_placement(const rh_ring *a, const rh_ring *b)
{
    rh_ring_points x = {0}, y = {0};

    CHECK_STATUS(rh_ring_get_points(a, &x), RH_OK);
    CHECK_STATUS(rh_ring_get_points(b, &y), RH_OK);
    if (x.count != y.count || (x.low == NULL) != (y.low == NULL)) {
        return false;
    }
    for (size_t i = 0; i < x.count; i++) {
        if (x.high[i] != y.high[i] || (x.low && x.low[i] != y.low[i]) ||
            !same_name(a, x.owners[i], b, y.owners[i])) {
            return false;
        }
    }
    return true;
}

#endif
