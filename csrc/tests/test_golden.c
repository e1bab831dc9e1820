/*
 * Goal: every profile places points, keys and copies as its definition says, bit by bit. Method:
 * the golden vectors of tests/golden/ring.txt, whose generator shares nothing with this code and
 * tells the format; and facts published with the programs that the profiles imitate.
 */
#include <ringhold/checksum.h>
#include <ringhold/ring.h>

#include "rh_test.h"

enum { LINE_BYTES = 8192, NODES = 128, TEXT_BYTES = 1024 };

struct pool {
    rh_ring_options options;
    rh_node nodes[NODES];
    char texts[NODES][2][64];
    size_t count;
    double loads[NODES];
    size_t counts_seen, loads_seen;
    rh_ring *ring; /* made by the first line that needs it */
};

static struct pool pool;
static size_t lines_seen;

/* Bytes from hexadecimal digits; "-" is none. */
static size_t from_hex(const char *hex, void *out)
{
    uint8_t *bytes = out;
    size_t count = strcmp(hex, "-") == 0 ? 0 : strlen(hex) / 2;

    for (size_t i = 0; i < count; i++) {
        char pair[3] = {hex[2 * i], hex[2 * i + 1], 0};

        bytes[i] = (uint8_t)strtoul(pair, NULL, 16);
    }
    return count;
}

static void start_pool(const char *rest)
{
    unsigned profile = 0;

    rh_ring_free(pool.ring);
    memset(&pool, 0, sizeof pool);
    CHECK_EQUAL(sscanf(rest, "%u %" SCNu32, &profile, &pool.options.vnodes), 2);
    pool.options.profile = (rh_ring_profile)profile;
}

static void add_node(const char *rest)
{
    char name[128], zone[128];
    rh_node *node = &pool.nodes[pool.count];

    CHECK_EQUAL(sscanf(rest, "%127s %lf %127s", name, &node->weight, zone), 3);
    node->name = pool.texts[pool.count][0];
    node->name_bytes = from_hex(name, pool.texts[pool.count][0]);
    if (strcmp(zone, "-") != 0) {
        node->zone = pool.texts[pool.count][1];
        node->zone_bytes = from_hex(zone, pool.texts[pool.count][1]);
    }
    pool.count++;
}

static void put_big_endian(uint8_t *out, uint64_t value)
{
    for (unsigned i = 0; i < 8; i++) {
        out[i] = (uint8_t)(value >> (56 - 8 * i));
    }
}

static void check_points(const char *rest)
{
    enum { POINT_BYTES = 20 };
    uint8_t expected[16], actual[16];
    rh_ring_points points = {0};
    char digest[64];
    size_t count = 0;
    uint8_t *packed;

    CHECK_EQUAL(sscanf(rest, "%zu %63s", &count, digest), 2);
    REQUIRE_OK(rh_ring_new(pool.nodes, pool.count, &pool.options, &pool.ring));
    CHECK_STATUS(rh_ring_get_points(pool.ring, &points), RH_OK);
    CHECK_EQUAL(points.count, count);
    packed = malloc(points.count * POINT_BYTES + 1);
    for (size_t i = 0; packed && i < points.count; i++) {
        uint8_t *point = packed + i * POINT_BYTES;

        put_big_endian(point, points.high[i]);
        put_big_endian(point + 8, points.low ? points.low[i] : 0);
        for (unsigned k = 0; k < 4; k++) {
            point[16 + k] = (uint8_t)(points.owners[i] >> (8 * k));
        }
    }
    CHECK_STATUS(rh_digest(packed, points.count * POINT_BYTES, actual), RH_OK);
    CHECK_EQUAL(from_hex(digest, expected), 16);
    CHECK(memcmp(actual, expected, 16) == 0);
    free(packed);
}

static void check_count(const char *rest)
{
    rh_ring_member member = {0};

    CHECK_STATUS(rh_ring_get_member(pool.ring, pool.counts_seen++, &member), RH_OK);
    CHECK_EQUAL(member.points, strtoull(rest, NULL, 10));
}

static void add_load(const char *rest)
{
    pool.loads[pool.loads_seen++] = strtod(rest, NULL);
}

static void check_replicas(rh_ring_position position, char *expected)
{
    uint32_t out[NODES] = {0};
    rh_ring_info info;
    size_t count = 0;

    CHECK_STATUS(rh_ring_get_info(pool.ring, &info), RH_OK);
    CHECK_STATUS(rh_ring_replicas(pool.ring, position, info.usable, NULL, out, NULL), RH_OK);
    for (char *at = strtok(expected, ","); at; at = strtok(NULL, ",")) {
        CHECK_EQUAL(out[count++], strtoul(at, NULL, 10));
    }
    CHECK_EQUAL(count, info.usable);
}

static void check_key(const char *rest)
{
    char hex[TEXT_BYTES], digits[33], list[TEXT_BYTES], half[17] = {0}, key[TEXT_BYTES];
    const void *keys[1] = {key};
    rh_ring_position position = {0};
    unsigned owner = 0, bounded = 0;
    size_t point = 0, found = 0, size;
    uint32_t out = NODES;

    CHECK_EQUAL(
        sscanf(rest, "%1023s %32s %zu %u %u %1023s", hex, digits, &point, &owner, &bounded, list),
        6);
    size = from_hex(hex, key);
    CHECK_STATUS(rh_ring_locate(pool.ring, key, size, &position), RH_OK);
    memcpy(half, digits, 16);
    CHECK_EQUAL(position.high, strtoull(half, NULL, 16));
    CHECK_EQUAL(position.low, strtoull(digits + 16, NULL, 16));
    CHECK_STATUS(rh_ring_find_point(pool.ring, position, &found), RH_OK);
    CHECK_EQUAL(found, point);
    CHECK_STATUS(rh_ring_lookup(pool.ring, key, size, &out), RH_OK);
    CHECK_EQUAL(out, owner);
    out = NODES;
    CHECK_STATUS(rh_ring_lookup_keys(pool.ring, keys, &size, 1, &out), RH_OK);
    CHECK_EQUAL(out, owner);
    CHECK_STATUS(rh_ring_lookup_bounded(pool.ring, position, pool.loads, 1.25, &out), RH_OK);
    CHECK_EQUAL(out, bounded);
    check_replicas(position, list);
}

static void check_hash(const char *rest)
{
    uint64_t hash = 0;
    unsigned owner = 0;
    uint32_t one = NODES, many = NODES;
    rh_ring_position position = {0};
    rh_ring_points points = {0};
    size_t found = 0;

    CHECK_EQUAL(sscanf(rest, "%" SCNu64 " %u", &hash, &owner), 2);
    CHECK_STATUS(rh_ring_lookup_hash(pool.ring, hash, &one), RH_OK);
    CHECK_STATUS(rh_ring_lookup_hashes(pool.ring, &hash, 1, &many), RH_OK);
    CHECK_EQUAL(one, owner);
    CHECK_EQUAL(many, owner);
    CHECK_STATUS(rh_ring_locate_hash(pool.ring, hash, &position), RH_OK);
    CHECK_STATUS(rh_ring_find_point(pool.ring, position, &found), RH_OK);
    CHECK_STATUS(rh_ring_get_points(pool.ring, &points), RH_OK);
    CHECK_EQUAL(points.owners[found], owner);
}

static void check_digest(const char *rest)
{
    char hex[64];
    uint8_t expected[RH_RING_DIGEST_BYTES], actual[RH_RING_DIGEST_BYTES];

    CHECK_EQUAL(sscanf(rest, "%63s", hex), 1);
    CHECK_EQUAL(from_hex(hex, expected), sizeof expected);
    CHECK_STATUS(rh_ring_digest(pool.ring, actual), RH_OK);
    CHECK(memcmp(actual, expected, sizeof actual) == 0);
}

static void check_dumps(const char *rest)
{
    static char hex[LINE_BYTES];
    static uint8_t expected[LINE_BYTES];
    rh_ring *again = NULL;
    void *data = NULL;
    size_t size = 0, wanted;

    CHECK_EQUAL(sscanf(rest, "%8191s", hex), 1);
    wanted = from_hex(hex, expected);
    REQUIRE_OK(rh_ring_dumps(pool.ring, &data, &size));
    CHECK_EQUAL(size, wanted);
    CHECK(size == wanted && memcmp(data, expected, size) == 0);
    CHECK_STATUS(rh_ring_loads(expected, wanted, &again), RH_OK);
    rh_ring_free(again);
    rh_free(data);
}

static void check_equal_weights(const char *rest)
{
    unsigned profile = 0;
    size_t count = 0, points = 0;

    CHECK_EQUAL(sscanf(rest, "%u %zu %zu", &profile, &count, &points), 3);
    start_pool("0 160");
    pool.options.profile = (rh_ring_profile)profile;
    for (size_t i = 0; i < count; i++) {
        snprintf(pool.texts[i][0], sizeof pool.texts[i][0], "s%zu", i);
        pool.nodes[i] = (rh_node){pool.texts[i][0], strlen(pool.texts[i][0]), NULL, 0, 1};
    }
    REQUIRE_OK(rh_ring_new(pool.nodes, count, &pool.options, &pool.ring));
    for (size_t i = 0; i < count; i++) {
        rh_ring_member member = {0};

        CHECK_STATUS(rh_ring_get_member(pool.ring, i, &member), RH_OK);
        CHECK_EQUAL(member.points, points);
    }
}

static void the_golden_vectors_hold(void)
{
    static const struct {
        const char *word;
        void (*check)(const char *rest);
    } kinds[] = {{"pool ", start_pool},     {"node ", add_node},
                 {"points ", check_points}, {"count ", check_count},
                 {"load ", add_load},       {"key ", check_key},
                 {"hash ", check_hash},     {"digest ", check_digest},
                 {"dumps ", check_dumps},   {"equal ", check_equal_weights}};
    static char line[LINE_BYTES];
    FILE *file = fopen(RINGHOLD_GOLDEN, "r");
    int failures = rh_test_failures;

    CHECK(file != NULL);
    while (file && fgets(line, sizeof line, file)) {
        bool known = false;

        for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
            size_t bytes = strlen(kinds[i].word);

            if (strncmp(line, kinds[i].word, bytes) == 0) {
                kinds[i].check(line + bytes);
                known = true;
            }
        }
        CHECK(known);
        lines_seen++;
        if (rh_test_failures > failures) {
            fprintf(stderr, "at line %zu: %.60s\n", lines_seen, line);
            failures = rh_test_failures;
        }
    }
    CHECK(lines_seen > 2000);
    if (file) {
        fclose(file);
    }
    rh_ring_free(pool.ring);
    pool.ring = NULL;
}

/* libmemcached's own test of ketama. */
static void libmemcacheds_pool_has_its_published_points(void)
{
    static const double weights[] = {600, 300, 200, 350, 1000, 800, 950, 100};
    static const size_t expected[] = {176, 88, 56, 104, 296, 236, 280, 28};
    static const char key[] = "VDEAAAAA";
    char names[8][16];
    rh_node nodes[8] = {{0}};
    rh_ring_options options = {.profile = RH_RING_LIBMEMCACHED};
    rh_ring_position position = {0};
    rh_ring_points points = {0};
    rh_ring *ring = NULL;
    size_t found = 9;

    for (unsigned i = 0; i < 8; i++) {
        snprintf(names[i], sizeof names[i], "10.0.1.%u:11211", i + 1);
        nodes[i] = (rh_node){names[i], strlen(names[i]), NULL, 0, weights[i]};
    }
    REQUIRE_OK(rh_ring_new(nodes, 8, &options, &ring));
    for (size_t i = 0; i < 8; i++) {
        rh_ring_member member = {0};

        CHECK_STATUS(rh_ring_get_member(ring, i, &member), RH_OK);
        CHECK_EQUAL(member.points, expected[i]);
    }
    CHECK_STATUS(rh_ring_get_points(ring, &points), RH_OK);
    CHECK_EQUAL(points.count, 1264);
    CHECK_EQUAL(points.high[0] >> 32, 2148620);
    CHECK_STATUS(rh_ring_locate(ring, key, strlen(key), &position), RH_OK);
    CHECK_EQUAL(position.high >> 32, 0xfffcd1b5);
    CHECK_STATUS(rh_ring_find_point(ring, position, &found), RH_OK);
    CHECK_EQUAL(found, 0);
    rh_ring_free(ring);
}

int main(void)
{
    RUN(the_golden_vectors_hold);
    RUN(libmemcacheds_pool_has_its_published_points);
    return rh_test_result();
}
