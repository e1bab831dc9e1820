/*
 * Nanoseconds per pair of acquire and release, each line "what nanoseconds":
 *
 *   mutex   a pthread_mutex_t locked and unlocked, for comparison
 *   hot     one and the same name
 *   cold    NAMES names in random order, each released before the next one is acquired
 *   beside  the same names while somebody else holds every one of them in IS
 *   all     all names acquired, then all released, in different random orders
 *
 * bench_lock_table [NAMES [PAIRS]]; exits with 1 when a call did not do what was timed.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <ringhold/lock_table.h>

enum { NAME_BYTES = 16 };

static rh_lock_table *table;
static rh_lock_grants *grants;
static uint64_t last_token;

static double now(void)
{
    struct timespec time;

    (void)timespec_get(&time, TIME_UTC);
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

static void require(int right)
{
    if (!right) {
        fputs("a call did not do its work\n", stderr);
        exit(1);
    }
}

static void acquire(const char *name, uint64_t owner, rh_lock_mode mode)
{
    uint64_t token = 0;

    require(rh_lock_try_acquire(table, name, NAME_BYTES, owner, mode, &token) == RH_OK);
    require(token > last_token);
    last_token = token;
}

static void release(const char *name, uint64_t owner)
{
    require(rh_lock_release(table, name, NAME_BYTES, owner, grants) == RH_OK);
}

static void shuffle(char (*names)[NAME_BYTES + 1], size_t count)
{
    uint64_t state = 1;

    for (size_t i = count - 1; i > 0; i--) {
        char saved[NAME_BYTES + 1];
        size_t k;

        state = state * 6364136223846793005u + 1442695040888963407u;
        k = (state >> 33) % (i + 1);
        for (size_t b = 0; b <= NAME_BYTES; b++) {
            saved[b] = names[i][b];
            names[i][b] = names[k][b];
            names[k][b] = saved[b];
        }
    }
}

static void time_mutex(size_t pairs)
{
    pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    double begin = now();

    for (size_t i = 0; i < pairs; i++) {
        require(pthread_mutex_lock(&mutex) == 0 && pthread_mutex_unlock(&mutex) == 0);
    }
    printf("mutex %.1f\n", (now() - begin) / (double)pairs);
}

static void time_pairs(const char *what, char (*names)[NAME_BYTES + 1], size_t count, size_t pairs,
                       rh_lock_mode mode)
{
    double begin = now();

    for (size_t i = 0; i < pairs; i++) {
        acquire(names[i % count], 1, mode);
        release(names[i % count], 1);
    }
    printf("%s %.1f\n", what, (now() - begin) / (double)pairs);
}

int main(int argument_count, char **arguments)
{
    size_t count = argument_count > 1 ? strtoul(arguments[1], NULL, 10) : 1000000;
    size_t pairs = argument_count > 2 ? strtoul(arguments[2], NULL, 10) : 5000000;
    char (*names)[NAME_BYTES + 1] = malloc((count + 1) * sizeof *names);
    size_t size = 1;
    double begin, acquired;

    require(count > 0 && names && rh_lock_table_new(NULL, &table) == RH_OK &&
            rh_lock_grants_new(&grants) == RH_OK);
    for (size_t i = 0; i < count; i++) {
        snprintf(names[i], sizeof names[i], "order/%010u", (unsigned)i);
    }
    shuffle(names, count);
    time_mutex(pairs);
    time_pairs("hot", names, 1, pairs, RH_LOCK_EXCLUSIVE);
    time_pairs("cold", names, count, count, RH_LOCK_EXCLUSIVE);

    begin = now();
    for (size_t i = 0; i < count; i++) {
        acquire(names[i], 2, RH_LOCK_INTENT_SHARED);
    }
    acquired = now() - begin;
    shuffle(names, count);
    time_pairs("beside", names, count, count, RH_LOCK_SHARED);
    begin = now();
    for (size_t i = 0; i < count; i++) {
        release(names[i], 2);
    }
    printf("all %.1f\n", (acquired + now() - begin) / (double)count);

    require(rh_lock_table_size(table, &size) == RH_OK && size == 0);
    rh_lock_table_free(table);
    rh_lock_grants_free(grants);
    free(names);
    return 0;
}
