/*
 * Goal: when memory runs out at any point, a call of the lock table says RH_NO_MEMORY, leaks
 * nothing and leaves everything as it was; and a warmed up table asks for no memory at all.
 * Method: the linker sends all allocations here (--wrap); the n-th one fails, for every n until
 * the call gets through, and what can be read of the table is compared before and after.
 */
#include <ringhold/lock_table.h>

#include "alloc_faults.h"
#include "rh_test.h"

enum { NAMES = 80, NAME_BYTES = 40, QUEUE = 40 };

static char names[NAMES][NAME_BYTES];

/* Holders and waiters of every name, one after the other. */
struct picture {
    uint64_t owners[2 * NAMES + 2 * QUEUE];
    uint64_t modes[2 * NAMES + 2 * QUEUE];
    size_t counts[2 * NAMES];
    size_t size;
};

static struct picture picture_of(rh_lock_table *table)
{
    struct picture picture;
    size_t at = 0;

    memset(&picture, 0, sizeof picture);
    for (size_t i = 0; i < (size_t)2 * NAMES; i++) {
        rh_lock_party *parties = NULL;

        REQUIRE_OK((i % 2 ? rh_lock_get_waiters : rh_lock_get_holders)(
            table, names[i / 2], NAME_BYTES, &parties, &picture.counts[i]));
        for (size_t k = 0; k < picture.counts[i]; k++) {
            picture.owners[at] = parties[k].owner;
            picture.modes[at++] = parties[k].mode;
        }
        rh_free(parties);
    }
    REQUIRE_OK(rh_lock_table_size(table, &picture.size));
    return picture;
}

struct scene {
    rh_lock_table *table;
    rh_lock_grants *grants;
};

static void acquire(const struct scene *scene, int name, uint64_t owner, rh_lock_mode mode)
{
    uint64_t token;

    REQUIRE_OK(rh_lock_request(scene->table, names[name], NAME_BYTES, owner, mode, &token));
}

/* Owner 1 holds name 0, for which QUEUE others wait, and it waits for name 1 of owner 2. */
static struct scene crowded(void)
{
    struct scene scene = {NULL, NULL};

    REQUIRE_OK(rh_lock_table_new(NULL, &scene.table));
    REQUIRE_OK(rh_lock_grants_new(&scene.grants));
    acquire(&scene, 0, 1, RH_LOCK_EXCLUSIVE);
    acquire(&scene, 1, 2, RH_LOCK_EXCLUSIVE);
    acquire(&scene, 1, 1, RH_LOCK_SHARED);
    for (uint64_t i = 0; i < QUEUE; i++) {
        acquire(&scene, 0, 100 + i, RH_LOCK_SHARED);
    }
    REQUIRE_OK(rh_lock_renew(scene.table, 1, 10));
    return scene;
}

static struct scene empty(void)
{
    struct scene scene = {NULL, NULL};

    REQUIRE_OK(rh_lock_table_new(NULL, &scene.table));
    REQUIRE_OK(rh_lock_grants_new(&scene.grants));
    return scene;
}

/* Owner 2 holds name 1. */
static struct scene held(void)
{
    struct scene scene = empty();

    acquire(&scene, 1, 2, RH_LOCK_EXCLUSIVE);
    return scene;
}

static void close_scene(struct scene scene)
{
    rh_lock_table_free(scene.table);
    rh_lock_grants_free(scene.grants);
}

static rh_status try_one(const struct scene *scene)
{
    uint64_t token = 77;
    rh_status status =
        rh_lock_try_acquire(scene->table, names[5], NAME_BYTES, 7, RH_LOCK_EXCLUSIVE, &token);

    CHECK((token != 77) == (status == RH_OK));
    return status;
}

static rh_status try_many(const struct scene *scene)
{
    const void *texts[NAMES];
    size_t bytes[NAMES];
    uint64_t tokens[NAMES] = {77};
    rh_status status;

    for (int i = 0; i < NAMES; i++) {
        texts[i] = names[i];
        bytes[i] = NAME_BYTES;
    }
    status = rh_lock_acquire_many(scene->table, texts, bytes, NAMES, 7, RH_LOCK_EXCLUSIVE, tokens);
    CHECK((tokens[0] != 77) == (status == RH_OK));
    return status;
}

static rh_status queue_up(const struct scene *scene)
{
    uint64_t token = 77;
    rh_status status =
        rh_lock_request(scene->table, names[1], NAME_BYTES, 7, RH_LOCK_EXCLUSIVE, &token);

    CHECK((token != 77) == (status == RH_OK));
    return status;
}

static rh_status release_one(const struct scene *scene)
{
    return rh_lock_release(scene->table, names[0], NAME_BYTES, 1, scene->grants);
}

static rh_status release_all(const struct scene *scene)
{
    return rh_lock_release_owner(scene->table, 1, scene->grants);
}

static rh_status downgrade(const struct scene *scene)
{
    return rh_lock_downgrade(scene->table, names[0], NAME_BYTES, 1, RH_LOCK_SHARED, scene->grants);
}

static rh_status cancel(const struct scene *scene)
{
    return rh_lock_cancel(scene->table, names[1], NAME_BYTES, 1, scene->grants);
}

static rh_status expire(const struct scene *scene)
{
    return rh_lock_expire(scene->table, 11, scene->grants);
}

static rh_status renew(const struct scene *scene)
{
    return rh_lock_renew(scene->table, 7, 10);
}

/* Returns after how many allocations the operation got through. */
static size_t fail_each(struct scene (*set)(void), rh_status (*operation)(const struct scene *))
{
    for (size_t n = 1;; n++) {
        struct scene scene = set();
        struct picture before = picture_of(scene.table), after;
        const rh_lock_grant *items;
        size_t count = 0;
        rh_status status;

        calls_until_failure = n;
        status = operation(&scene);
        if (calls_until_failure > 0) {
            calls_until_failure = 0;
            CHECK_STATUS(status, RH_OK);
            close_scene(scene);
            return n - 1;
        }
        CHECK_STATUS(status, RH_NO_MEMORY);
        after = picture_of(scene.table);
        CHECK(memcmp(&before, &after, sizeof before) == 0);
        REQUIRE_OK(rh_lock_grants_read(scene.grants, &items, &count));
        CHECK_EQUAL(count, 0);
        /* The same call succeeds later, and what it takes and gives is whole. */
        CHECK_STATUS(operation(&scene), RH_OK);
        close_scene(scene);
    }
}

static void a_new_table_survives_a_failed_allocation(void)
{
    rh_lock_table *table = NULL;
    rh_lock_grants *grants = NULL;

    calls_until_failure = 1;
    CHECK_STATUS(rh_lock_table_new(NULL, &table), RH_NO_MEMORY);
    calls_until_failure = 1;
    CHECK_STATUS(rh_lock_grants_new(&grants), RH_NO_MEMORY);
    CHECK(table == NULL && grants == NULL);
}

static void acquiring_survives_every_failed_allocation(void)
{
    CHECK(fail_each(empty, try_one) >= 6);
    CHECK(fail_each(empty, try_many) >= 100);
    CHECK(fail_each(held, queue_up) >= 5);
}

static void giving_up_survives_every_failed_allocation(void)
{
    CHECK_EQUAL(fail_each(crowded, release_one), 2);
    CHECK_EQUAL(fail_each(crowded, release_all), 2);
    CHECK_EQUAL(fail_each(crowded, downgrade), 2);
    CHECK_EQUAL(fail_each(crowded, cancel), 2);
    CHECK_EQUAL(fail_each(crowded, expire), 2);
}

static void renewing_survives_every_failed_allocation(void)
{
    CHECK(fail_each(empty, renew) >= 3);
}

static void work(const struct scene *scene)
{
    for (uint64_t i = 0; i < QUEUE; i++) {
        acquire(scene, 0, 100 + i, i % 2 ? RH_LOCK_SHARED : RH_LOCK_EXCLUSIVE);
    }
    REQUIRE_OK(rh_lock_renew(scene->table, 100, 10));
    REQUIRE_OK(rh_lock_expire(scene->table, 11, scene->grants));
    for (uint64_t i = 1; i < QUEUE; i++) {
        REQUIRE_OK(rh_lock_release_owner(scene->table, 100 + i, scene->grants));
    }
    REQUIRE_OK(try_many(scene));
    REQUIRE_OK(rh_lock_release_owner(scene->table, 7, scene->grants));
}

static void a_warm_table_allocates_nothing(void)
{
    struct scene scene = empty();
    size_t before;

    work(&scene);
    before = calls;
    CHECK(before > 0);
    work(&scene);
    CHECK_EQUAL(calls - before, 0);
    close_scene(scene);
}

/* So many names at once, all given up again; returns how often memory was asked for. */
static size_t hold_at_once(const struct scene *scene, int count)
{
    size_t before = calls;
    char name[NAME_BYTES] = {0};
    uint64_t token;

    for (int i = 0; i < count; i++) {
        snprintf(name, sizeof name, "many/%d", i);
        REQUIRE_OK(rh_lock_try_acquire(scene->table, name, 16, 1, RH_LOCK_EXCLUSIVE, &token));
    }
    REQUIRE_OK(rh_lock_release_owner(scene->table, 1, scene->grants));
    return calls - before;
}

/* What comes again finds its memory; after a time with little to do it has been given back. */
static void memory_comes_back(void)
{
    enum { MANY = 100000, FEW = 1000 };
    struct scene scene = empty();
    size_t grown = hold_at_once(&scene, MANY);

    CHECK(grown > 0);
    CHECK_EQUAL(hold_at_once(&scene, MANY), 0);
    CHECK_EQUAL(hold_at_once(&scene, FEW), 0);
    CHECK_EQUAL(hold_at_once(&scene, MANY), grown);
    close_scene(scene);
}

int main(void)
{
    for (int i = 0; i < NAMES; i++) {
        snprintf(names[i], NAME_BYTES, "a name too long for an entry, %d", i);
    }
    RUN(a_new_table_survives_a_failed_allocation);
    RUN(acquiring_survives_every_failed_allocation);
    RUN(giving_up_survives_every_failed_allocation);
    RUN(renewing_survives_every_failed_allocation);
    RUN(a_warm_table_allocates_nothing);
    RUN(memory_comes_back);
    return rh_test_result();
}
