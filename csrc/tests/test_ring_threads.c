/*
 * Goal: any number of threads look keys up in a ring while another thread puts edited rings in its
 * place and the last reader of each frees it. Method: eight readers count themselves in and out of
 * whatever ring is shared and compare every way of looking up with the others; under TSan this
 * also says that a lookup writes nothing that another thread could see.
 */
#include <pthread.h>

#include <ringhold/ring.h>

#include "rh_test.h"

enum { READERS = 8, NODES = 12, EDITS = 300, KEYS = 64 };

/* What the writer replaces; the counts and the pointer are guarded, the ring needs no guard. */
struct version {
    rh_ring *ring;
    unsigned users;
};

struct shared {
    pthread_mutex_t mutex;
    struct version *current;
    bool done;
};

struct reader {
    struct shared *shared;
    unsigned number;
    unsigned rounds;
    unsigned failures;
};

static struct version *version_of(rh_ring *ring)
{
    struct version *version = malloc(sizeof *version);

    if (version == NULL) {
        exit(99);
    }
    version->ring = ring;
    version->users = 1;
    return version;
}

static void leave(struct shared *shared, struct version *version)
{
    bool last;

    pthread_mutex_lock(&shared->mutex);
    last = --version->users == 0;
    pthread_mutex_unlock(&shared->mutex);
    if (last) {
        rh_ring_free(version->ring);
        free(version);
    }
}

static struct version *enter(struct shared *shared, bool *done)
{
    struct version *version;

    pthread_mutex_lock(&shared->mutex);
    version = shared->current;
    version->users++;
    *done = shared->done;
    pthread_mutex_unlock(&shared->mutex);
    return version;
}

/* How many answers about one ring contradict each other. */
static unsigned contradictions(const rh_ring *ring, uint64_t seed)
{
    uint64_t numbers[KEYS];
    const void *keys[KEYS];
    size_t sizes[KEYS];
    uint32_t owners[KEYS];
    unsigned found = 0;

    for (unsigned i = 0; i < KEYS; i++) {
        numbers[i] = seed * KEYS + i;
        keys[i] = &numbers[i];
        sizes[i] = sizeof numbers[i];
    }
    found += rh_ring_lookup_keys(ring, keys, sizes, KEYS, owners) != RH_OK;
    for (unsigned i = 0; i < KEYS; i++) {
        uint32_t owner = UINT32_MAX, replicas[3] = {0};
        rh_ring_position position = {0};
        rh_ring_member member = {.present = false};

        found += rh_ring_lookup(ring, keys[i], sizes[i], &owner) != RH_OK;
        found += rh_ring_locate(ring, keys[i], sizes[i], &position) != RH_OK;
        found += rh_ring_replicas(ring, position, 3, NULL, replicas, NULL) != RH_OK;
        found += rh_ring_get_member(ring, owner, &member) != RH_OK || !member.present;
        found += owner != owners[i] || owner != replicas[0];
    }
    return found;
}

static void *read_until_done(void *argument)
{
    struct reader *reader = argument;
    bool done = false;

    for (uint64_t seed = reader->number; !done; seed += READERS) {
        struct version *version = enter(reader->shared, &done);

        reader->failures += contradictions(version->ring, seed);
        leave(reader->shared, version);
        reader->rounds++;
    }
    return NULL;
}

static rh_node node_of(const char *name, double weight)
{
    rh_node node = {name, 1, name[0] % 2 ? "odd" : "even", name[0] % 2 ? 3 : 4, weight};

    return node;
}

/* Every edit leaves at least three nodes, so that each key has three replicas. */
static rh_ring *edited(const rh_ring *ring, unsigned step)
{
    static const char names[] = "abcdefghijkl";
    char name[1] = {names[3 + step % (NODES - 3)]};
    rh_ring_change change = {.kind = RH_RING_REMOVE, .node = node_of(name, 1 + step % 3)};
    uint32_t number;
    rh_ring *result = NULL;

    if (rh_ring_find(ring, name, 1, &number) != RH_OK) {
        change.kind = RH_RING_ADD;
    } else if (step % 2) {
        change.kind = RH_RING_REWEIGHT;
    }
    REQUIRE_OK(rh_ring_edit(ring, &change, 1, &result));
    return result;
}

static void replace(struct shared *shared, rh_ring *ring, bool done)
{
    struct version *old, *new = version_of(ring);

    pthread_mutex_lock(&shared->mutex);
    old = shared->current;
    shared->current = new;
    shared->done = done;
    pthread_mutex_unlock(&shared->mutex);
    leave(shared, old);
}

static rh_ring *first_ring(void)
{
    static const char *const names[] = {"a", "b", "c"};
    rh_node nodes[3];
    rh_ring_options options = {.vnodes = 16};
    rh_ring *ring = NULL;

    for (unsigned i = 0; i < 3; i++) {
        nodes[i] = node_of(names[i], 1);
    }
    REQUIRE_OK(rh_ring_new(nodes, 3, &options, &ring));
    return ring;
}

static void readers_see_whole_rings_while_one_writer_edits(void)
{
    struct shared shared = {.current = version_of(first_ring())};
    struct reader readers[READERS];
    pthread_t threads[READERS];

    CHECK_EQUAL(pthread_mutex_init(&shared.mutex, NULL), 0);
    for (unsigned i = 0; i < READERS; i++) {
        readers[i] = (struct reader){.shared = &shared, .number = i};
        CHECK_EQUAL(pthread_create(&threads[i], NULL, read_until_done, &readers[i]), 0);
    }
    for (unsigned step = 0; step < EDITS; step++) {
        replace(&shared, edited(shared.current->ring, step), step + 1 == EDITS);
    }
    for (unsigned i = 0; i < READERS; i++) {
        CHECK_EQUAL(pthread_join(threads[i], NULL), 0);
        CHECK_EQUAL(readers[i].failures, 0);
        CHECK(readers[i].rounds > 0);
    }
    leave(&shared, shared.current);
    pthread_mutex_destroy(&shared.mutex);
}

int main(void)
{
    RUN(readers_see_whole_rings_while_one_writer_edits);
    return rh_test_result();
}
