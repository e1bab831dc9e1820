/* Where a thread sleeps that finds a shard locked. */
#if defined(__linux__)

/* For syscall(). */
#  define _DEFAULT_SOURCE

#  include <errno.h>
#  include <linux/futex.h>
#  include <sys/syscall.h>
#  include <unistd.h>

#  include "lock_table_mutex.h"

/* Most calls are over sooner than a thread falls asleep. */
#  define LOOKS_BEFORE_SLEEP 100

void rh_lock_mutex_sleep(struct lock_mutex *mutex)
{
    int saved = errno;

    for (int i = 0; i < LOOKS_BEFORE_SLEEP; i++) {
        uint32_t state = 0;

        if (atomic_compare_exchange_weak_explicit(&mutex->state, &state, 1, memory_order_acquire,
                                                  memory_order_relaxed)) {
            return;
        }
        if (state == 2) {
            break;
        }
    }
    while (atomic_exchange_explicit(&mutex->state, 2, memory_order_acquire) != 0) {
        /* Woken, interrupted, or too late for sleeping: the next look tells. */
        (void)syscall(SYS_futex, &mutex->state, FUTEX_WAIT_PRIVATE, 2, NULL, NULL, 0);
    }
    errno = saved;
}

void rh_lock_mutex_wake(struct lock_mutex *mutex)
{
    (void)syscall(SYS_futex, &mutex->state, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

#else

/* A C file is not empty. */
typedef int lock_table_needs_no_futex;

#endif
