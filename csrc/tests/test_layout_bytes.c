/*
 * Goal: a layout comes back from its bytes as it was, and bytes that are damaged, cut or no
 * layout's are refused. Method: every cut and every flipped bit; where the seal would hide what
 * comes after, damaged bytes are sealed anew.
 */
#include <ringhold/checksum.h>
#include <ringhold/layout.h>

#include "layout_internal.h"
#include "rh_test.h"

enum { SEAL = RH_DIGEST_BYTES };

static rh_node node(const char *name, double weight, const char *zone)
{
    rh_node made = {name, strlen(name), zone, zone ? strlen(zone) : 0, weight};

    return made;
}

static rh_layout *made(const rh_node *nodes, size_t count, uint32_t replicas, uint32_t partitions)
{
    rh_layout_options options = {replicas, partitions};
    rh_layout *layout = NULL;

    REQUIRE_OK(rh_layout_new(nodes, count, &options, &layout));
    return layout;
}

/* Bytes of a layout with zoned, unzoned and drained nodes. */
static uint8_t *dumped(size_t *size)
{
    rh_node nodes[] = {node("a", 1, "x"), node("b", 2, "y"), node("c", 1, NULL), node("d", 0, ""),
                       node("e", 1, "y")};
    rh_layout *layout = made(nodes, 5, 2, 16);
    void *data = NULL;

    REQUIRE_OK(rh_layout_dumps(layout, &data, size));
    rh_layout_free(layout);
    return data;
}

static void seal(uint8_t *data, size_t size)
{
    REQUIRE_OK(rh_digest(data, size - SEAL, data + size - SEAL));
}

static void what_was_written_is_read(void)
{
    size_t size = 0, again_size = 0;
    uint8_t *data = dumped(&size);
    uint8_t digest[RH_LAYOUT_DIGEST_BYTES], again_digest[RH_LAYOUT_DIGEST_BYTES];
    rh_layout *layout = NULL;
    rh_layout_plan plan;
    rh_node nodes[] = {node("e", 1, "y"), node("c", 1, NULL), node("b", 2, "y"), node("a", 1, "x")};
    void *again = NULL;

    CHECK_STATUS(rh_layout_loads(data, size, &layout), RH_OK);
    CHECK_STATUS(rh_layout_dumps(layout, &again, &again_size), RH_OK);
    CHECK(size == again_size && memcmp(data, again, size) == 0);
    /* neither the epoch nor a node that holds nothing are in the digest */
    CHECK_STATUS(rh_layout_rebalance(layout, nodes, 4, &plan), RH_OK);
    CHECK_EQUAL(plan.moved, 0);
    CHECK_STATUS(rh_layout_digest(layout, digest), RH_OK);
    CHECK_STATUS(rh_layout_digest(plan.layout, again_digest), RH_OK);
    CHECK(memcmp(digest, again_digest, sizeof digest) == 0);
    rh_free(plan.moves);
    rh_layout_free(plan.layout);
    rh_free(again);
    rh_layout_free(layout);
    rh_free(data);
}

static void every_cut_and_every_flipped_bit_is_corrupt(void)
{
    size_t size = 0;
    uint8_t *data = dumped(&size);
    rh_layout *layout = NULL;

    CHECK_STATUS(rh_layout_loads(NULL, 1, &layout), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_layout_loads(NULL, 0, &layout), RH_CORRUPT);
    for (size_t cut = 0; cut < size; cut++) {
        uint8_t *shorter = malloc(cut + 1); /* of its own, so that reading past it is seen */

        memcpy(shorter, data, cut);
        CHECK_STATUS(rh_layout_loads(shorter, cut, &layout), RH_CORRUPT);
        if (cut >= SEAL) {
            seal(shorter, cut);
            CHECK_STATUS(rh_layout_loads(shorter, cut, &layout), RH_CORRUPT);
        }
        free(shorter);
    }
    for (size_t bit = 0; bit < 8 * size; bit++) {
        data[bit / 8] ^= (uint8_t)(1 << bit % 8);
        CHECK_STATUS(rh_layout_loads(data, size, &layout), RH_CORRUPT);
        data[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    CHECK(layout == NULL);
    rh_free(data);
}

/* Each at an offset, by other bytes, sealed anew. */
static void sealed_bytes_that_no_layout_gives_are_corrupt(void)
{
    enum { NAMES_AT = 25, TABLE_BYTES = 16 * 2 * 2 };
    static const struct {
        size_t at;
        const char *bytes;
        size_t count;
    } wrong[] = {
        {0, "RHRD", 4},                          /* another thing */
        {4, "\2", 1},                            /* another version */
        {5, "\0\0\0\0\0\0\0\0", 8},              /* epoch 0 */
        {13, "\x11\0\0\0", 4},                   /* 17 partitions */
        {13, "\x20\0\0\0", 4},                   /* more of them than there are */
        {17, "\0\0\0\0", 4},                     /* no replicas */
        {17, "\5\0\0\0", 4},                     /* more replicas than usable nodes */
        {21, "\xff\xff\xff\xff", 4},             /* more nodes than bytes */
        {21, "\4\0\0\0", 4},                     /* one node fewer */
        {NAMES_AT + 4, "b", 1},                  /* a name twice */
        {NAMES_AT + 4, "z", 1},                  /* names out of order */
        {NAMES_AT + 12, "\x7f", 1},              /* another weight, hence other shares */
        {NAMES_AT + 11, "\xf0\xff", 2},          /* minus infinity */
        {NAMES_AT + 11, "\xf0\x7f", 2},          /* infinity */
        {NAMES_AT + 13, "\2", 1},                /* neither with a zone nor without */
        {NAMES_AT + 5, "\0\0\0\0\0\0\0\0", 8},   /* drained, yet holding copies */
        {NAMES_AT + 5, "\0\0\0\0\0\0\0\x80", 8}, /* the other zero */
    };
    size_t size = 0;
    uint8_t *data = dumped(&size);
    uint8_t *copy = malloc(size), *table = copy + size - SEAL - TABLE_BYTES;
    rh_layout *layout = NULL;

    memcpy(copy, data, size);
    seal(copy, size);
    CHECK(memcmp(copy, data, size) == 0);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        memcpy(copy, data, size);
        memcpy(copy + wrong[i].at, wrong[i].bytes, wrong[i].count);
        seal(copy, size);
        CHECK_STATUS(rh_layout_loads(copy, size, &layout), RH_CORRUPT);
    }
    for (size_t i = 0; i < TABLE_BYTES; i += 4) {
        memcpy(copy, data, size);
        memcpy(table + i, table + i + 2, 2); /* twice the same node, and one copy too few */
        seal(copy, size);
        CHECK_STATUS(rh_layout_loads(copy, size, &layout), RH_CORRUPT);
        memcpy(copy, data, size);
        memcpy(table + i, "\5", 2); /* a node that there is not */
        seal(copy, size);
        CHECK_STATUS(rh_layout_loads(copy, size, &layout), RH_CORRUPT);
    }
    CHECK(layout == NULL);
    free(copy);
    rh_free(data);
}

/* Shares are right, and yet a partition lies twice in a zone, or on a node. */
static void a_table_that_breaks_zones_or_distinctness_is_corrupt(void)
{
    rh_node nodes[] = {node("a", 1, "x"), node("b", 1, "x"), node("c", 1, "y"), node("d", 1, "y")};
    static const uint16_t pairs[][2] = {{0, 1}, {2, 3}, {0, 0}, {1, 1}};

    for (size_t kind = 0; kind < 4; kind += 2) {
        rh_layout *layout = made(nodes, 4, 2, 16), *loaded = NULL;
        void *data = NULL;
        size_t size = 0;

        for (size_t p = 0; p < 16; p++) {
            /* either a b and c d in turn, or a a, b b, c c and d d */
            const uint16_t *pair = pairs[kind + p % 2];

            layout->table[2 * p] = (uint16_t)(pair[0] + (kind == 2 && p >= 8 ? 2 : 0));
            layout->table[2 * p + 1] = (uint16_t)(pair[1] + (kind == 2 && p >= 8 ? 2 : 0));
        }
        CHECK_STATUS(rh_layout_dumps(layout, &data, &size), RH_OK);
        CHECK_STATUS(rh_layout_loads(data, size, &loaded), RH_CORRUPT);
        rh_free(data);
        rh_layout_free(layout);
    }
}

int main(void)
{
    RUN(what_was_written_is_read);
    RUN(every_cut_and_every_flipped_bit_is_corrupt);
    RUN(sealed_bytes_that_no_layout_gives_are_corrupt);
    RUN(a_table_that_breaks_zones_or_distinctness_is_corrupt);
    return rh_test_result();
}
