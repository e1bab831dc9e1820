/*
 * Goal: rh_ring_loads takes what rh_ring_dumps wrote and refuses everything else.
 * Method: the input is read as it is, and once more under a seal that fits, which no fuzzer would
 * find by itself. What is accepted must be written as the very same bytes and be a ring.
 */
#include "ring_promises.h"

static void load(const uint8_t *data, size_t size)
{
    struct fuzz_input keys = {data, size};
    rh_ring *ring = NULL;
    void *written = NULL;
    size_t written_bytes = 0;
    rh_status status = rh_ring_loads(data, size, &ring);

    PROMISE((status == RH_OK) == (ring != NULL));
    if (ring == NULL) {
        PROMISE(status == RH_CORRUPT || status == RH_NO_MEMORY);
        return;
    }
    PROMISE(rh_ring_dumps(ring, &written, &written_bytes) == RH_OK);
    PROMISE(written_bytes == size && memcmp(written, data, size) == 0);
    rh_free(written);
    ring_promises(ring, &keys);
    rh_ring_free(ring);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *sealed = malloc(size + RH_DIGEST_BYTES);

    PROMISE(sealed != NULL);
    load(data, size);
    if (size > 0) {
        memcpy(sealed, data, size);
    }
    PROMISE(rh_digest(data, size, sealed + size) == RH_OK);
    load(sealed, size + RH_DIGEST_BYTES);
    free(sealed);
    return 0;
}
