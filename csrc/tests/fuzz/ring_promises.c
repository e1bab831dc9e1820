#include "ring_promises.h"

enum { KEYS_MAX = 16, KEY_BYTES_MAX = 40 };

static bool before(const rh_ring_points *points, size_t index, rh_ring_position position)
{
    uint64_t low = points->low ? points->low[index] : 0;

    return points->high[index] < position.high ||
           (points->high[index] == position.high && low < position.low);
}

static bool at(const rh_ring_points *points, size_t index, rh_ring_position position)
{
    return points->high[index] == position.high &&
           (points->low ? points->low[index] : 0) == position.low;
}

/* In the profiles of uhashring a key whose hash equals a point belongs to the next one. */
static bool goes_past_equals(rh_ring_profile profile)
{
    return profile == RH_RING_UHASHRING || profile == RH_RING_UHASHRING_KETAMA;
}

/* The first point at or after a position, found by looking at each. */
static size_t plain_walk(const rh_ring_info *info, const rh_ring_points *points,
                         rh_ring_position position)
{
    bool past = goes_past_equals(info->profile);

    for (size_t i = 0; i < points->count; i++) {
        if (!before(points, i, position) && !(past && at(points, i, position))) {
            return i;
        }
    }
    return 0;
}

static void points_promises(const rh_ring *ring, const rh_ring_info *info,
                            const rh_ring_points *points)
{
    size_t counted = 0, nodes = 0, usable = 0;

    PROMISE(points->count == info->points);
    PROMISE((points->low != NULL) == (info->hash_bits == 128 && points->count > 0) ||
            points->count == 0);
    for (size_t i = 1; i < points->count; i++) {
        rh_ring_position previous = {points->high[i - 1], points->low ? points->low[i - 1] : 0};

        PROMISE(!before(points, i, previous));
    }
    for (size_t i = 0; i < info->names; i++) {
        rh_ring_member member;
        uint32_t number = UINT32_MAX;

        PROMISE(rh_ring_get_member(ring, i, &member) == RH_OK);
        PROMISE(member.present || member.points == 0);
        PROMISE(rh_ring_find(ring, member.node.name, member.node.name_bytes, &number) ==
                (member.present ? RH_OK : RH_UNKNOWN_NODE));
        PROMISE(!member.present || number == i);
        counted += member.points;
        nodes += member.present;
        usable += member.points > 0;
    }
    for (size_t i = 0; i < points->count; i++) {
        rh_ring_member member;

        PROMISE(rh_ring_get_member(ring, points->owners[i], &member) == RH_OK);
        PROMISE(member.points > 0);
    }
    PROMISE(counted == info->points && nodes == info->nodes && usable == info->usable);
}

static void replicas_promises(const rh_ring *ring, const rh_ring_info *info,
                              rh_ring_position position, uint32_t owner)
{
    uint32_t *found = calloc(info->usable + 1, sizeof *found);
    size_t zones = SIZE_MAX;

    PROMISE(found != NULL);
    PROMISE(rh_ring_replicas(ring, position, info->usable + 1, NULL, found, &zones) ==
            RH_NOT_ENOUGH_NODES);
    PROMISE(zones == SIZE_MAX);
    PROMISE(rh_ring_replicas(ring, position, info->usable, NULL, found, &zones) == RH_OK);
    PROMISE(found[0] == owner && zones == info->zones);
    for (size_t i = 0; i < info->usable; i++) {
        rh_ring_member member;

        PROMISE(rh_ring_get_member(ring, found[i], &member) == RH_OK && member.points > 0);
        for (size_t k = 0; k < i; k++) {
            PROMISE(found[k] != found[i]);
        }
    }
    free(found);
}

static void bounded_promises(const rh_ring *ring, const rh_ring_info *info,
                             rh_ring_position position, uint32_t owner)
{
    double *loads = calloc(info->names, sizeof *loads);
    rh_ring_member member;
    uint32_t found = UINT32_MAX;

    PROMISE(loads != NULL);
    PROMISE(rh_ring_lookup_bounded(ring, position, loads, 1, &found) == RH_OK);
    PROMISE(found == owner);
    loads[owner] = 1000;
    PROMISE(rh_ring_lookup_bounded(ring, position, loads, 1.25, &found) == RH_OK);
    PROMISE(rh_ring_get_member(ring, found, &member) == RH_OK && member.points > 0);
    free(loads);
}

static void key_promises(const rh_ring *ring, const rh_ring_info *info,
                         const rh_ring_points *points, struct fuzz_input *input)
{
    const void *keys[KEYS_MAX];
    size_t sizes[KEYS_MAX], count = 1 + fuzz_u8(input) % KEYS_MAX;
    uint32_t owners[KEYS_MAX];

    for (size_t i = 0; i < count; i++) {
        keys[i] = fuzz_text(input, KEY_BYTES_MAX, &sizes[i]);
    }
    if (points->count == 0) {
        PROMISE(rh_ring_lookup(ring, keys[0], sizes[0], owners) == RH_EMPTY_RING);
        PROMISE(rh_ring_lookup_keys(ring, keys, sizes, count, owners) == RH_EMPTY_RING);
        return;
    }
    PROMISE(rh_ring_lookup_keys(ring, keys, sizes, count, owners) == RH_OK);
    for (size_t i = 0; i < count; i++) {
        rh_ring_position position;
        size_t expected, index;
        uint32_t owner;

        PROMISE(rh_ring_locate(ring, keys[i], sizes[i], &position) == RH_OK);
        expected = plain_walk(info, points, position);
        PROMISE(rh_ring_find_point(ring, position, &index) == RH_OK && index == expected);
        PROMISE(rh_ring_lookup(ring, keys[i], sizes[i], &owner) == RH_OK);
        PROMISE(owner == points->owners[expected] && owner == owners[i]);
        replicas_promises(ring, info, position, owner);
        bounded_promises(ring, info, position, owner);
    }
}

/* A hash right at a point, and those on either side of it. */
static void hash_promises(const rh_ring *ring, const rh_ring_info *info,
                          const rh_ring_points *points, struct fuzz_input *input)
{
    unsigned shift = info->hash_bits == 32 ? 32 : 0;
    rh_ring_position position;
    uint64_t middle, batch[3];
    uint32_t owners[3];

    if (info->hash_bits == 128) {
        PROMISE(rh_ring_locate_hash(ring, 1, &position) == RH_NOT_SUPPORTED);
        return;
    }
    if (info->hash_bits == 32) {
        PROMISE(rh_ring_locate_hash(ring, UINT64_C(1) << 32, &position) == RH_INVALID_ARGUMENT);
    }
    if (points->count == 0) {
        PROMISE(rh_ring_lookup_hash(ring, 1, owners) == RH_EMPTY_RING);
        return;
    }
    middle = points->high[fuzz_u16(input) % points->count] >> shift;
    for (unsigned i = 0; i < 3; i++) {
        batch[i] = (middle + i - 1) & UINT64_MAX >> shift;
    }
    PROMISE(rh_ring_lookup_hashes(ring, batch, 3, owners) == RH_OK);
    for (unsigned i = 0; i < 3; i++) {
        uint32_t owner;

        PROMISE(rh_ring_locate_hash(ring, batch[i], &position) == RH_OK);
        PROMISE(position.high >> shift == batch[i] && position.low == 0);
        PROMISE(rh_ring_lookup_hash(ring, batch[i], &owner) == RH_OK);
        PROMISE(owner == points->owners[plain_walk(info, points, position)] && owner == owners[i]);
    }
}

/* Written and read, a ring places as before and is written as the same bytes. */
static void bytes_promises(const rh_ring *ring)
{
    uint8_t digests[2][RH_RING_DIGEST_BYTES];
    rh_ring *read = NULL;
    void *data = NULL, *again = NULL;
    size_t size = 0, size_again = 0;

    PROMISE(rh_ring_dumps(ring, &data, &size) == RH_OK);
    PROMISE(rh_ring_loads(data, size, &read) == RH_OK);
    PROMISE(rh_ring_dumps(read, &again, &size_again) == RH_OK);
    PROMISE(size == size_again && memcmp(data, again, size) == 0);
    PROMISE(rh_ring_digest(ring, digests[0]) == RH_OK && rh_ring_digest(read, digests[1]) == RH_OK);
    PROMISE(memcmp(digests[0], digests[1], sizeof digests[0]) == 0);
    rh_ring_free(read);
    rh_free(again);
    rh_free(data);
}

static void diff_promises(const rh_ring *ring, const rh_ring_info *info)
{
    rh_ring_move *moves = NULL;
    size_t count = SIZE_MAX;
    rh_status status = rh_ring_diff(ring, ring, &moves, &count);

    if (info->hash_bits == 128) {
        PROMISE(status == RH_NOT_SUPPORTED || status == RH_EMPTY_RING);
    } else if (info->points == 0) {
        PROMISE(status == RH_EMPTY_RING);
    } else {
        PROMISE(status == RH_OK && count == 0);
        rh_free(moves);
    }
}

static bool contains(const rh_ring_move *move, uint64_t high)
{
    bool begun = high > move->start, ended = high > move->end;

    return move->start < move->end ? begun && !ended : begun || !ended;
}

/* A place lies in the one move between its two owners, or in none because that is one node. */
static void place_promises(const rh_ring *from, const rh_ring *to, const rh_ring_move *moves,
                           size_t count, uint64_t high)
{
    rh_ring_position position = {.high = high};
    rh_ring_points points[2];
    rh_ring_member members[2];
    uint32_t owners[2];
    size_t index, found = 0;
    bool same;

    for (unsigned i = 0; i < 2; i++) {
        const rh_ring *ring = i == 0 ? from : to;

        PROMISE(rh_ring_get_points(ring, &points[i]) == RH_OK);
        PROMISE(rh_ring_find_point(ring, position, &index) == RH_OK);
        owners[i] = points[i].owners[index];
        PROMISE(rh_ring_get_member(ring, owners[i], &members[i]) == RH_OK);
    }
    same = members[0].node.name_bytes == members[1].node.name_bytes &&
           memcmp(members[0].node.name, members[1].node.name, members[0].node.name_bytes) == 0;
    for (size_t i = 0; i < count; i++) {
        if (contains(&moves[i], high)) {
            PROMISE(moves[i].source == owners[0] && moves[i].target == owners[1]);
            found++;
        }
    }
    PROMISE(found == (same ? 0 : 1));
}

void move_promises(const rh_ring *from, const rh_ring *to, struct fuzz_input *input)
{
    rh_ring_info infos[2];
    rh_ring_move *moves = NULL;
    size_t count = 0;
    uint64_t unit;

    PROMISE(rh_ring_get_info(from, &infos[0]) == RH_OK && rh_ring_get_info(to, &infos[1]) == RH_OK);
    if (infos[0].hash_bits == 128 || infos[0].points == 0 || infos[1].points == 0) {
        return;
    }
    unit = UINT64_C(1) << (64 - infos[0].hash_bits);
    PROMISE(rh_ring_diff(from, to, &moves, &count) == RH_OK);
    for (size_t i = 0; i < count; i++) {
        PROMISE(i == 0 || moves[i - 1].end < moves[i].end);
        if (i < 32) {
            place_promises(from, to, moves, count, moves[i].end);
            place_promises(from, to, moves, count, moves[i].end + unit);
            place_promises(from, to, moves, count, moves[i].start + unit);
        }
    }
    for (unsigned i = 0; i < 8; i++) {
        uint64_t high = (uint64_t)fuzz_u16(input) << 48 | (uint64_t)fuzz_u16(input) << 32;

        place_promises(from, to, moves, count, high);
    }
    rh_free(moves);
}

void ring_promises(const rh_ring *ring, struct fuzz_input *input)
{
    rh_ring_info info;
    rh_ring_points points;

    PROMISE(rh_ring_get_info(ring, &info) == RH_OK);
    PROMISE(rh_ring_get_points(ring, &points) == RH_OK);
    points_promises(ring, &info, &points);
    key_promises(ring, &info, &points, input);
    hash_promises(ring, &info, &points, input);
    bytes_promises(ring);
    diff_promises(ring, &info);
}
