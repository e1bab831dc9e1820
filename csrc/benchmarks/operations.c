/*
 * One operation of the library, many times over, for counting instructions:
 *
 *     operations NAME TIMES
 *
 * The difference between two runs of different TIMES is what the operations alone cost, the
 * making of what they work on being the same in both. Nothing is printed: the exit code is 0 when
 * the operation exists and succeeded, 1 when it failed, 2 when there is none of that name.
 */
#include <stdlib.h>
#include <string.h>

#include <ringhold/ringhold.h>

enum { NODES = 100, KEYS = 4096, KEY_BYTES = 16, NAME_BYTES = 4, BLOCK_BYTES = 64 };

/* As much work as in KEYS single calls, so that the counts of a batch are per key. */
struct world {
    rh_ring *ring;
    char keys[KEYS][KEY_BYTES];
    const void *key_at[KEYS];
    size_t key_bytes[KEYS];
    uint64_t hashes[KEYS];
    uint32_t owners[KEYS];
    rh_lock_table *table;
    rh_lock_grants *grants;
};

static rh_status ring_lookup(struct world *world, size_t times)
{
    rh_status status = RH_OK;

    for (size_t i = 0; status == RH_OK && i < times; i++) {
        status = rh_ring_lookup(world->ring, world->keys[i % KEYS], KEY_BYTES, world->owners);
    }
    return status;
}

static rh_status ring_lookup_hash(struct world *world, size_t times)
{
    rh_status status = RH_OK;

    for (size_t i = 0; status == RH_OK && i < times; i++) {
        status = rh_ring_lookup_hash(world->ring, world->hashes[i % KEYS], world->owners);
    }
    return status;
}

static rh_status ring_lookup_keys(struct world *world, size_t times)
{
    rh_status status = RH_OK;

    for (size_t i = 0; status == RH_OK && i < times; i += KEYS) {
        status =
            rh_ring_lookup_keys(world->ring, world->key_at, world->key_bytes, KEYS, world->owners);
    }
    return status;
}

static rh_status ring_lookup_hashes(struct world *world, size_t times)
{
    rh_status status = RH_OK;

    for (size_t i = 0; status == RH_OK && i < times; i += KEYS) {
        status = rh_ring_lookup_hashes(world->ring, world->hashes, KEYS, world->owners);
    }
    return status;
}

static rh_status ring_replicas(struct world *world, size_t times)
{
    rh_status status = RH_OK;

    for (size_t i = 0; status == RH_OK && i < times; i++) {
        rh_ring_position position = {.high = world->hashes[i % KEYS]};

        status = rh_ring_replicas(world->ring, position, 3, NULL, world->owners, NULL);
    }
    return status;
}

static rh_status checksum(struct world *world, size_t times)
{
    rh_status status = RH_OK;

    for (size_t i = 0; status == RH_OK && i < times; i++) {
        const char *block = world->keys[i % (KEYS - BLOCK_BYTES / KEY_BYTES)];

        status = rh_checksum(block, BLOCK_BYTES, world->hashes);
    }
    return status;
}

static rh_status acquire_and_release(struct world *world, const char *name)
{
    uint64_t token;
    rh_status status =
        rh_lock_try_acquire(world->table, name, KEY_BYTES, 1, RH_LOCK_EXCLUSIVE, &token);

    return status == RH_OK ? rh_lock_release(world->table, name, KEY_BYTES, 1, world->grants)
                           : status;
}

static rh_status lock_pair(struct world *world, size_t times)
{
    rh_status status = RH_OK;

    for (size_t i = 0; status == RH_OK && i < times; i++) {
        status = acquire_and_release(world, world->keys[0]);
    }
    return status;
}

static rh_status lock_pair_of_many_names(struct world *world, size_t times)
{
    rh_status status = RH_OK;

    for (size_t i = 0; status == RH_OK && i < times; i++) {
        status = acquire_and_release(world, world->keys[i % KEYS]);
    }
    return status;
}

static const struct operation {
    const char *name;
    rh_status (*run)(struct world *world, size_t times);
} operations[] = {
    {"ring_lookup", ring_lookup},
    {"ring_lookup_hash", ring_lookup_hash},
    {"ring_lookup_keys", ring_lookup_keys},
    {"ring_lookup_hashes", ring_lookup_hashes},
    {"ring_replicas", ring_replicas},
    {"lock_pair", lock_pair},
    {"lock_pair_of_many_names", lock_pair_of_many_names},
    {"checksum", checksum},
};

static rh_status make_keys(struct world *world)
{
    rh_status status = RH_OK;

    for (size_t i = 0; status == RH_OK && i < KEYS; i++) {
        uint8_t bytes[RH_DIGEST_BYTES];

        status = rh_digest(&i, sizeof i, bytes);
        memcpy(world->keys[i], bytes, KEY_BYTES);
        world->key_at[i] = world->keys[i];
        world->key_bytes[i] = KEY_BYTES;
        if (status == RH_OK) {
            status = rh_checksum(world->keys[i], KEY_BYTES, &world->hashes[i]);
        }
    }
    return status;
}

static rh_status make_ring(struct world *world)
{
    rh_node nodes[NODES] = {{0}};
    char names[NODES][NAME_BYTES];

    for (unsigned i = 0; i < NODES; i++) {
        names[i][0] = 'n';
        names[i][1] = '-';
        names[i][2] = (char)('0' + i / 10);
        names[i][3] = (char)('0' + i % 10);
        nodes[i].name = names[i];
        nodes[i].name_bytes = NAME_BYTES;
        nodes[i].weight = 1;
    }
    return rh_ring_new(nodes, NODES, NULL, &world->ring);
}

int main(int argc, char **argv)
{
    struct world *world = calloc(1, sizeof *world);
    int code = 2;

    if (world == NULL || argc != 3 || make_keys(world) != RH_OK || make_ring(world) != RH_OK ||
        rh_lock_table_new(NULL, &world->table) != RH_OK ||
        rh_lock_grants_new(&world->grants) != RH_OK) {
        goto out;
    }
    for (size_t i = 0; i < sizeof operations / sizeof *operations; i++) {
        if (strcmp(operations[i].name, argv[1]) == 0) {
            code = operations[i].run(world, strtoul(argv[2], NULL, 10)) == RH_OK ? 0 : 1;
        }
    }
out:
    if (world) {
        rh_lock_grants_free(world->grants);
        rh_lock_table_free(world->table);
        rh_ring_free(world->ring);
    }
    free(world);
    return code;
}
