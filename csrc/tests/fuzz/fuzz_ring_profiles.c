/*
 * Goal: a ring of any names, zones and weights in any profile, and every ring that changes make of
 * it, keeps its promises; what cannot be a ring is refused and nothing is handed out.
 * Method: the input is read as options, nodes, changes and keys.
 */
#include <float.h>
#include <math.h>

#include "ring_promises.h"

enum { NODES_MAX = 8, NAME_BYTES_MAX = 20, VNODES_MAX = 24, CHANGES_MAX = 4, PROFILES = 8 };

/* Of the large ones every point count is beyond what a ring can hold: no input makes big rings. */
static const double weights[] = {1,       2,   3,    0.5,  0.3,     8,  0,   -0.0,     1e-300,
                                 DBL_MIN, 1.0, 1e12, 1e30, DBL_MAX, -1, NAN, INFINITY, -INFINITY};

static rh_node any_node(struct fuzz_input *input)
{
    rh_node node = {0};

    node.name = fuzz_text(input, NAME_BYTES_MAX, &node.name_bytes);
    if (fuzz_u8(input) % 2) {
        node.zone = fuzz_text(input, 2, &node.zone_bytes);
    }
    node.weight = weights[fuzz_u8(input) % (sizeof weights / sizeof *weights)];
    return node;
}

/* The order in which nodes are given decides between equal points in these alone. */
static bool depends_on_order(rh_ring_profile profile)
{
    return profile == RH_RING_LIBMEMCACHED || profile == RH_RING_LIBMEMCACHED_UNWEIGHTED ||
           profile == RH_RING_LIBMEMCACHED_SPY;
}

static void order_promises(const rh_ring *ring, const rh_node *nodes, size_t count,
                           const rh_ring_options *options)
{
    rh_node backwards[NODES_MAX];
    uint8_t digests[2][RH_RING_DIGEST_BYTES];
    rh_ring *other = NULL;

    for (size_t i = 0; i < count; i++) {
        backwards[i] = nodes[count - 1 - i];
    }
    PROMISE(rh_ring_new(backwards, count, options, &other) == RH_OK);
    PROMISE(rh_ring_digest(ring, digests[0]) == RH_OK);
    PROMISE(rh_ring_digest(other, digests[1]) == RH_OK);
    PROMISE(depends_on_order(options->profile) ||
            memcmp(digests[0], digests[1], sizeof digests[0]) == 0);
    rh_ring_free(other);
}

/* Nodes that are not added are mostly some that are there. */
static size_t any_changes(struct fuzz_input *input, const rh_node *nodes, size_t count,
                          rh_ring_change *changes)
{
    size_t wanted = fuzz_u8(input) % (CHANGES_MAX + 1);

    for (size_t i = 0; i < wanted; i++) {
        unsigned known = fuzz_u8(input);

        changes[i].kind = (rh_ring_change_kind)(fuzz_u8(input) % 3);
        changes[i].node = any_node(input);
        if (known < 200 && changes[i].kind != RH_RING_ADD && count > 0) {
            changes[i].node.name = nodes[known % count].name;
            changes[i].node.name_bytes = nodes[known % count].name_bytes;
        }
    }
    return wanted;
}

static void edit_promises(const rh_ring *ring, const rh_ring_change *changes, size_t count,
                          struct fuzz_input *input)
{
    rh_ring *edited = NULL;
    rh_status status = rh_ring_edit(ring, changes, count, &edited);

    PROMISE((status == RH_OK) == (edited != NULL));
    if (edited) {
        ring_promises(edited, input);
        move_promises(ring, edited, input);
        rh_ring_free(edited);
        return;
    }
    PROMISE(status == RH_INVALID_ARGUMENT || status == RH_DUPLICATE_NODE ||
            status == RH_UNKNOWN_NODE || status == RH_TOO_LARGE || status == RH_NOT_SUPPORTED);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input input = {data, size};
    rh_ring_options options = {.profile = (rh_ring_profile)(fuzz_u8(&input) % PROFILES)};
    size_t count = fuzz_u8(&input) % (NODES_MAX + 1), changed;
    rh_node nodes[NODES_MAX];
    rh_ring_change changes[CHANGES_MAX];
    rh_ring *ring = NULL;
    rh_status status;

    options.vnodes = fuzz_u8(&input) % (VNODES_MAX + 1);
    for (size_t i = 0; i < count; i++) {
        nodes[i] = any_node(&input);
    }
    changed = any_changes(&input, nodes, count, changes);
    status = rh_ring_new(nodes, count, &options, &ring);
    PROMISE((status == RH_OK) == (ring != NULL));
    if (ring == NULL) {
        PROMISE(status == RH_INVALID_ARGUMENT || status == RH_DUPLICATE_NODE ||
                status == RH_TOO_LARGE || status == RH_NOT_SUPPORTED);
        return 0;
    }
    ring_promises(ring, &input);
    order_promises(ring, nodes, count, &options);
    edit_promises(ring, changes, changed, &input);
    rh_ring_free(ring);
    return 0;
}
