#include <math.h>
#include <string.h>

#include "node.h"

int rh_compare_bytes(const void *a, size_t a_bytes, const void *b, size_t b_bytes)
{
    size_t common = a_bytes < b_bytes ? a_bytes : b_bytes;
    int order = common > 0 ? memcmp(a, b, common) : 0;

    return order != 0 ? order : (a_bytes > b_bytes) - (a_bytes < b_bytes);
}

bool rh_node_is_sound(const rh_node *node)
{
    return (node->name != NULL || node->name_bytes == 0) &&
           (node->zone != NULL || node->zone_bytes == 0) && isfinite(node->weight) &&
           node->weight >= 0;
}

bool rh_nodes_ascend(const rh_node *nodes, size_t count)
{
    for (size_t i = 1; i < count; i++) {
        if (rh_compare_bytes(nodes[i - 1].name, nodes[i - 1].name_bytes, nodes[i].name,
                             nodes[i].name_bytes) >= 0) {
            return false;
        }
    }
    return true;
}
