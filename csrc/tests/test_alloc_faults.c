/*
 * Goal: when memory runs out at any point, a call says RH_NO_MEMORY, leaks nothing and leaves
 * what it was given as it was. Method: the linker sends malloc and calloc here (--wrap), and the
 * n-th call fails, for every n until the operation gets through.
 */
#include <ringhold/checksum.h>
#include <ringhold/ring.h>

#include "alloc_faults.h"
#include "rh_test.h"
#include "ring_internal.h"

static const rh_node nodes[] = {
    {"a", 1, "east", 4, 1}, {"b", 1, "west", 4, 2}, {"c", 1, NULL, 0, 5}, {"d", 1, "east", 4, 1}};

enum { NODES = sizeof nodes / sizeof *nodes };

static rh_ring_options options; /* the profile all operations are tried in */

static rh_ring *made(void)
{
    rh_ring *ring = NULL;

    REQUIRE_OK(rh_ring_new(nodes, NODES, &options, &ring));
    return ring;
}

static rh_status make(const rh_ring *unused)
{
    rh_ring *ring = NULL;
    rh_status status = rh_ring_new(nodes, NODES, &options, &ring);

    (void)unused;
    CHECK((ring != NULL) == (status == RH_OK));
    rh_ring_free(ring);
    return status;
}

static rh_status edit(const rh_ring *ring)
{
    rh_ring_change changes[] = {{RH_RING_ADD, {"e", 1, "west", 4, 1}},
                                {RH_RING_REMOVE, {"b", 1, NULL, 0, 0}},
                                {RH_RING_REWEIGHT, {"c", 1, NULL, 0, 2}}};
    rh_ring *edited = NULL;
    rh_status status = rh_ring_edit(ring, changes, 3, &edited);

    CHECK((edited != NULL) == (status == RH_OK));
    rh_ring_free(edited);
    return status;
}

static rh_status replicate(const rh_ring *ring)
{
    uint32_t exclude = 1, out[NODES] = {77};
    rh_ring_replicas_options but = {&exclude, 1};
    size_t zones = 88;
    rh_status status = rh_ring_replicas(ring, (rh_ring_position){1, 0}, 3, &but, out, &zones);

    CHECK(status == RH_OK || (out[0] == 77 && zones == 88));
    return status;
}

static rh_status take_digest(const rh_ring *ring)
{
    uint8_t digest[RH_RING_DIGEST_BYTES] = {77};
    const uint8_t before[RH_RING_DIGEST_BYTES] = {77};
    rh_status status = rh_ring_digest(ring, digest);

    CHECK((memcmp(digest, before, sizeof digest) == 0) == (status != RH_OK));
    return status;
}

static rh_status dump(const rh_ring *ring)
{
    void *data = NULL;
    size_t size = 0;
    rh_status status = rh_ring_dumps(ring, &data, &size);

    CHECK((data != NULL && size > 0) == (status == RH_OK));
    rh_free(data);
    return status;
}

/* Dumps of rings of more nodes outgrow what is allocated first. */
static rh_status dump_much(const rh_ring *unused)
{
    char names[40][8];
    rh_node many[40] = {{0}};
    size_t failing = calls_until_failure;
    rh_ring *ring = NULL;
    rh_status status;

    (void)unused;
    calls_until_failure = 0;
    for (size_t i = 0; i < 40; i++) {
        snprintf(names[i], sizeof names[i], "n%zu", i);
        many[i] = (rh_node){names[i], strlen(names[i]), NULL, 0, 1};
    }
    REQUIRE_OK(rh_ring_new(many, 40, &options, &ring));
    calls_until_failure = failing;
    status = dump(ring);
    rh_ring_free(ring);
    return status;
}

static void *dumped;
static size_t dumped_bytes;

static rh_status load(const rh_ring *unused)
{
    rh_ring *ring = NULL;
    rh_status status = rh_ring_loads(dumped, dumped_bytes, &ring);

    (void)unused;
    CHECK((ring != NULL) == (status == RH_OK));
    rh_ring_free(ring);
    return status;
}

static rh_ring *other;

static rh_status differ(const rh_ring *ring)
{
    rh_ring_move *moves = NULL;
    size_t count = 0;
    rh_status status = rh_ring_diff(ring, other, &moves, &count);

    CHECK((moves != NULL && count > 0) == (status == RH_OK));
    rh_free(moves);
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
    CHECK(fail_each(replicate) >= 5);
}

static void digest_streams_survive_every_failed_allocation(void)
{
    rh_digest_stream *stream = NULL, *copy = NULL;

    calls_until_failure = 1;
    CHECK_STATUS(rh_digest_stream_new(&stream), RH_NO_MEMORY);
    CHECK(stream == NULL);
    REQUIRE_OK(rh_digest_stream_new(&stream));
    calls_until_failure = 1;
    CHECK_STATUS(rh_digest_stream_copy(stream, &copy), RH_NO_MEMORY);
    CHECK(copy == NULL);
    rh_digest_stream_free(stream);
}

static void digests_survive_every_failed_allocation(void)
{
    bool ties = options.profile == RH_RING_LIBMEMCACHED;

    CHECK_EQUAL(fail_each(take_digest), ties ? 2 : 1);
}

static void dumps_survive_every_failed_allocation(void)
{
    CHECK_EQUAL(fail_each(dump), 1);
    CHECK(fail_each(dump_much) >= 2);
}

static void loads_survive_every_failed_allocation(void)
{
    rh_ring *ring = made();

    REQUIRE_OK(rh_ring_dumps(ring, &dumped, &dumped_bytes));
    CHECK(fail_each(load) >= 10);
    rh_free(dumped);
    rh_ring_free(ring);
}

static void diffs_survive_every_failed_allocation(void)
{
    rh_ring_change remove = {RH_RING_REMOVE, {"b", 1, NULL, 0, 0}};
    rh_ring *ring = made();

    REQUIRE_OK(rh_ring_edit(ring, &remove, 1, &other));
    CHECK_EQUAL(fail_each(differ), 2);
    rh_ring_free(other);
    rh_ring_free(ring);
}

int main(void)
{
    static const rh_ring_profile profiles[] = {RH_RING_RINGHOLD, RH_RING_LIBMEMCACHED,
                                               RH_RING_UHASHRING};

    for (size_t i = 0; i < sizeof profiles / sizeof *profiles; i++) {
        options.profile = profiles[i];
        RUN(a_new_ring_survives_every_failed_allocation);
        RUN(an_edit_survives_every_failed_allocation);
        RUN(replicas_survive_every_failed_allocation);
        RUN(digests_survive_every_failed_allocation);
        RUN(dumps_survive_every_failed_allocation);
        RUN(loads_survive_every_failed_allocation);
        if (options.profile != RH_RING_UHASHRING) {
            RUN(diffs_survive_every_failed_allocation);
        }
    }
    RUN(digest_streams_survive_every_failed_allocation);
    return rh_test_result();
}
