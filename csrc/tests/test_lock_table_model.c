/*
 * Goal: whatever is called in whatever order, the table answers as its description says.
 * Method: a million random calls (fewer under a sanitizer), each made of the table and of a model that looks at everything
 * every time; answers are compared, and in between all that can be read of the table. The calls
 * depend on a seed that is printed, and can be given as the argument.
 */
#include "lock_table_model.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { CALLS = 100000 };
#else
enum { CALLS = 1000000 };
#endif

enum { BATCH_MAX = 4 };

static char names[NAMES][RH_LOCK_NAME_BYTES_MAX];
static const size_t name_bytes[NAMES] = {1, 13, 24, 25, 64, 700, RH_LOCK_NAME_BYTES_MAX};

static uint64_t state = 1;

/* A linear congruential generator: Knuth's constants. */
static uint64_t below(uint64_t bound)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (state >> 33) % bound;
}

static struct world {
    rh_lock_table *table;
    rh_lock_grants *grants;
    struct model model;
    uint64_t last_token;
    int64_t now;
    size_t deadlocks, waits, granted;
} world;

static void expect_new_token(uint64_t token)
{
    CHECK(token > world.last_token);
    world.last_token = token > world.last_token ? token : world.last_token;
}

/* Those of one name come in the model's order; names come in any. */
static void compare_grants(const struct model_grants *expected)
{
    const rh_lock_grant *found;
    bool matched[GRANTS_MAX] = {false};
    size_t count;

    CHECK_STATUS(rh_lock_grants_read(world.grants, &found, &count), RH_OK);
    CHECK_EQUAL(count, expected->count);
    for (size_t i = 0; i < count && i < expected->count; i++) {
        size_t k = 0;

        while (k < expected->count &&
               (matched[k] || found[i].name_bytes != name_bytes[expected->items[k].name])) {
            k++;
        }
        CHECK(k < expected->count);
        if (k < expected->count) {
            const struct model_grant *grant = &expected->items[k];

            matched[k] = true;
            CHECK(memcmp(found[i].name, names[grant->name], found[i].name_bytes) == 0);
            CHECK_EQUAL(found[i].owner, grant->owner);
            CHECK_EQUAL(found[i].mode, grant->mode);
            expect_new_token(found[i].token);
            world.model.holds[grant->name][grant->owner].token = found[i].token;
        }
    }
    world.granted += count;
}

/* An owner that has just let go of its last loses its deadline. */
static void forget_if_idle(uint64_t owner)
{
    world.model.limited[owner] = world.model.limited[owner] && !model_idle(&world.model, owner);
}

static void acquire(int name, uint64_t owner, rh_lock_mode mode, bool may_wait)
{
    struct wish wish;
    uint64_t token = 0;
    int where;
    size_t place;
    bool waits = model_waits(&world.model, owner, &where, &place);
    bool held = world.model.holds[name][owner].mode != RH_LOCK_NONE;
    rh_status expected = model_try(&world.model, name, owner, mode, &wish);

    if (may_wait && waits) {
        expected = RH_INVALID_ARGUMENT;
    } else if (may_wait && expected == RH_CONFLICT) {
        expected = model_enqueue(&world.model, name, &wish);
        world.waits++;
        world.deadlocks += expected == RH_DEADLOCK;
        CHECK_STATUS(
            rh_lock_request(world.table, names[name], name_bytes[name], owner, mode, &token),
            expected);
        CHECK_EQUAL(token, 0);
        return;
    }
    CHECK_STATUS((may_wait ? rh_lock_request : rh_lock_try_acquire)(
                     world.table, names[name], name_bytes[name], owner, mode, &token),
                 expected);
    if (expected == RH_OK && held && world.model.holds[name][owner].mode == wish.mode) {
        CHECK_EQUAL(token, world.model.holds[name][owner].token);
        world.model.holds[name][owner].count++;
    } else if (expected == RH_OK) {
        expect_new_token(token);
        model_take(&world.model, name, &wish, token);
    }
}

static void acquire_many(uint64_t owner, rh_lock_mode mode)
{
    size_t count = 1 + below(BATCH_MAX), bytes[BATCH_MAX];
    const void *texts[BATCH_MAX];
    int picked[BATCH_MAX];
    uint64_t tokens[BATCH_MAX];
    rh_status expected = RH_OK;
    struct wish wish;

    for (size_t i = 0; i < count; i++) {
        picked[i] = (int)below(NAMES);
        texts[i] = names[picked[i]];
        bytes[i] = name_bytes[picked[i]];
        if (model_try(&world.model, picked[i], owner, mode, &wish) != RH_OK) {
            expected = RH_CONFLICT;
        }
    }
    CHECK_STATUS(rh_lock_acquire_many(world.table, texts, bytes, count, owner, mode, tokens),
                 expected);
    for (size_t i = 0; i < count && expected == RH_OK; i++) {
        bool held = world.model.holds[picked[i]][owner].mode != RH_LOCK_NONE;

        (void)model_try(&world.model, picked[i], owner, mode, &wish);
        if (held && world.model.holds[picked[i]][owner].mode == wish.mode) {
            CHECK_EQUAL(tokens[i], world.model.holds[picked[i]][owner].token);
        } else {
            expect_new_token(tokens[i]);
        }
        model_take(&world.model, picked[i], &wish, tokens[i]);
    }
}

static void release(int name, uint64_t owner)
{
    struct model_grants grants = {.count = 0};
    rh_status expected = world.model.holds[name][owner].mode != RH_LOCK_NONE ? RH_OK : RH_NOT_OWNED;

    CHECK_STATUS(rh_lock_release(world.table, names[name], name_bytes[name], owner, world.grants),
                 expected);
    if (expected != RH_OK) {
        return;
    }
    if (--world.model.holds[name][owner].count == 0) {
        world.model.holds[name][owner].mode = RH_LOCK_NONE;
        model_serve(&world.model, name, &grants);
        forget_if_idle(owner);
    }
    compare_grants(&grants);
}

static void cancel(int name, uint64_t owner)
{
    struct model_grants grants = {.count = 0};
    int where;
    size_t place;

    CHECK_STATUS(rh_lock_cancel(world.table, names[name], name_bytes[name], owner, world.grants),
                 RH_OK);
    if (model_waits(&world.model, owner, &where, &place) && where == name) {
        model_unqueue(&world.model, name, place);
        model_serve(&world.model, name, &grants);
        forget_if_idle(owner);
    }
    compare_grants(&grants);
}

static void downgrade(int name, uint64_t owner, rh_lock_mode mode)
{
    struct model_grants grants = {.count = 0};
    rh_lock_mode held = world.model.holds[name][owner].mode;
    rh_status expected = held == RH_LOCK_NONE        ? RH_NOT_OWNED
                         : !model_covers(held, mode) ? RH_INVALID_ARGUMENT
                                                     : RH_OK;

    CHECK_STATUS(
        rh_lock_downgrade(world.table, names[name], name_bytes[name], owner, mode, world.grants),
        expected);
    if (expected == RH_OK) {
        world.model.holds[name][owner].mode = mode;
        model_serve(&world.model, name, &grants);
        compare_grants(&grants);
    }
}

static void drop(uint64_t only)
{
    struct model_grants grants = {.count = 0};

    if (only != 0) {
        CHECK_STATUS(rh_lock_release_owner(world.table, only, world.grants), RH_OK);
    } else {
        CHECK_STATUS(rh_lock_expire(world.table, world.now, world.grants), RH_OK);
    }
    for (uint64_t owner = 1; owner <= OWNERS; owner++) {
        bool expired = world.model.limited[owner] && world.model.deadlines[owner] < world.now;

        if (only == owner || (only == 0 && expired)) {
            model_drop(&world.model, owner);
        }
    }
    for (int name = 0; name < NAMES; name++) {
        model_serve(&world.model, name, &grants);
    }
    compare_grants(&grants);
}

static void renew(uint64_t owner)
{
    world.model.limited[owner] = true;
    world.model.deadlines[owner] = world.now + (int64_t)below(40) - 10;
    CHECK_STATUS(rh_lock_renew(world.table, owner, world.model.deadlines[owner]), RH_OK);
}

static void compare_everything(void)
{
    size_t size, expected_size = 0;

    for (int name = 0; name < NAMES; name++) {
        rh_lock_party *parties = NULL;
        size_t count = 0, holders = 0;
        rh_lock_mode mode;

        for (uint64_t owner = 1; owner <= OWNERS; owner++) {
            holders += world.model.holds[name][owner].mode != RH_LOCK_NONE;
            CHECK_STATUS(rh_lock_get_mode(world.table, names[name], name_bytes[name], owner, &mode),
                         RH_OK);
            CHECK_EQUAL(mode, world.model.holds[name][owner].mode);
        }
        REQUIRE_OK(
            rh_lock_get_holders(world.table, names[name], name_bytes[name], &parties, &count));
        CHECK_EQUAL(count, holders);
        rh_free(parties);
        REQUIRE_OK(
            rh_lock_get_waiters(world.table, names[name], name_bytes[name], &parties, &count));
        CHECK_EQUAL(count, world.model.waiting[name]);
        for (size_t i = 0; i < count && i < world.model.waiting[name]; i++) {
            CHECK_EQUAL(parties[i].owner, world.model.queues[name][i].owner);
            CHECK_EQUAL(parties[i].mode, world.model.queues[name][i].mode);
        }
        rh_free(parties);
        expected_size += holders + count > 0;
    }
    CHECK_STATUS(rh_lock_table_size(world.table, &size), RH_OK);
    CHECK_EQUAL(size, expected_size);
}

static void call_at_random(void)
{
    int name = (int)below(NAMES);
    uint64_t owner = 1 + below(OWNERS), what = below(100);
    rh_lock_mode mode = (rh_lock_mode)(1 + below(RH_LOCK_EXCLUSIVE));

    if (what < 16) {
        acquire(name, owner, mode, false);
    } else if (what < 50) {
        acquire(name, owner, mode, true);
    } else if (what < 56) {
        acquire_many(owner, mode);
    } else if (what < 80) {
        release(name, owner);
    } else if (what < 86) {
        cancel(name, owner);
    } else if (what < 92) {
        downgrade(name, owner, mode);
    } else if (what < 96) {
        renew(owner);
    } else if (what < 98) {
        drop(owner);
    } else {
        world.now += (int64_t)below(6);
        drop(0);
    }
}

static void random_calls_answer_as_the_model_does(void)
{
    REQUIRE_OK(rh_lock_table_new(NULL, &world.table));
    REQUIRE_OK(rh_lock_grants_new(&world.grants));
    for (int i = 0; i < CALLS && rh_test_failures == 0; i++) {
        call_at_random();
        if (i % 16 == 0) {
            compare_everything();
        }
        if (rh_test_failures > 0) {
            fprintf(stderr, "in call %d\n", i);
        }
    }
    printf("%zu requests had to wait, %zu closed a cycle, %zu were granted later\n", world.waits,
           world.deadlocks, world.granted);
    CHECK(world.waits > CALLS / 20);
    CHECK(world.deadlocks > CALLS / 100);
    CHECK(world.granted > CALLS / 50);
    rh_lock_table_free(world.table);
    rh_lock_grants_free(world.grants);
}

int main(int count, char **arguments)
{
    state = count > 1 ? strtoull(arguments[1], NULL, 10) : 1;
    printf("seed %" PRIu64 "\n", state);
    for (int name = 0; name < NAMES; name++) {
        memset(names[name], 'a' + name, name_bytes[name]);
    }
    RUN(random_calls_answer_as_the_model_does);
    return rh_test_result();
}
