/*
 * Names and holds of one shard of the lock table, whose mutex is held. Numbers are of the shard.
 * Inline, since together they are the way of every acquire and release.
 */
#ifndef RINGHOLD_SRC_LOCK_TABLE_SHARD_H
#define RINGHOLD_SRC_LOCK_TABLE_SHARD_H

#include <string.h>

#include "lock_table_internal.h"

/* A block for a name too long for its entry; NULL when there is no memory. */
char *lock_take_name(struct lock_shard *shard, size_t bytes);
void lock_give_name(struct lock_shard *shard, char *name, size_t bytes);

void lock_clear_shard(struct lock_shard *shard);

/* Of a shard that fell empty and is larger than what always stays. */
void lock_rest_shard(struct lock_shard *shard);

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
        lock_rest_shard(shard);
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

/* memcmp() without a call for what most names are. */
static inline bool lock_same_bytes(const char *a, const char *b, size_t bytes)
{
    uint64_t x, y, different = 0;

    if (bytes < 8 || bytes > LOCK_NAME_INLINE) {
        return memcmp(a, b, bytes) == 0;
    }
    for (size_t i = 0; i < bytes; i += 8) {
        size_t at = i + 8 <= bytes ? i : bytes - 8;

        memcpy(&x, a + at, 8);
        memcpy(&y, b + at, 8);
        different |= x ^ y;
    }
    return different == 0;
}

static inline uint32_t lock_find_entry(const struct lock_shard *shard, const struct lock_key *key)
{
    uint32_t at = key->tag, number;

    while ((number = lock_index_next(&shard->names, key->tag, &at)) != 0) {
        const struct lock_entry *entry = lock_entry_at(shard, number);

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

/* Some hold of an owner in the shard. Of all that are chained at most one rests. */
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

static inline void lock_link_to_owner(struct lock_shard *shard, uint32_t number, uint64_t owner)
{
    struct lock_hold *hold = lock_hold_at(shard, number);
    struct lock_holder *holder;
    uint32_t found = lock_find_holder(shard, owner);

    if (found == 0) {
        found = lock_pool_take(&shard->holders, sizeof *holder);
        *LOCK_POOL_AT(lock_holder, shard->holders, found) = (struct lock_holder){.owner = owner};
        lock_index_add(&shard->owners, (uint32_t)lock_owner_hash(owner), found);
    }
    holder = LOCK_POOL_AT(lock_holder, shard->holders, found);
    hold->owner = owner;
    hold->party = found;
    hold->owner_next = holder->first;
    hold->owner_previous = 0;
    if (holder->first != 0) {
        lock_hold_at(shard, holder->first)->owner_previous = number;
    }
    holder->first = number;
}

static inline void lock_unlink_from_owner(struct lock_shard *shard, struct lock_hold *hold)
{
    struct lock_holder *holder = LOCK_POOL_AT(lock_holder, shard->holders, hold->party);

    if (hold->owner_next != 0) {
        lock_hold_at(shard, hold->owner_next)->owner_previous = hold->owner_previous;
    }
    if (hold->owner_previous != 0) {
        lock_hold_at(shard, hold->owner_previous)->owner_next = hold->owner_next;
    } else {
        holder->first = hold->owner_next;
    }
    if (holder->first == 0) {
        lock_index_remove(&shard->owners, (uint32_t)lock_owner_hash(hold->owner), hold->party);
        lock_pool_give(&shard->holders, sizeof *holder, hold->party);
    }
    hold->owner = 0;
}

/*
 * An empty entry, for which a hold was reserved; lock_settle_entry() takes it away again unless
 * something was put into it.
 */
static inline rh_status lock_make_entry(struct lock_shard *shard, const struct lock_key *key,
                                        uint32_t *out)
{
    struct lock_entry *entry;
    char *far = NULL;

    if (lock_index_reserve(&shard->names, 1) != RH_OK) {
        return RH_NO_MEMORY;
    }
    if (key->bytes > LOCK_NAME_INLINE) {
        far = lock_take_name(shard, key->bytes);
        if (far == NULL) {
            return RH_NO_MEMORY;
        }
    }
    *out = lock_pool_take(&shard->records, sizeof(struct lock_record));
    lock_hold_at(shard, *out)->owner = 0;
    lock_hold_at(shard, *out)->count = 0;
    entry = lock_entry_at(shard, *out);
    *entry = (struct lock_entry){.tag = key->tag, .name_bytes = (uint16_t)key->bytes};
    if (far) {
        entry->name.far = far;
    }
    memcpy(far ? far : entry->name.near, key->name, key->bytes);
    lock_index_add(&shard->names, key->tag, *out);
    return RH_OK;
}

static inline void lock_remove_entry(struct lock_shard *shard, uint32_t number)
{
    struct lock_entry *entry = lock_entry_at(shard, number);
    struct lock_hold *resting = lock_hold_at(shard, number);

    lock_index_remove(&shard->names, entry->tag, number);
    if (entry->name_bytes > LOCK_NAME_INLINE) {
        lock_give_name(shard, entry->name.far, entry->name_bytes);
    }
    if (resting->owner != 0) {
        lock_unlink_from_owner(shard, resting);
    }
    lock_pool_give(&shard->records, sizeof(struct lock_record), number);
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
            lock_remove_entry(shard, shard->idle);
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

static inline uint32_t lock_find_hold(const struct lock_shard *shard,
                                      const struct lock_entry *entry, uint64_t owner)
{
    uint32_t number = entry->first, hash, at;

    for (int i = 0; i < LOCK_HOLDS_WALKED; i++) {
        if (number == 0 || lock_hold_at(shard, number)->owner == owner) {
            return number;
        }
        number = lock_hold_at(shard, number)->next;
    }
    if (number == 0) {
        return 0;
    }
    at = hash = lock_hold_hash(lock_hold_at(shard, number)->entry, owner);
    while ((number = lock_index_next(&shard->crowd, hash, &at)) != 0) {
        const struct lock_hold *hold = lock_hold_at(shard, number);

        if (hold->owner == owner && lock_entry_at(shard, hold->entry) == entry) {
            break;
        }
    }
    return number;
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
        lock_note_presence(table, shard->number, owner, change > 0);
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
        made = lock_pool_take(&shard->records, sizeof(struct lock_record));
        hold = lock_hold_at(shard, made);
        hold->owner = 0;
        hold->count = 0;
    }
    if (hold->owner != owner) {
        if (hold->owner != 0) {
            lock_unlink_from_owner(shard, hold);
        }
        lock_link_to_owner(shard, made, owner);
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
        lock_unlink_from_owner(shard, hold);
        lock_pool_give(&shard->records, sizeof(struct lock_record), number);
    } else if (entry->first != 0 || entry->queue != 0) {
        lock_unlink_from_owner(shard, hold);
    }
}

#endif
