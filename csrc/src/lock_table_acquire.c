/* Acquiring and queueing. */
#include "lock_table_shard.h"

/* An acquisition seen against the table: what there is, and what it would lead to. */
struct ask {
    uint64_t owner;
    uint32_t entry; /* 0: nobody holds or awaits the name */
    uint32_t hold;  /* of the owner */
    unsigned mode;  /* what would be held */
};

static bool is_mode(rh_lock_mode mode)
{
    return (unsigned)mode - 1 < RH_LOCK_EXCLUSIVE;
}

static inline struct ask look_up(const struct lock_shard *shard, const struct lock_key *key,
                                 uint64_t owner, rh_lock_mode mode)
{
    struct ask ask = {owner, lock_find_entry(shard, key), 0, mode};

    if (ask.entry != 0) {
        ask.hold = lock_find_hold(shard, ask.entry, owner);
    }
    if (ask.hold != 0) {
        ask.mode = rh_lock_covering[lock_hold_at(shard, ask.hold)->mode][mode];
    }
    return ask;
}

static inline bool is_covered(const struct lock_shard *shard, const struct ask *ask)
{
    return ask->hold != 0 && lock_hold_at(shard, ask->hold)->mode == ask->mode;
}

static inline bool can_take(rh_lock_table *table, const struct lock_shard *shard,
                            const struct ask *ask)
{
    const struct lock_hold *hold = NULL;
    const struct lock_entry *entry;

    if (ask->entry == 0 || is_covered(shard, ask)) {
        return true;
    }
    if (ask->hold != 0) {
        hold = lock_hold_at(shard, ask->hold);
    }
    entry = lock_entry_at(shard, ask->entry);
    return !(rh_lock_excluded[ask->mode] & lock_held_by_others(entry, hold)) &&
           (entry->queue == 0 ||
            rh_lock_can_pass(table, shard, ask->entry, hold, ask->owner, ask->mode));
}

/* Everything that take() needs, `count` times. A hold that there is, or rests, needs nothing. */
static inline rh_status prepare(struct lock_shard *shard, const struct lock_key *key,
                                struct ask *ask, size_t count)
{
    if (ask->hold != 0 ||
        (ask->entry != 0 && lock_hold_at(shard, ask->entry)->owner == ask->owner)) {
        return RH_OK;
    }
    if (lock_reserve_holds(shard, count) != RH_OK) {
        return RH_NO_MEMORY;
    }
    return ask->entry != 0 ? RH_OK : rh_lock_make_entry(shard, key, &ask->entry);
}

static inline uint64_t take(rh_lock_table *table, struct lock_shard *shard, const struct ask *ask)
{
    if (is_covered(shard, ask)) {
        struct lock_hold *hold = lock_hold_at(shard, ask->hold);

        hold->count++;
        return hold->token;
    }
    return lock_add_hold(table, shard, ask->entry, ask->hold, ask->owner, ask->mode);
}

static inline rh_status acquire(rh_lock_table *table, struct lock_shard *shard,
                                const struct lock_key *key, struct ask *ask, uint64_t *token)
{
    rh_status status;

    if (!can_take(table, shard, ask)) {
        return RH_CONFLICT;
    }
    status = prepare(shard, key, ask, 1);
    if (status == RH_OK) {
        *token = take(table, shard, ask);
    }
    return status;
}

rh_status rh_lock_try_acquire(rh_lock_table *table, const void *name, size_t name_bytes,
                              uint64_t owner, rh_lock_mode mode, uint64_t *token)
{
    struct lock_shard *shard;
    struct lock_key key;
    struct ask ask;
    rh_status status;

    if (token == NULL || !is_mode(mode) || !lock_make_key(table, name, name_bytes, owner, &key)) {
        return RH_INVALID_ARGUMENT;
    }
    shard = &table->shards[key.shard];
    lock_mutex_lock(&shard->mutex);
    ask = look_up(shard, &key, owner, mode);
    status = acquire(table, shard, &key, &ask, token);
    lock_mutex_unlock(&shard->mutex);
    return status;
}

/*
 * Whether a wait that was just begun can be part of a cycle, judged without a look at the graph:
 * not if nobody else waits, and not if nobody can wait for its owner since that holds nothing.
 * All waits that begin are in one order, that of the counter: the later one sees the earlier.
 */
static bool may_close_cycle(const rh_lock_table *table, uint64_t owner)
{
    return atomic_load(&table->waiting) > 1 && rh_lock_shards_of(table, owner) != 0;
}

/* RH_DEADLOCK with one shard locked alone means that all are needed to tell. */
static rh_status request(rh_lock_table *table, const struct lock_key *key, uint64_t owner,
                         rh_lock_mode mode, bool all_locked, uint64_t *token)
{
    struct lock_shard *shard = &table->shards[key->shard];
    struct ask ask;
    uint32_t waiter;
    rh_status status;

    if (lock_owner_tracked(table, owner) && rh_lock_find_wait(table, owner).waiter != 0) {
        return RH_INVALID_ARGUMENT;
    }
    ask = look_up(shard, key, owner, mode);
    status = acquire(table, shard, key, &ask, token);
    if (status != RH_CONFLICT) {
        return status;
    }
    status = rh_lock_add_waiter(table, shard, ask.entry, ask.hold, owner, ask.mode, &waiter);
    if (status != RH_OK) {
        return status;
    }
    if (all_locked ? rh_lock_closes_cycle(table, lock_waiter_at(shard, waiter))
                   : may_close_cycle(table, owner)) {
        rh_lock_remove_waiter(shard, waiter);
        rh_lock_drop_queue(shard, ask.entry);
        rh_lock_undo_wait(table, owner);
        return RH_DEADLOCK;
    }
    *token = 0;
    return RH_OK;
}

rh_status rh_lock_request(rh_lock_table *table, const void *name, size_t name_bytes, uint64_t owner,
                          rh_lock_mode mode, uint64_t *token)
{
    struct lock_key key;
    rh_status status;

    if (token == NULL || !is_mode(mode) || !lock_make_key(table, name, name_bytes, owner, &key)) {
        return RH_INVALID_ARGUMENT;
    }
    lock_mutex_lock(&table->shards[key.shard].mutex);
    status = request(table, &key, owner, mode, false, token);
    lock_mutex_unlock(&table->shards[key.shard].mutex);
    if (status == RH_DEADLOCK) {
        rh_lock_lock_shards(table, LOCK_SHARDS_ALL);
        status = request(table, &key, owner, mode, true, token);
        rh_lock_unlock_shards(table, LOCK_SHARDS_ALL);
    }
    return status;
}

/* Makes ready for all names, or for none: names made for the purpose are taken away again. */
static rh_status prepare_all(rh_lock_table *table, const void *const *names,
                             const size_t *name_bytes, size_t count, uint64_t owner,
                             rh_lock_mode mode)
{
    size_t planned[LOCK_SHARDS] = {0};
    rh_status status = RH_OK;
    struct lock_key key;
    size_t i;

    for (i = 0; i < count && status == RH_OK; i++) {
        struct lock_shard *shard;
        struct ask ask;

        (void)lock_make_key(table, names[i], name_bytes[i], owner, &key);
        shard = &table->shards[key.shard];
        ask = look_up(shard, &key, owner, mode);
        status = can_take(table, shard, &ask) ? prepare(shard, &key, &ask, ++planned[key.shard])
                                              : RH_CONFLICT;
    }
    while (status != RH_OK && i-- > 0) {
        uint32_t entry;

        (void)lock_make_key(table, names[i], name_bytes[i], owner, &key);
        entry = lock_find_entry(&table->shards[key.shard], &key);
        if (entry != 0) {
            lock_settle_entry(&table->shards[key.shard], entry);
            lock_trim_shard(&table->shards[key.shard]);
        }
    }
    return status;
}

/* Names are hashed anew in every pass, which costs less than memory to keep the hashes in. */
rh_status rh_lock_acquire_many(rh_lock_table *table, const void *const *names,
                               const size_t *name_bytes, size_t count, uint64_t owner,
                               rh_lock_mode mode, uint64_t *tokens)
{
    struct lock_key key;
    uint64_t mask = 0;
    rh_status status;

    if (names == NULL || name_bytes == NULL || count == 0 || tokens == NULL || !is_mode(mode)) {
        return RH_INVALID_ARGUMENT;
    }
    for (size_t i = 0; i < count; i++) {
        if (!lock_make_key(table, names[i], name_bytes[i], owner, &key)) {
            return RH_INVALID_ARGUMENT;
        }
        mask |= (uint64_t)1 << key.shard;
    }
    rh_lock_lock_shards(table, mask);
    status = prepare_all(table, names, name_bytes, count, owner, mode);
    for (size_t i = 0; i < count && status == RH_OK; i++) {
        struct lock_shard *shard;
        struct ask ask;

        (void)lock_make_key(table, names[i], name_bytes[i], owner, &key);
        shard = &table->shards[key.shard];
        ask = look_up(shard, &key, owner, mode);
        tokens[i] = take(table, shard, &ask);
    }
    rh_lock_unlock_shards(table, mask);
    return status;
}
