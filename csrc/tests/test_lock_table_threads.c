/*
 * Goal: eight threads at once never hold what excludes each other, nothing gets lost, and nobody
 * waits for ever. Method: each thread makes a bounded number of random calls on few names. What
 * it is granted it notes in atomic counters per name and mode, which must never show two modes
 * that exclude each other; what others are granted by its calls it hands over to them through an
 * atomic mailbox. In the end everything is released, every waiter was served, and the table is
 * empty. Under ThreadSanitizer the same run looks for data races.
 */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include <ringhold/lock_table.h>

#include "rh_test.h"

enum { THREADS = 8, NAMES = 6, ROUNDS = 20000 };

static const char *const names[NAMES] = {"a", "b", "c", "d", "e", "a long name that is not inline"};

static const char *const together[] = {"",       "yyyyyn", "yynnnn", "ynyynn",
                                       "ynynnn", "ynnnnn", "nnnnnn"};

static rh_lock_table *table;
static _Atomic int held[NAMES][RH_LOCK_EXCLUSIVE + 1];
static _Atomic uint64_t mail[THREADS]; /* the token of a grant, 0: none yet */
static _Atomic size_t failures, waits, deadlocks, handed_over;
static _Atomic uint64_t tokens_seen;

struct worker {
    uint64_t number;
    uint64_t state;
    rh_lock_grants *grants;
    rh_lock_mode modes[NAMES];
    size_t counts[NAMES];
    uint64_t tokens[NAMES];
};

static uint64_t below(struct worker *self, uint64_t bound)
{
    self->state = self->state * 6364136223846793005u + 1442695040888963407u;
    return (self->state >> 33) % bound;
}

static void expect(bool right)
{
    if (!right) {
        atomic_fetch_add(&failures, 1);
    }
}

/* From here on the thread relies on the mode. */
static void enter(int name, rh_lock_mode mode)
{
    atomic_fetch_add(&held[name][mode], 1);
    for (int other = 1; other <= RH_LOCK_EXCLUSIVE; other++) {
        int others = atomic_load(&held[name][other]) - (other == (int)mode);

        expect(others <= 0 || together[mode][other - 1] == 'y');
    }
}

static void leave(int name, rh_lock_mode mode)
{
    atomic_fetch_sub(&held[name][mode], 1);
}

static void deliver(struct worker *self)
{
    const rh_lock_grant *items = NULL;
    size_t count = 0;

    expect(rh_lock_grants_read(self->grants, &items, &count) == RH_OK);
    for (size_t i = 0; i < count; i++) {
        expect(atomic_exchange(&mail[items[i].owner - 1], items[i].token) == 0);
        atomic_fetch_add(&handed_over, 1);
    }
}

static void take(struct worker *self, int name, rh_lock_mode mode, uint64_t token)
{
    rh_lock_mode now = mode, before = self->modes[name];

    expect(rh_lock_get_mode(table, names[name], strlen(names[name]), self->number + 1, &now) ==
           RH_OK);
    expect(token >= self->tokens[name] && (before == now) == (token == self->tokens[name]));
    if (before != RH_LOCK_NONE) {
        leave(name, before);
    }
    enter(name, now);
    self->modes[name] = now;
    self->tokens[name] = token;
    self->counts[name]++;
    atomic_fetch_add(&tokens_seen, 1);
}

static void acquire(struct worker *self, int name)
{
    rh_lock_mode mode = (rh_lock_mode)(1 + below(self, RH_LOCK_EXCLUSIVE));
    bool may_wait = below(self, 4) > 0;
    uint64_t token = 0;
    rh_status status = (may_wait ? rh_lock_request : rh_lock_try_acquire)(
        table, names[name], strlen(names[name]), self->number + 1, mode, &token);

    if (status == RH_DEADLOCK || status == RH_CONFLICT) {
        expect((status == RH_DEADLOCK) == may_wait);
        atomic_fetch_add(&deadlocks, status == RH_DEADLOCK);
        return;
    }
    expect(status == RH_OK);
    if (token == 0) {
        atomic_fetch_add(&waits, 1);
        /* Cycles are refused and all others go on: hence this ends. */
        while ((token = atomic_exchange(&mail[self->number], 0)) == 0) {
            sched_yield();
        }
    }
    take(self, name, mode, token);
}

static void release(struct worker *self, int name)
{
    if (self->counts[name] == 1) {
        leave(name, self->modes[name]);
    }
    expect(rh_lock_release(table, names[name], strlen(names[name]), self->number + 1,
                           self->grants) == RH_OK);
    deliver(self);
    if (--self->counts[name] == 0) {
        self->modes[name] = RH_LOCK_NONE;
        self->tokens[name] = 0;
    }
}

static void release_all(struct worker *self)
{
    for (int name = 0; name < NAMES; name++) {
        if (self->counts[name] > 0) {
            leave(name, self->modes[name]);
        }
        self->counts[name] = 0;
        self->modes[name] = RH_LOCK_NONE;
        self->tokens[name] = 0;
    }
    expect(rh_lock_release_owner(table, self->number + 1, self->grants) == RH_OK);
    deliver(self);
}

static void *run(void *argument)
{
    struct worker *self = argument;

    for (int round = 0; round < ROUNDS; round++) {
        int name = (int)below(self, NAMES);
        uint64_t what = below(self, 16);

        if (what == 0) {
            release_all(self);
        } else if (what == 1) {
            expect(rh_lock_renew(table, self->number + 1, 1000000 + round) == RH_OK);
        } else if (what == 2) {
            expect(rh_lock_expire(table, 1000000, self->grants) == RH_OK);
            deliver(self);
        } else if (self->counts[name] > 0 && what < 10) {
            release(self, name);
        } else {
            acquire(self, name);
        }
    }
    release_all(self);
    return NULL;
}

static void eight_threads_exclude_each_other_and_all_come_through(void)
{
    static struct worker workers[THREADS];
    pthread_t threads[THREADS];
    size_t size = 99;

    REQUIRE_OK(rh_lock_table_new(NULL, &table));
    for (uint64_t i = 0; i < THREADS; i++) {
        workers[i].number = i;
        workers[i].state = i + 1;
        REQUIRE_OK(rh_lock_grants_new(&workers[i].grants));
    }
    for (size_t i = 0; i < THREADS; i++) {
        CHECK(pthread_create(&threads[i], NULL, run, &workers[i]) == 0);
    }
    for (size_t i = 0; i < THREADS; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
        rh_lock_grants_free(workers[i].grants);
    }
    printf("%zu grants, %zu waits, %zu cycles\n", (size_t)tokens_seen, (size_t)waits,
           (size_t)deadlocks);
    CHECK_EQUAL(failures, 0);
    CHECK_EQUAL(waits, handed_over);
    CHECK(waits > 0 && deadlocks > 0);
    for (int name = 0; name < NAMES; name++) {
        CHECK_EQUAL(mail[name], 0);
        for (int mode = 1; mode <= RH_LOCK_EXCLUSIVE; mode++) {
            CHECK_EQUAL(held[name][mode], 0);
        }
    }
    CHECK_STATUS(rh_lock_table_size(table, &size), RH_OK);
    CHECK_EQUAL(size, 0);
    rh_lock_table_free(table);
}

int main(void)
{
    RUN(eight_threads_exclude_each_other_and_all_come_through);
    return rh_test_result();
}
