/*
 * Goal: rh_layout_loads takes what rh_layout_dumps wrote and refuses everything else.
 * Method: the input is read as it is, and once more under a seal that fits. What is accepted must
 * be written as the very same bytes, hold each partition on distinct usable nodes, and can be
 * rebalanced: onto its own nodes without moving anything.
 */
#include <ringhold/layout.h>

#include "fuzz.h"

static void table_promises(const rh_layout *layout, const rh_layout_info *info)
{
    uint32_t *owners = calloc(info->replicas, sizeof *owners);
    uint32_t *copies = calloc(info->nodes, sizeof *copies);

    PROMISE(owners && copies);
    for (uint32_t partition = 0; partition < info->partitions; partition++) {
        PROMISE(rh_layout_nodes(layout, partition, owners) == RH_OK);
        for (uint32_t i = 0; i < info->replicas; i++) {
            PROMISE(owners[i] < info->nodes);
            copies[owners[i]]++;
            for (uint32_t k = 0; k < i; k++) {
                PROMISE(owners[k] != owners[i]);
            }
        }
    }
    PROMISE(rh_layout_nodes(layout, info->partitions, owners) == RH_INVALID_ARGUMENT);
    for (size_t i = 0; i < info->nodes; i++) {
        rh_layout_member member;
        uint32_t number = UINT32_MAX;

        PROMISE(rh_layout_get_member(layout, i, &member) == RH_OK);
        PROMISE(member.copies == copies[i]);
        PROMISE(member.node.weight > 0 || copies[i] == 0);
        PROMISE(rh_layout_find(layout, member.node.name, member.node.name_bytes, &number) == RH_OK);
        PROMISE(number == i);
    }
    free(copies);
    free(owners);
}

static void rebalance_promises(const rh_layout *layout, const rh_layout_info *info)
{
    rh_node *nodes = calloc(info->nodes, sizeof *nodes);
    rh_layout_plan plan = {0};
    rh_layout_info next;

    PROMISE(nodes != NULL);
    for (size_t i = 0; i < info->nodes; i++) {
        rh_layout_member member;

        PROMISE(rh_layout_get_member(layout, i, &member) == RH_OK);
        nodes[i] = member.node;
    }
    PROMISE(rh_layout_rebalance(layout, nodes, info->nodes, &plan) == RH_OK);
    PROMISE(plan.moved == 0 && plan.lower_bound == 0);
    PROMISE(rh_layout_get_info(plan.layout, &next) == RH_OK && next.epoch == info->epoch + 1);
    rh_free(plan.moves);
    rh_layout_free(plan.layout);
    free(nodes);
}

static void load(const uint8_t *data, size_t size)
{
    rh_layout *layout = NULL;
    rh_layout_info info;
    void *written = NULL;
    size_t written_bytes = 0;
    rh_status status = rh_layout_loads(data, size, &layout);

    PROMISE((status == RH_OK) == (layout != NULL));
    if (layout == NULL) {
        PROMISE(status == RH_CORRUPT || status == RH_NO_MEMORY);
        return;
    }
    PROMISE(rh_layout_dumps(layout, &written, &written_bytes) == RH_OK);
    PROMISE(written_bytes == size && memcmp(written, data, size) == 0);
    PROMISE(rh_layout_get_info(layout, &info) == RH_OK);
    table_promises(layout, &info);
    rebalance_promises(layout, &info);
    rh_free(written);
    rh_layout_free(layout);
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
