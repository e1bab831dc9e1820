/*
 * Goal: when memory runs out at any point, a call says RH_NO_MEMORY, leaks nothing and leaves
 * what it was given as it was. Method: the linker sends malloc and calloc here (--wrap), and the
 * n-th call fails, for every n until the operation gets through.
 */
#include <ringhold/checksum.h>
#include <ringhold/ring.h>

#include "rh_test.h"
#include "ring_internal.h"

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);

static size_t calls_until_failure; /* 0: none fails */

static bool fails_now(void)
{
    return calls_until_failure > 0 && --calls_until_failure == 0;
}

void *__wrap_malloc(size_t size)
{
    return fails_now() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    return fails_now() ? NULL : __real_calloc(count, size);
}

static const rh_node nodes[] = {
    {"a", 1, "east", 4, 1}, {"b", 1, "west", 4, 2}, {"c", 1, NULL, 0, 0.5}, {"d", 1, "east", 4, 1}};

enum { NODES = sizeof nodes / sizeof *nodes };

static rh_ring *made(void)
{
    rh_ring *ring = NULL;

    REQUIRE_OK(rh_ring_new(nodes, NODES, NULL, &ring));
    return ring;
}

static rh_status make(const rh_ring *unused)
{
    rh_ring *ring = NULL;
    rh_status status = rh_ring_new(nodes, NODES, NULL, &ring);

    (void)unused;
    CHECK((ring != NULL) == (status == RH_OK));
    rh_ring_free(ring);
    return status;
}

static rh_status edit(const rh_ring *ring)
{
    rh_ring_change changes[] = {{RH_RING_ADD, {"e", 1, "west", 4, 1}},
                                {RH_RING_REMOVE, {"b", 1, NULL, 0, 0}}};
    rh_ring *edited = NULL;
    rh_status status = rh_ring_edit(ring, changes, 2, &edited);

    CHECK((edited != NULL) == (status == RH_OK));
    rh_ring_free(edited);
    return status;
}

static rh_status replicate(const rh_ring *ring)
{
    uint32_t exclude = 1, out[NODES] = {77};
    rh_ring_replicas_options options = {&exclude, 1};
    size_t zones = 88;
    rh_status status = rh_ring_replicas(ring, (rh_ring_position){1, 0}, 3, &options, out, &zones);

    CHECK(status == RH_OK || (out[0] == 77 && zones == 88));
    return status;
}

/* Returns after how many allocations `operation` got through. */
static size_t fail_each(rh_status (*operation)(const rh_ring *))
{
    for (size_t n = 1;; n++) {
        rh_ring *ring = made();
        rh_ring_info info;
        rh_status status;

        calls_until_failure = n;
        status = operation(ring);
        if (calls_until_failure > 0) {
            calls_until_failure = 0;
            CHECK_STATUS(status, RH_OK);
            rh_ring_free(ring);
            return n - 1;
        }
        CHECK_STATUS(status, RH_NO_MEMORY);
        CHECK_STATUS(rh_ring_get_info(ring, &info), RH_OK);
        CHECK_EQUAL(info.nodes, NODES);
        rh_ring_free(ring);
    }
}

static void a_new_ring_survives_every_failed_allocation(void)
{
    CHECK(fail_each(make) >= 10);
}

static void an_edit_survives_every_failed_allocation(void)
{
    CHECK(fail_each(edit) >= 10);
}

static void replicas_survive_every_failed_allocation(void)
{
    CHECK_EQUAL(fail_each(replicate), 5);
}

static void digest_streams_survive_every_failed_allocation(void)
{
    rh_digest_stream *stream = NULL, *other = NULL;

    calls_until_failure = 1;
    CHECK_STATUS(rh_digest_stream_new(&stream), RH_NO_MEMORY);
    CHECK(stream == NULL);
    REQUIRE_OK(rh_digest_stream_new(&stream));
    calls_until_failure = 1;
    CHECK_STATUS(rh_digest_stream_copy(stream, &other), RH_NO_MEMORY);
    CHECK(other == NULL);
    rh_digest_stream_free(stream);
}

int main(void)
{
    RUN(a_new_ring_survives_every_failed_allocation);
    RUN(an_edit_survives_every_failed_allocation);
    RUN(replicas_survive_every_failed_allocation);
    RUN(digest_streams_survive_every_failed_allocation);
    return rh_test_result();
}
