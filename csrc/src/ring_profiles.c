/*
 * What the profiles do differently: how many points a node has, of which strings they are hashed,
 * and how keys are.
 *
 * The counts of the programs written in C come from float arithmetic whose rounding is part of
 * the protocol: with 61 equal servers libketama gives each 39 digests, not 40, libmemcached and
 * twemproxy with 25. So the expressions stand as they do there, in real floats: nothing may be
 * kept wider (FLT_EVAL_METHOD), contracted (-ffp-contract=off) or reordered (-ffast-math).
 *
 *   RJ/ketama                libketama/ketama.c               ketama_create_continuum
 *   awesomized/libmemcached  src/libmemcached/hosts.cc        update_continuum
 *   twitter/twemproxy        src/hashkit/nc_ketama.c          ketama_update
 *   ultrabug/uhashring       uhashring/ring_{meta,ketama}.py  _create_ring
 */
#include <float.h>
#include <string.h>

#include "md5.h"
#include "ring_internal.h"
#include "xxh3.h"

_Static_assert(FLT_EVAL_METHOD == 0, "float expressions must be rounded to float");
#ifdef __FAST_MATH__
#  error "the counts of points need exact float arithmetic"
#endif

enum {
    DIGESTS = 40,            /* of a node of average weight, where a digest gives four points */
    UNWEIGHTED_POINTS = 100, /* MEMCACHED_POINTS_PER_SERVER */
    MEMCACHED_PORT = 11211
};

const struct ring_profile *rh_ring_profile_rules(rh_ring_profile profile)
{
    static const struct ring_profile profiles[] = {
        [RH_RING_RINGHOLD] = {.hash_bits = 64, .any_vnodes = true},
        [RH_RING_KETAMA] = {.hash_bits = 32, .shared = true},
        [RH_RING_LIBMEMCACHED] = {.hash_bits = 32, .by_number = true, .shared = true},
        [RH_RING_LIBMEMCACHED_UNWEIGHTED] = {.hash_bits = 32, .by_number = true},
        [RH_RING_LIBMEMCACHED_SPY] = {.hash_bits = 32, .by_number = true, .shared = true},
        [RH_RING_TWEMPROXY] = {.hash_bits = 32, .shared = true},
        [RH_RING_UHASHRING] = {.hash_bits = 128, .after = true, .any_vnodes = true},
        [RH_RING_UHASHRING_KETAMA] = {.hash_bits = 32, .after = true, .shared = true},
    };

    return (size_t)profile < sizeof profiles / sizeof *profiles ? &profiles[profile] : NULL;
}

/* max(1, round half to even(vnodes * weight)), independent of the rounding mode in force. */
static rh_status count_rounded(double weight, uint32_t vnodes, uint32_t *out)
{
    double exact = weight * (double)vnodes;
    uint32_t whole;
    double rest;

    if (weight == 0) {
        *out = 0;
        return RH_OK;
    }
    if (exact > (double)RH_RING_POINTS_MAX) {
        return RH_TOO_LARGE;
    }
    whole = (uint32_t)exact;
    rest = exact - (double)whole;
    whole += rest > 0.5 || (rest == 0.5 && whole % 2 == 1);
    *out = whole > 0 ? whole : 1;
    return RH_OK;
}

/* The number of digests for `weight` of `total` on `nodes` nodes; the casts round down. */
static uint32_t count_shared(rh_ring_profile profile, uint64_t weight, uint64_t total, size_t nodes)
{
    float share = (float)weight / (float)total;
    float count = (float)nodes;

    switch (profile) {
    case RH_RING_KETAMA:
        return (uint32_t)(float)((double)share * 40.0 * (double)count);
    case RH_RING_TWEMPROXY:
        return (uint32_t)(float)((double)(share * 160.0F / 4.0F * count) + 0.0000000001);
    case RH_RING_UHASHRING_KETAMA:
        return (uint32_t)(DIGESTS * nodes * weight / total);
    default:
        return (uint32_t)(share * 160.0F / 4.0F * count + 0.0000000001F);
    }
}

/*
 * The originals refuse servers of weight 0 or have none, so one that is drained here is not there
 * for the others; only uhashring counts it among the nodes.
 */
static rh_status count_all_shared(rh_ring *ring)
{
    uint64_t total = 0;
    size_t nodes = 0;

    for (size_t i = 0; i < ring->slot_count; i++) {
        const struct ring_slot *slot = &ring->slots[i];

        total += (uint64_t)slot->weight;
        nodes += ring->profile == RH_RING_UHASHRING_KETAMA ? slot->present : slot->weight > 0;
    }
    if (nodes > RH_RING_POINTS_MAX / (4 * DIGESTS)) {
        return RH_TOO_LARGE;
    }
    if (ring->profile == RH_RING_TWEMPROXY && total > UINT32_MAX) {
        return RH_INVALID_ARGUMENT; /* its sum of weights has 32 bits */
    }
    for (size_t i = 0; i < ring->slot_count; i++) {
        uint64_t weight = (uint64_t)ring->slots[i].weight;

        ring->slots[i].points =
            weight > 0 ? 4 * count_shared(ring->profile, weight, total, nodes) : 0;
    }
    return RH_OK;
}

static bool is_whole(double weight)
{
    return weight <= (double)UINT32_MAX && weight == (double)(uint32_t)weight;
}

rh_status rh_ring_count_points(rh_ring *ring)
{
    rh_status status = RH_OK;

    for (size_t i = 0; i < ring->slot_count && ring->profile != RH_RING_RINGHOLD; i++) {
        if (!is_whole(ring->slots[i].weight)) {
            return RH_INVALID_ARGUMENT;
        }
    }
    switch (ring->profile) {
    case RH_RING_RINGHOLD:
    case RH_RING_UHASHRING: /* whole weights make it vnodes * weight */
        for (size_t i = 0; i < ring->slot_count && status == RH_OK; i++) {
            struct ring_slot *slot = &ring->slots[i];

            status = count_rounded(slot->weight, ring->vnodes, &slot->points);
        }
        return status;
    case RH_RING_LIBMEMCACHED_UNWEIGHTED:
        for (size_t i = 0; i < ring->slot_count; i++) {
            ring->slots[i].points = ring->slots[i].weight > 0 ? UNWEIGHTED_POINTS : 0;
        }
        return RH_OK;
    default:
        return count_all_shared(ring);
    }
}

/*
 * The bytes of the host in "host:port", and the port; a name that ends in no port is all host and
 * means 11211. Colons within the host are taken for an IPv6 address unless it stands in brackets.
 */
static size_t split_port(const char *name, size_t name_bytes, unsigned *port)
{
    size_t colon = name_bytes;
    unsigned value = 0;

    *port = MEMCACHED_PORT;
    while (colon > 0 && name[colon - 1] != ':') {
        colon--;
    }
    if (colon == 0 || colon == name_bytes || name_bytes - colon > 5) {
        return name_bytes;
    }
    for (size_t i = colon; i < name_bytes; i++) {
        if (name[i] < '0' || name[i] > '9') {
            return name_bytes;
        }
        value = 10 * value + (unsigned)(name[i] - '0');
    }
    colon--;
    if (value > UINT16_MAX ||
        (memchr(name, ':', colon) && (colon == 0 || name[colon - 1] != ']'))) {
        return name_bytes;
    }
    *port = value;
    return colon;
}

/* Writes a number in decimal; returns behind it. */
static char *put_decimal(char *at, unsigned value)
{
    char digits[10];
    size_t count = 0;

    do {
        digits[count++] = (char)('0' + value % 10);
        value /= 10;
    } while (value > 0);
    while (count > 0) {
        *at++ = digits[--count];
    }
    return at;
}

/* Writes what stands before the index of a point in the strings of a node; returns behind it. */
static char *put_prefix(rh_ring_profile profile, const struct ring_slot *slot, char *at)
{
    bool spy = profile == RH_RING_LIBMEMCACHED_SPY;
    unsigned port = MEMCACHED_PORT;
    size_t bytes = slot->name_bytes;

    if (rh_ring_profile_rules(profile)->by_number) {
        bytes = split_port(slot->name, slot->name_bytes, &port);
    }
    if (spy) {
        *at++ = '/';
    }
    memcpy(at, slot->name, bytes);
    at += bytes;
    if (spy || port != MEMCACHED_PORT) {
        *at++ = ':';
        at = put_decimal(at, port);
    }
    *at++ = '-';
    return at;
}

static uint64_t get_u32(const uint8_t *bytes)
{
    return (uint64_t)bytes[0] | (uint64_t)bytes[1] << 8 | (uint64_t)bytes[2] << 16 |
           (uint64_t)bytes[3] << 24;
}

static uint64_t get_big_endian(const uint8_t *bytes)
{
    uint64_t value = 0;

    for (unsigned i = 0; i < 8; i++) {
        value = value << 8 | bytes[i];
    }
    return value;
}

static void form_native(const struct ring_slot *slot, char *text, struct ring_point *points)
{
    size_t end = slot->name_bytes;

    memcpy(text, slot->name, end);
    text[end] = '#';
    for (uint32_t k = 0; k < slot->points; k++) {
        const unsigned char index[4] = {(unsigned char)k, (unsigned char)(k >> 8),
                                        (unsigned char)(k >> 16), (unsigned char)(k >> 24)};

        memcpy(text + end + 1, index, sizeof index);
        points[k].high = XXH3_64bits(text, end + 1 + sizeof index);
    }
}

void rh_ring_form_points(rh_ring_profile profile, const struct ring_slot *slot, char *text,
                         struct ring_point *points, uint64_t *low)
{
    bool four = profile != RH_RING_UHASHRING && profile != RH_RING_LIBMEMCACHED_UNWEIGHTED;
    uint8_t digest[MD5_BYTES];
    char *index;

    if (profile == RH_RING_RINGHOLD) {
        form_native(slot, text, points);
        return;
    }
    index = put_prefix(profile, slot, text);
    for (uint32_t k = 0; k < slot->points; k++) {
        if (!four || k % 4 == 0) {
            char *end = put_decimal(index, four ? k / 4 : k);

            rh_md5_digest(text, (size_t)(end - text), digest);
        }
        if (low) {
            points[k].high = get_big_endian(digest);
            low[k] = get_big_endian(digest + 8);
        } else {
            points[k].high = get_u32(digest + (four ? 4 * (k % 4) : 0)) << 32;
        }
    }
}

rh_ring_position rh_ring_hash_key(rh_ring_profile profile, const void *key, size_t key_bytes)
{
    rh_ring_position position = {0};
    uint8_t digest[MD5_BYTES];

    rh_md5_digest(key, key_bytes, digest);
    if (profile == RH_RING_UHASHRING) {
        position.high = get_big_endian(digest);
        position.low = get_big_endian(digest + 8);
    } else {
        position.high = get_u32(digest) << 32;
    }
    return position;
}
