/*
 * The ring: consistent hashing with virtual nodes, weights and zones.
 *
 *   point i of a node   XXH3_64(name || '#' || LE32(i)),  i < points(node)
 *   points(node)        max(1, round half to even(vnodes * weight)), none for weight 0
 *   hash of a key       XXH3_64(key)
 *   owner of a hash     the node of the first point >= hash, wrapping to the first of all;
 *                       of equal points the node whose name is smaller byte by byte
 *
 * (Karger et al., "Consistent Hashing and Random Trees", 1997.) No point depends on another
 * node, so adding, removing or reweighting one moves only keys to or from it.
 *
 * A ring is immutable: rh_ring_edit makes a new one beside the old. Hence any number of threads
 * may use one ring at once, and whoever replaces a shared one frees the old when its last
 * reader is gone.
 *
 * Nodes are numbered in order of insertion. Numbers survive edits: a removed node leaves its
 * number behind and gets it back when its name is added again.
 */
#ifndef RINGHOLD_RING_H
#define RINGHOLD_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <ringhold/export.h>
#include <ringhold/status.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct rh_ring rh_ring;

#define RH_RING_VNODES_DEFAULT 160
#define RH_RING_POINTS_MAX ((size_t)1 << 28)

/* Names and zones are any bytes, NUL among them, copied by the functions that take them. */
typedef struct rh_ring_node {
    const void *name;
    size_t name_bytes;
    const void *zone; /* NULL: none; beside zoned nodes such a node is a zone of its own */
    size_t zone_bytes;
    double weight; /* finite and >= 0; 0: present, owning nothing */
} rh_ring_node;

typedef struct rh_ring_options {
    uint32_t vnodes; /* points of a node of weight 1; 0: RH_RING_VNODES_DEFAULT */
} rh_ring_options;

typedef enum rh_ring_change_kind {
    RH_RING_ADD = 0,
    RH_RING_REMOVE = 1 /* zone and weight of the node are ignored */
} rh_ring_change_kind;

typedef struct rh_ring_change {
    rh_ring_change_kind kind;
    rh_ring_node node;
} rh_ring_change;

typedef struct rh_ring_info {
    size_t names;  /* numbers given out, those of removed nodes included */
    size_t nodes;  /* nodes present */
    size_t usable; /* nodes present with at least one point */
    size_t zones;  /* zones with a usable node, each node without a zone counted as one */
    size_t points;
    uint32_t vnodes;
} rh_ring_info;

typedef struct rh_ring_member {
    rh_ring_node node; /* borrowed from the ring; of a removed node only the name is kept */
    size_t points;
    bool present;
} rh_ring_member;

typedef struct rh_ring_replicas_options {
    const uint32_t *exclude; /* numbers of nodes to leave out; repeated and absent ones allowed */
    size_t exclude_count;
} rh_ring_replicas_options;

/*
 * A ring of `count` nodes, numbered in the order given.
 * RH_INVALID_ARGUMENT (weight), RH_DUPLICATE_NODE, RH_TOO_LARGE, RH_NO_MEMORY.
 */
RH_API RH_NODISCARD rh_status rh_ring_new(const rh_ring_node *nodes, size_t count,
                                          const rh_ring_options *options, rh_ring **out);

/*
 * The ring that `changes` make of `ring`, which stays as it is. Costs one pass over the points
 * and the sorting of the added ones alone. A name may occur once in `changes`.
 * As rh_ring_new, and RH_UNKNOWN_NODE when a node to be removed is not present.
 */
RH_API RH_NODISCARD rh_status rh_ring_edit(const rh_ring *ring, const rh_ring_change *changes,
                                           size_t count, rh_ring **out);

RH_API void rh_ring_free(rh_ring *ring);

/* Cannot fail. */
RH_API rh_status rh_ring_get_info(const rh_ring *ring, rh_ring_info *out);

/* The node numbered `index`, present or removed; RH_UNKNOWN_NODE beyond the last number. */
RH_API RH_NODISCARD rh_status rh_ring_get_member(const rh_ring *ring, size_t index,
                                                 rh_ring_member *out);

/* The number of the node of that name; RH_UNKNOWN_NODE when it is not present. */
RH_API RH_NODISCARD rh_status rh_ring_find(const rh_ring *ring, const void *name, size_t name_bytes,
                                           uint32_t *out);

/*
 * The points in ascending order and the numbers of their nodes, borrowed from the ring: valid
 * until it is freed. Cannot fail.
 */
RH_API rh_status rh_ring_get_points(const rh_ring *ring, const uint64_t **points,
                                    const uint32_t **owners, size_t *count);

/* The hash by which a key is placed. */
RH_API RH_NODISCARD rh_status rh_ring_hash(const void *key, size_t key_bytes, uint64_t *out);

/* The number of the owner; RH_EMPTY_RING when no node has a point. */
RH_API RH_NODISCARD rh_status rh_ring_lookup(const rh_ring *ring, const void *key, size_t key_bytes,
                                             uint32_t *out);
RH_API RH_NODISCARD rh_status rh_ring_lookup_hash(const rh_ring *ring, uint64_t hash,
                                                  uint32_t *out);

/* The same for `count` keys or hashes at once; `out` has room for `count` numbers. */
RH_API RH_NODISCARD rh_status rh_ring_lookup_keys(const rh_ring *ring, const void *const *keys,
                                                  const size_t *key_bytes, size_t count,
                                                  uint32_t *out);
RH_API RH_NODISCARD rh_status rh_ring_lookup_hashes(const rh_ring *ring, const uint64_t *hashes,
                                                    size_t count, uint32_t *out);

/*
 * `count` distinct nodes for a key of that hash, the owner first: the walk clockwise from the
 * hash, except that no zone is used twice before every zone was used once, none a third time
 * before every second, and so on; a zone with no node left to give is passed over.
 * `out` has room for `count` numbers; `zones` (NULL allowed) receives in how many zones they
 * lie. RH_NOT_ENOUGH_NODES when fewer than `count` nodes are usable.
 */
RH_API RH_NODISCARD rh_status rh_ring_replicas(const rh_ring *ring, uint64_t hash, size_t count,
                                               const rh_ring_replicas_options *options,
                                               uint32_t *out, size_t *zones);

#ifdef __cplusplus
}
#endif

#endif
