/*
 * Names and holds of one shard of the lock table, whose mutex is held from when the name's key
 * is made. Numbers are of the shard.
 * Inline, since together they are the way of every acquire and release.
 */
#ifndef RINGHOLD_SRC_LOCK_TABLE_SHARD_H
#define RINGHOLD_SRC_LOCK_TABLE_SHARD_H

#include <string.h>

#include "lock_table_internal.h"
#include "xxh3.h"

/* The hash of a name of more than 16 bytes. */
uint64_t rh_lock_hash_long(const char *name, size_t name_bytes, uint64_t seed);

/*
 * An empty entry, for which a hold was reserved; lock_settle_entry() takes it away again unless
 * something was put into it.
 */
rh_status rh_lock_make_entry(struct lock_shard *shard, const struct lock_key *key, uint32_t *out);
void rh_lock_remove_entry(struct lock_shard *shard, uint32_t number);

/* A record for a hold that finds the room beside the name taken. */
uint32_t rh_lock_take_hold(struct lock_shard *shard);

/* Chains the hold to its owner; one of another owner that rested there is no longer chained. */
void rh_lock_link_to_owner(struct lock_shard *shard, uint32_t hold, uint64_t owner);
void rh_lock_unlink_from_owner(struct lock_shard *shard, struct lock_hold *hold);

/* lock_find_hold() by the index, of a name with many holders. */
uint32_t rh_lock_find_in_crowd(const struct lock_shard *shard, uint32_t entry, uint64_t owner);

void rh_lock_clear_shard(struct lock_shard *shard);

/* Of a shard that fell empty and is larger than what always stays. */
void rh_lock_shrink_shard(struct lock_shard *shard);

/* How many are held or awaited. */
static inline size_t lock_count_names(const struct lock_shard *shard)
{
    return shard->names.count - (shard->idle != 0);
}

/*
 * Gives back memory, if nothing is left in the shard and there was little since the last time
 * that nothing was left: what comes again and again finds its memory in place. What was reserved
 * is no longer.
 */
static inline void lock_trim_shard(struct lock_shard *shard)
{
    if ((shard->records.capacity > LOCK_CAPACITY_KEPT ||
         shard->waiters.capacity > LOCK_CAPACITY_KEPT) &&
        lock_count_names(shard) == 0) {
        rh_lock_shrink_shard(shard);
    }
}

/* Begins to fetch what will be needed soon: the table is larger than caches are. */
static inline void lock_prefetch(const void *address)
{
#if defined(__GNUC__)
    __builtin_prefetch(address, 1);
#else
    (void)address;
#endif
}

static inline uint32_t lock_hold_hash(uint32_t entry, uint64_t owner)
{
    return (uint32_t)lock_owner_hash(owner + entry * (uint64_t)0x85ebca6b);
}

/* False for what is not a name or not an owner. */
static inline bool lock_make_key(const rh_lock_table *table, const void *name, size_t name_bytes,
                                 uint64_t owner, struct lock_key *out)
{
    uint64_t hash;

    if (table == NULL || name == NULL || name_bytes - 1 >= RH_LOCK_NAME_BYTES_MAX ||
        owner - 1 >= RH_LOCK_OWNER_MAX) {
        return false;
    }
    hash = name_bytes <= 16 ? XXH3_64bits_withSeed(name, name_bytes, table->hash_seed)
                            : rh_lock_hash_long(name, name_bytes, table->hash_seed);
    *out = (struct lock_key){name, name_bytes, (uint32_t)(hash >> 58), (uint32_t)hash};
    return true;
}

static inline uint64_t lock_different(const char *a, const char *b)
{
    uint64_t x, y;

    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return x ^ y;
}

/* memcmp() without a call for what most names are. */
static inline bool lock_same_bytes(const char *a, const char *b, size_t bytes)
{
    size_t middle = bytes > 16 ? 8 : 0, last = bytes - 8;

    if (last > LOCK_NAME_INLINE - 8) {
        return memcmp(a, b, bytes) == 0;
    }
    return (lock_different(a, b) | lock_different(a + middle, b + middle) |
            lock_different(a + last, b + last)) == 0;
}

static inline uint32_t lock_find_entry(const struct lock_shard *shard, const struct lock_key *key)
{
    uint32_t at = key->tag, number;

    while ((number = lock_index_next(&shard->names, key->tag, &at)) != 0) {
        const struct lock_entry *entry = lock_entry_at(shard, number);

        /* Needed next if this is the name, and a cache line further. */
        lock_prefetch(lock_hold_at(shard, number));
        if (entry->name_bytes == key->bytes &&
            lock_same_bytes(lock_entry_name(entry), key->name, key->bytes)) {
            break;
        }
    }
    return number;
}

static inline uint32_t lock_find_holder(const struct lock_shard *shard, uint64_t owner)
{
    uint32_t hash = (uint32_t)lock_owner_hash(owner), at = hash, number;

    while ((number = lock_index_next(&shard->owners, hash, &at)) != 0 &&
           LOCK_POOL_AT(lock_holder, shard->holders, number)->owner != owner) {
    }
    return number;
}

/* Something that the owner holds in the shard. Of all that is chained at most one rests. */
static inline uint32_t lock_first_hold(const struct lock_shard *shard, uint64_t owner)
{
    uint32_t holder = lock_find_holder(shard, owner), hold = 0;

    if (holder != 0) {
        hold = LOCK_POOL_AT(lock_holder, shard->holders, holder)->first;
        if (lock_hold_at(shard, hold)->count == 0) {
            hold = lock_hold_at(shard, hold)->owner_next;
        }
    }
    return hold;
}

/*
 * What became empty is taken away when the next one does: it may be asked for again at once, and
 * by then its neighbours in the owner's chain have come from memory.
 */
static inline void lock_settle_entry(struct lock_shard *shard, uint32_t number)
{
    const struct lock_entry *entry = lock_entry_at(shard, number);
    const struct lock_hold *resting = lock_hold_at(shard, number);

    if (entry->first == 0 && entry->queue == 0 && shard->idle != number) {
        if (shard->idle != 0) {
            rh_lock_remove_entry(shard, shard->idle);
        }
        shard->idle = number;
        if (resting->owner != 0) {
            lock_prefetch(lock_hold_at(shard, resting->owner_next));
            lock_prefetch(lock_hold_at(shard, resting->owner_previous));
        }
    }
}

/* Room for `count` more holds, of names or not, besides one for every waiter. */
static inline rh_status lock_reserve_holds(struct lock_shard *shard, size_t count)
{
    size_t all = shard->waiters.live + count;

    if (lock_pool_reserve(&shard->records, sizeof(struct lock_record), all) != RH_OK ||
        lock_pool_reserve(&shard->holders, sizeof(struct lock_holder), all) != RH_OK ||
        lock_index_reserve(&shard->owners, all) != RH_OK ||
        lock_index_reserve(&shard->crowd, all) != RH_OK) {
        return RH_NO_MEMORY;
    }
    return RH_OK;
}

static inline uint32_t lock_find_hold(const struct lock_shard *shard, uint32_t entry,
                                      uint64_t owner)
{
    uint32_t number = lock_entry_at(shard, entry)->first;

    for (int i = 0; i < LOCK_HOLDS_WALKED; i++) {
        if (number == 0 || lock_hold_at(shard, number)->owner == owner) {
            return number;
        }
        number = lock_hold_at(shard, number)->next;
    }
    return number != 0 ? rh_lock_find_in_crowd(shard, entry, owner) : 0;
}

/* A count that reached its largest value stays there: it has become a lasting "perhaps". */
static inline void lock_count_presence(rh_lock_table *table, const struct lock_shard *shard,
                                       uint64_t owner, int change)
{
    _Atomic uint8_t *cell = &table->present[lock_owner_row(owner)][shard->number];
    unsigned count = atomic_load_explicit(cell, memory_order_relaxed);

    if (count < UINT8_MAX) {
        atomic_store_explicit(cell, (uint8_t)((int)count + change), memory_order_relaxed);
    }
    if (lock_owner_tracked(table, owner)) {
        rh_lock_note_presence(table, shard->number, owner, change > 0);
    }
}

static inline void lock_count_mode(struct lock_entry *entry, unsigned mode, int change)
{
    uint32_t left = change > 0;

    if (mode <= RH_LOCK_SHARED) {
        left = entry->shared[mode - 1] += (uint32_t)change;
    }
    if (left > 0) {
        entry->held |= (uint8_t)LOCK_BIT(mode);
    } else {
        entry->held &= (uint8_t)~LOCK_BIT(mode);
    }
}

static inline void lock_change_mode(struct lock_entry *entry, struct lock_hold *hold, unsigned mode)
{
    lock_count_mode(entry, hold->mode, -1);
    hold->mode = (uint8_t)mode;
    lock_count_mode(entry, mode, 1);
}

static inline uint32_t lock_new_hold(rh_lock_table *table, struct lock_shard *shard,
                                     uint32_t number, uint64_t owner, unsigned mode)
{
    struct lock_entry *entry = lock_entry_at(shard, number);
    struct lock_hold *hold = lock_hold_at(shard, number);
    uint32_t made = number;

    if (hold->count > 0) {
        made = rh_lock_take_hold(shard);
        hold = lock_hold_at(shard, made);
    }
    if (hold->owner != owner) {
        rh_lock_link_to_owner(shard, made, owner);
    }
    if (LOCK_POOL_AT(lock_holder, shard->holders, hold->party)->held++ == 0) {
        lock_count_presence(table, shard, owner, 1);
    }
    hold->entry = number;
    hold->next = 0;
    hold->previous = entry->last;
    hold->waiter = 0;
    hold->mode = (uint8_t)mode;
    hold->indexed = entry->holders >= LOCK_HOLDS_WALKED;
    if (entry->last != 0) {
        lock_hold_at(shard, entry->last)->next = made;
    } else {
        entry->first = made;
        shard->idle = shard->idle == number ? 0 : shard->idle;
    }
    entry->last = made;
    entry->holders++;
    lock_count_mode(entry, mode, 1);
    if (hold->indexed) {
        lock_index_add(&shard->crowd, lock_hold_hash(number, owner), made);
    }
    return made;
}

/* A hold in `mode`, or a raised one (`held` not 0), counted and with a new token. */
static inline uint64_t lock_add_hold(rh_lock_table *table, struct lock_shard *shard,
                                     uint32_t number, uint32_t held, uint64_t owner, unsigned mode)
{
    struct lock_hold *hold;

    if (held == 0) {
        held = lock_new_hold(table, shard, number, owner, mode);
        hold = lock_hold_at(shard, held);
    } else {
        hold = lock_hold_at(shard, held);
        lock_change_mode(lock_entry_at(shard, number), hold, mode);
    }
    hold->count++;
    hold->token = atomic_fetch_add_explicit(&table->tokens, 1, memory_order_relaxed) + 1;
    return hold->token;
}

/* An entry left empty is for lock_settle_entry(); its hold rests. */
static inline void lock_remove_hold(rh_lock_table *table, struct lock_shard *shard, uint32_t number)
{
    struct lock_hold *hold = lock_hold_at(shard, number);
    struct lock_entry *entry = lock_entry_at(shard, hold->entry);

    if (hold->next != 0) {
        lock_hold_at(shard, hold->next)->previous = hold->previous;
    } else {
        entry->last = hold->previous;
    }
    if (hold->previous != 0) {
        lock_hold_at(shard, hold->previous)->next = hold->next;
    } else {
        entry->first = hold->next;
    }
    entry->holders--;
    lock_count_mode(entry, hold->mode, -1);
    if (hold->indexed) {
        lock_index_remove(&shard->crowd, lock_hold_hash(hold->entry, hold->owner), number);
    }
    if (hold->waiter != 0) {
        lock_waiter_at(shard, hold->waiter)->hold = 0;
    }
    hold->count = 0;
    if (--LOCK_POOL_AT(lock_holder, shard->holders, hold->party)->held == 0) {
        lock_count_presence(table, shard, hold->owner, -1);
    }
    if (number != hold->entry) {
        rh_lock_unlink_from_owner(shard, hold);
        lock_pool_give(&shard->records, sizeof(struct lock_record), number);
    } else if (entry->first != 0 || entry->queue != 0) {
        rh_lock_unlink_from_owner(shard, hold);
    }
}

#endif
