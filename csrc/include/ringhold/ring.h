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
 * node, so adding, removing or reweighting one moves only keys to or from it. The other profiles
 * have rules of their own, see rh_ring_profile.
 *
 * A ring is immutable: rh_ring_edit makes a new one beside the old. Hence any number of threads
 * may use one ring at once, and whoever replaces a shared one frees the old when its last
 * reader is gone.
 *
 * Nodes are numbered in order of insertion. Numbers survive edits: a removed node leaves its
 * number behind and gets it back when its name is added again.
 *
 * NULL where a pointer is needed is RH_INVALID_ARGUMENT, whatever a function says of failing. It is
 * not needed for arrays of length 0, keys of no bytes, options, and where it says so.
 */
#ifndef RINGHOLD_RING_H
#define RINGHOLD_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <ringhold/export.h>
#include <ringhold/node.h>
#include <ringhold/status.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct rh_ring rh_ring;

#define RH_RING_VNODES_DEFAULT 160
#define RH_RING_POINTS_MAX ((size_t)1 << 28)

/*
 * How points are formed, keys hashed and ties broken. Only the first depends on nothing but the
 * node itself; the others are those of the programs they are named after, bit by bit, for talking
 * to them:
 *
 *                          bits  weights  string of point i       points of a node
 *   KETAMA                  32   whole    name-[i/4]              float, share of all weights
 *   LIBMEMCACHED            32   whole    host-[i/4], or          float, share of all weights
 *                                         host:port-[i/4]
 *   LIBMEMCACHED_UNWEIGHTED 32   unused   host-i or host:port-i   100
 *   LIBMEMCACHED_SPY        32   whole    /host:port-[i/4]        as LIBMEMCACHED
 *   TWEMPROXY               32   whole    name-[i/4]              float, share of all weights
 *   UHASHRING              128   whole    name-i                  vnodes * weight
 *   UHASHRING_KETAMA        32   whole    name-[i/4]              4 * (40 * nodes * weight / sum)
 *
 * A point is the MD5 of its string: all of it, big-endian, for 128 bits, otherwise its i%4-th word,
 * little-endian; a key is hashed as point 0. In libmemcached's, a name without ":port" means port
 * 11211, and ":11211" is left out of the string unless it is SPY's.
 *
 * uhashring's own search is for the first point > hash, the others' for the first >= hash. Of equal
 * points the smaller name owns; in libmemcached's three the lower number, which is its place in
 * the list. (libketama and twemproxy leave that to qsort, uhashring to the order of insertion.)
 *
 * RH_INVALID_ARGUMENT for what the original has no notion of: vnodes other than
 * RH_RING_VNODES_DEFAULT unless in the first and UHASHRING, weights that are not whole numbers
 * below 2^32, and in TWEMPROXY weights that add up to more. Weight 0 is drained in all of them: the
 * others' weights count as if it were absent, except in UHASHRING_KETAMA, which counts all nodes.
 * Unless vnodes or points are the node's own, a small share may leave a node without points.
 */
typedef enum rh_ring_profile {
    RH_RING_RINGHOLD = 0,
    RH_RING_KETAMA = 1,       /* libketama */
    RH_RING_LIBMEMCACHED = 2, /* its KETAMA_WEIGHTED */
    RH_RING_LIBMEMCACHED_UNWEIGHTED = 3,
    RH_RING_LIBMEMCACHED_SPY = 4,
    RH_RING_TWEMPROXY = 5,
    RH_RING_UHASHRING = 6, /* its default ring */
    RH_RING_UHASHRING_KETAMA = 7
} rh_ring_profile;

typedef struct rh_ring_options {
    uint32_t vnodes; /* points of a node of weight 1; 0: RH_RING_VNODES_DEFAULT */
    rh_ring_profile profile;
} rh_ring_options;

typedef enum rh_ring_change_kind {
    RH_RING_ADD = 0,
    RH_RING_REMOVE = 1,  /* zone and weight of the node are ignored */
    RH_RING_REWEIGHT = 2 /* zone of the node is ignored: it stays in its own */
} rh_ring_change_kind;

typedef struct rh_ring_change {
    rh_ring_change_kind kind;
    rh_node node;
} rh_ring_change;

typedef struct rh_ring_info {
    size_t names;  /* numbers given out, those of removed nodes included */
    size_t nodes;  /* nodes present */
    size_t usable; /* nodes present with at least one point */
    size_t zones;  /* zones with a usable node, each node without a zone counted as one */
    size_t points;
    uint32_t vnodes;
    rh_ring_profile profile;
    unsigned hash_bits; /* 32, 64 or 128 */
} rh_ring_info;

typedef struct rh_ring_member {
    rh_node node; /* borrowed from the ring; of a removed node only the name is kept */
    size_t points;
    bool present;
} rh_ring_member;

typedef struct rh_ring_replicas_options {
    /*
     * Numbers of nodes to leave out, as if they were not in the ring; repeated and absent ones are
     * allowed. In profiles where points depend on the weights of all, a ring is edited for that.
     */
    const uint32_t *exclude;
    size_t exclude_count;
} rh_ring_replicas_options;

/*
 * A ring of `count` nodes, numbered in the order given.
 * RH_INVALID_ARGUMENT (weight, vnodes, profile), RH_DUPLICATE_NODE, RH_TOO_LARGE, RH_NO_MEMORY.
 */
RH_API RH_NODISCARD rh_status rh_ring_new(const rh_node *nodes, size_t count,
                                          const rh_ring_options *options, rh_ring **out);

/*
 * The ring that `changes` make of `ring`, which stays as it is. Costs one pass over the points
 * and the making and sorting of those of nodes whose number of points changed, which in most
 * profiles other than the first may be all. A name may occur once in `changes`.
 * As rh_ring_new, and RH_UNKNOWN_NODE when a node to be removed or reweighted is not present.
 */
RH_API RH_NODISCARD rh_status rh_ring_edit(const rh_ring *ring, const rh_ring_change *changes,
                                           size_t count, rh_ring **out);

RH_API void rh_ring_free(rh_ring *ring);

RH_API rh_status rh_ring_get_info(const rh_ring *ring, rh_ring_info *out);

/* The node numbered `index`, present or removed; RH_UNKNOWN_NODE beyond the last number. */
RH_API RH_NODISCARD rh_status rh_ring_get_member(const rh_ring *ring, size_t index,
                                                 rh_ring_member *out);

/* The number of the node of that name; RH_UNKNOWN_NODE when it is not present. */
RH_API RH_NODISCARD rh_status rh_ring_find(const rh_ring *ring, const void *name, size_t name_bytes,
                                           uint32_t *out);

/*
 * Where a key or a hash lies on the circle. The circle has 64 bits for every profile: hashes of
 * 32 bits are the upper half of `high`, those of 128 bits fill `low` as well.
 */
typedef struct rh_ring_position {
    uint64_t high;
    uint64_t low;
} rh_ring_position;

RH_API RH_NODISCARD rh_status rh_ring_locate(const rh_ring *ring, const void *key, size_t key_bytes,
                                             rh_ring_position *out);

/*
 * The position of a hash that the caller computed, by the profile's own function, with as many
 * bits as the profile has: RH_INVALID_ARGUMENT beyond them, RH_NOT_SUPPORTED for 128 bits.
 */
RH_API RH_NODISCARD rh_status rh_ring_locate_hash(const rh_ring *ring, uint64_t hash,
                                                  rh_ring_position *out);

/*
 * The points in ascending order as positions on the circle, and the numbers of their nodes, all
 * borrowed from the ring: valid until it is freed. `low` is NULL unless points have 128 bits.
 */
typedef struct rh_ring_points {
    const uint64_t *high;
    const uint64_t *low;
    const uint32_t *owners;
    size_t count;
} rh_ring_points;

RH_API rh_status rh_ring_get_points(const rh_ring *ring, rh_ring_points *out);

/* The index among the points of the one that owns a position; RH_EMPTY_RING. */
RH_API RH_NODISCARD rh_status rh_ring_find_point(const rh_ring *ring, rh_ring_position position,
                                                 size_t *out);

/* The number of the owner; RH_EMPTY_RING when no node has a point. */
RH_API RH_NODISCARD rh_status rh_ring_lookup(const rh_ring *ring, const void *key, size_t key_bytes,
                                             uint32_t *out);

/* As rh_ring_locate_hash and rh_ring_lookup. */
RH_API RH_NODISCARD rh_status rh_ring_lookup_hash(const rh_ring *ring, uint64_t hash,
                                                  uint32_t *out);

/* The same for `count` keys or hashes at once; `out` has room for `count` numbers. */
RH_API RH_NODISCARD rh_status rh_ring_lookup_keys(const rh_ring *ring, const void *const *keys,
                                                  const size_t *key_bytes, size_t count,
                                                  uint32_t *out);
RH_API RH_NODISCARD rh_status rh_ring_lookup_hashes(const rh_ring *ring, const uint64_t *hashes,
                                                    size_t count, uint32_t *out);

/*
 * `count` distinct nodes for a position, the owner first: the walk clockwise from there, except
 * that no zone is used twice before every zone was used once, none a third time before every
 * second, and so on; a zone with no node left to give is passed over.
 * `out` has room for `count` numbers; `zones` (NULL allowed) receives in how many zones they
 * lie. RH_NOT_ENOUGH_NODES when fewer than `count` nodes are usable.
 */
RH_API RH_NODISCARD rh_status rh_ring_replicas(const rh_ring *ring, rh_ring_position position,
                                               size_t count,
                                               const rh_ring_replicas_options *options,
                                               uint32_t *out, size_t *zones);

/*
 * The first node in walk order whose load stays below
 * ceil(bound * (total + 1) * weight / sum of the weights), total being the sum of all loads.
 * `loads` has one value, finite and not negative, for each number given out; those of absent
 * nodes are left out of the total, the weights of nodes without points out of the sum. Both are
 * summed in order of names and the rest computed as written, in doubles, so that all who know
 * the same loads choose the same node. Some node always has room; should rounding of loads beyond
 * 2^53 hide it, the owner is chosen. `bound` is finite and at least 1. RH_EMPTY_RING.
 * (Mirrokni, Thorup, Zadimoghaddam, "Consistent Hashing with Bounded Loads", 2016.)
 */
RH_API RH_NODISCARD rh_status rh_ring_lookup_bounded(const rh_ring *ring, rh_ring_position position,
                                                     const double *loads, double bound,
                                                     uint32_t *out);

/*
 * What moves when `from` becomes `to`: the arcs (start, end] of the circle whose owner differs by
 * name, in ascending order of their ends, neighbours of the same two nodes made one. The arc
 * round zero has start > end, the whole circle start == end.
 *
 * A position that rh_ring_locate or rh_ring_locate_hash gives moves exactly if an arc has it. The
 * ends are points; in UHASHRING_KETAMA, where a hash equal to a point is owned by the next one,
 * they are the hashes before points, 2^32 less.
 */
typedef struct rh_ring_move {
    uint64_t start;
    uint64_t end;
    uint32_t source; /* a number of `from` */
    uint32_t target; /* a number of `to` */
} rh_ring_move;

/*
 * One pass over the points of both rings. `moves` is allocated by the function and given to
 * rh_free; NULL when nothing moves. RH_EMPTY_RING when either is empty, RH_INVALID_ARGUMENT when
 * their profiles differ, RH_NOT_SUPPORTED for points of 128 bits.
 */
RH_API RH_NODISCARD rh_status rh_ring_diff(const rh_ring *from, const rh_ring *to,
                                           rh_ring_move **moves, size_t *count);

#define RH_RING_DIGEST_BYTES 16

/*
 * Equal if and only if placement is: covers the profile, the points and their owners' names and
 * zones. Does not depend on the order of insertion or on the machine, nor on drained nodes where
 * they do not change the points of others.
 */
RH_API RH_NODISCARD rh_status rh_ring_digest(const rh_ring *ring,
                                             uint8_t out[RH_RING_DIGEST_BYTES]);

/*
 * The ring as canonical bytes, the same whatever the order of insertion, those of libmemcached
 * excepted, where the order of the list breaks ties. Removed nodes and their numbers are left
 * out. `data` is allocated by the function and given to rh_free.
 */
RH_API RH_NODISCARD rh_status rh_ring_dumps(const rh_ring *ring, void **data, size_t *size);

/* The ring in bytes written by rh_ring_dumps; RH_CORRUPT for any others. */
RH_API RH_NODISCARD rh_status rh_ring_loads(const void *data, size_t size, rh_ring **out);

#ifdef __cplusplus
}
#endif

#endif
