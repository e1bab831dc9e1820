/*
 * Goal: a diff tells exactly which positions change their owner, from whom and to whom, in as few
 * arcs as possible. Method: two rings are asked for the owner of every position at which it can
 * change, and beside it; the arcs must say the same.
 */
#include "ring_internal.h"
#include "rings.h"

enum { NAMES = 8 };

static const char *const names[NAMES] = {"a", "b", "c", "n975", "n81", "d", "e:1", "f"};

struct diff {
    const rh_ring *from, *to;
    rh_ring_move *moves;
    size_t count;
};

static bool has(const rh_ring_move *move, uint64_t at)
{
    if (move->start < move->end) {
        return move->start < at && at <= move->end;
    }
    return move->start < at || at <= move->end; /* round zero, or the whole circle */
}

static void check_position(const struct diff *diff, uint64_t hash)
{
    rh_ring_position position = {0};
    uint32_t before = 0, after = 0;
    bool moves = false;
    size_t i = 0;

    REQUIRE_OK(rh_ring_locate_hash(diff->from, hash, &position));
    REQUIRE_OK(rh_ring_lookup_hash(diff->from, hash, &before));
    REQUIRE_OK(rh_ring_lookup_hash(diff->to, hash, &after));
    for (size_t high = diff->count; i < high;) {
        size_t middle = i + (high - i) / 2;

        if (diff->moves[middle].end < position.high) {
            i = middle + 1;
        } else {
            high = middle;
        }
    }
    i = i < diff->count ? i : 0; /* behind the last end only the arc round zero is left */
    if (diff->count > 0 && has(&diff->moves[i], position.high)) {
        CHECK_EQUAL(diff->moves[i].source, before);
        CHECK_EQUAL(diff->moves[i].target, after);
        moves = true;
    }
    CHECK_EQUAL(moves, !same_name(diff->from, before, diff->to, after));
}

/* Ascending, apart, and neighbours of the same two nodes made one, round zero as well. */
static void check_form(const struct diff *diff)
{
    for (size_t i = 0; i < diff->count; i++) {
        const rh_ring_move *move = &diff->moves[i];
        const rh_ring_move *next = &diff->moves[(i + 1) % diff->count];

        CHECK(i + 1 == diff->count || (move->end < next->end && move->end <= next->start));
        CHECK(i == 0 || move->start < move->end);
        CHECK(i > 0 || move->start < move->end || move->start >= diff->moves[diff->count - 1].end);
        CHECK(diff->count == 1 || move->start != move->end);
        CHECK(diff->count == 1 || move->end != next->start || move->source != next->source ||
              move->target != next->target);
    }
}

static void check_diff(const rh_ring *from, const rh_ring *to)
{
    struct diff diff = {.from = from, .to = to};
    unsigned shift;
    rh_ring_info info = {0};

    CHECK_STATUS(rh_ring_get_info(from, &info), RH_OK);
    shift = 64 - info.hash_bits;
    REQUIRE_OK(rh_ring_diff(from, to, &diff.moves, &diff.count));
    CHECK((diff.moves == NULL) == (diff.count == 0));
    check_form(&diff);
    for (size_t k = 0; k < 2; k++) {
        rh_ring_points points = {0};

        CHECK_STATUS(rh_ring_get_points(k ? to : from, &points), RH_OK);
        for (size_t i = 0; i < points.count; i++) {
            uint64_t hash = points.high[i] >> shift;

            check_position(&diff, hash);
            check_position(&diff, ((hash + 1) << shift) >> shift);
            check_position(&diff, ((hash - 1) << shift) >> shift);
        }
    }
    check_position(&diff, 0);
    check_position(&diff, UINT64_MAX >> shift);
    rh_free(diff.moves);
}

/* A ring of some of the names, in an order and with weights of its own. */
static rh_ring *some_ring(unsigned profile, uint64_t seed)
{
    rh_node nodes[NAMES];
    size_t count = 0;

    for (size_t i = 0; i < NAMES; i++) {
        const char *name = names[(i + seed) % NAMES];
        uint64_t random = hash_of(seed * NAMES + i);

        if (random % 4 > 0 || i == 0) {
            nodes[count++] = a_node(name, NULL, (double)(1 + random / 4 % 3));
        }
    }
    return ring_made_of(nodes, count, profile);
}

static void diffs_are_what_moves(void)
{
    for (unsigned profile = 0; profile < PROFILES; profile++) {
        for (uint64_t seed = 0; profile != RH_RING_UHASHRING && seed < 3; seed++) {
            rh_ring *from = some_ring(profile, 2 * seed), *to = some_ring(profile, 2 * seed + 1);

            check_diff(from, to);
            rh_ring_free(to);
            rh_ring_free(from);
        }
    }
}

static void equal_rings_have_no_difference(void)
{
    rh_node nodes[] = {a_node("a", NULL, 1), a_node("b", NULL, 1), a_node("c", NULL, 0)};
    rh_node reversed[] = {nodes[1], nodes[0]};
    rh_ring *from = ring_made_of(nodes, 3, 0), *to = ring_made_of(reversed, 2, 0);
    rh_ring_move none = {0}, *moves = &none;
    size_t count = 9;

    CHECK_STATUS(rh_ring_diff(from, to, &moves, &count), RH_OK);
    CHECK(moves == NULL);
    CHECK_EQUAL(count, 0);
    rh_ring_free(to);
    rh_ring_free(from);
}

static void a_whole_circle_is_one_arc(void)
{
    rh_node a = a_node("a", NULL, 1), b = a_node("b", NULL, 1);

    for (unsigned profile = 0; profile < PROFILES; profile++) {
        rh_ring *from = ring_made_of(&a, 1, profile), *to = ring_made_of(&b, 1, profile);
        rh_ring_move *moves = NULL;
        size_t count = 0;

        if (profile == RH_RING_UHASHRING) {
            CHECK_STATUS(rh_ring_diff(from, to, &moves, &count), RH_NOT_SUPPORTED);
        } else {
            CHECK_STATUS(rh_ring_diff(from, to, &moves, &count), RH_OK);
            CHECK_EQUAL(count, 1);
            CHECK(moves && moves[0].start == moves[0].end);
            check_diff(from, to);
        }
        rh_free(moves);
        rh_ring_free(to);
        rh_ring_free(from);
    }
}

/* Moves the first point to 0, or the last to the other end; hashes do not bring them there. */
static void move_to_end(rh_ring *ring, bool last)
{
    size_t entries = (size_t)1 << (64 - ring->shift);
    uint32_t count = (uint32_t)ring->point_count;

    if (!last) {
        ring->points[0] = 0;
        return;
    }
    ring->points[count - 1] = ring->profile == RH_RING_RINGHOLD ? UINT64_MAX : UINT64_MAX << 32;
    for (size_t i = 0; i < entries; i++) {
        ring->directory[i] -= ring->directory[i] == count;
    }
}

static void arcs_at_the_ends_of_the_circle_are_told(void)
{
    for (unsigned profile = 0; profile < PROFILES; profile++) {
        for (unsigned ends = 0; profile != RH_RING_UHASHRING && ends < 64; ends++) {
            rh_ring *rings[2] = {some_ring(profile, ends / 16), some_ring(profile, 7)};

            for (unsigned i = 0; i < 4; i++) {
                if (ends >> i & 1) {
                    move_to_end(rings[i % 2], i / 2);
                }
            }
            check_diff(rings[0], rings[1]);
            rh_ring_free(rings[1]);
            rh_ring_free(rings[0]);
        }
    }
}

static void impossible_diffs_are_refused(void)
{
    rh_node node = a_node("a", NULL, 1), drained = a_node("a", NULL, 0);
    rh_ring *ring = ring_made_of(&node, 1, 0), *empty = ring_made_of(&drained, 1, 0);
    rh_ring *other = ring_made_of(&node, 1, RH_RING_KETAMA);
    rh_ring_move *moves = NULL;
    size_t count = 9;

    CHECK_STATUS(rh_ring_diff(ring, empty, &moves, &count), RH_EMPTY_RING);
    CHECK_STATUS(rh_ring_diff(empty, ring, &moves, &count), RH_EMPTY_RING);
    CHECK_STATUS(rh_ring_diff(ring, other, &moves, &count), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_ring_diff(NULL, ring, &moves, &count), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_ring_diff(ring, NULL, &moves, &count), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_ring_diff(ring, ring, NULL, &count), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_ring_diff(ring, ring, &moves, NULL), RH_INVALID_ARGUMENT);
    CHECK(moves == NULL && count == 9);
    rh_ring_free(other);
    rh_ring_free(empty);
    rh_ring_free(ring);
}

int main(void)
{
    RUN(diffs_are_what_moves);
    RUN(equal_rings_have_no_difference);
    RUN(a_whole_circle_is_one_arc);
    RUN(arcs_at_the_ends_of_the_circle_are_told);
    RUN(impossible_diffs_are_refused);
    return rh_test_result();
}
