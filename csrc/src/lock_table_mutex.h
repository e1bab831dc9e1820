/*
 * The mutex of a shard: one word, in half the time of a pthread_mutex_t, and as many of them
 * held at once as there are shards, which is more than ThreadSanitizer's search for deadlocks
 * can bear of pthread's.
 *
 * 0: free, 1: locked, 2: locked and perhaps somebody sleeps. (Drepper, "Futexes Are Tricky",
 * 2011.) Where there is no futex, pthread's mutex it is.
 */
#ifndef RINGHOLD_SRC_LOCK_TABLE_MUTEX_H
#define RINGHOLD_SRC_LOCK_TABLE_MUTEX_H

#include <stdbool.h>

#if defined(__linux__)

#  include <stdatomic.h>
#  include <stdint.h>

struct lock_mutex {
    _Atomic uint32_t state;
};

void rh_lock_mutex_sleep(struct lock_mutex *mutex);
void rh_lock_mutex_wake(struct lock_mutex *mutex);

static inline bool lock_mutex_init(struct lock_mutex *mutex)
{
    atomic_init(&mutex->state, 0);
    return true;
}

static inline void lock_mutex_destroy(struct lock_mutex *mutex)
{
    (void)mutex;
}

static inline void lock_mutex_lock(struct lock_mutex *mutex)
{
    uint32_t state = 0;

    if (!atomic_compare_exchange_strong_explicit(&mutex->state, &state, 1, memory_order_acquire,
                                                 memory_order_relaxed)) {
        rh_lock_mutex_sleep(mutex);
    }
}

static inline void lock_mutex_unlock(struct lock_mutex *mutex)
{
    if (atomic_exchange_explicit(&mutex->state, 0, memory_order_release) == 2) {
        rh_lock_mutex_wake(mutex);
    }
}

#else

#  include <pthread.h>

struct lock_mutex {
    pthread_mutex_t mutex;
};

static inline bool lock_mutex_init(struct lock_mutex *mutex)
{
    return pthread_mutex_init(&mutex->mutex, NULL) == 0;
}

static inline void lock_mutex_destroy(struct lock_mutex *mutex)
{
    pthread_mutex_destroy(&mutex->mutex);
}

static inline void lock_mutex_lock(struct lock_mutex *mutex)
{
    pthread_mutex_lock(&mutex->mutex);
}

static inline void lock_mutex_unlock(struct lock_mutex *mutex)
{
    pthread_mutex_unlock(&mutex->mutex);
}

#endif

#endif
