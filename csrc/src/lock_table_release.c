/* Giving up: what was acquired, what is awaited, and everything of an owner at once. */
#include "lock_table_shard.h"

/* Grants that follow from a change of the entry's holders or waiters, or takes it away. */
static inline void settle(rh_lock_table *table, struct lock_shard *shard, uint32_t entry,
                          rh_lock_grants *grants)
{
    if (lock_entry_at(shard, entry)->queue != 0) {
        rh_lock_serve(table, shard, entry, grants);
    } else {
        lock_settle_entry(shard, entry);
    }
    lock_trim_shard(shard);
}

static inline rh_status reserve_for(const struct lock_shard *shard, uint32_t entry,
                                    rh_lock_grants *grants)
{
    struct lock_room room = {0, 0};

    if (lock_entry_at(shard, entry)->queue == 0) {
        grants->count = 0;
        return RH_OK;
    }
    rh_lock_count_room(shard, entry, &room);
    return rh_lock_reserve_grants(grants, room);
}

static inline rh_status release(rh_lock_table *table, struct lock_shard *shard,
                                const struct lock_key *key, uint64_t owner, rh_lock_grants *grants)
{
    uint32_t entry = lock_find_entry(shard, key), hold = 0;

    if (entry != 0) {
        hold = lock_find_hold(shard, entry, owner);
    }
    if (hold == 0) {
        return RH_NOT_OWNED;
    }
    if (reserve_for(shard, entry, grants) != RH_OK) {
        return RH_NO_MEMORY;
    }
    if (--lock_hold_at(shard, hold)->count == 0) {
        lock_remove_hold(table, shard, hold);
        settle(table, shard, entry, grants);
    }
    return RH_OK;
}

rh_status rh_lock_release(rh_lock_table *table, const void *name, size_t name_bytes, uint64_t owner,
                          rh_lock_grants *grants)
{
    struct lock_key key;
    rh_status status;

    if (grants == NULL || !lock_make_key(table, name, name_bytes, owner, &key)) {
        return RH_INVALID_ARGUMENT;
    }
    lock_mutex_lock(&table->shards[key.shard].mutex);
    status = release(table, &table->shards[key.shard], &key, owner, grants);
    lock_mutex_unlock(&table->shards[key.shard].mutex);
    return status;
}

static rh_status cancel(rh_lock_table *table, struct lock_shard *shard, const struct lock_key *key,
                        uint64_t owner, rh_lock_grants *grants)
{
    uint32_t entry = lock_find_entry(shard, key);
    struct lock_wait wait = {0, 0};

    if (lock_owner_tracked(table, owner)) {
        wait = rh_lock_find_wait(table, owner);
    }
    if (entry == 0 || wait.waiter == 0 || wait.shard != shard->number ||
        lock_waiter_at(shard, wait.waiter)->entry != entry) {
        return rh_lock_reserve_grants(grants, (struct lock_room){0, 0});
    }
    if (reserve_for(shard, entry, grants) != RH_OK) {
        return RH_NO_MEMORY;
    }
    rh_lock_remove_waiter(shard, wait.waiter);
    rh_lock_end_wait(table, owner);
    settle(table, shard, entry, grants);
    return RH_OK;
}

rh_status rh_lock_cancel(rh_lock_table *table, const void *name, size_t name_bytes, uint64_t owner,
                         rh_lock_grants *grants)
{
    struct lock_key key;
    rh_status status;

    if (grants == NULL || !lock_make_key(table, name, name_bytes, owner, &key)) {
        return RH_INVALID_ARGUMENT;
    }
    lock_mutex_lock(&table->shards[key.shard].mutex);
    status = cancel(table, &table->shards[key.shard], &key, owner, grants);
    lock_mutex_unlock(&table->shards[key.shard].mutex);
    return status;
}

static rh_status downgrade(rh_lock_table *table, struct lock_shard *shard,
                           const struct lock_key *key, uint64_t owner, rh_lock_mode mode,
                           rh_lock_grants *grants)
{
    uint32_t entry = lock_find_entry(shard, key), hold = 0;

    if (entry != 0) {
        hold = lock_find_hold(shard, entry, owner);
    }
    if (hold == 0) {
        return RH_NOT_OWNED;
    }
    if (rh_lock_covering[lock_hold_at(shard, hold)->mode][mode] !=
        lock_hold_at(shard, hold)->mode) {
        return RH_INVALID_ARGUMENT;
    }
    if (reserve_for(shard, entry, grants) != RH_OK) {
        return RH_NO_MEMORY;
    }
    lock_change_mode(lock_entry_at(shard, entry), lock_hold_at(shard, hold), mode);
    settle(table, shard, entry, grants);
    return RH_OK;
}

rh_status rh_lock_downgrade(rh_lock_table *table, const void *name, size_t name_bytes,
                            uint64_t owner, rh_lock_mode mode, rh_lock_grants *grants)
{
    struct lock_key key;
    rh_status status;

    if (grants == NULL || (unsigned)mode - 1 >= RH_LOCK_EXCLUSIVE ||
        !lock_make_key(table, name, name_bytes, owner, &key)) {
        return RH_INVALID_ARGUMENT;
    }
    lock_mutex_lock(&table->shards[key.shard].mutex);
    status = downgrade(table, &table->shards[key.shard], &key, owner, mode, grants);
    lock_mutex_unlock(&table->shards[key.shard].mutex);
    return status;
}

void rh_lock_count_owner(const rh_lock_table *table, uint64_t owner, uint64_t shards,
                         struct lock_wait wait, struct lock_room *room)
{
    for (size_t i = 0; i < LOCK_SHARDS; i++) {
        const struct lock_shard *shard = &table->shards[i];
        uint32_t hold = shards >> i & 1 ? lock_first_hold(shard, owner) : 0;

        for (; hold != 0; hold = lock_hold_at(shard, hold)->owner_next) {
            rh_lock_count_room(shard, lock_hold_at(shard, hold)->entry, room);
        }
    }
    if (wait.waiter != 0) {
        const struct lock_shard *shard = &table->shards[wait.shard];

        rh_lock_count_room(shard, lock_waiter_at(shard, wait.waiter)->entry, room);
    }
}

/* Notes that the entry's queue is to be served when all that is to be dropped is gone. */
static void touch(struct lock_shard *shard, uint32_t entry)
{
    uint32_t number = lock_entry_at(shard, entry)->queue;
    struct lock_queue *queue;

    if (number == 0) {
        lock_settle_entry(shard, entry);
        return;
    }
    queue = lock_queue_at(shard, number);
    if (!queue->touched) {
        queue->touched = true;
        queue->next_touched = shard->touched;
        shard->touched = number;
    }
}

static void drop_owner(rh_lock_table *table, uint64_t owner, uint64_t shards, struct lock_wait wait)
{
    for (size_t i = 0; i < LOCK_SHARDS; i++) {
        struct lock_shard *shard = &table->shards[i];
        uint32_t hold;

        while (shards >> i & 1 && (hold = lock_first_hold(shard, owner)) != 0) {
            uint32_t entry = lock_hold_at(shard, hold)->entry;

            lock_remove_hold(table, shard, hold);
            touch(shard, entry);
        }
    }
    if (wait.waiter != 0) {
        struct lock_shard *shard = &table->shards[wait.shard];
        uint32_t entry = lock_waiter_at(shard, wait.waiter)->entry;

        rh_lock_remove_waiter(shard, wait.waiter);
        rh_lock_end_wait(table, owner);
        touch(shard, entry);
    }
}

static void serve_touched(rh_lock_table *table, uint64_t shards, rh_lock_grants *grants)
{
    for (size_t i = 0; i < LOCK_SHARDS; i++) {
        struct lock_shard *shard = &table->shards[i];

        while (shards >> i & 1 && shard->touched != 0) {
            struct lock_queue *queue = lock_queue_at(shard, shard->touched);

            shard->touched = queue->next_touched;
            queue->touched = false;
            rh_lock_serve(table, shard, queue->entry, grants);
        }
        if (shards >> i & 1) {
            lock_trim_shard(shard);
        }
    }
}

rh_status rh_lock_release_owner(rh_lock_table *table, uint64_t owner, rh_lock_grants *grants)
{
    struct lock_room room = {0, 0};
    struct lock_wait wait;
    uint64_t shards;
    rh_status status;

    if (table == NULL || owner - 1 >= RH_LOCK_OWNER_MAX || grants == NULL) {
        return RH_INVALID_ARGUMENT;
    }
    shards = rh_lock_shards_of(table, owner);
    wait = rh_lock_find_wait(table, owner);
    if (wait.waiter != 0) {
        shards |= (uint64_t)1 << wait.shard;
    }
    rh_lock_lock_shards(table, shards);
    /* A wait that another thread began meanwhile, elsewhere, comes after this call. */
    wait = rh_lock_find_wait(table, owner);
    if (!(shards >> wait.shard & 1)) {
        wait.waiter = 0;
    }
    rh_lock_count_owner(table, owner, shards, wait, &room);
    status = rh_lock_reserve_grants(grants, room);
    if (status == RH_OK) {
        drop_owner(table, owner, shards, wait);
        serve_touched(table, shards, grants);
        rh_lock_forget_deadline(table, owner);
    }
    rh_lock_unlock_shards(table, shards);
    return status;
}

rh_status rh_lock_expire(rh_lock_table *table, int64_t now_ns, rh_lock_grants *grants)
{
    struct lock_room room = {0, 0};
    struct lock_expired expired;
    rh_status status;

    if (table == NULL || grants == NULL) {
        return RH_INVALID_ARGUMENT;
    }
    rh_lock_lock_shards(table, LOCK_SHARDS_ALL);
    rh_lock_count_expired(table, now_ns, &room);
    status = rh_lock_reserve_grants(grants, room);
    for (size_t i = 0; status == RH_OK && i < LOCK_STRIPES; i++) {
        while (rh_lock_take_expired(table, i, now_ns, &expired)) {
            drop_owner(table, expired.owner, expired.shards, expired.wait);
        }
    }
    if (status == RH_OK) {
        serve_touched(table, LOCK_SHARDS_ALL, grants);
    }
    rh_lock_unlock_shards(table, LOCK_SHARDS_ALL);
    return status;
}
