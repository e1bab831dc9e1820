/*
 * Goal: a ring comes back from its bytes as it was, those are the same for the same nodes, and any
 * others are refused; equal digests mean equal placement. Method: every profile there and back;
 * every truncation, every bit flipped; bytes that are sealed well but that no ring would write.
 */
#include <math.h>

#include "rings.h"
#include "wire.h"

enum { NODES = 4 };

static const rh_node nodes[NODES] = {{"c:80", 4, "east", 4, 2},
                                     {"a", 1, NULL, 0, 1},
                                     {"b\0", 2, "", 0, 3},
                                     {"gone", 4, "west", 4, 0}};

static bool is_by_number(unsigned profile)
{
    return profile >= RH_RING_LIBMEMCACHED && profile <= RH_RING_LIBMEMCACHED_SPY;
}

static void *dumped(const rh_ring *ring, size_t *size)
{
    void *data = NULL;

    REQUIRE_OK(rh_ring_dumps(ring, &data, size));
    return data;
}

static bool same_digest(const rh_ring *a, const rh_ring *b)
{
    uint8_t x[RH_RING_DIGEST_BYTES] = {0}, y[RH_RING_DIGEST_BYTES] = {1};

    CHECK_STATUS(rh_ring_digest(a, x), RH_OK);
    CHECK_STATUS(rh_ring_digest(b, y), RH_OK);
    return memcmp(x, y, sizeof x) == 0;
}

static void check_same_nodes(const rh_ring *ring, const rh_ring *again)
{
    for (size_t i = 0; i < NODES; i++) {
        rh_ring_member before = {0}, after = {0};
        uint32_t number = 9;

        CHECK_STATUS(rh_ring_get_member(ring, i, &before), RH_OK);
        CHECK_STATUS(rh_ring_find(again, before.node.name, before.node.name_bytes, &number), RH_OK);
        CHECK_STATUS(rh_ring_get_member(again, number, &after), RH_OK);
        CHECK(before.node.weight == after.node.weight);
        CHECK((before.node.zone == NULL) == (after.node.zone == NULL));
        CHECK(same_bytes(before.node.zone, before.node.zone_bytes, after.node.zone,
                         after.node.zone_bytes));
    }
}

static void rings_come_back(void)
{
    rh_ring_change remove = {RH_RING_REMOVE, {"x", 1, NULL, 0, 0}};
    rh_ring_change add = {RH_RING_ADD, {"x", 1, NULL, 0, 1}};

    for (unsigned profile = 0; profile < PROFILES; profile++) {
        rh_ring *ring = ring_made_of(nodes, NODES, profile), *again = NULL;
        rh_ring *more = NULL, *less = NULL;
        size_t size = 0, size_again = 0, size_less = 0;
        void *data = dumped(ring, &size), *data_again, *data_less;

        CHECK_STATUS(rh_ring_loads(data, size, &again), RH_OK);
        CHECK(same_placement(ring, again));
        CHECK(same_digest(ring, again));
        check_same_nodes(ring, again);
        data_again = dumped(again, &size_again);
        CHECK(same_bytes(data, size, data_again, size_again));
        REQUIRE_OK(rh_ring_edit(ring, &add, 1, &more));
        REQUIRE_OK(rh_ring_edit(more, &remove, 1, &less));
        data_less = dumped(less, &size_less);
        CHECK(same_bytes(data, size, data_less, size_less));
        CHECK(same_digest(ring, less) && !same_digest(ring, more));
        rh_free(data_less);
        rh_free(data_again);
        rh_free(data);
        rh_ring_free(less);
        rh_ring_free(more);
        rh_ring_free(again);
        rh_ring_free(ring);
    }
}

static void an_empty_ring_comes_back(void)
{
    rh_ring_options options = {.vnodes = 7};
    rh_ring *ring = NULL, *again = NULL;
    rh_ring_info info = {0};
    size_t size = 0;
    void *data;

    REQUIRE_OK(rh_ring_new(NULL, 0, &options, &ring));
    data = dumped(ring, &size);
    CHECK_STATUS(rh_ring_loads(data, size, &again), RH_OK);
    CHECK_STATUS(rh_ring_get_info(again, &info), RH_OK);
    CHECK_EQUAL(info.names, 0);
    CHECK_EQUAL(info.vnodes, 7);
    rh_free(data);
    rh_ring_free(again);
    rh_ring_free(ring);
}

static void the_order_of_insertion_shows_where_it_breaks_ties(void)
{
    /* In libmemcached these two have every point in common. */
    const rh_node twins[] = {a_node("m:11211", NULL, 1), a_node("m", NULL, 1)};
    const rh_node reversed[] = {twins[1], twins[0]};
    const rh_node apart[] = {a_node("x", NULL, 1), a_node("y", NULL, 1)};
    const rh_node apart_reversed[] = {apart[1], apart[0]};

    for (unsigned profile = 0; profile < PROFILES; profile++) {
        rh_ring *a = ring_made_of(twins, 2, profile), *b = ring_made_of(reversed, 2, profile);
        rh_ring *c = ring_made_of(apart, 2, profile), *d = ring_made_of(apart_reversed, 2, profile);
        size_t a_size = 0, b_size = 0;
        void *a_data = dumped(a, &a_size), *b_data = dumped(b, &b_size);

        CHECK(same_bytes(a_data, a_size, b_data, b_size) == !is_by_number(profile));
        CHECK(same_placement(a, b) == !is_by_number(profile));
        CHECK(same_digest(a, b) == !is_by_number(profile));
        CHECK(same_placement(c, d) && same_digest(c, d));
        rh_free(b_data);
        rh_free(a_data);
        rh_ring_free(d);
        rh_ring_free(c);
        rh_ring_free(b);
        rh_ring_free(a);
    }
}

static bool digest_differs(const rh_ring *from, const rh_node *node, unsigned profile)
{
    rh_ring *ring = ring_made_of(node, 1, profile);
    bool differs = !same_digest(from, ring);

    rh_ring_free(ring);
    return differs;
}

static void digests_cover_placement_and_nothing_else(void)
{
    rh_node node = a_node("a", "z", 1), changed = node;
    rh_node drained[] = {node, a_node("b", "y", 0)};
    rh_ring_options half = {.vnodes = 80};
    rh_ring *ring = ring_made_of(&node, 1, RH_RING_RINGHOLD), *same = NULL, *with_drained;

    for (unsigned profile = 1; profile < PROFILES; profile++) {
        CHECK(digest_differs(ring, &node, profile));
    }
    changed.weight = 2;
    CHECK(digest_differs(ring, &changed, RH_RING_RINGHOLD));
    REQUIRE_OK(rh_ring_new(&changed, 1, &half, &same));
    CHECK(same_digest(ring, same));
    rh_ring_free(same);
    changed = node;
    changed.weight = 1.001;
    CHECK(!digest_differs(ring, &changed, RH_RING_RINGHOLD));
    changed = a_node("a", "y", 1);
    CHECK(digest_differs(ring, &changed, RH_RING_RINGHOLD));
    changed = a_node("a", NULL, 1);
    CHECK(digest_differs(ring, &changed, RH_RING_RINGHOLD));
    changed = a_node("b", "z", 1);
    CHECK(digest_differs(ring, &changed, RH_RING_RINGHOLD));
    with_drained = ring_made_of(drained, 2, RH_RING_RINGHOLD);
    CHECK(same_digest(ring, with_drained));
    rh_ring_free(with_drained);
    rh_ring_free(ring);
}

static rh_status load(const void *data, size_t size)
{
    rh_ring *ring = NULL;
    rh_status status = rh_ring_loads(data, size, &ring);

    CHECK((ring != NULL) == (status == RH_OK));
    rh_ring_free(ring);
    return status;
}

static void every_damage_is_refused(void)
{
    for (unsigned profile = 0; profile < PROFILES; profile++) {
        rh_ring *ring = ring_made_of(nodes, NODES, profile);
        size_t size = 0;
        uint8_t *data = dumped(ring, &size);
        uint8_t *longer = calloc(size + 1, 1);

        for (size_t shorter = 0; shorter < size; shorter++) {
            CHECK_STATUS(load(data, shorter), RH_CORRUPT);
            CHECK_STATUS(load(data + size - shorter, shorter), RH_CORRUPT);
        }
        for (size_t bit = 0; bit < 8 * size; bit++) {
            data[bit / 8] ^= (uint8_t)(1u << bit % 8);
            CHECK_STATUS(load(data, size), RH_CORRUPT);
            data[bit / 8] ^= (uint8_t)(1u << bit % 8);
        }
        CHECK_STATUS(load(data, size), RH_OK);
        if (longer) {
            memcpy(longer, data, size);
            CHECK_STATUS(load(longer, size + 1), RH_CORRUPT);
        }
        free(longer);
        rh_free(data);
        rh_ring_free(ring);
    }
}

/* What to write; the zeros of a static one stand for what a ring would write. */
struct forged {
    const char *magic;
    const char *names[2];
    double weight;
    uint32_t vnodes;
    uint32_t count;
    uint8_t version;
    uint8_t profile;
    uint8_t zone;
    uint8_t trailing;
};

static rh_status load_forged(const struct forged *forged)
{
    struct wire_writer writer = {0};
    void *data = NULL;
    size_t size = 0;
    rh_status status;

    rh_wire_put_bytes(&writer, forged->magic, 4);
    rh_wire_put_u8(&writer, forged->version);
    rh_wire_put_u8(&writer, forged->profile);
    rh_wire_put_u32(&writer, forged->vnodes);
    rh_wire_put_u32(&writer, forged->count);
    for (size_t i = 0; i < 2; i++) {
        rh_wire_put_text(&writer, forged->names[i], strlen(forged->names[i]));
        rh_wire_put_u8(&writer, forged->zone);
        if (forged->zone) {
            rh_wire_put_text(&writer, "z", 1);
        }
        rh_wire_put_double(&writer, forged->weight);
    }
    rh_wire_put_bytes(&writer, "????", forged->trailing);
    REQUIRE_OK(rh_wire_finish(&writer, &data, &size));
    status = load(data, size);
    rh_free(data);
    return status;
}

static const struct forged honest = {"RHRG", {"a", "b"}, 1, 160, 2, 1, RH_RING_RINGHOLD, 0, 0};

#define CHECK_FORGED(member, value, expected)                                                      \
    do {                                                                                           \
        struct forged forged_ = honest;                                                            \
        forged_.member = value;                                                                    \
        CHECK_STATUS(load_forged(&forged_), expected);                                             \
    } while (0)

static void sealed_bytes_that_no_ring_would_write_are_refused(void)
{
    const double wrong[] = {-1, -0.0, 1e300, (double)NAN, -(double)NAN, (double)INFINITY};
    struct forged other = honest;

    CHECK_STATUS(load_forged(&honest), RH_OK);
    CHECK_FORGED(zone, 1, RH_OK);
    CHECK_FORGED(vnodes, 7, RH_OK);
    CHECK_FORGED(weight, 0.5, RH_OK);
    CHECK_FORGED(magic, "RHRD", RH_CORRUPT);
    CHECK_FORGED(version, 0, RH_CORRUPT);
    CHECK_FORGED(version, 2, RH_CORRUPT);
    CHECK_FORGED(profile, PROFILES, RH_CORRUPT);
    CHECK_FORGED(profile, 255, RH_CORRUPT);
    CHECK_FORGED(vnodes, 0, RH_CORRUPT);
    CHECK_FORGED(count, 1, RH_CORRUPT);
    CHECK_FORGED(count, 3, RH_CORRUPT);
    CHECK_FORGED(count, UINT32_MAX, RH_CORRUPT);
    CHECK_FORGED(zone, 2, RH_CORRUPT);
    CHECK_FORGED(trailing, 1, RH_CORRUPT);
    CHECK_FORGED(names[0], "b", RH_CORRUPT);
    CHECK_FORGED(names[0], "c", RH_CORRUPT);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        CHECK_FORGED(weight, wrong[i], RH_CORRUPT);
    }
    other.profile = RH_RING_LIBMEMCACHED;
    other.names[0] = "c";
    CHECK_STATUS(load_forged(&other), RH_OK); /* the order of its list is its own */
    other.weight = 0.5;
    CHECK_STATUS(load_forged(&other), RH_CORRUPT);
    other.weight = 1;
    other.vnodes = 100;
    CHECK_STATUS(load_forged(&other), RH_CORRUPT);
    other.vnodes = 160;
    other.names[0] = other.names[1];
    CHECK_STATUS(load_forged(&other), RH_CORRUPT);
}

static void the_sign_of_zero_is_not_written(void)
{
    rh_node node = a_node("a", NULL, -0.0);
    rh_ring *ring = ring_made_of(&node, 1, RH_RING_RINGHOLD);
    size_t size = 0;
    void *data = dumped(ring, &size);

    CHECK_STATUS(load(data, size), RH_OK);
    rh_free(data);
    rh_ring_free(ring);
}

int main(void)
{
    RUN(rings_come_back);
    RUN(an_empty_ring_comes_back);
    RUN(the_order_of_insertion_shows_where_it_breaks_ties);
    RUN(digests_cover_placement_and_nothing_else);
    RUN(every_damage_is_refused);
    RUN(sealed_bytes_that_no_ring_would_write_are_refused);
    RUN(the_sign_of_zero_is_not_written);
    return rh_test_result();
}
