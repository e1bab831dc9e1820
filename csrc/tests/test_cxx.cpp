// Goal: the public headers compile and link as C++ under strict warnings.
#include <ringhold/ringhold.h>

#include <cstdint>
#include <cstdio>

int main()
{
    rh_node node{};
    node.name = "a";
    node.name_bytes = 1;
    node.weight = 1.0;

    rh_ring *ring = nullptr;
    std::uint32_t owner = 1;
    bool right = rh_ring_new(&node, 1, nullptr, &ring) == RH_OK &&
                 rh_ring_lookup(ring, "key", 3, &owner) == RH_OK && owner == 0;
    rh_ring_free(ring);

    std::uint64_t sum = 0;
    right = right && rh_checksum("ringhold", 8, &sum) == RH_OK && sum == 0x5b3028cffda9371cu;
    std::printf("ringhold %d.%d.%d\n", RH_VERSION_MAJOR, RH_VERSION_MINOR, RH_VERSION_PATCH);
    return right ? 0 : 1;
}
