/*
 * Goal: layouts keep shares, zones and distinctness, rebalances say exactly what moves, and misuse
 * gets its status. Method: pools drawn by a fixed generator are rebalanced in long chains, every
 * table looked at copy by copy. That moves are fewest is shown from Python.
 */
#include <math.h>

#include <ringhold/checksum.h>
#include <ringhold/layout.h>

#include "layout_internal.h"
#include "node.h"
#include "rh_test.h"

enum { NODES = 24, NAME_BYTES = 8, REPLICAS_MAX = 8 };

static uint64_t state;

static uint64_t draw(uint64_t below)
{
    return layout_mix(state++) % below;
}

static char names[NODES][NAME_BYTES];

static rh_node node(const char *name, double weight, const char *zone)
{
    rh_node made = {name, strlen(name), zone, zone ? strlen(zone) : 0, weight};

    return made;
}

/* Any of the names, with weights and zones of a few kinds; at least `usable` of weight. */
static size_t draw_nodes(rh_node *nodes, size_t usable, uint64_t zones)
{
    static const char *const zone_names[] = {"east", "west", "north", "", "south", "up"};
    static const double weights[] = {1, 1, 1, 0.5, 2, 7, 0.1, 0};
    size_t count = 0;

    for (size_t i = 0; i < NODES; i++) {
        uint64_t zone = draw(zones + 1);

        snprintf(names[i], NAME_BYTES, "n%zu", i);
        if (i < usable || draw(3) > 0) {
            double weight = i < usable ? 1 + (double)draw(3) : weights[draw(8)];

            nodes[count++] = node(names[i], weight, zone < zones ? zone_names[zone] : NULL);
        }
    }
    return count;
}

static rh_layout *made(const rh_node *nodes, size_t count, uint32_t replicas, uint32_t partitions)
{
    rh_layout_options options = {replicas, partitions};
    rh_layout *layout = NULL;

    REQUIRE_OK(rh_layout_new(nodes, count, &options, &layout));
    return layout;
}

/* Limits, by the same check that loads() makes, and the counts that members tell. */
static void check_table(const rh_layout *layout)
{
    struct layout_limits limits = {0};
    uint32_t copies[NODES] = {0}, row[REPLICAS_MAX];
    rh_layout_info info;
    bool right = false;

    REQUIRE_OK(rh_layout_limits_make(layout, &limits));
    CHECK_STATUS(rh_layout_check(layout, &limits, &right), RH_OK);
    CHECK(right);
    rh_layout_limits_free(&limits);
    CHECK_STATUS(rh_layout_get_info(layout, &info), RH_OK);
    for (uint32_t p = 0; p < info.partitions; p++) {
        CHECK_STATUS(rh_layout_nodes(layout, p, row), RH_OK);
        for (uint32_t i = 0; i < info.replicas; i++) {
            copies[row[i]]++;
            for (uint32_t k = 0; k < i; k++) {
                CHECK(row[k] != row[i]);
            }
        }
    }
    for (size_t i = 0; i < info.nodes; i++) {
        rh_layout_member member;

        CHECK_STATUS(rh_layout_get_member(layout, i, &member), RH_OK);
        CHECK_EQUAL(member.copies, copies[i]);
        CHECK(member.node.weight > 0 || copies[i] == 0);
    }
}

static bool same_name(const rh_layout *a, uint32_t i, const rh_layout *b, uint32_t k)
{
    return rh_compare_bytes(a->nodes[i].name, a->nodes[i].name_bytes, b->nodes[k].name,
                            b->nodes[k].name_bytes) == 0;
}

/* The moves made on the old table give the new one, and nothing else differs. */
static void check_plan(const rh_layout *from, const rh_layout_plan *plan)
{
    const rh_layout *to = plan->layout;
    size_t next = 0;

    CHECK(plan->lower_bound <= plan->moved);
    CHECK_EQUAL(to->epoch, from->epoch + 1);
    for (size_t i = 0; i < (size_t)from->partitions * from->replicas; i++) {
        if (!same_name(from, from->table[i], to, to->table[i])) {
            CHECK(next < plan->moved);
            CHECK_EQUAL(plan->moves[next].partition, i / from->replicas);
            CHECK_EQUAL(plan->moves[next].source, from->table[i]);
            CHECK_EQUAL(plan->moves[next].target, to->table[i]);
            next++;
        }
    }
    CHECK_EQUAL(next, plan->moved);
}

static void chains_of_rebalances_keep_every_promise(void)
{
    for (uint32_t run = 0; run < 60; run++) {
        uint32_t replicas = 1 + run % REPLICAS_MAX, partitions = 16u << run % 4;
        uint64_t zones = draw(7);
        rh_node nodes[NODES];
        size_t count = draw_nodes(nodes, REPLICAS_MAX, zones);
        rh_layout *layout = made(nodes, count, replicas, partitions);

        check_table(layout);
        for (unsigned step = 0; step < 8; step++) {
            rh_layout_plan plan;

            count = draw_nodes(nodes, REPLICAS_MAX, zones);
            REQUIRE_OK(rh_layout_rebalance(layout, nodes, count, &plan));
            check_table(plan.layout);
            check_plan(layout, &plan);
            rh_free(plan.moves);
            rh_layout_free(layout);
            layout = plan.layout;
        }
        rh_layout_free(layout);
    }
}

static void nothing_moves_when_nothing_changes(void)
{
    rh_node nodes[NODES];
    size_t count = draw_nodes(nodes, 5, 3);
    rh_layout *layout = made(nodes, count, 3, 256);
    rh_layout_plan plan;

    REQUIRE_OK(rh_layout_rebalance(layout, nodes, count, &plan));
    CHECK_EQUAL(plan.moved, 0);
    CHECK_EQUAL(plan.lower_bound, 0);
    CHECK(plan.moves != NULL);
    rh_free(plan.moves);
    rh_layout_free(plan.layout);
    rh_layout_free(layout);
}

static void added_nodes_get_their_share_and_no_more_moves(void)
{
    rh_node nodes[NODES];
    rh_layout *layout;
    rh_layout_plan plan;

    for (size_t i = 0; i < NODES; i++) {
        snprintf(names[i], NAME_BYTES, "n%02zu", i);
        nodes[i] = node(names[i], 1, NULL);
    }
    layout = made(nodes, NODES - 1, 3, 4096);
    REQUIRE_OK(rh_layout_rebalance(layout, nodes, NODES, &plan));
    CHECK_EQUAL(plan.moved, 3 * 4096 / NODES);
    CHECK_EQUAL(plan.lower_bound, plan.moved);
    for (size_t i = 0; i < plan.moved; i++) {
        CHECK_EQUAL(plan.moves[i].target, NODES - 1);
    }
    rh_free(plan.moves);
    rh_layout_free(plan.layout);
    rh_layout_free(layout);
}

static void a_new_copy_takes_the_place_of_one_of_its_zone(void)
{
    rh_node before[] = {node("a", 1, "x"), node("b", 1, "y"), node("c", 1, "z")};
    rh_node after[] = {node("d", 1, "z"), node("e", 1, "x"), node("f", 1, "y")};
    rh_layout *layout = made(before, 3, 3, 64);
    rh_layout_plan plan;

    REQUIRE_OK(rh_layout_rebalance(layout, after, 3, &plan));
    CHECK_EQUAL(plan.moved, 3 * 64);
    for (size_t i = 0; i < plan.moved; i++) {
        /* a to e, b to f, c to d */
        CHECK_EQUAL(plan.moves[i].target, (plan.moves[i].source + 1) % 3);
    }
    rh_free(plan.moves);
    rh_layout_free(plan.layout);
    rh_layout_free(layout);
}

static void weights_of_any_size_are_shared_out(void)
{
    rh_node tiny[] = {node("a", 5e-324, NULL), node("b", 5e-324, NULL)};
    rh_node huge[] = {node("a", 1.7e308, NULL), node("b", 1.7e308, NULL), node("c", 1e300, NULL)};
    rh_node both[] = {node("a", 1e308, "x"), node("b", 1e-308, "x"), node("c", 1, "y")};
    rh_layout *layout = made(tiny, 2, 1, 16);

    check_table(layout);
    CHECK_EQUAL(layout->nodes[0].copies, 8);
    rh_layout_free(layout);
    layout = made(huge, 3, 1, 1 << 20);
    check_table(layout);
    CHECK_EQUAL(layout->nodes[2].copies, 0);
    CHECK_EQUAL(layout->nodes[0].copies, 1 << 19);
    rh_layout_free(layout);
    layout = made(both, 3, 2, 64);
    check_table(layout);
    CHECK_EQUAL(layout->nodes[0].copies, 64);
    CHECK_EQUAL(layout->nodes[2].copies, 64);
    rh_layout_free(layout);
    layout = made(both, 3, 3, 64);
    check_table(layout);
    CHECK_EQUAL(layout->nodes[1].copies, 64);
    rh_layout_free(layout);
}

static void a_key_lies_where_its_hash_says(void)
{
    rh_node nodes[] = {node("a", 1, NULL), node("b", 2, NULL), node("c", 1, NULL)};
    rh_layout *layout = made(nodes, 3, 2, 1 << 6);

    for (uint64_t key = 0; key < 500; key++) {
        uint32_t partition = 0, looked_up[2], listed[2];
        uint64_t hash = 0;

        REQUIRE_OK(rh_checksum(&key, sizeof key, &hash));
        CHECK_STATUS(rh_layout_partition(layout, &key, sizeof key, &partition), RH_OK);
        CHECK_EQUAL(partition, hash >> 58);
        CHECK_STATUS(rh_layout_lookup(layout, &key, sizeof key, looked_up), RH_OK);
        CHECK_STATUS(rh_layout_nodes(layout, partition, listed), RH_OK);
        CHECK(looked_up[0] == listed[0] && looked_up[1] == listed[1]);
    }
    rh_layout_free(layout);
}

static void refuses_null(const rh_layout *layout)
{
    rh_layout_options options = {.replicas = 1};
    rh_node node = {"a", 1, NULL, 0, 1};
    rh_layout_plan plan;
    rh_layout_info info;
    rh_layout_member member;
    uint8_t digest[RH_LAYOUT_DIGEST_BYTES];
    uint32_t out[3];
    void *data;
    size_t size;

    CHECK_STATUS(rh_layout_new(&node, 1, &options, NULL), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_layout_rebalance(NULL, &node, 1, &plan), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_layout_rebalance(layout, &node, 1, NULL), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_layout_get_info(NULL, &info), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_layout_get_info(layout, NULL), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_layout_get_member(NULL, 0, &member), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_layout_get_member(layout, 0, NULL), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_layout_find(NULL, "a", 1, out), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_layout_find(layout, "a", 1, NULL), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_layout_partition(NULL, "k", 1, out), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_layout_partition(layout, "k", 1, NULL), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_layout_nodes(NULL, 0, out), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_layout_nodes(layout, 0, NULL), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_layout_lookup(NULL, "k", 1, out), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_layout_lookup(layout, "k", 1, NULL), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_layout_digest(NULL, digest), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_layout_digest(layout, NULL), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_layout_dumps(NULL, &data, &size), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_layout_dumps(layout, NULL, &size), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_layout_dumps(layout, &data, NULL), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_layout_loads("", 0, NULL), RH_INVALID_ARGUMENT);
}

static void what_cannot_be_is_told(void)
{
    rh_node nodes[] = {node("b", 1, NULL), node("a", 1, NULL), node("b", 2, "z")};
    rh_node bad[] = {{NULL, 1, NULL, 0, 1},
                     {"a", 1, NULL, 1, 1},
                     node("a", -1, NULL),
                     node("a", NAN, NULL),
                     node("a", INFINITY, NULL)};
    rh_node endless[] = {{"a", SIZE_MAX, NULL, 0, 1}, {"b", SIZE_MAX, NULL, 0, 1}};
    rh_node half_endless[] = {{"a", SIZE_MAX - 1, "z", 5, 1}};
    uint32_t powers[] = {1, 8, 17, 4095, 1u << 21, UINT32_MAX};
    rh_layout *layout = NULL;
    rh_layout_options options = {.replicas = 1};
    uint32_t out[3];

    CHECK_STATUS(rh_layout_new(NULL, 1, &options, &layout), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_layout_new(NULL, 0, &options, &layout), RH_NOT_ENOUGH_NODES);
    CHECK_STATUS(rh_layout_new(nodes, 3, &options, &layout), RH_DUPLICATE_NODE);
    CHECK_STATUS(rh_layout_new(nodes, 2, NULL, &layout), RH_NOT_ENOUGH_NODES);
    CHECK_STATUS(rh_layout_new(endless, 2, &options, &layout), RH_TOO_LARGE);
    CHECK_STATUS(rh_layout_new(half_endless, 1, &options, &layout), RH_TOO_LARGE);
    CHECK_STATUS(rh_layout_new(nodes, RH_LAYOUT_NODES_MAX + 1, &options, &layout), RH_TOO_LARGE);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK_STATUS(rh_layout_new(&bad[i], 1, &options, &layout), RH_INVALID_ARGUMENT);
    }
    for (size_t i = 0; i < sizeof powers / sizeof *powers; i++) {
        options.partitions = powers[i];
        CHECK_STATUS(rh_layout_new(nodes, 2, &options, &layout), RH_INVALID_ARGUMENT);
    }
    CHECK(layout == NULL);
    layout = made(nodes, 2, 1, 16);
    refuses_null(layout);
    CHECK_STATUS(rh_layout_nodes(layout, 16, out), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_layout_partition(layout, NULL, 1, out), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_layout_lookup(layout, NULL, 1, out), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_layout_lookup(layout, NULL, 0, out), RH_OK);
    CHECK_STATUS(rh_layout_find(layout, NULL, 1, out), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_layout_find(layout, "c", 1, out), RH_UNKNOWN_NODE);
    CHECK_STATUS(rh_layout_find(layout, "b", 1, out), RH_OK);
    CHECK_EQUAL(out[0], 1);
    CHECK_STATUS(rh_layout_get_member(layout, 2, &(rh_layout_member){0}), RH_UNKNOWN_NODE);
    CHECK_STATUS(rh_layout_rebalance(layout, nodes, 3, &(rh_layout_plan){0}), RH_DUPLICATE_NODE);
    CHECK_STATUS(rh_layout_rebalance(layout, NULL, 0, &(rh_layout_plan){0}), RH_NOT_ENOUGH_NODES);
    layout->epoch = UINT64_MAX;
    CHECK_STATUS(rh_layout_rebalance(layout, nodes, 2, &(rh_layout_plan){0}), RH_TOO_LARGE);
    rh_layout_free(layout);
    rh_layout_free(NULL);
}

static void more_copies_than_can_be_counted_are_too_large(void)
{
    enum { MANY = 300 };
    static char many_names[MANY][NAME_BYTES];
    rh_node nodes[MANY];
    rh_layout_options options = {MANY, 1 << 20};
    rh_layout *layout = NULL;

    for (size_t i = 0; i < MANY; i++) {
        snprintf(many_names[i], NAME_BYTES, "n%zu", i);
        nodes[i] = node(many_names[i], 1, i % 2 ? "z" : NULL);
    }
    CHECK_STATUS(rh_layout_new(nodes, MANY, &options, &layout), RH_TOO_LARGE);
    layout = made(nodes, MANY, MANY, 16);
    CHECK_EQUAL(layout->nodes[0].copies, 16);
    rh_layout_free(layout);
}

int main(void)
{
    RUN(chains_of_rebalances_keep_every_promise);
    RUN(nothing_moves_when_nothing_changes);
    RUN(added_nodes_get_their_share_and_no_more_moves);
    RUN(a_new_copy_takes_the_place_of_one_of_its_zone);
    RUN(weights_of_any_size_are_shared_out);
    RUN(a_key_lies_where_its_hash_says);
    RUN(what_cannot_be_is_told);
    RUN(more_copies_than_can_be_counted_are_too_large);
    return rh_test_result();
}
