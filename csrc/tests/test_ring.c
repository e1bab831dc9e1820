/*
 * Goal: owners, replicas and edits are what the ring's definition says. Method: a model that
 * looks at every point of every node, without order or directory, against rings of changing
 * nodes; and the search through the directory against the plain binary search.
 */
#include <math.h>

#include <ringhold/checksum.h>
#include <ringhold/ring.h>

#include "rh_test.h"
#include "ring_internal.h"

enum { NAMES = 40, NAME_BYTES = 8 };

struct member {
    char name[NAME_BYTES];
    const char *zone;
    double weight;
    bool present;
};

static uint64_t hash_of(uint64_t number)
{
    uint64_t hash = 0;

    REQUIRE_OK(rh_checksum(&number, sizeof number, &hash));
    return hash;
}

static rh_ring_position at(uint64_t hash)
{
    rh_ring_position position = {.high = hash};

    return position;
}

static rh_node node_of(const struct member *member)
{
    rh_node node = {.name = member->name,
                    .name_bytes = strlen(member->name),
                    .zone = member->zone,
                    .zone_bytes = member->zone ? strlen(member->zone) : 0,
                    .weight = member->weight};

    return node;
}

static void name_members(struct member *members)
{
    static const char *const zones[] = {"east", "west", "north", NULL};

    for (unsigned i = 0; i < NAMES; i++) {
        snprintf(members[i].name, NAME_BYTES, "n%u", i);
        members[i].zone = zones[i % 4];
        members[i].weight = (double)(i % 5) / 2;
        members[i].present = true;
    }
}

static rh_ring *ring_of(const struct member *members, size_t count, uint32_t vnodes)
{
    rh_node nodes[NAMES];
    rh_ring_options options = {.vnodes = vnodes};
    rh_ring *ring = NULL;

    for (size_t i = 0; i < count; i++) {
        nodes[i] = node_of(&members[i]);
    }
    REQUIRE_OK(rh_ring_new(nodes, count, &options, &ring));
    return ring;
}

/* weights here are multiples of one half and vnodes even, so vnodes * weight is whole */
static uint32_t model_points(const struct member *member, uint32_t vnodes)
{
    return member->present ? (uint32_t)(member->weight * (double)vnodes) : 0;
}

/* The distance clockwise from `hash` to the nearest point of a node; ties go by name. */
static bool model_nearest(const struct member *member, uint32_t vnodes, uint64_t hash,
                          uint64_t *distance)
{
    unsigned char text[NAME_BYTES + 5];
    size_t end = strlen(member->name);
    bool found = false;

    memcpy(text, member->name, end);
    text[end] = '#';
    for (uint32_t i = 0; i < model_points(member, vnodes); i++) {
        uint64_t point = 0;

        for (unsigned byte = 0; byte < 4; byte++) {
            text[end + 1 + byte] = (unsigned char)(i >> (8 * byte));
        }
        REQUIRE_OK(rh_checksum(text, end + 5, &point));
        if (!found || point - hash < *distance) {
            *distance = point - hash;
            found = true;
        }
    }
    return found;
}

/* Nodes by the distance of their nearest point; the count of usable ones. */
static size_t model_walk(const struct member *members, size_t count, uint32_t vnodes, uint64_t hash,
                         uint32_t *walk)
{
    uint64_t distances[NAMES];
    size_t found = 0;

    for (uint32_t i = 0; i < count; i++) {
        uint64_t distance = 0;
        size_t at = found;

        if (!model_nearest(&members[i], vnodes, hash, &distance)) {
            continue;
        }
        while (at > 0 && distances[at - 1] > distance) {
            distances[at] = distances[at - 1];
            walk[at] = walk[at - 1];
            at--;
        }
        distances[at] = distance;
        walk[at] = i;
        found++;
    }
    return found;
}

static bool same_zone(const struct member *members, uint32_t a, uint32_t b)
{
    const char *x = members[a].zone, *y = members[b].zone;

    return a == b || (x && y && strcmp(x, y) == 0);
}

/* Each time the first node of the walk that is not taken and whose zone was used least. */
static void model_replicas(const struct member *members, const uint32_t *walk, size_t usable,
                           size_t wanted, uint32_t *out)
{
    bool taken[NAMES] = {false};

    for (size_t found = 0; found < wanted; found++) {
        size_t best = usable, best_used = SIZE_MAX;

        for (size_t i = 0; i < usable; i++) {
            size_t used = 0;

            for (size_t k = 0; k < found; k++) {
                used += same_zone(members, walk[i], out[k]);
            }
            if (!taken[i] && used < best_used) {
                best = i;
                best_used = used;
            }
        }
        taken[best] = true;
        out[found] = walk[best];
    }
}

static void check_against_model(const rh_ring *ring, const struct member *members, size_t count,
                                uint32_t vnodes, unsigned samples)
{
    for (unsigned sample = 0; sample < samples; sample++) {
        uint64_t hash = hash_of(sample);
        uint32_t walk[NAMES], expected[NAMES], actual[NAMES], owner = UINT32_MAX;
        size_t usable = model_walk(members, count, vnodes, hash, walk);
        size_t zones = 0;

        if (usable == 0) {
            CHECK_STATUS(rh_ring_lookup_hash(ring, hash, &owner), RH_EMPTY_RING);
            continue;
        }
        CHECK_STATUS(rh_ring_lookup_hash(ring, hash, &owner), RH_OK);
        CHECK_EQUAL(owner, walk[0]);
        for (size_t wanted = 0; wanted <= usable; wanted += 1 + wanted / 4) {
            model_replicas(members, walk, usable, wanted, expected);
            CHECK_STATUS(rh_ring_replicas(ring, at(hash), wanted, NULL, actual, &zones), RH_OK);
            CHECK(memcmp(actual, expected, wanted * sizeof *actual) == 0);
        }
        CHECK_STATUS(rh_ring_replicas(ring, at(hash), usable + 1, NULL, actual, &zones),
                     RH_NOT_ENOUGH_NODES);
    }
}

static void a_new_ring_equals_the_model(void)
{
    struct member members[NAMES];

    name_members(members);
    for (size_t count = 0; count <= NAMES; count += 8) {
        rh_ring *ring = ring_of(members, count, 8);

        check_against_model(ring, members, count, 8, 40);
        rh_ring_free(ring);
    }
}

static bool same_points(const rh_ring *a, const rh_ring *b)
{
    return a->point_count == b->point_count &&
           memcmp(a->points, b->points, a->point_count * sizeof *a->points) == 0 &&
           memcmp(a->owners, b->owners, a->point_count * sizeof *a->owners) == 0;
}

/* Adds, removes and re-adds; every ring on the way equals the model and a ring made afresh. */
static void edited_rings_equal_the_model(void)
{
    struct member members[NAMES];
    rh_ring *ring = NULL;

    name_members(members);
    ring = ring_of(members, NAMES / 2, 8);
    for (unsigned step = 0; step < 60; step++) {
        uint32_t i = (uint32_t)(hash_of(1000 + step) % (NAMES / 2));
        rh_ring_change change = {.kind = members[i].present ? RH_RING_REMOVE : RH_RING_ADD};
        rh_ring *edited = NULL;
        rh_ring_info info;

        members[i].weight = 1 + (double)(step % 4) / 2;
        change.node = node_of(&members[i]);
        REQUIRE_OK(rh_ring_edit(ring, &change, 1, &edited));
        rh_ring_free(ring);
        ring = edited;
        members[i].present = !members[i].present;
        check_against_model(ring, members, NAMES / 2, 8, 10);
        CHECK_STATUS(rh_ring_get_info(ring, &info), RH_OK);
        CHECK_EQUAL(info.names, NAMES / 2);
    }
    rh_ring_free(ring);
}

static void many_changes_at_once_equal_a_ring_made_afresh(void)
{
    struct member members[NAMES];
    rh_ring_change changes[NAMES];
    rh_ring *half = NULL, *edited = NULL, *whole = NULL;

    name_members(members);
    half = ring_of(members, NAMES / 2, 16);
    whole = ring_of(members, NAMES, 16);
    for (size_t i = 0; i < NAMES / 2; i++) {
        changes[i].kind = RH_RING_ADD;
        changes[i].node = node_of(&members[NAMES / 2 + i]);
    }
    CHECK_STATUS(rh_ring_edit(half, changes, NAMES / 2, &edited), RH_OK);
    CHECK(edited && same_points(edited, whole));
    CHECK(edited && memcmp(edited->by_name, whole->by_name, NAMES * sizeof *whole->by_name) == 0);
    rh_ring_free(edited);
    edited = NULL;
    for (size_t i = 0; i < NAMES / 2; i++) {
        changes[i].kind = RH_RING_REMOVE;
    }
    CHECK_STATUS(rh_ring_edit(whole, changes, NAMES / 2, &edited), RH_OK);
    CHECK(edited && same_points(edited, half));
    rh_ring_free(edited);
    rh_ring_free(whole);
    rh_ring_free(half);
}

/* The point of a one-point ring, moved, since no two names with one hash are known. */
static void move_point(rh_ring *ring, uint64_t point)
{
    ring->points[0] = point;
    ring->directory[0] = 0;
    ring->directory[1] = point >> 63 ? 0 : 1;
    ring->directory[2] = 1;
}

static void of_equal_points_the_smaller_name_owns(void)
{
    static const char *const names[] = {"a", "b", "c"};
    rh_ring_options options = {.vnodes = 1};

    for (size_t i = 0; i < 3; i++) {
        for (size_t k = 0; k < 3; k++) {
            rh_node first = {names[i], 1, NULL, 0, 1};
            rh_ring_change add = {RH_RING_ADD, {names[k], 1, NULL, 0, 1}};
            rh_ring *ring = NULL, *lone = NULL, *both = NULL;
            uint32_t owner = 9;

            if (i == k) {
                continue;
            }
            REQUIRE_OK(rh_ring_new(&first, 1, &options, &ring));
            REQUIRE_OK(rh_ring_new(&add.node, 1, &options, &lone));
            move_point(ring, lone->points[0]);
            REQUIRE_OK(rh_ring_edit(ring, &add, 1, &both));
            CHECK_EQUAL(both->points[0], both->points[1]);
            CHECK_STATUS(rh_ring_lookup_hash(both, both->points[0], &owner), RH_OK);
            CHECK_EQUAL(owner, i < k ? 0 : 1);
            CHECK_STATUS(rh_ring_lookup_hash(both, both->points[0] + 1, &owner), RH_OK);
            CHECK_EQUAL(owner, i < k ? 0 : 1);
            rh_ring_free(both);
            rh_ring_free(lone);
            rh_ring_free(ring);
        }
    }
}

static void excluded_nodes_are_as_if_absent(void)
{
    struct member members[NAMES];
    uint32_t exclude[] = {0, 3, 3, 7, 12, 13, UINT32_MAX};
    rh_ring_replicas_options options = {exclude, sizeof exclude / sizeof *exclude};
    rh_ring *ring;

    name_members(members);
    ring = ring_of(members, NAMES, 8);
    for (size_t i = 0; i + 1 < options.exclude_count; i++) {
        members[exclude[i]].present = false;
    }
    for (uint64_t sample = 0; sample < 50; sample++) {
        uint32_t walk[NAMES], expected[NAMES], actual[NAMES];
        size_t usable = model_walk(members, NAMES, 8, hash_of(sample), walk);
        size_t zones = 0;

        model_replicas(members, walk, usable, usable, expected);
        CHECK_STATUS(rh_ring_replicas(ring, at(hash_of(sample)), usable, &options, actual, &zones),
                     RH_OK);
        CHECK(memcmp(actual, expected, usable * sizeof *actual) == 0);
        CHECK_STATUS(
            rh_ring_replicas(ring, at(hash_of(sample)), usable + 1, &options, actual, &zones),
            RH_NOT_ENOUGH_NODES);
    }
    rh_ring_free(ring);
}

/* Crowded points, gaps, the very ends: what uniform hashes do not bring by themselves. */
static void the_directory_finds_what_binary_search_finds(void)
{
    struct member members[NAMES];
    const uint32_t vnodes[] = {1, 2, 16, 160, 1000};

    name_members(members);
    for (size_t k = 0; k < sizeof vnodes / sizeof *vnodes; k++) {
        rh_ring *ring = ring_of(members, NAMES, vnodes[k] * 2);
        size_t count = ring->point_count;

        for (size_t i = 0; i < count; i++) {
            uint64_t point = ring->points[i];

            CHECK_EQUAL(rh_ring_search(ring, point), rh_ring_search_plain(ring, 0, count, point));
            CHECK_EQUAL(rh_ring_search(ring, point + 1),
                        rh_ring_search_plain(ring, 0, count, point + 1));
            CHECK_EQUAL(rh_ring_search(ring, point - 1),
                        rh_ring_search_plain(ring, 0, count, point - 1));
        }
        CHECK_EQUAL(rh_ring_search(ring, 0), 0);
        CHECK_EQUAL(rh_ring_search(ring, UINT64_MAX),
                    rh_ring_search_plain(ring, 0, count, UINT64_MAX));
        rh_ring_free(ring);
    }
}

static void batches_equal_single_lookups(void)
{
    enum { COUNT = 101 };
    struct member members[NAMES];
    uint64_t hashes[COUNT], numbers[COUNT];
    const void *keys[COUNT];
    size_t sizes[COUNT];
    uint32_t by_hash[COUNT], by_key[COUNT], owner = 0;
    rh_ring *ring;

    name_members(members);
    ring = ring_of(members, NAMES, 160);
    for (size_t i = 0; i < COUNT; i++) {
        numbers[i] = i;
        hashes[i] = hash_of(i);
        keys[i] = &numbers[i];
        sizes[i] = sizeof numbers[i];
    }
    CHECK_STATUS(rh_ring_lookup_hashes(ring, hashes, COUNT, by_hash), RH_OK);
    CHECK_STATUS(rh_ring_lookup_keys(ring, keys, sizes, COUNT, by_key), RH_OK);
    for (size_t i = 0; i < COUNT; i++) {
        CHECK_STATUS(rh_ring_lookup(ring, keys[i], sizes[i], &owner), RH_OK);
        CHECK_EQUAL(by_hash[i], owner);
        CHECK_EQUAL(by_key[i], owner);
    }
    rh_ring_free(ring);
}

static size_t points_for(double weight, uint32_t vnodes)
{
    rh_node node = {.name = "a", .name_bytes = 1, .weight = weight};
    rh_ring_options options = {.vnodes = vnodes};
    rh_ring_info info = {0};
    rh_ring *ring = NULL;

    REQUIRE_OK(rh_ring_new(&node, 1, &options, &ring));
    CHECK_STATUS(rh_ring_get_info(ring, &info), RH_OK);
    rh_ring_free(ring);
    return info.points;
}

static void points_are_rounded_half_to_even(void)
{
    CHECK_EQUAL(points_for(1, 0), RH_RING_VNODES_DEFAULT);
    CHECK_EQUAL(points_for(0.25, 10), 2);
    CHECK_EQUAL(points_for(0.35, 10), 4);
    CHECK_EQUAL(points_for(1.5, 1), 2);
    CHECK_EQUAL(points_for(2.5, 1), 2);
    CHECK_EQUAL(points_for(3.5, 1), 4);
    CHECK_EQUAL(points_for(1e-300, 160), 1);
    CHECK_EQUAL(points_for(0.5, 1), 1);
    CHECK_EQUAL(points_for(0, 160), 0);
}

static rh_status make(const rh_node *nodes, size_t count)
{
    rh_ring *ring = NULL;
    rh_status status = rh_ring_new(nodes, count, NULL, &ring);

    CHECK((ring != NULL) == (status == RH_OK));
    rh_ring_free(ring);
    return status;
}

static void impossible_nodes_are_refused(void)
{
    rh_node twice[] = {{"a", 1, NULL, 0, 1}, {"b", 1, NULL, 0, 1}, {"a", 1, NULL, 0, 1}};
    rh_node node = {"a", 1, NULL, 0, 1};
    const double wrong[] = {-1, -0.001, (double)NAN, (double)INFINITY, -(double)INFINITY};

    CHECK_STATUS(make(twice, 2), RH_OK);
    CHECK_STATUS(make(twice, 3), RH_DUPLICATE_NODE);
    CHECK_STATUS(make(NULL, 1), RH_INVALID_ARGUMENT);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        node.weight = wrong[i];
        CHECK_STATUS(make(&node, 1), RH_INVALID_ARGUMENT);
    }
    node.weight = 1e300;
    CHECK_STATUS(make(&node, 1), RH_TOO_LARGE);
    node.weight = 1;
    node.name = NULL;
    CHECK_STATUS(make(&node, 1), RH_INVALID_ARGUMENT);
    node.name_bytes = 0;
    CHECK_STATUS(make(&node, 1), RH_OK);
}

static void impossible_changes_are_refused_and_change_nothing(void)
{
    struct member members[NAMES];
    rh_ring_change changes[2] = {{.kind = RH_RING_ADD}, {.kind = RH_RING_REMOVE}};
    rh_ring *ring, *edited = NULL;

    name_members(members);
    ring = ring_of(members, 2, 8);
    changes[0].node = node_of(&members[0]);
    changes[1].node = node_of(&members[5]);
    CHECK_STATUS(rh_ring_edit(ring, changes, 1, &edited), RH_DUPLICATE_NODE);
    CHECK_STATUS(rh_ring_edit(ring, changes + 1, 1, &edited), RH_UNKNOWN_NODE);
    changes[0].node = node_of(&members[5]);
    CHECK_STATUS(rh_ring_edit(ring, changes, 2, &edited), RH_DUPLICATE_NODE);
    CHECK_STATUS(rh_ring_edit(ring, NULL, 1, &edited), RH_INVALID_ARGUMENT);
    CHECK(edited == NULL);
    check_against_model(ring, members, 2, 8, 20);
    rh_ring_free(ring);
}

static void names_and_zones_are_any_bytes(void)
{
    rh_node nodes[] = {{"a\0b", 3, "z\0", 2, 1}, {"a\0c", 3, "", 0, 1}, {"", 0, NULL, 0, 2}};
    rh_ring_member member;
    rh_ring *ring = NULL;
    uint32_t index = 9;

    REQUIRE_OK(rh_ring_new(nodes, 3, NULL, &ring));
    CHECK_STATUS(rh_ring_find(ring, "a\0c", 3, &index), RH_OK);
    CHECK_EQUAL(index, 1);
    CHECK_STATUS(rh_ring_find(ring, "a", 1, &index), RH_UNKNOWN_NODE);
    CHECK_STATUS(rh_ring_get_member(ring, 0, &member), RH_OK);
    CHECK_EQUAL(member.node.name_bytes, 3);
    CHECK(memcmp(member.node.name, "a\0b", 3) == 0);
    CHECK_EQUAL(member.node.zone_bytes, 2);
    CHECK_STATUS(rh_ring_get_member(ring, 1, &member), RH_OK);
    CHECK(member.node.zone != NULL);
    CHECK_STATUS(rh_ring_get_member(ring, 2, &member), RH_OK);
    CHECK(member.node.zone == NULL);
    CHECK_STATUS(rh_ring_get_member(ring, 3, &member), RH_UNKNOWN_NODE);
    rh_ring_free(ring);
    rh_ring_free(NULL);
}

int main(void)
{
    RUN(a_new_ring_equals_the_model);
    RUN(edited_rings_equal_the_model);
    RUN(many_changes_at_once_equal_a_ring_made_afresh);
    RUN(of_equal_points_the_smaller_name_owns);
    RUN(excluded_nodes_are_as_if_absent);
    RUN(the_directory_finds_what_binary_search_finds);
    RUN(batches_equal_single_lookups);
    RUN(points_are_rounded_half_to_even);
    RUN(impossible_nodes_are_refused);
    RUN(impossible_changes_are_refused_and_change_nothing);
    RUN(names_and_zones_are_any_bytes);
    return rh_test_result();
}
