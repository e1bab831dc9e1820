/* Places a key and checksums it; prints the owner, the checksum and the version. */
#include <inttypes.h>
#include <stdio.h>

#include <ringhold/ringhold.h>

int main(void)
{
    const rh_node nodes[] = {{.name = "a", .name_bytes = 1, .weight = 1},
                             {.name = "b", .name_bytes = 1, .weight = 1}};
    rh_ring *ring = NULL;
    uint32_t owner = 0;
    uint64_t sum = 0;

    if (rh_api_version() != RH_API_VERSION || rh_ring_new(nodes, 2, NULL, &ring) != RH_OK ||
        rh_ring_lookup(ring, "key", 3, &owner) != RH_OK || rh_checksum("key", 3, &sum) != RH_OK) {
        return 1;
    }
    rh_ring_free(ring);
    printf("%s %016" PRIx64 " %d.%d.%d\n", (const char *)nodes[owner].name, sum, RH_VERSION_MAJOR,
           RH_VERSION_MINOR, RH_VERSION_PATCH);
    return 0;
}
