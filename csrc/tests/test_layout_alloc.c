/*
 * Goal: when memory runs out at any point, a call on layouts says RH_NO_MEMORY, leaks nothing and
 * leaves what it was given as it was. Method: the linker sends malloc and calloc here (--wrap),
 * and the n-th call fails, for every n until the operation gets through.
 */
#include <ringhold/layout.h>

#include "alloc_faults.h"
#include "rh_test.h"

static const rh_node nodes[] = {{"a", 1, "east", 4, 1},
                                {"b", 1, "west", 4, 2},
                                {"c", 1, NULL, 0, 0.5},
                                {"d", 1, "east", 4, 1},
                                {"e", 1, "west", 4, 1}};
static const rh_layout_options options = {.replicas = 2, .partitions = 16};

enum { NODES = sizeof nodes / sizeof *nodes };

static rh_layout *made(void)
{
    rh_layout *layout = NULL;

    REQUIRE_OK(rh_layout_new(nodes, NODES - 1, &options, &layout));
    return layout;
}

static rh_status make(const rh_layout *unused)
{
    rh_layout *layout = NULL;
    rh_status status = rh_layout_new(nodes, NODES, &options, &layout);

    (void)unused;
    CHECK((layout != NULL) == (status == RH_OK));
    rh_layout_free(layout);
    return status;
}

static rh_status rebalance(const rh_layout *layout)
{
    rh_layout_plan plan = {0};
    rh_status status = rh_layout_rebalance(layout, nodes + 1, NODES - 1, &plan);

    CHECK((plan.layout != NULL && plan.moves != NULL) == (status == RH_OK));
    rh_free(plan.moves);
    rh_layout_free(plan.layout);
    return status;
}

static rh_status digest(const rh_layout *layout)
{
    uint8_t out[RH_LAYOUT_DIGEST_BYTES] = {77};
    rh_status status = rh_layout_digest(layout, out);

    CHECK(status == RH_OK || out[0] == 77);
    return status;
}

static rh_status dump(const rh_layout *layout)
{
    void *data = NULL;
    size_t size = 0;
    rh_status status = rh_layout_dumps(layout, &data, &size);

    CHECK((data != NULL) == (status == RH_OK));
    rh_free(data);
    return status;
}

static void *bytes;
static size_t bytes_size;

static rh_status load(const rh_layout *unused)
{
    rh_layout *layout = NULL;
    rh_status status = rh_layout_loads(bytes, bytes_size, &layout);

    (void)unused;
    CHECK((layout != NULL) == (status == RH_OK));
    rh_layout_free(layout);
    return status;
}

/* Returns after how many allocations `operation` got through. */
static size_t fail_each(rh_status (*operation)(const rh_layout *))
{
    rh_layout *layout = made();
    uint8_t before[RH_LAYOUT_DIGEST_BYTES], after[RH_LAYOUT_DIGEST_BYTES];
    rh_status status = RH_NO_MEMORY;
    size_t n = 0;

    REQUIRE_OK(rh_layout_digest(layout, before));
    while (status == RH_NO_MEMORY) {
        calls_until_failure = ++n;
        status = operation(layout);
        /* it fails if and only if one of its allocations did */
        CHECK((calls_until_failure > 0) == (status == RH_OK));
        calls_until_failure = 0;
        REQUIRE_OK(rh_layout_digest(layout, after));
        CHECK(memcmp(before, after, sizeof before) == 0);
    }
    CHECK_STATUS(status, RH_OK);
    rh_layout_free(layout);
    return n - 1;
}

static void a_new_layout_survives_every_failed_allocation(void)
{
    CHECK(fail_each(make) >= 20);
}

static void a_rebalance_survives_every_failed_allocation(void)
{
    CHECK(fail_each(rebalance) >= 40);
}

static void bytes_and_digests_survive_every_failed_allocation(void)
{
    rh_layout *layout = made();

    REQUIRE_OK(rh_layout_dumps(layout, &bytes, &bytes_size));
    rh_layout_free(layout);
    CHECK(fail_each(digest) >= 3);
    CHECK(fail_each(dump) >= 2);
    CHECK(fail_each(load) >= 10);
    rh_free(bytes);
}

int main(void)
{
    RUN(a_new_layout_survives_every_failed_allocation);
    RUN(a_rebalance_survives_every_failed_allocation);
    RUN(bytes_and_digests_survive_every_failed_allocation);
    return rh_test_result();
}
