/*
 * The lock table: named locks in six modes, held by owners that are plain numbers.
 *
 * It decides who gets what and in which order, and nothing else: nobody sleeps in it. A request
 * that has to wait is queued, and the call that later makes room for it returns the grant; how
 * the waiter is woken is the caller's affair, as are the time and the meaning of owners.
 *
 *   mode                               goes together with
 *   IS   intent shared                 IS IX S U SIX
 *   IX   intent exclusive              IS IX
 *   S    shared                        IS S U
 *   U    update (read, then write)     IS S
 *   SIX  shared, intent exclusive      IS
 *   X    exclusive                     nothing
 *
 * An owner is never in its own way. Asking for more of what it holds leads to the weakest mode
 * that covers both (IX + S = SIX, U + IX = SIX, everything + X = X) and counts; a hold ends when
 * it was released as often as it was acquired, and keeps its mode until then.
 * (Gray, Lorie, Putzolu, Traiger, "Granularity of Locks and Degrees of Consistency in a Shared
 * Data Base", 1976; the update mode as in Gray and Reuter, "Transaction Processing", 1993.)
 *
 * Order: a request waits for holders whose mode excludes its own and for earlier waiters whose
 * mode does. A request that raises a mode already held, an upgrade, waits for holders and
 * earlier upgrades only and comes before all others. Whenever something is given up, waiters are
 * granted in queue order, each that is in nobody's way.
 *
 * Tokens come from one counter of the table: every grant gets one larger than all before.
 *
 * Arguments: names are 1 to RH_LOCK_NAME_BYTES_MAX bytes of any value, copied; owners are 1 to
 * RH_LOCK_OWNER_MAX. Anything else, a NULL and an unknown mode are RH_INVALID_ARGUMENT. A call
 * that does not return RH_OK has changed nothing and written no output.
 *
 * Threads: any number may use one table at once, also for the same owner; making and freeing it
 * are for one. Calls lock the part of the table that the name falls into; a request that must
 * wait while its owner holds something and others wait, rh_lock_expire, rh_lock_table_size, and
 * the first rh_lock_renew of an owner stop the whole table for a moment. Nothing is called back,
 * and no lock is held when a function returns. A table may be used after fork() if no other
 * thread was inside a call at that time.
 *
 * Memory grows with what is held and awaited at once, to 150–300 bytes a hold, and is kept for
 * reuse, so that a warmed up table allocates nothing. A 64th of the table that falls empty gives
 * it back if little of it was used since the last time that it fell empty.
 */
#ifndef RINGHOLD_LOCK_TABLE_H
#define RINGHOLD_LOCK_TABLE_H

#include <stddef.h>
#include <stdint.h>

#include <ringhold/export.h>
#include <ringhold/status.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct rh_lock_table rh_lock_table;

#define RH_LOCK_NAME_BYTES_MAX 4096
#define RH_LOCK_OWNER_MAX ((uint64_t)INT64_MAX)

typedef enum rh_lock_mode {
    RH_LOCK_NONE = 0, /* only as an answer: nothing is held */
    RH_LOCK_INTENT_SHARED = 1,
    RH_LOCK_INTENT_EXCLUSIVE = 2,
    RH_LOCK_SHARED = 3,
    RH_LOCK_UPDATE = 4,
    RH_LOCK_SHARED_INTENT_EXCLUSIVE = 5,
    RH_LOCK_EXCLUSIVE = 6
} rh_lock_mode;

/* A waiter that got what it asked for. */
typedef struct rh_lock_grant {
    const void *name; /* in the rh_lock_grants that the grant was read from */
    size_t name_bytes;
    uint64_t owner;
    uint64_t token;
    rh_lock_mode mode;
} rh_lock_grant;

/* Somebody who holds or awaits a name, and in which mode. */
typedef struct rh_lock_party {
    uint64_t owner;
    rh_lock_mode mode;
} rh_lock_party;

/*
 * Where calls that give something up put the grants that follow. Belongs to the caller, who
 * passes the same one again and again: each successful call replaces what is in it, and its
 * memory grows to the most that was ever needed. For one thread at a time.
 */
typedef struct rh_lock_grants rh_lock_grants;

/* RH_NO_MEMORY. */
RH_API RH_NODISCARD rh_status rh_lock_grants_new(rh_lock_grants **out);
RH_API void rh_lock_grants_free(rh_lock_grants *grants);

/*
 * The grants of the last successful call, those of one name in queue order; valid until the next
 * call that is given `grants`.
 */
RH_API rh_status rh_lock_grants_read(const rh_lock_grants *grants, const rh_lock_grant **out,
                                     size_t *count);

typedef struct rh_lock_table_options {
    /*
     * Names are found by XXH3 with this seed. Whoever may choose many names, and knows the seed,
     * can choose them so that finding one takes as long as there are names: give a random one
     * where names come from strangers. Nothing else depends on it but the order in which names
     * come in the grants of rh_lock_release_owner and rh_lock_expire.
     */
    uint64_t hash_seed;
} rh_lock_table_options;

/* An empty table; RH_NO_MEMORY. */
RH_API RH_NODISCARD rh_status rh_lock_table_new(const rh_lock_table_options *options,
                                                rh_lock_table **out);

/* With everything that is held and awaited in it. */
RH_API void rh_lock_table_free(rh_lock_table *table);

/* How many names are held or awaited. */
RH_API RH_NODISCARD rh_status rh_lock_table_size(rh_lock_table *table, size_t *out);

/*
 * Acquires if that takes no waiting. The token is a new one, or, when the mode held already
 * covers `mode`, that of the hold.
 *
 * RH_CONFLICT when a request would have to wait. Also for more of a name that the owner itself is
 * waiting for; and an owner that waits for another name gets no upgrade past waiters whose mode
 * excludes it, since that could close a cycle in which nobody asks again.
 * RH_NO_MEMORY.
 */
RH_API RH_NODISCARD rh_status rh_lock_try_acquire(rh_lock_table *table, const void *name,
                                                  size_t name_bytes, uint64_t owner,
                                                  rh_lock_mode mode, uint64_t *token);

/*
 * The same, or queues: RH_OK with token 0. A queued upgrade leaves the owner with the mode it
 * held; it gets the covering mode of the time of the request.
 *
 * RH_DEADLOCK when the wait would close a cycle of owners, each waiting for a holder or for an
 * earlier waiter; then nothing is queued. Exact for owners that release nothing while they wait.
 * RH_INVALID_ARGUMENT also while the owner is waiting, for this name or another one.
 * RH_NO_MEMORY.
 */
RH_API RH_NODISCARD rh_status rh_lock_request(rh_lock_table *table, const void *name,
                                              size_t name_bytes, uint64_t owner, rh_lock_mode mode,
                                              uint64_t *token);

/*
 * rh_lock_try_acquire of `count` (> 0) names, all or none; a name given twice is acquired twice.
 * `tokens` has room for `count`, in the order of the names.
 */
RH_API RH_NODISCARD rh_status rh_lock_acquire_many(rh_lock_table *table, const void *const *names,
                                                   const size_t *name_bytes, size_t count,
                                                   uint64_t owner, rh_lock_mode mode,
                                                   uint64_t *tokens);

/*
 * Undoes one acquisition. An upgrade that the owner is waiting for keeps its mode and its place,
 * also when nothing is left that it would raise.
 * RH_NOT_OWNED when the owner holds nothing of that name; RH_NO_MEMORY.
 */
RH_API RH_NODISCARD rh_status rh_lock_release(rh_lock_table *table, const void *name,
                                              size_t name_bytes, uint64_t owner,
                                              rh_lock_grants *grants);

/*
 * Gives up everything that the owner holds and awaits, and forgets its deadline; then grants.
 * RH_NO_MEMORY.
 */
RH_API RH_NODISCARD rh_status rh_lock_release_owner(rh_lock_table *table, uint64_t owner,
                                                    rh_lock_grants *grants);

/*
 * Ends the owner's wait for the name, if there is one. Of an upgrade the mode held remains.
 * RH_NO_MEMORY.
 */
RH_API RH_NODISCARD rh_status rh_lock_cancel(rh_lock_table *table, const void *name,
                                             size_t name_bytes, uint64_t owner,
                                             rh_lock_grants *grants);

/*
 * Holds the name in `mode` from now on; token and count stay.
 * RH_INVALID_ARGUMENT when the mode held does not cover `mode`; RH_NOT_OWNED; RH_NO_MEMORY.
 */
RH_API RH_NODISCARD rh_status rh_lock_downgrade(rh_lock_table *table, const void *name,
                                                size_t name_bytes, uint64_t owner,
                                                rh_lock_mode mode, rh_lock_grants *grants);

/* In which mode the owner holds the name, RH_LOCK_NONE when it does not. */
RH_API RH_NODISCARD rh_status rh_lock_get_mode(rh_lock_table *table, const void *name,
                                               size_t name_bytes, uint64_t owner,
                                               rh_lock_mode *out);

/*
 * The holders of a name in the order in which they came, and the waiters in queue order.
 * `parties` is allocated by the function and given to rh_free. RH_NO_MEMORY.
 */
RH_API RH_NODISCARD rh_status rh_lock_get_holders(rh_lock_table *table, const void *name,
                                                  size_t name_bytes, rh_lock_party **parties,
                                                  size_t *count);
RH_API RH_NODISCARD rh_status rh_lock_get_waiters(rh_lock_table *table, const void *name,
                                                  size_t name_bytes, rh_lock_party **parties,
                                                  size_t *count);

/*
 * Gives the owner a deadline, or another one. Owners without one hold as long as they like. It
 * may be given before anything is acquired; it is forgotten when the owner has let go of all
 * that it held and awaited. RH_NO_MEMORY.
 */
RH_API RH_NODISCARD rh_status rh_lock_renew(rh_lock_table *table, uint64_t owner,
                                            int64_t deadline_ns);

/*
 * rh_lock_release_owner of every owner whose deadline is before `now_ns`; all of them are gone
 * before anybody is granted anything. RH_NO_MEMORY.
 */
RH_API RH_NODISCARD rh_status rh_lock_expire(rh_lock_table *table, int64_t now_ns,
                                             rh_lock_grants *grants);

#ifdef __cplusplus
}
#endif

#endif
