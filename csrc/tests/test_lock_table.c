/*
 * Goal: modes, order, upgrades, cycles, deadlines and misuse of the lock table, each promise by
 * itself. Method: small scenes with one or two names; test_lock_table_model.c mixes everything.
 */
#include <ringhold/lock_table.h>

#include "lock_table_shard.h"
#include "rh_test.h"

#define IS RH_LOCK_INTENT_SHARED
#define IX RH_LOCK_INTENT_EXCLUSIVE
#define S RH_LOCK_SHARED
#define U RH_LOCK_UPDATE
#define SIX RH_LOCK_SHARED_INTENT_EXCLUSIVE
#define X RH_LOCK_EXCLUSIVE

static rh_lock_table *table;
static rh_lock_grants *grants;

static void begin(void)
{
    rh_lock_table_free(table);
    rh_lock_grants_free(grants);
    table = NULL;
    grants = NULL;
    REQUIRE_OK(rh_lock_table_new(NULL, &table));
    REQUIRE_OK(rh_lock_grants_new(&grants));
}

/* The token, 0 when it conflicts. */
static uint64_t try(const char *name, uint64_t owner, rh_lock_mode mode)
{
    uint64_t token = 0;
    rh_status status = rh_lock_try_acquire(table, name, strlen(name), owner, mode, &token);

    CHECK(status == RH_OK ? token > 0 : status == RH_CONFLICT);
    return token;
}

static rh_status request(const char *name, uint64_t owner, rh_lock_mode mode)
{
    uint64_t token;
    rh_status status = rh_lock_request(table, name, strlen(name), owner, mode, &token);

    return status == RH_OK && token == 0 ? RH_CONFLICT : status;
}

/* The owners of the grants in the buffer, as digits. */
static uint64_t granted(void)
{
    const rh_lock_grant *items;
    uint64_t owners = 0;
    size_t count;

    CHECK_STATUS(rh_lock_grants_read(grants, &items, &count), RH_OK);
    for (size_t i = 0; i < count; i++) {
        owners = owners * 10 + items[i].owner;
    }
    return owners;
}

static uint64_t release(const char *name, uint64_t owner)
{
    CHECK_STATUS(rh_lock_release(table, name, strlen(name), owner, grants), RH_OK);
    return granted();
}

static rh_lock_mode held(const char *name, uint64_t owner)
{
    rh_lock_mode mode = RH_LOCK_NONE;

    CHECK_STATUS(rh_lock_get_mode(table, name, strlen(name), owner, &mode), RH_OK);
    return mode;
}

static size_t size(void)
{
    size_t names = 99;

    CHECK_STATUS(rh_lock_table_size(table, &names), RH_OK);
    return names;
}

static void every_pair_of_modes(void)
{
    static const char *const together[] = {"",       "yyyyyn", "yynnnn", "ynyynn",
                                           "ynynnn", "ynnnnn", "nnnnnn"};
    static const rh_lock_mode both[][7] = {{0},
                                           {0, IS, IX, S, U, SIX, X},
                                           {0, IX, IX, SIX, SIX, SIX, X},
                                           {0, S, SIX, S, U, SIX, X},
                                           {0, U, SIX, U, U, SIX, X},
                                           {0, SIX, SIX, SIX, SIX, SIX, X},
                                           {0, X, X, X, X, X, X}};

    for (int a = IS; a <= X; a++) {
        for (int b = IS; b <= X; b++) {
            uint64_t first;

            begin();
            first = try("n", 1, (rh_lock_mode)a);
            CHECK_EQUAL(try("n", 2, (rh_lock_mode)b) > 0, together[a][b - 1] == 'y');
            begin();
            first = try("n", 1, (rh_lock_mode)a);
            CHECK_EQUAL(try("n", 1, (rh_lock_mode)b) == first, both[a][b] == (rh_lock_mode)a);
            CHECK_EQUAL(held("n", 1), both[a][b]);
            CHECK_EQUAL(release("n", 1), 0);
            CHECK_EQUAL(held("n", 1), both[a][b]);
            CHECK_EQUAL(release("n", 1), 0);
            CHECK_EQUAL(size(), 0);
        }
    }
}

static void waiters_are_served_in_order_and_together_where_they_can(void)
{
    begin();
    CHECK(try("n", 1, X));
    CHECK_STATUS(request("n", 2, S), RH_CONFLICT);
    CHECK_STATUS(request("n", 3, S), RH_CONFLICT);
    CHECK_STATUS(request("n", 4, X), RH_CONFLICT);
    CHECK_STATUS(request("n", 5, S), RH_CONFLICT);
    CHECK_EQUAL(release("n", 1), 23);
    /* A shared one goes together with the holders, but not past the waiter in front. */
    CHECK(!try("n", 6, S));
    CHECK(try("n", 2, S));
    CHECK_EQUAL(release("n", 2), 0);
    CHECK_EQUAL(release("n", 3), 0);
    CHECK_EQUAL(release("n", 2), 4);
    CHECK_EQUAL(release("n", 4), 5);
}

static void an_upgrade_comes_before_everybody_but_earlier_upgrades(void)
{
    begin();
    CHECK(try("n", 1, IS) && try("n", 2, IS) && try("n", 3, IX));
    CHECK_STATUS(request("n", 4, X), RH_CONFLICT);
    CHECK_STATUS(request("n", 1, S), RH_CONFLICT);
    CHECK_STATUS(request("n", 2, S), RH_CONFLICT);
    CHECK_EQUAL(held("n", 1), IS);
    CHECK_EQUAL(release("n", 3), 12);
    CHECK_EQUAL(held("n", 1), S);
    /* Two that read and both want to write wait for each other. */
    CHECK_STATUS(request("n", 1, X), RH_CONFLICT);
    CHECK_STATUS(request("n", 2, X), RH_DEADLOCK);
    CHECK_EQUAL(release("n", 2), 0);
    CHECK_EQUAL(release("n", 2), 1);
    CHECK_EQUAL(held("n", 1), X);
}

static void a_cancelled_upgrade_leaves_the_mode_held(void)
{
    begin();
    CHECK(try("n", 1, S) && try("n", 2, S));
    CHECK_STATUS(request("n", 1, X), RH_CONFLICT);
    CHECK_STATUS(request("n", 3, S), RH_CONFLICT);
    CHECK_STATUS(rh_lock_cancel(table, "n", 1, 1, grants), RH_OK);
    CHECK_EQUAL(granted(), 3);
    CHECK_EQUAL(held("n", 1), S);
    CHECK_STATUS(rh_lock_cancel(table, "n", 1, 1, grants), RH_OK);
    CHECK_EQUAL(granted(), 0);
}

static void an_upgrade_outlives_what_it_would_raise(void)
{
    begin();
    CHECK(try("n", 1, S) && try("n", 2, S));
    CHECK_STATUS(request("n", 1, X), RH_CONFLICT);
    CHECK_STATUS(request("n", 3, X), RH_CONFLICT);
    CHECK_EQUAL(release("n", 1), 0);
    CHECK_EQUAL(held("n", 1), RH_LOCK_NONE);
    CHECK_STATUS(rh_lock_release(table, "n", 1, 1, grants), RH_NOT_OWNED);
    CHECK_EQUAL(release("n", 2), 1);
    CHECK_EQUAL(release("n", 1), 3);
}

static void a_downgrade_lets_others_in_and_keeps_the_token(void)
{
    uint64_t token;

    begin();
    token = try("n", 1, X);
    CHECK_STATUS(request("n", 2, S), RH_CONFLICT);
    CHECK_STATUS(request("n", 3, U), RH_CONFLICT);
    CHECK_STATUS(rh_lock_downgrade(table, "n", 1, 1, S, grants), RH_OK);
    CHECK_EQUAL(granted(), 23);
    CHECK_EQUAL(try("n", 1, S), token);
    CHECK_STATUS(rh_lock_downgrade(table, "n", 1, 1, IX, grants), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_lock_downgrade(table, "n", 1, 9, IS, grants), RH_NOT_OWNED);
    CHECK_EQUAL(granted(), 23);
}

/* Owner i holds name i and waits for name i + 1; the last one would close the ring. */
static void cycles_of_two_to_eight_are_refused(void)
{
    static const char *const names[] = {"a", "b", "c", "d", "e", "f", "g", "h"};

    for (uint64_t length = 2; length <= 8; length++) {
        begin();
        for (uint64_t i = 0; i < length; i++) {
            CHECK(try(names[i], i + 1, i % 2 ? X : S));
        }
        for (uint64_t i = 0; i + 1 < length; i++) {
            CHECK_STATUS(request(names[i + 1], i + 1, X), RH_CONFLICT);
        }
        CHECK_STATUS(request(names[0], length, X), RH_DEADLOCK);
        CHECK_STATUS(request(names[0], length, S), RH_OK);
        for (uint64_t i = length - 1; i > 0; i--) {
            CHECK_EQUAL(release(names[i], i + 1), i);
        }
    }
}

/*
 * The same by way of queues: owner i holds name i in S, a stranger waits there for X, and owner
 * i - 1 asks for S behind the stranger, with whom alone it conflicts.
 */
static void cycles_through_the_order_of_queues_are_refused(void)
{
    static const char *const names[] = {"a", "b", "c", "d", "e", "f", "g", "h"};

    for (uint64_t length = 2; length <= 8; length++) {
        begin();
        for (uint64_t i = 0; i < length; i++) {
            CHECK(try(names[i], i + 1, S));
            CHECK_STATUS(request(names[i], 100 + i, X), RH_CONFLICT);
        }
        for (uint64_t i = 0; i + 1 < length; i++) {
            CHECK_STATUS(request(names[i + 1], i + 1, S), RH_CONFLICT);
        }
        CHECK_STATUS(request(names[0], length, S), RH_DEADLOCK);
        /* No false alarm: without the first stranger there is nobody to wait for. */
        CHECK_STATUS(rh_lock_cancel(table, names[0], 1, 100, grants), RH_OK);
        CHECK_STATUS(request(names[0], length, S), RH_OK);
    }
}

/* An upgrade goes before a waiter, who therefore comes to wait for it. */
static void a_cycle_through_an_upgrade_that_overtakes_is_refused(void)
{
    begin();
    CHECK(try("n", 1, IS) && try("n", 2, IX) && try("m", 3, X));
    CHECK_STATUS(request("n", 3, S), RH_CONFLICT);
    CHECK_STATUS(request("m", 2, X), RH_DEADLOCK);
    CHECK_STATUS(request("m", 1, X), RH_CONFLICT);
    /* Owner 1 waits for 3, who would wait for 1. */
    CHECK(!try("n", 1, IX));
    CHECK_STATUS(rh_lock_cancel(table, "m", 1, 1, grants), RH_OK);
    CHECK(try("n", 1, IX));
    CHECK_STATUS(request("m", 1, X), RH_DEADLOCK);
}

static void an_owner_waits_for_one_name_at_a_time(void)
{
    begin();
    CHECK(try("n", 1, X));
    CHECK_STATUS(request("n", 2, X), RH_CONFLICT);
    CHECK_STATUS(request("n", 2, X), RH_INVALID_ARGUMENT);
    CHECK_STATUS(request("m", 2, X), RH_INVALID_ARGUMENT);
    CHECK(!try("n", 2, IS));
    CHECK(try("m", 2, X));
    CHECK_EQUAL(release("n", 1), 2);
    CHECK_STATUS(request("m", 2, X), RH_OK);
}

static void many_are_acquired_together_or_not_at_all(void)
{
    const void *names[] = {"a", "b", "a"};
    const size_t bytes[] = {1, 1, 1};
    uint64_t tokens[3] = {7, 7, 7};

    begin();
    CHECK(try("b", 2, S));
    CHECK_STATUS(rh_lock_acquire_many(table, names, bytes, 3, 1, X, tokens), RH_CONFLICT);
    CHECK(tokens[0] == 7 && size() == 1);
    CHECK_STATUS(rh_lock_acquire_many(table, names, bytes, 3, 1, S, tokens), RH_OK);
    CHECK(tokens[0] == tokens[2] && tokens[1] > tokens[0]);
    CHECK_EQUAL(release("a", 1), 0);
    CHECK_EQUAL(held("a", 1), S);
    CHECK_STATUS(rh_lock_acquire_many(table, names, bytes, 0, 1, S, tokens), RH_INVALID_ARGUMENT);
}

static void the_expired_are_gone_before_anybody_is_granted(void)
{
    begin();
    CHECK(try("n", 1, X) && try("m", 2, X));
    CHECK_STATUS(request("n", 2, X), RH_CONFLICT);
    CHECK_STATUS(request("n", 3, X), RH_CONFLICT);
    for (uint64_t owner = 1; owner <= 3; owner++) {
        CHECK_STATUS(rh_lock_renew(table, owner, owner <= 2 ? 10 : 11), RH_OK);
    }
    CHECK_STATUS(rh_lock_expire(table, 10, grants), RH_OK);
    CHECK_EQUAL(granted(), 0);
    CHECK_STATUS(rh_lock_expire(table, 11, grants), RH_OK);
    CHECK_EQUAL(granted(), 3);
    CHECK_EQUAL(size(), 1);
}

static void a_deadline_lasts_as_long_as_something_is_held_or_awaited(void)
{
    begin();
    /* Given before the first lock, it counts; after the last one was let go, no longer. */
    CHECK_STATUS(rh_lock_renew(table, 1, 10), RH_OK);
    CHECK(try("n", 1, X));
    CHECK_STATUS(rh_lock_expire(table, 11, grants), RH_OK);
    CHECK_EQUAL(size(), 0);
    CHECK(try("n", 1, X) && try("m", 1, X));
    CHECK_STATUS(rh_lock_renew(table, 1, 20), RH_OK);
    CHECK_EQUAL(release("n", 1) + release("m", 1), 0);
    CHECK(try("n", 1, X));
    CHECK_STATUS(rh_lock_expire(table, 21, grants), RH_OK);
    CHECK_EQUAL(size(), 1);
    /* A grant follows a wait without a gap. */
    CHECK_STATUS(request("n", 2, X), RH_CONFLICT);
    CHECK_STATUS(rh_lock_renew(table, 2, 30), RH_OK);
    CHECK_EQUAL(release("n", 1), 2);
    CHECK_STATUS(rh_lock_expire(table, 31, grants), RH_OK);
    CHECK_EQUAL(size(), 0);
    CHECK_STATUS(rh_lock_renew(table, 1, INT64_MIN), RH_OK);
    CHECK_STATUS(rh_lock_expire(table, INT64_MAX, grants), RH_OK);
}

static void a_thousand_owners_come_and_go(void)
{
    char name[24];

    begin();
    for (uint64_t owner = 1; owner <= 1000; owner++) {
        snprintf(name, sizeof name, "own/%" PRIu64, owner);
        CHECK(try("crowd", owner, S) && try(name, owner, X));
        CHECK_STATUS(rh_lock_renew(table, owner, (int64_t)(owner * 7919 % 1000)), RH_OK);
    }
    CHECK_STATUS(request("crowd", 2000, X), RH_CONFLICT);
    CHECK_EQUAL(size(), 1001);
    for (uint64_t owner = 1; owner <= 1000; owner += 2) {
        CHECK_EQUAL(release("crowd", owner), 0);
        CHECK_EQUAL(held("crowd", owner), RH_LOCK_NONE);
        CHECK_EQUAL(held("crowd", owner + 1), S);
    }
    for (int64_t now = 0; now <= 998; now++) {
        CHECK_STATUS(rh_lock_expire(table, now, grants), RH_OK);
        CHECK_EQUAL(granted(), 0);
        CHECK_EQUAL(size(), 1 + 1000 - (size_t)now);
    }
    /* The last that is left in the crowd has the deadline 998. */
    CHECK_STATUS(rh_lock_expire(table, 999, grants), RH_OK);
    CHECK_EQUAL(granted(), 2000);
    CHECK_STATUS(rh_lock_expire(table, 1000, grants), RH_OK);
    CHECK_EQUAL(size(), 1);
}

static void long_names_are_names_of_their_own(void)
{
    static char text[RH_LOCK_NAME_BYTES_MAX + 1];
    uint64_t token;

    begin();
    for (size_t bytes = 1; bytes <= RH_LOCK_NAME_BYTES_MAX; bytes++) {
        CHECK_STATUS(rh_lock_try_acquire(table, text, bytes, 1, X, &token), RH_OK);
    }
    CHECK_EQUAL(size(), RH_LOCK_NAME_BYTES_MAX);
    for (size_t bytes = 1; bytes <= RH_LOCK_NAME_BYTES_MAX; bytes++) {
        CHECK_STATUS(rh_lock_release(table, text, bytes, 1, grants), RH_OK);
    }
    CHECK_EQUAL(size(), 0);
    CHECK_STATUS(rh_lock_try_acquire(table, text, sizeof text, 1, X, &token), RH_INVALID_ARGUMENT);
}

#define REFUSED(call) CHECK_STATUS(call, RH_INVALID_ARGUMENT)

static void misuse_returns_a_status(void)
{
    const void *names[] = {"n", NULL};
    const size_t bytes[] = {1, 1};
    const rh_lock_grant *items;
    rh_lock_party *parties;
    rh_lock_mode mode;
    uint64_t token = 5, tokens[2];
    size_t count;

    begin();
    REFUSED(rh_lock_table_new(NULL, NULL));
    REFUSED(rh_lock_grants_new(NULL));
    REFUSED(rh_lock_grants_read(NULL, &items, &count));
    REFUSED(rh_lock_table_size(NULL, &count));
    REFUSED(rh_lock_try_acquire(NULL, "n", 1, 1, X, &token));
    REFUSED(rh_lock_try_acquire(table, NULL, 1, 1, X, &token));
    REFUSED(rh_lock_try_acquire(table, "n", 0, 1, X, &token));
    REFUSED(rh_lock_try_acquire(table, "n", SIZE_MAX, 1, X, &token));
    REFUSED(rh_lock_try_acquire(table, "n", 1, 0, X, &token));
    REFUSED(rh_lock_try_acquire(table, "n", 1, RH_LOCK_OWNER_MAX + 1, X, &token));
    REFUSED(rh_lock_try_acquire(table, "n", 1, 1, RH_LOCK_NONE, &token));
    REFUSED(rh_lock_try_acquire(table, "n", 1, 1, (rh_lock_mode)7, &token));
    REFUSED(rh_lock_try_acquire(table, "n", 1, 1, X, NULL));
    REFUSED(rh_lock_request(table, "n", 1, 0, X, &token));
    REFUSED(rh_lock_request(table, "n", 1, 1, (rh_lock_mode)7, &token));
    REFUSED(rh_lock_request(table, "n", 1, 1, X, NULL));
    REFUSED(rh_lock_acquire_many(table, names, bytes, 2, 1, X, tokens));
    REFUSED(rh_lock_acquire_many(table, NULL, bytes, 1, 1, X, tokens));
    REFUSED(rh_lock_acquire_many(NULL, names, bytes, 1, 1, X, tokens));
    REFUSED(rh_lock_release(table, "n", 1, 0, grants));
    REFUSED(rh_lock_release(table, "n", 1, 1, NULL));
    REFUSED(rh_lock_release_owner(table, 0, grants));
    REFUSED(rh_lock_release_owner(table, 1, NULL));
    REFUSED(rh_lock_cancel(table, "n", 1, 1, NULL));
    REFUSED(rh_lock_downgrade(table, "n", 1, 1, RH_LOCK_NONE, grants));
    REFUSED(rh_lock_downgrade(table, "n", 1, 1, S, NULL));
    REFUSED(rh_lock_get_mode(table, "n", 1, 1, NULL));
    REFUSED(rh_lock_get_mode(table, "n", 1, UINT64_MAX, &mode));
    REFUSED(rh_lock_get_holders(table, "", 0, &parties, &count));
    REFUSED(rh_lock_get_waiters(table, "n", 1, NULL, &count));
    REFUSED(rh_lock_renew(table, 0, 1));
    REFUSED(rh_lock_expire(table, 1, NULL));
    CHECK(token == 5 && size() == 0);
    CHECK_STATUS(rh_lock_release(table, "n", 1, 1, grants), RH_NOT_OWNED);
    CHECK(try("n", RH_LOCK_OWNER_MAX, X));
    rh_lock_table_free(NULL);
    rh_lock_grants_free(NULL);
}

/* Names that fall into one shard with one tag do not with another seed. */
static void a_seed_parts_names_whose_hashes_agree(void)
{
    static const char *const names[] = {"lock/of/a/customer/0303032", "lock/of/a/customer/0519794"};
    rh_lock_table_options options = {.hash_seed = 0};
    struct lock_key keys[2];

    for (; options.hash_seed < 3; options.hash_seed++) {
        rh_lock_table *seeded = NULL;

        REQUIRE_OK(rh_lock_table_new(&options, &seeded));
        for (size_t i = 0; i < 2; i++) {
            CHECK(lock_make_key(seeded, names[i], strlen(names[i]), 1, &keys[i]));
        }
        CHECK((keys[0].shard == keys[1].shard && keys[0].tag == keys[1].tag) ==
              (options.hash_seed == 0));
        rh_lock_table_free(seeded);
    }
}

int main(void)
{
    RUN(a_seed_parts_names_whose_hashes_agree);
    RUN(every_pair_of_modes);
    RUN(waiters_are_served_in_order_and_together_where_they_can);
    RUN(an_upgrade_comes_before_everybody_but_earlier_upgrades);
    RUN(a_cancelled_upgrade_leaves_the_mode_held);
    RUN(an_upgrade_outlives_what_it_would_raise);
    RUN(a_downgrade_lets_others_in_and_keeps_the_token);
    RUN(cycles_of_two_to_eight_are_refused);
    RUN(cycles_through_the_order_of_queues_are_refused);
    RUN(a_cycle_through_an_upgrade_that_overtakes_is_refused);
    RUN(an_owner_waits_for_one_name_at_a_time);
    RUN(many_are_acquired_together_or_not_at_all);
    RUN(the_expired_are_gone_before_anybody_is_granted);
    RUN(a_deadline_lasts_as_long_as_something_is_held_or_awaited);
    RUN(a_thousand_owners_come_and_go);
    RUN(long_names_are_names_of_their_own);
    RUN(misuse_returns_a_status);
    rh_lock_table_free(table);
    rh_lock_grants_free(grants);
    return rh_test_result();
}
