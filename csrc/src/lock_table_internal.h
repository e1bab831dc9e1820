/*
 * The inside of the lock table.
 *
 * Names are dealt to 64 shards by their hash. A shard has one mutex and all about its names: who
 * holds them (holds, also chained by owner) and who awaits them (waiters in queues). What is to
 * be known of an owner as a whole, the one thing it waits for and its deadline, is in the
 * register of owners, dealt to stripes by the owner's hash; most owners have no record there.
 *
 * Order of locking: shards by ascending number, then one stripe. A waiter begins and ceases to
 * be under the mutex of its shard, so that who has all shards sees a graph that stands still.
 *
 * Two arrays of counters, a row for every few owners by hash, spare most calls all mutexes but
 * their shard's. They may say "perhaps" of an owner for the sake of another one, but never "no"
 * wrongly:
 *   present   in which shards it holds something. Written under the shard's mutex.
 *   tracked   whether it has a record in the register.
 */
#ifndef RINGHOLD_SRC_LOCK_TABLE_INTERNAL_H
#define RINGHOLD_SRC_LOCK_TABLE_INTERNAL_H

#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>

#include <ringhold/lock_table.h>

#include "lock_table_mutex.h"
#include "lock_table_pool.h"

#define LOCK_SHARDS 64 /* as many as a mask of shards has bits */
#define LOCK_SHARDS_ALL UINT64_MAX
#define LOCK_STRIPES 16
#define LOCK_ROWS 256
#define LOCK_NAME_INLINE 24

/* Pools up to this size always stay when their shard or stripe falls empty. */
#define LOCK_CAPACITY_KEPT 512

/* More holders than this of one name, and the later ones are found by an index. */
#define LOCK_HOLDS_WALKED 8

#define LOCK_BIT(mode) (1u << (mode))

struct lock_entry {
    alignas(64) uint32_t tag;
    uint16_t name_bytes;
    uint8_t held;       /* the modes held, a bit each */
    uint32_t shared[3]; /* how many hold it in IS, IX and S, which go together with themselves */
    uint32_t first;     /* holds, in the order in which they came */
    uint32_t last;
    uint32_t holders;
    uint32_t queue; /* 0: nobody waits */
    union {
        char near[LOCK_NAME_INLINE];
        char *far; /* longer names, of lock_name_room() bytes */
    } name;
};

struct lock_hold {
    alignas(64) uint32_t entry;
    uint32_t next; /* of the same name */
    uint32_t previous;
    uint32_t owner_next; /* of the same owner in this shard */
    uint32_t owner_previous;
    uint32_t party;
    uint32_t waiter; /* the upgrade of this hold that its owner waits for */
    uint8_t mode;
    bool indexed; /* only ever false among the first LOCK_HOLDS_WALKED of a name */
    uint64_t owner;
    uint64_t token;
    uint64_t count;
};

/*
 * A name with room for one hold, so that a name with one holder is in one place, or no name and
 * one more hold of another record's. An entry and its hold have the same number.
 *
 * The room in a named record is taken (count > 0), vacant (owner 0), or the hold in it rests:
 * given up, but still chained to its owner, as long as its entry is the shard's idle one.
 */
struct lock_record {
    struct lock_entry entry;
    struct lock_hold hold;
};

/* An owner with holds in the shard. */
struct lock_holder {
    uint32_t first; /* of its holds */
    uint32_t held;  /* how many there are besides resting ones */
    uint64_t owner;
};

struct lock_waiter {
    uint32_t entry;
    uint32_t next;
    uint32_t previous;
    uint32_t hold; /* what an upgrade would raise, 0 when there is nothing, or nothing any more */
    uint8_t mode;  /* what it will hold */
    bool upgrade;
    uint8_t shard;
    uint8_t walked; /* of the search numbered `search`: in which modes it was passed ... */
    bool reached;   /* ... and whether it is, or was, on the stack */
    uint64_t search;
    uint64_t owner;
    struct lock_waiter *below; /* on the stack of the search */
};

enum { LOCK_NORMAL, LOCK_UPGRADE, LOCK_KINDS };

struct lock_queue {
    uint32_t entry;
    uint32_t first;
    uint32_t last;
    uint32_t last_upgrade; /* upgrades come first */
    uint32_t count;
    uint32_t next_touched;
    bool touched;              /* in its shard's list of queues to be served */
    uint8_t walked;            /* modes in which the search has seen the holders */
    uint8_t modes[LOCK_KINDS]; /* awaited, a bit each */
    uint32_t counts[LOCK_KINDS][RH_LOCK_EXCLUSIVE + 1];
    uint64_t search;
};

/* Blocks for long names, by size: 64, 128, ... 4096 bytes. Of each size so much is kept free. */
enum { LOCK_NAME_SIZES = 7, LOCK_NAME_BYTES_KEPT = 16384 };

struct lock_name_pool {
    char *free; /* each beginning with a pointer to the next */
    uint32_t count;
};

struct lock_shard {
    alignas(64) struct lock_mutex mutex;
    uint32_t number;
    uint32_t touched; /* queues that dropped owners were in */
    uint32_t idle;    /* entry that nobody holds or awaits, left in place for reuse, or 0 */
    struct lock_index names;
    struct lock_pool records;
    struct lock_pool waiters;
    struct lock_pool holders;
    struct lock_index owners;
    struct lock_index crowd; /* holds of names with many holders */
    struct lock_pool queues;
    struct lock_name_pool far[LOCK_NAME_SIZES];
};

struct lock_stripe {
    alignas(64) struct lock_mutex mutex;
    struct lock_pool records;
    struct lock_index index;
    uint32_t *heap; /* records by deadline, from place 1; has room for all of them */
    uint32_t heap_count;
    uint32_t heap_capacity;
};

struct rh_lock_table {
    struct lock_shard shards[LOCK_SHARDS];
    uint64_t hash_seed;
    struct lock_stripe stripes[LOCK_STRIPES];
    alignas(64) _Atomic uint8_t present[LOCK_ROWS][LOCK_SHARDS];
    _Atomic uint32_t tracked[LOCK_ROWS];
    alignas(64) _Atomic uint64_t tokens;
    alignas(64) _Atomic uint64_t waiting; /* owners in queues, and those about to enter one */
    uint64_t searches;                    /* for cycles; under the mutexes of all shards */
};

struct rh_lock_grants {
    rh_lock_grant *items;
    size_t count;
    size_t capacity;
    char *text; /* the names */
    size_t text_bytes;
    size_t text_capacity;
};

/* A name on its way in. */
struct lock_key {
    const char *name;
    size_t bytes;
    uint32_t shard;
    uint32_t tag;
};

/* Modes that exclude a mode, and the weakest mode that covers two. */
extern const uint8_t rh_lock_excluded[RH_LOCK_EXCLUSIVE + 1];
extern const uint8_t rh_lock_covering[RH_LOCK_EXCLUSIVE + 1][RH_LOCK_EXCLUSIVE + 1];

static inline struct lock_entry *lock_entry_at(const struct lock_shard *shard, uint32_t number)
{
    return &LOCK_POOL_AT(lock_record, shard->records, number)->entry;
}

static inline struct lock_hold *lock_hold_at(const struct lock_shard *shard, uint32_t number)
{
    return &LOCK_POOL_AT(lock_record, shard->records, number)->hold;
}

static inline struct lock_waiter *lock_waiter_at(const struct lock_shard *shard, uint32_t number)
{
    return LOCK_POOL_AT(lock_waiter, shard->waiters, number);
}

static inline struct lock_queue *lock_queue_at(const struct lock_shard *shard, uint32_t number)
{
    return LOCK_POOL_AT(lock_queue, shard->queues, number);
}

static inline const char *lock_entry_name(const struct lock_entry *entry)
{
    return entry->name_bytes <= LOCK_NAME_INLINE ? entry->name.near : entry->name.far;
}

/* The upper half is spread best: rows and stripes come from it, indexes take the lower one. */
static inline uint64_t lock_owner_hash(uint64_t owner)
{
    uint64_t hash = owner * 0x9e3779b97f4a7c15u;

    return hash ^ hash >> 32;
}

static inline size_t lock_owner_row(uint64_t owner)
{
    return owner * 0x9e3779b97f4a7c15u >> 56;
}

static inline bool lock_owner_tracked(const rh_lock_table *table, uint64_t owner)
{
    return atomic_load_explicit(&table->tracked[lock_owner_row(owner)], memory_order_relaxed) != 0;
}

/* The modes in which others than the owner of `hold` (NULL: nobody) hold the name. */
static inline unsigned lock_held_by_others(const struct lock_entry *entry,
                                           const struct lock_hold *hold)
{
    if (hold && (hold->mode > RH_LOCK_SHARED || entry->shared[hold->mode - 1] == 1)) {
        return entry->held & ~LOCK_BIT(hold->mode);
    }
    return entry->held;
}

/* lock_table_queue.c: waiters and grants. The shard's mutex is held. */

/* Whether `mode` can be had past the waiters, `hold` (NULL: none) being what the owner has. */
bool rh_lock_can_pass(rh_lock_table *table, const struct lock_shard *shard, uint32_t entry,
                      const struct lock_hold *hold, uint64_t owner, unsigned mode);

/* Queues; RH_INVALID_ARGUMENT when the owner is waiting already. */
rh_status rh_lock_add_waiter(rh_lock_table *table, struct lock_shard *shard, uint32_t entry,
                             uint32_t hold, uint64_t owner, unsigned mode, uint32_t *out);

/* Leaves an emptied queue behind, for rh_lock_drop_queue() or rh_lock_serve(). */
void rh_lock_remove_waiter(struct lock_shard *shard, uint32_t waiter);
void rh_lock_drop_queue(struct lock_shard *shard, uint32_t entry);

/* Room for every grant that serving the queue of an entry can give, besides what is reserved. */
struct lock_room {
    size_t grants;
    size_t text_bytes;
};
void rh_lock_count_room(const struct lock_shard *shard, uint32_t entry, struct lock_room *room);
rh_status rh_lock_reserve_grants(rh_lock_grants *grants, struct lock_room room);

/* Grants what can be granted; then lock_settle_entry(). */
void rh_lock_serve(rh_lock_table *table, struct lock_shard *shard, uint32_t entry,
                   rh_lock_grants *grants);

/* lock_table_owners.c: the register of owners. Takes the mutex of a stripe itself. */

struct lock_wait {
    uint32_t shard;
    uint32_t waiter; /* 0: the owner waits for nothing */
};

rh_status rh_lock_open_register(rh_lock_table *table, size_t *opened);
void rh_lock_close_register(rh_lock_table *table, size_t opened);

/* RH_INVALID_ARGUMENT when the owner is waiting already. */
rh_status rh_lock_begin_wait(rh_lock_table *table, uint64_t owner, struct lock_wait wait);

/* After what the wait was for, if anything, was put into the shard. */
void rh_lock_end_wait(rh_lock_table *table, uint64_t owner);

/* Takes back rh_lock_begin_wait() as if it had never been. */
void rh_lock_undo_wait(rh_lock_table *table, uint64_t owner);

struct lock_wait rh_lock_find_wait(rh_lock_table *table, uint64_t owner);

/* The owner holds its first, or no longer anything, in a shard. */
void rh_lock_note_presence(rh_lock_table *table, uint32_t shard, uint64_t owner, bool present);

void rh_lock_forget_deadline(rh_lock_table *table, uint64_t owner);

/* What an expired owner holds and awaits. */
struct lock_expired {
    uint64_t owner;
    uint64_t shards;
    struct lock_wait wait;
};

/* Both with all shards locked: room for what follows from dropping the expired owners of all
 * stripes, and one expired owner of a stripe, without its deadline from then on. */
void rh_lock_count_expired(rh_lock_table *table, int64_t now, struct lock_room *room);
bool rh_lock_take_expired(rh_lock_table *table, size_t stripe, int64_t now,
                          struct lock_expired *out);

/* lock_table_release.c */

void rh_lock_count_owner(const rh_lock_table *table, uint64_t owner, uint64_t shards,
                         struct lock_wait wait, struct lock_room *room);

/* lock_table_waits.c */

/* Whether a chain of waits leads from `waiter` back to its owner. All shards are locked. */
bool rh_lock_closes_cycle(rh_lock_table *table, struct lock_waiter *waiter);

/* lock_table.c */

void rh_lock_lock_shards(rh_lock_table *table, uint64_t mask);
void rh_lock_unlock_shards(rh_lock_table *table, uint64_t mask);

/* The shards in which the owner may hold something. */
uint64_t rh_lock_shards_of(const rh_lock_table *table, uint64_t owner);

#endif
