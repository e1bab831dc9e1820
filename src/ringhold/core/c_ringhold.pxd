"""Every declaration of the C core. ``cimport ringhold.core.c_ringhold`` to call it from Cython."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


cdef extern from "ringhold/ringhold.h" nogil:
    int RH_VERSION_MAJOR
    int RH_VERSION_MINOR
    int RH_VERSION_PATCH
    int RH_API_VERSION_MAJOR
    int RH_API_VERSION_MINOR
    int RH_API_VERSION

    int rh_api_version() noexcept


cdef extern from "ringhold/capsule.h" nogil:
    const char *RH_RING_CAPSULE
    const char *RH_LAYOUT_CAPSULE
    const char *RH_LOCK_TABLE_CAPSULE


cdef extern from "ringhold/status.h" nogil:
    ctypedef enum rh_status:
        RH_OK
        RH_NO_MEMORY
        RH_INVALID_ARGUMENT
        RH_TOO_LARGE
        RH_DUPLICATE_NODE
        RH_UNKNOWN_NODE
        RH_EMPTY_RING
        RH_NOT_ENOUGH_NODES
        RH_CORRUPT
        RH_NOT_SUPPORTED
        RH_CONFLICT
        RH_NOT_OWNED
        RH_DEADLOCK

    const char *rh_status_name(rh_status status) noexcept
    void rh_free(void *memory) noexcept


cdef extern from "ringhold/checksum.h" nogil:
    enum:
        RH_DIGEST_BYTES

    rh_status rh_checksum(const void *data, size_t size, uint64_t *out) noexcept
    rh_status rh_checksum_blocks_count(size_t size, size_t block_bytes, size_t *out) noexcept
    rh_status rh_checksum_blocks(const void *data, size_t size, size_t block_bytes,
                                 uint64_t *out) noexcept
    rh_status rh_copy_checksum_blocks(void *dst, const void *src, size_t size,
                                      size_t block_bytes, uint64_t *out) noexcept
    rh_status rh_digest(const void *data, size_t size, uint8_t *out) noexcept

    ctypedef struct rh_digest_stream:
        pass

    rh_status rh_digest_stream_new(rh_digest_stream **out) noexcept
    rh_status rh_digest_stream_copy(const rh_digest_stream *stream,
                                    rh_digest_stream **out) noexcept
    void rh_digest_stream_free(rh_digest_stream *stream) noexcept
    rh_status rh_digest_stream_update(rh_digest_stream *stream, const void *data,
                                      size_t size) noexcept
    rh_status rh_digest_stream_value(const rh_digest_stream *stream, uint8_t *out) noexcept


cdef extern from "ringhold/node.h" nogil:
    ctypedef struct rh_node:
        const void *name
        size_t name_bytes
        const void *zone
        size_t zone_bytes
        double weight


cdef extern from "ringhold/ring.h" nogil:
    enum:
        RH_RING_VNODES_DEFAULT

    const size_t RH_RING_POINTS_MAX

    ctypedef struct rh_ring:
        pass

    ctypedef enum rh_ring_profile:
        RH_RING_RINGHOLD
        RH_RING_KETAMA
        RH_RING_LIBMEMCACHED
        RH_RING_LIBMEMCACHED_UNWEIGHTED
        RH_RING_LIBMEMCACHED_SPY
        RH_RING_TWEMPROXY
        RH_RING_UHASHRING
        RH_RING_UHASHRING_KETAMA

    ctypedef struct rh_ring_options:
        uint32_t vnodes
        rh_ring_profile profile

    ctypedef enum rh_ring_change_kind:
        RH_RING_ADD
        RH_RING_REMOVE
        RH_RING_REWEIGHT

    ctypedef struct rh_ring_change:
        rh_ring_change_kind kind
        rh_node node

    ctypedef struct rh_ring_info:
        size_t names
        size_t nodes
        size_t usable
        size_t zones
        size_t points
        uint32_t vnodes
        rh_ring_profile profile
        unsigned hash_bits

    ctypedef struct rh_ring_member:
        rh_node node
        size_t points
        bint present

    ctypedef struct rh_ring_replicas_options:
        const uint32_t *exclude
        size_t exclude_count

    rh_status rh_ring_new(const rh_node *nodes, size_t count,
                          const rh_ring_options *options, rh_ring **out) noexcept
    rh_status rh_ring_edit(const rh_ring *ring, const rh_ring_change *changes, size_t count,
                           rh_ring **out) noexcept
    void rh_ring_free(rh_ring *ring) noexcept
    rh_status rh_ring_get_info(const rh_ring *ring, rh_ring_info *out) noexcept
    rh_status rh_ring_get_member(const rh_ring *ring, size_t index, rh_ring_member *out) noexcept
    rh_status rh_ring_find(const rh_ring *ring, const void *name, size_t name_bytes,
                           uint32_t *out) noexcept
    ctypedef struct rh_ring_position:
        uint64_t high
        uint64_t low

    ctypedef struct rh_ring_points:
        const uint64_t *high
        const uint64_t *low
        const uint32_t *owners
        size_t count

    ctypedef struct rh_ring_move:
        uint64_t start
        uint64_t end
        uint32_t source
        uint32_t target

    enum:
        RH_RING_DIGEST_BYTES

    rh_status rh_ring_get_points(const rh_ring *ring, rh_ring_points *out) noexcept
    rh_status rh_ring_locate(const rh_ring *ring, const void *key, size_t key_bytes,
                             rh_ring_position *out) noexcept
    rh_status rh_ring_locate_hash(const rh_ring *ring, uint64_t hash,
                                  rh_ring_position *out) noexcept
    rh_status rh_ring_find_point(const rh_ring *ring, rh_ring_position position,
                                 size_t *out) noexcept
    rh_status rh_ring_lookup_bounded(const rh_ring *ring, rh_ring_position position,
                                     const double *loads, double bound, uint32_t *out) noexcept
    rh_status rh_ring_diff(const rh_ring *old, const rh_ring *new, rh_ring_move **moves,
                           size_t *count) noexcept
    rh_status rh_ring_digest(const rh_ring *ring, uint8_t *out) noexcept
    rh_status rh_ring_dumps(const rh_ring *ring, void **data, size_t *size) noexcept
    rh_status rh_ring_loads(const void *data, size_t size, rh_ring **out) noexcept
    rh_status rh_ring_lookup(const rh_ring *ring, const void *key, size_t key_bytes,
                             uint32_t *out) noexcept
    rh_status rh_ring_lookup_hash(const rh_ring *ring, uint64_t hash, uint32_t *out) noexcept
    rh_status rh_ring_lookup_keys(const rh_ring *ring, const void *const *keys,
                                  const size_t *key_bytes, size_t count, uint32_t *out) noexcept
    rh_status rh_ring_lookup_hashes(const rh_ring *ring, const uint64_t *hashes, size_t count,
                                    uint32_t *out) noexcept
    rh_status rh_ring_replicas(const rh_ring *ring, rh_ring_position position, size_t count,
                               const rh_ring_replicas_options *options, uint32_t *out,
                               size_t *zones) noexcept


cdef extern from "ringhold/lock_table.h" nogil:
    enum:
        RH_LOCK_NAME_BYTES_MAX

    const uint64_t RH_LOCK_OWNER_MAX

    ctypedef struct rh_lock_table:
        pass

    ctypedef struct rh_lock_grants:
        pass

    ctypedef enum rh_lock_mode:
        RH_LOCK_NONE
        RH_LOCK_INTENT_SHARED
        RH_LOCK_INTENT_EXCLUSIVE
        RH_LOCK_SHARED
        RH_LOCK_UPDATE
        RH_LOCK_SHARED_INTENT_EXCLUSIVE
        RH_LOCK_EXCLUSIVE

    ctypedef struct rh_lock_grant:
        const void *name
        size_t name_bytes
        uint64_t owner
        uint64_t token
        rh_lock_mode mode

    ctypedef struct rh_lock_party:
        uint64_t owner
        rh_lock_mode mode

    rh_status rh_lock_grants_new(rh_lock_grants **out) noexcept
    void rh_lock_grants_free(rh_lock_grants *grants) noexcept
    rh_status rh_lock_grants_read(const rh_lock_grants *grants, const rh_lock_grant **out,
                                  size_t *count) noexcept
    ctypedef struct rh_lock_table_options:
        uint64_t hash_seed

    rh_status rh_lock_table_new(const rh_lock_table_options *options,
                                rh_lock_table **out) noexcept
    void rh_lock_table_free(rh_lock_table *table) noexcept
    rh_status rh_lock_table_size(rh_lock_table *table, size_t *out) noexcept
    rh_status rh_lock_try_acquire(rh_lock_table *table, const void *name, size_t name_bytes,
                                  uint64_t owner, rh_lock_mode mode, uint64_t *token) noexcept
    rh_status rh_lock_request(rh_lock_table *table, const void *name, size_t name_bytes,
                              uint64_t owner, rh_lock_mode mode, uint64_t *token) noexcept
    rh_status rh_lock_acquire_many(rh_lock_table *table, const void *const *names,
                                   const size_t *name_bytes, size_t count, uint64_t owner,
                                   rh_lock_mode mode, uint64_t *tokens) noexcept
    rh_status rh_lock_release(rh_lock_table *table, const void *name, size_t name_bytes,
                              uint64_t owner, rh_lock_grants *grants) noexcept
    rh_status rh_lock_release_owner(rh_lock_table *table, uint64_t owner,
                                    rh_lock_grants *grants) noexcept
    rh_status rh_lock_cancel(rh_lock_table *table, const void *name, size_t name_bytes,
                             uint64_t owner, rh_lock_grants *grants) noexcept
    rh_status rh_lock_downgrade(rh_lock_table *table, const void *name, size_t name_bytes,
                                uint64_t owner, rh_lock_mode mode,
                                rh_lock_grants *grants) noexcept
    rh_status rh_lock_get_mode(rh_lock_table *table, const void *name, size_t name_bytes,
                               uint64_t owner, rh_lock_mode *out) noexcept
    rh_status rh_lock_get_holders(rh_lock_table *table, const void *name, size_t name_bytes,
                                  rh_lock_party **parties, size_t *count) noexcept
    rh_status rh_lock_get_waiters(rh_lock_table *table, const void *name, size_t name_bytes,
                                  rh_lock_party **parties, size_t *count) noexcept
    rh_status rh_lock_renew(rh_lock_table *table, uint64_t owner, int64_t deadline_ns) noexcept
    rh_status rh_lock_expire(rh_lock_table *table, int64_t now_ns,
                             rh_lock_grants *grants) noexcept


cdef extern from "ringhold/layout.h" nogil:
    const uint32_t RH_LAYOUT_PARTITIONS_MIN
    const uint32_t RH_LAYOUT_PARTITIONS_MAX
    const size_t RH_LAYOUT_NODES_MAX
    const size_t RH_LAYOUT_COPIES_MAX

    enum:
        RH_LAYOUT_DIGEST_BYTES

    ctypedef struct rh_layout:
        pass

    ctypedef struct rh_layout_options:
        uint32_t replicas
        uint32_t partitions

    ctypedef struct rh_layout_info:
        uint64_t epoch
        uint32_t partitions
        uint32_t replicas
        size_t nodes
        size_t usable
        size_t zones
        bint zoned

    ctypedef struct rh_layout_member:
        rh_node node
        uint32_t copies

    ctypedef struct rh_layout_move:
        uint32_t partition
        uint32_t source
        uint32_t target

    ctypedef struct rh_layout_plan:
        rh_layout *layout
        rh_layout_move *moves
        size_t moved
        size_t lower_bound

    rh_status rh_layout_new(const rh_node *nodes, size_t count, const rh_layout_options *options,
                            rh_layout **out) noexcept
    void rh_layout_free(rh_layout *layout) noexcept
    rh_status rh_layout_rebalance(const rh_layout *layout, const rh_node *nodes, size_t count,
                                  rh_layout_plan *out) noexcept
    rh_status rh_layout_get_info(const rh_layout *layout, rh_layout_info *out) noexcept
    rh_status rh_layout_get_member(const rh_layout *layout, size_t index,
                                   rh_layout_member *out) noexcept
    rh_status rh_layout_find(const rh_layout *layout, const void *name, size_t name_bytes,
                             uint32_t *out) noexcept
    rh_status rh_layout_partition(const rh_layout *layout, const void *key, size_t key_bytes,
                                  uint32_t *out) noexcept
    rh_status rh_layout_nodes(const rh_layout *layout, uint32_t partition, uint32_t *out) noexcept
    rh_status rh_layout_lookup(const rh_layout *layout, const void *key, size_t key_bytes,
                               uint32_t *out) noexcept
    rh_status rh_layout_digest(const rh_layout *layout, uint8_t *out) noexcept
    rh_status rh_layout_dumps(const rh_layout *layout, void **data, size_t *size) noexcept
    rh_status rh_layout_loads(const void *data, size_t size, rh_layout **out) noexcept
