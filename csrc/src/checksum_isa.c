/* Compiled once per instruction set: RINGHOLD_ISA is its name, the compiler's flags choose it. */
#include "checksum_isa.h"

#include <string.h>
#if defined(__SSE2__)
#  include <immintrin.h>
#endif

#include "xxh3.h"

#define JOIN_NAMES(a, b) a##_##b
#define JOIN(a, b) JOIN_NAMES(a, b)

static uint64_t checksum64(const void *data, size_t size)
{
    return XXH3_64bits(data, size);
}

static struct digest_halves checksum128(const void *data, size_t size)
{
    XXH128_hash_t hash = XXH3_128bits(data, size);
    struct digest_halves halves = {hash.high64, hash.low64};

    return halves;
}

static void update(void *state, const void *data, size_t size)
{
    (void)XXH3_128bits_update(state, data, size); /* fails for no state only */
}

/*
 * Copying and checksumming in one pass. A stripe is hashed, which brings it into the first
 * cache, and is stored from there. A store usually reads the line it writes to, so a copy moves
 * three bytes over the bus for each; stores past the caches move two, but must fill whole lines.
 * Hence the copy follows the hashing and stops at the last line of `dst` that is complete. While
 * it waits for the bus, the next stripe is asked for.
 */
enum { LINE_BYTES = 64, STRIPE_BYTES = 4096 };

struct copying {
    uint8_t *dst;
    const uint8_t *src;
    size_t hashed;
    size_t copied;
};

static void copy_to(struct copying *c, size_t end)
{
    if (c->copied < end) {
        memcpy(c->dst + c->copied, c->src + c->copied, end - c->copied);
        c->copied = end;
    }
}

#if defined(__SSE2__)
static void stream_line(uint8_t *to, const uint8_t *from)
{
#  if defined(__AVX__)
    __m256i low = _mm256_loadu_si256((const void *)from);
    __m256i high = _mm256_loadu_si256((const void *)(from + 32));

    _mm256_stream_si256((void *)to, low);
    _mm256_stream_si256((void *)(to + 32), high);
#  else
    for (int i = 0; i < LINE_BYTES; i += 16) {
        _mm_stream_si128((void *)(to + i), _mm_loadu_si128((const void *)(from + i)));
    }
#  endif
}

static void stream_lines(struct copying *c)
{
    size_t end = c->hashed - ((uintptr_t)c->dst + c->hashed) % LINE_BYTES;

    for (; c->copied < end; c->copied += LINE_BYTES) {
        const uint8_t *from = c->src + c->copied;

        /* A number, as this address may lie beyond the data; asking for it does no harm. */
        _mm_prefetch((const char *)((uintptr_t)from + STRIPE_BYTES), _MM_HINT_T0);
        stream_line(c->dst + c->copied, from);
    }
}
#else
#  define stream_lines(c) copy_to(c, (c)->hashed)
#endif

static void was_hashed(struct copying *c, size_t bytes)
{
    c->hashed += bytes;
    if (c->hashed >= c->copied + STRIPE_BYTES) {
        stream_lines(c);
    }
}

static uint64_t hash_long(struct copying *c, XXH3_state_t *state, size_t size)
{
    (void)XXH3_64bits_reset(state);
    while (size > 0) {
        size_t part = size < STRIPE_BYTES ? size : STRIPE_BYTES;

        (void)XXH3_64bits_update(state, c->src + c->hashed, part);
        was_hashed(c, part);
        size -= part;
    }
    return XXH3_64bits_digest(state);
}

static void copy_blocks(uint8_t *dst, const uint8_t *src, size_t size, size_t block_bytes,
                        uint64_t *out)
{
    struct copying c = {dst, src, 0, 0};
    size_t head = (LINE_BYTES - (uintptr_t)dst % LINE_BYTES) % LINE_BYTES;
    XXH3_state_t state;

    XXH3_INITSTATE(&state);
    copy_to(&c, head < size ? head : size);
    while (c.hashed < size) {
        size_t block = size - c.hashed < block_bytes ? size - c.hashed : block_bytes;

        if (block <= STRIPE_BYTES) {
            *out++ = XXH3_64bits(src + c.hashed, block);
            was_hashed(&c, block);
        } else {
            *out++ = hash_long(&c, &state, block);
        }
    }
    copy_to(&c, size);
#if defined(__SSE2__)
    _mm_sfence(); /* stores past the caches keep no order with later ones by themselves */
#endif
}

const struct rh_isa JOIN(rh_isa, RINGHOLD_ISA) = {checksum64, checksum128, update, copy_blocks};
