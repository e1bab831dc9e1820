// The same as program.c in C++17, with the ring owned by a smart pointer.
#include <array>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string_view>

#include <ringhold/ringhold.h>

struct ring_free {
    void operator()(rh_ring *ring) const { rh_ring_free(ring); }
};

int main()
{
    constexpr std::string_view key = "key";
    const std::array<rh_node, 2> nodes{{{"a", 1, nullptr, 0, 1.0}, {"b", 1, nullptr, 0, 1.0}}};
    rh_ring *made = nullptr;
    if (rh_ring_new(nodes.data(), nodes.size(), nullptr, &made) != RH_OK) {
        return 1;
    }
    const std::unique_ptr<rh_ring, ring_free> ring{made};
    std::uint32_t owner = 0;
    std::uint64_t sum = 0;
    if (rh_ring_lookup(ring.get(), key.data(), key.size(), &owner) != RH_OK ||
        rh_checksum(key.data(), key.size(), &sum) != RH_OK) {
        return 1;
    }
    std::printf("%s %016llx %d.%d.%d\n", static_cast<const char *>(nodes.at(owner).name),
                static_cast<unsigned long long>(sum), RH_VERSION_MAJOR, RH_VERSION_MINOR,
                RH_VERSION_PATCH);
    return 0;
}
