/* The state of XXH3 is the stream: its alignment is more than malloc's, so xxHash allocates it. */
#include <ringhold/checksum.h>

#include <string.h>

#include "checksum_isa.h"
#include "xxh3.h"

static XXH3_state_t *state_of(rh_digest_stream *stream)
{
    return (void *)stream;
}

static const XXH3_state_t *const_state_of(const rh_digest_stream *stream)
{
    return (const void *)stream;
}

rh_status rh_digest_stream_new(rh_digest_stream **out)
{
    XXH3_state_t *state;

    if (out == NULL) {
        return RH_INVALID_ARGUMENT;
    }
    state = XXH3_createState();
    if (state == NULL) {
        return RH_NO_MEMORY;
    }
    (void)XXH3_128bits_reset(state);
    *out = (void *)state;
    return RH_OK;
}

rh_status rh_digest_stream_copy(const rh_digest_stream *stream, rh_digest_stream **out)
{
    XXH3_state_t *state;

    if (stream == NULL || out == NULL) {
        return RH_INVALID_ARGUMENT;
    }
    state = XXH3_createState();
    if (state == NULL) {
        return RH_NO_MEMORY;
    }
    XXH3_copyState(state, const_state_of(stream));
    *out = (void *)state;
    return RH_OK;
}

void rh_digest_stream_free(rh_digest_stream *stream)
{
    (void)XXH3_freeState(state_of(stream));
}

rh_status rh_digest_stream_update(rh_digest_stream *stream, const void *data, size_t size)
{
    if (stream == NULL || (data == NULL && size > 0)) {
        return RH_INVALID_ARGUMENT;
    }
    if (size > 0) {
        rh_isa_best()->update(state_of(stream), data, size);
    }
    return RH_OK;
}

rh_status rh_digest_stream_value(const rh_digest_stream *stream, uint8_t out[RH_DIGEST_BYTES])
{
    XXH128_canonical_t canonical;

    if (stream == NULL || out == NULL) {
        return RH_INVALID_ARGUMENT;
    }
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(const_state_of(stream)));
    memcpy(out, canonical.digest, RH_DIGEST_BYTES);
    return RH_OK;
}
